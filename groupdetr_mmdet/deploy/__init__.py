"""A trained detector at work, by one group of queries: inference on folders, and ONNX."""
