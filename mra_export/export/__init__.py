"""Checkpoint -> ONNX file, and what is known of one."""
