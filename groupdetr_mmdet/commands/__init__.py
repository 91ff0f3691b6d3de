"""What `groupdetr COMMAND` and `tools/*.py` run, one module for each command.

A command reads its arguments and calls the library; the work is done in the other rooms.
"""
