"""Bulk embedding: texts of a file to vectors with a bundle, resumable, here or on Ray."""
