"""What was found out so far: steps, figures, and which tasks are through, in a file that is whole after each of them."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mra_export.errors import InputError
from mra_export.outputs import staged_file

TABLES = ("benchmark", "cases", "kernels", "yoso_benchmark", "pipeline", "flex", "counters")
FAULTS = ("FAILED", "skipped")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Report:
    """The state of a check; with a path, every change is in that file before the next thing is begun.

    `data` is what the file holds: "machine" (what the figures belong to), "tasks" (name -> "running", "done", "FAILED" or
    "skipped"), "steps" (task, step, outcome, detail), the tables of TABLES (rows with the name of their task), and single facts.
    """

    def __init__(self, path: Path | None = None, machine: dict[str, Any] | None = None) -> None:
        self.path = path
        self.data: dict[str, Any] = {"machine": machine or {}, "tasks": {}, "steps": []}
        self.task = ""

    def add(self, step: str, outcome: str, detail: str = "") -> None:
        """Notes a step and prints it."""
        say(f"[{outcome}] {step}: {detail}")
        self.data["steps"].append({"task": self.task, "step": step, "outcome": outcome, "detail": detail})
        self.save()

    def row(self, table: str, row: dict[str, Any]) -> None:
        """Notes one row of a table of TABLES and prints it."""
        say("  " + json.dumps(row))
        self.data.setdefault(table, []).append({"task": self.task, **row})
        self.save()

    def fact(self, name: str, value: Any) -> None:
        """Notes what belongs to no table."""
        self.data[name] = value
        self.save()

    @property
    def failed(self) -> bool:
        """Whether a step failed; what was skipped did not."""
        return any(step["outcome"] == "FAILED" for step in self.data["steps"])

    @contextlib.contextmanager
    def doing(self, task: str) -> Iterator[None]:
        """A task from its begin to its end, however it ends: an exception fails the task, or skips it where memory ran out."""
        self.task = task
        self.data["tasks"][task] = "running"
        self.save()
        already = len(self.data["steps"])
        try:
            yield
        except Exception as error:
            say(traceback.format_exc())
            text = f"{type(error).__name__}: {first_line(error)}"
            self.add(task, "skipped" if "OutOfMemory" in type(error).__name__ else "FAILED", text)
        outcomes = [step["outcome"] for step in self.data["steps"][already:]]
        self.data["tasks"][task] = next((outcome for outcome in FAULTS if outcome in outcomes), "done")
        self.task = ""
        self.save()

    def forget(self, tasks: Iterable[str]) -> None:
        """Drops what is known of these tasks, so that they are done again."""
        names = set(tasks)
        self.data["tasks"] = {task: state for task, state in self.data["tasks"].items() if task not in names}
        for table in ("steps", *TABLES):
            if table in self.data:
                self.data[table] = [row for row in self.data[table] if row["task"] not in names]
        self.save()

    def abandon(self, reason: str) -> str | None:
        """Fails the task that another process began and did not end; its name, or None where there is none."""
        for task, state in self.data["tasks"].items():
            if state == "running":
                self.task = task
                self.data["tasks"][task] = "FAILED"
                self.add(task, "FAILED", reason)
                self.task = ""
                return task
        return None

    def save(self) -> None:
        """Writes the file anew, whole or not at all."""
        if self.path is not None:
            with staged_file(self.path, force=True) as staged:
                staged.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")

    def reload(self) -> None:
        """Reads the file again, which another process wrote."""
        if self.path is not None:
            self.data = read(self.path)

    def take(self, other: dict[str, Any]) -> None:
        """Adds what another file has to tell of tasks that this one does not know: those that are done, not what fell short.

        Raises:
            InputError: its figures are of another GPU or of other kernels.
        """
        for name in ("gpu", "kernels"):
            theirs, ours = other["machine"].get(name), self.data["machine"].get(name)
            if theirs != ours:
                raise InputError(
                    f"The report to go on from is of {name} {theirs}, and this is {ours}: their figures do not belong together. "
                    "Leave --resume out."
                )
        known = self.data["tasks"]
        taken = {task for task, state in other["tasks"].items() if state == "done" and task not in known}
        known |= dict.fromkeys(taken, "done")
        for table in ("steps", *TABLES):
            rows = [row for row in other.get(table, []) if row["task"] in taken]
            if rows:
                self.data.setdefault(table, []).extend(rows)
        own = {"machine", "tasks", "steps", *TABLES}
        self.data |= {name: value for name, value in other.items() if name not in own and name not in self.data}
        self.save()


def read(path: Path) -> dict[str, Any]:
    """A report's file.

    Raises:
        InputError: it cannot be read or is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a report: {first_line(error)}. Name a file of --output.") from error
    if not isinstance(data, dict) or not {"machine", "tasks", "steps"} <= data.keys():
        raise InputError(
            f"{path} is no report of gpu_check.py: it has no machine, tasks and steps. Name a file of --output."
        )
    return data


def merged(paths: Iterable[Path]) -> Report:
    """Several files as one report, of one GPU and the same kernels; what fell short in one is kept unless another did it.

    Raises:
        InputError: one cannot be read, or they do not belong together.
    """
    files = [read(path) for path in paths]
    report = Report(machine=files[0]["machine"])
    for data in files:
        report.take(data)
    for data in files:
        left = {task for task in data["tasks"] if task not in report.data["tasks"]}
        report.data["tasks"] |= {task: data["tasks"][task] for task in left}
        report.data["steps"] += [step for step in data["steps"] if step["task"] in left or not step["task"]]
    return report


def first_line(error: object) -> str:
    lines = str(error).splitlines()
    return lines[0][:200] if lines else ""
