"""The errors that reach a user: one message each, and the exit code of the command that met it."""

from __future__ import annotations

import re

__all__ = ["DependencyError", "InputError", "MraExportError", "ParityError", "escaped", "is_out_of_memory"]


def escaped(text: str, keep: str = "\n") -> str:
    r"""Text for a terminal: what is not printable, but the characters to keep, as \x1b, \u202e or \U000e0041."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class MraExportError(Exception):
    """A failure whose text says what is wrong with the values and what to do.

    The command line prints the text as it is, without a traceback, and ends with `exit_code`. What the text quotes of files and
    names cannot steer a terminal: control characters but the end of a line are escaped.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(escaped(each) if isinstance(each, str) else each for each in arguments))


class InputError(MraExportError):
    """Bad usage or bad input: a file, a configuration, an option or a value."""

    exit_code = 2


class ParityError(MraExportError):
    """The exported model does not compute what the PyTorch model computes, or its type does not hold its tensors."""

    exit_code = 3


class DependencyError(MraExportError):
    """Something of the environment is missing or too old: a library, a compiler, a GPU, memory."""

    exit_code = 4


_NO_MEMORY = re.compile(
    r"failed to allocate memory|bad_alloc|bad allocation|can.?t allocate memory|cannot allocate memory|out of memory",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory: Python's own, ONNX Runtime's, torch's, the system's."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))
