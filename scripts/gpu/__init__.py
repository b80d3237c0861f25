"""The parts of scripts/gpu_check.py, each of which can be read, and mostly be tested, without a GPU."""
