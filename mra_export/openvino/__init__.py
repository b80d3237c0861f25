"""OpenVINO, the second engine for CPUs: its runtime with our extension, and files in its own format."""
