"""A trained detector at work: inference on folders of images, and ONNX.

One group of queries is left, and nothing of the training.
"""
