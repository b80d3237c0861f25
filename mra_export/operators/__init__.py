"""The operators: each one's definition, reference, ONNX form and judge, in a folder of its own."""
