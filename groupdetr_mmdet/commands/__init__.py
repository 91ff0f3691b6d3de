"""Commands: a module for each `groupdetr COMMAND`, which `tools/*.py` run, too.

A command parses arguments and calls the other subpackages.
"""
