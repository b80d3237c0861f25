"""Calls timed in turns."""

from __future__ import annotations

import time

from mra_export.pipeline.turns import in_turns, take_turns


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    times = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.0, at_least=3)
    assert [len(v) for v in times.values()] == [3, 3]
    assert "".join(order) == "abab" + "aabb" * 3  # each twice before the first turn


def test_a_call_that_waits_takes_no_processor_time() -> None:
    def compute() -> None:
        until = time.process_time() + 0.06
        while time.process_time() < until:
            pass

    turns = take_turns({"waits": lambda: time.sleep(0.06), "computes": compute}, seconds=0.0, at_least=2)
    assert all(turn.wall_ms >= 60 and turn.cpu_ms < 20 for turn in turns["waits"])
    assert all(60 <= turn.cpu_ms <= 1.01 * turn.wall_ms for turn in turns["computes"])
