"""The command line: parses and prints; the verbs are in `pipeline`."""

from mra_export.cli.app import cli, main

__all__ = ["cli", "main"]
