"""The tasks, what they take, and how they are worked through: nothing begins that would not end in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu.report import Report

PARTS = ("figures", "tests", "sanitizers", "plugin", "counters")

# What a ten-minute loan of a GPU is spent on, one command each; see docs/benchmarks/cuda.md.
COMMANDS = {
    "figures": ("figures",),
    "proofs": ("tests", "sanitizers"),
    "counters": ("plugin", "counters"),
}


@dataclass(frozen=True)
class Task:
    """One thing to do, which ends in a row or a step of the report.

    Attributes:
        name: unlike that of any other task; a report knows by it what is through.
        part: one of PARTS, or "build".
        seconds: what it takes on an H100 with 16 processor cores, estimated until it was seen there.
        run: does it; takes a Session, or in the measuring process a Bench.
        profiled: whether a profiler is in the process afterwards, so that nothing else is to be timed in it.
    """

    name: str
    part: str
    seconds: float
    run: Callable[[Any], None]
    profiled: bool = False


@dataclass
class Clock:
    """Time since the begin, and until the end."""

    minutes: float
    began: float

    @classmethod
    def of(cls, minutes: float) -> Clock:
        """One that begins now."""
        return cls(minutes, time.monotonic())

    @property
    def left(self) -> float:
        """Seconds."""
        return self.minutes * 60 - (time.monotonic() - self.began)


def work_through(tasks: Iterable[Task], context: Any, report: Report, clock: Clock) -> None:
    """Runs what the report does not know yet, in order, as far as the time goes; what fails costs nothing else.

    A task that would not end in time is left out, and shorter ones after it are not.
    """
    for task in tasks:
        if task.name not in report.data["tasks"] and task.seconds <= clock.left:
            with report.doing(task.name):
                task.run(context)


def plan_lines(tasks: Iterable[Task], minutes: float, known: Iterable[str] = ()) -> list[str]:
    """The plan as it is printed: when each task would begin, what it takes, and which would not begin."""
    lines, at, passed_over = [], 0.0, 0
    finished = set(known)
    for task in tasks:
        if task.name in finished:
            passed_over += 1
        elif at + task.seconds > minutes * 60:
            lines.append(f"    -   {task.seconds:5.0f} s  {task.part:10}  {task.name}: out of time")
        else:
            lines.append(f"{at / 60:5.1f}   {task.seconds:5.0f} s  {task.part:10}  {task.name}")
            at += task.seconds
    heads = [" min       for  part        task"]
    ends = [f"{at / 60:.1f} of {minutes:g} minutes, estimated"]
    if passed_over:
        ends.append(f"{passed_over} tasks are through and are passed over")
    return [*heads, *lines, *ends]
