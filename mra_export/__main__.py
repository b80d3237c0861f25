"""`python -m mra_export` is `mra-export`."""

from mra_export.cli import main

main()
