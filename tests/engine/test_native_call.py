"""Native code that calls Python back, and interruptions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mra_export.engine.native_call import in_thread

INTERRUPTED_TWICE = """
import signal, threading, time
from mra_export.engine.native_call import in_thread

ended = threading.Event()
cancelled = []

def call():
    assert threading.current_thread() is not threading.main_thread()
    signal.raise_signal(signal.SIGINT)
    while not cancelled:
        time.sleep(0.001)
    signal.raise_signal(signal.SIGINT)
    time.sleep(0.1)
    ended.set()

signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    in_thread(call, cancel=lambda: cancelled.append("cancelled"))
except KeyboardInterrupt:
    print("interrupted,", "ended" if ended.is_set() else "left behind,", *set(cancelled))
"""


def test_a_call_in_its_thread_gives_what_it_gives() -> None:
    assert in_thread(lambda: b"engine", cancel=lambda: pytest.fail("cancelled")) == b"engine"
    with pytest.raises(OSError, match="no cache"):
        in_thread(lambda: (_ for _ in ()).throw(OSError("no cache")), cancel=lambda: None)


def test_interruptions_wait_until_the_call_has_ended() -> None:
    """The first cancels it; those that come while it ends leave no thread behind in native code."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted, ended cancelled\n"), done.stderr
