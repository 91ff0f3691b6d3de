"""Runs: config, runner, dry run, progress."""
