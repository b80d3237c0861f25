"""The native libraries: found, and compiled where they are missing. The standard library is all that this needs."""
