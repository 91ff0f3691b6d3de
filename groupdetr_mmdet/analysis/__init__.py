"""What the groups do: AP of each, matches, stability, curves of runs, pictures, the report.

It reads trained detectors and logs, and changes neither.
"""
