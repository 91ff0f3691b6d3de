"""A run of the commands: its config, its runner, its cost, its progress."""
