"""Calls timed in turns, by the clock and by the processor time that they use."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Turn", "in_turns", "take_turns"]

_QUIET = 0.05  # cores that other programs may use


@dataclass(frozen=True)
class Turn:
    """One call, once.

    Attributes:
        wall_ms: by the clock.
        cpu_ms: of all threads of this process; what they spend after the call, waiting for the next, is not in it.
    """

    wall_ms: float
    cpu_ms: float


def take_turns(runs: dict[str, Callable[[], Any]], seconds: float, at_least: int = 5) -> dict[str, list[Turn]]:
    """Times calls in turns, so that what else the machine does falls on all of them.

    Before each there is a pause: the threads of the one before spin for a while and would take its cores. Turns in which other
    programs used more than a twentieth of a core are left out; where too few would be left, time is added, up to twice
    `seconds`, and then the least disturbed are taken.

    Args:
        runs: name -> call.
        seconds: how long to go on.
        at_least: turns, however long they take.

    Returns:
        Name -> its turns, of which those at the same place were one after the other.
    """
    turns: list[tuple[float, dict[str, Turn]]] = []  # cores that others used, and each call
    for run in runs.values():
        run()  # ONNX Runtime lays out its memory after the first call, and gets the pages of the new layout in the second
    last = {name: _timed(run) for name, run in runs.items()}
    started = time.monotonic()
    while True:
        quiet = sum(others <= _QUIET for others, _ in turns)
        spent = time.monotonic() - started
        if len(turns) >= at_least and ((spent >= seconds and quiet >= at_least) or spent >= 2 * seconds):
            break
        begin, busy, own = time.monotonic(), _busy_seconds(), time.process_time()
        for name, run in runs.items():
            time.sleep(0.01)
            if last[name].wall_ms < 50:
                run()  # wakes its threads and fills the caches
            last[name] = _timed(run)
        others = (_busy_seconds() - busy - (time.process_time() - own)) / (time.monotonic() - begin)
        turns.append((others, dict(last)))
    turns.sort(key=lambda turn: turn[0])
    kept = max(quiet, at_least)
    return {name: [each[name] for _, each in turns[:kept]] for name in runs}


def _timed(run: Callable[[], Any]) -> Turn:
    began, used = time.perf_counter(), time.process_time()
    run()
    return Turn((time.perf_counter() - began) * 1e3, (time.process_time() - used) * 1e3)


def in_turns(runs: dict[str, Callable[[], Any]], seconds: float, at_least: int = 5) -> dict[str, list[float]]:
    """As `take_turns`, by the clock alone: name -> milliseconds of each turn."""
    return {name: [turn.wall_ms for turn in turns] for name, turns in take_turns(runs, seconds, at_least).items()}


def _busy_seconds() -> float:
    """Processor time that all programs of the machine have used; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
