"""The errors that reach a user: one message each, and the exit code of the command that met it."""

from __future__ import annotations

__all__ = ["DependencyError", "InputError", "MraExportError", "ParityError"]


class MraExportError(Exception):
    """A failure whose text says what is wrong with the values and what to do.

    The command line prints the text as it is, without a traceback, and ends with `exit_code`.
    """

    exit_code = 1


class InputError(MraExportError):
    """Bad usage or bad input: a file, a configuration, an option or a value."""

    exit_code = 2


class ParityError(MraExportError):
    """The exported model does not compute what the PyTorch model computes."""

    exit_code = 3


class DependencyError(MraExportError):
    """Something of the environment is missing: a library, a compiler, a GPU."""

    exit_code = 4
