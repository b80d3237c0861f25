"""Calls of native code that calls Python back, kept from interruptions."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_thread"]

T = TypeVar("T")


def in_thread(run: Callable[[], T], *, cancel: Callable[[], None] = lambda: None) -> T:
    """What a call gives that must not meet an interruption.

    Python's signal handlers run in the main thread, and the exception of one is lost where native code has called Python back:
    TensorRT says what was raised and goes on. So the call has a thread of its own, and the main thread waits for it.

    Args:
        run: the call.
        cancel: makes it end early; called where the wait is interrupted. The interruption goes on when the call has ended.
    """
    done: Future[T] = Future()
    begun = threading.Event()
    ended = threading.Event()  # a join that was interrupted takes a thread for ended that is not

    def work() -> None:
        begun.wait()
        try:
            done.set_result(run())
        except BaseException as error:
            done.set_exception(error)
        ended.set()

    def end() -> None:
        cancel()
        begun.set()
        _await(ended)

    threading.Thread(target=work, name="native-call", daemon=True).start()  # interrupted, it leaves a thread that waits
    try:
        begun.set()
        _await(ended)
    except BaseException:
        _insist(end)
        raise
    return done.result()


def _insist(call: Callable[[], None]) -> None:
    """Calls until no interruption comes: the thread is not left behind in native code."""
    try:
        call()
    except KeyboardInterrupt:
        _insist(call)


def _await(event: threading.Event) -> None:
    """Waits, and looks for signals meanwhile: one that the system gave to another thread does not end a wait."""
    while not event.wait(0.1):
        pass
