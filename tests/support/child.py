"""Runs a function in a process of its own, where it may crash."""

from __future__ import annotations

import faulthandler
import os
import resource
import tempfile
import traceback
from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """How a child ended: its exit status, negative for a signal, and what it wrote to its standard error."""

    status: int
    errors: str


def in_child(function: Callable[[], object]) -> Outcome:
    """Calls `function` in a fork of this process: status 0 where it returns, 1 and a traceback where it raises."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                faulthandler.disable()  # pytest's: a crash is an outcome here
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                os.dup2(errors.fileno(), 2)
                try:
                    function()
                    status = 0
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        errors.seek(0)
        return Outcome(os.waitstatus_to_exitcode(ended), errors.read().decode(errors="replace"))
