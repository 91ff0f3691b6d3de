"""Weights in, weights out, runs that are continued; no file's code is run, see `reading.py`."""
