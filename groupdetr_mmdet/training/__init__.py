"""A training as the commands run it: its config, its runner, what it takes, how far it is."""
