"""A process of its own for what holds the GPU: where a kernel hangs or kills it, one task is lost and another process goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gpu.plan import Clock
from gpu.report import Report

AGAIN = 75  # a worker's exit code: go on in a new process
MOST_STOPS = 6
GRACE_S = 15.0  # after the end of the time, for what is under way


def supervise(
    command: Callable[[], Sequence[str]],
    report: Report,
    clock: Clock,
    limits: Mapping[str, float],
    *,
    usual_limit_s: float = 90.0,
    poll_s: float = 0.25,
) -> None:
    """Starts the worker until it ends well; a task that it dies in, or makes no progress in, is failed and not tried again.

    Args:
        command: makes the worker's command; it reads and writes the report's file.
        report: has a path.
        clock: ends the worker GRACE_S after its end.
        limits: seconds without progress that are granted to a task; `usual_limit_s` to others and to the start.
        usual_limit_s: see `limits`.
        poll_s: how often to look.
    """
    stops = 0
    while clock.left > 0:
        before = len(report.data["tasks"])
        # A group of its own, so that its children, as of a compiler, end with it; of our session, so that it ends with us.
        process = subprocess.Popen(command(), stdin=subprocess.DEVNULL, process_group=0)
        try:
            reason = _watch(process, report, clock, limits, usual_limit_s, poll_s)
        finally:
            _end(process)
        report.reload()
        if reason is None and process.returncode == 0:
            return
        if process.returncode == AGAIN and len(report.data["tasks"]) > before:
            continue
        if report.abandon(reason or _ending(process.returncode)) is None:
            report.add(
                "measuring process", "FAILED", f"{reason or _ending(process.returncode)}, while no task was under way"
            )
            return
        stops += 1
        if stops == MOST_STOPS:
            report.add("measuring process", "FAILED", f"ended {stops} times before its end; no other one was started")
            return


def _watch(
    process: subprocess.Popen[bytes],
    report: Report,
    clock: Clock,
    limits: Mapping[str, float],
    usual_limit_s: float,
    poll_s: float,
) -> str | None:
    """Why the process is to be ended; None where it ended by itself."""
    assert report.path is not None
    seen, since = _changed(report.path), time.monotonic()
    limit = usual_limit_s
    while True:
        try:
            process.wait(poll_s)
            return None
        except subprocess.TimeoutExpired:
            pass
        if (now := _changed(report.path)) != seen:
            seen, since = now, time.monotonic()
            report.reload()
            running = (task for task, state in report.data["tasks"].items() if state == "running")
            limit = limits.get(next(running, ""), usual_limit_s)
        if time.monotonic() - since > limit:
            return f"no result for {limit:.0f} s; its process was ended"
        if clock.left < -GRACE_S:
            return "the time was over (--minutes); its process was ended"


def _changed(path: Path) -> tuple[int, int]:
    """Another value after each writing: every time it is another file."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _ending(code: int) -> str:
    return f"its process ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process, and what it started, where it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
