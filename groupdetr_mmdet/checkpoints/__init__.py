"""Weights in, weights out, and runs that are continued.

Every file is read by `reading.py`, which runs no code of the file's maker.
"""
