"""Native code that calls Python back, and interruptions."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from mra_export.engine.native_call import in_thread


def test_a_call_in_its_thread_gives_what_it_gives() -> None:
    assert in_thread(lambda: b"engine", cancel=lambda: pytest.fail("cancelled")) == b"engine"
    with pytest.raises(OSError, match="no cache"):
        in_thread(lambda: (_ for _ in ()).throw(OSError("no cache")), cancel=lambda: None)


def test_interruptions_wait_until_the_call_has_ended() -> None:
    """The first cancels it; those that come while it ends leave no thread behind in native code."""
    ended = threading.Event()
    cancelled: list[str] = []

    def call() -> bytes:
        assert threading.current_thread() is not threading.main_thread()
        signal.raise_signal(signal.SIGINT)
        while not cancelled:
            time.sleep(0.001)
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.1)
        ended.set()
        return b""

    with pytest.raises(KeyboardInterrupt):
        in_thread(call, cancel=lambda: cancelled.append("cancelled"))
    assert ended.is_set()
    assert set(cancelled) == {"cancelled"}
