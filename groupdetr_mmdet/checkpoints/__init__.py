"""Weights in, weights out, and runs that are continued.

Every file is read by `loading.py`, which runs no code of the file's maker.
"""
