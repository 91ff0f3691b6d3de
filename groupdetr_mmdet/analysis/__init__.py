"""Analysis: AP of each group, matches, stability, curves of runs, pictures, the report."""
