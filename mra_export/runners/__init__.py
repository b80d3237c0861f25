"""One interface to every way of running the model."""
