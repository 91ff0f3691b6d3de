"""What the groups do: AP of each, matches, stability, curves of runs, pictures, the report."""
