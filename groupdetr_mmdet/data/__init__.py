"""What is installed and what comes in: libraries, configs, files, images and annotations.

Checks here turn a mistake into one sentence before it costs time.
"""
