"""What a search measured is there again after a kill, and only for the same search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mra_export.errors import InputError
from mra_export.fidelity.memory import Memory, memory_path


class Killed(BaseException):
    """As by a kill: nothing is cleaned up for it but what an exception does."""


def interrupted(output: Path, settings: dict[str, object], error: BaseException, measured: int = 2) -> None:
    with pytest.raises(type(error)) as raised, Memory.open(output, settings) as memory:
        memory.put([(f"plan {number}", [0.5, 1.0 - number]) for number in range(measured)])
        raise error
    assert raised.value is error or isinstance(error, KeyboardInterrupt)


def test_it_goes_on_after_a_kill_and_is_gone_at_the_end(tmp_path: Path) -> None:
    output = tmp_path / "mra"
    interrupted(output, {"texts": "a"}, Killed())
    with Memory.open(output, {"texts": "a"}) as memory:
        assert memory.found == 2
        assert memory.get("plan 1") == [0.5, 0.0]
        assert memory.get("plan 2") is None
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    output = tmp_path / "mra"
    interrupted(output, {}, Killed())
    file = memory_path(output) / "measured.jsonl"
    file.write_text(file.read_text()[:-5])
    with pytest.raises(Killed), Memory.open(output, {}) as memory:
        assert (memory.found, memory.get("plan 1")) == (1, None)
        memory.put([("plan 1", [0.25])])
        raise Killed
    with Memory.open(output, {}) as memory:
        assert (memory.found, memory.get("plan 0"), memory.get("plan 1")) == (2, [0.5, 1.0], [0.25])


def test_what_other_settings_left_is_thrown_away(tmp_path: Path) -> None:
    output = tmp_path / "mra"
    interrupted(output, {"texts": "a"}, Killed())
    (memory_path(output) / "checkpoint").mkdir()
    with Memory.open(output, {"texts": "b"}) as memory:
        assert (memory.found, memory.get("plan 0")) == (0, None)
        assert not (memory.path / "checkpoint").exists()


def test_an_interruption_says_what_is_kept(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt, match=r"2 measurements are kept in .*\.mra\.search: the same command goes on"),
        Memory.open(tmp_path / "mra", {}) as memory,
    ):
        memory.put([("a", [1.0]), ("b", [1.0])])
        raise KeyboardInterrupt
    assert memory_path(tmp_path / "mra").is_dir()


@pytest.mark.parametrize("error", [InputError("texts"), KeyboardInterrupt()])
def test_nothing_is_left_where_nothing_was_measured(tmp_path: Path, error: BaseException) -> None:
    interrupted(tmp_path / "mra", {}, error, measured=0)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with (
        Memory.open(tmp_path / "mra", {}),
        pytest.raises(InputError, match="Another run is working on"),
        Memory.open(tmp_path / "mra", {}),
    ):
        pass


def test_a_full_disk_is_named_and_what_was_measured_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path / "mra", {}, Killed())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(InputError, match=r"\.search.*No space left.*goes on"),
        Memory.open(tmp_path / "mra", {}) as memory,
    ):
        monkeypatch.setattr("os.fsync", full)
        memory.put([("c", [1.0])])
    lines = (memory_path(tmp_path / "mra") / "measured.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == ["plan 0", [0.5, 1.0]]
