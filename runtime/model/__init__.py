"""Graphs on ONNX Runtime, and models with a cache of committed rows."""
