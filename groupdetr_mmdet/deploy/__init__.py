"""Inference on folders, and export to ONNX."""
