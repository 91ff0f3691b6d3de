"""A training as the commands run it: its config, its runner, what it will take, how far it is.

It joins what the rooms `host/` and `checkpoints/` check and keep.
"""
