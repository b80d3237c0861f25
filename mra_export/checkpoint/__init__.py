"""Checkpoints: what is in their files, and the models made of them."""
