"""Outputs appear whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from mra_export.errors import InputError
from mra_export.outputs import INTERRUPTED, check_target, file_sha256, staged_directory, staged_file


def test_a_directory_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "not" / "there" / "out"
    with staged_directory(target) as stage:
        (stage / "a").write_text("1")
        assert not target.exists()
        (holder,) = target.parent.iterdir()  # nobody else may look into it before it is whole
        assert holder.name.startswith(".out.")
        assert holder.stat().st_mode & 0o777 == 0o700
    assert (target / "a").read_text() == "1"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_directory_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "out"
    with pytest.raises(error), staged_directory(target) as stage:
        (stage / "half").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(error), staged_directory(target, force=True) as stage:
        (stage / "half").write_text("half")
        raise error
    assert [p.name for p in target.iterdir()] == ["old"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_replaces_the_whole_directory(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(InputError, match=r"already exists.*--force"), staged_directory(target):
        pytest.fail("the block must not run")
    with staged_directory(target, force=True) as stage:
        (stage / "new").write_text("new")
    assert [p.name for p in target.iterdir()] == ["new"]


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    with pytest.raises(ValueError, match="stop"), staged_file(target) as stage:
        stage.write_text("half")
        raise ValueError("stop")
    assert not list(tmp_path.iterdir())
    with staged_file(target) as stage:
        stage.write_text("whole")
    assert target.read_text() == "whole"
    with pytest.raises(InputError, match="already exists"), staged_file(target):
        pytest.fail("the block must not run")
    with pytest.raises(InputError, match="is a directory"), staged_file(tmp_path, force=True):
        pytest.fail("the block must not run")


def test_a_full_disk_is_an_error_with_a_reason(tmp_path: Path) -> None:
    errors = {"No space left on device": OSError(28, os.strerror(28)), "quota": OSError("quota")}
    for staged in (staged_file, staged_directory):
        for reason, error in errors.items():
            with pytest.raises(InputError, match=f"out could not be written: {reason}. Nothing was left"):  # noqa: SIM117
                with staged(tmp_path / "out") as stage:
                    (stage / "half" if stage.is_dir() else stage).write_text("half")
                    raise error
            assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a directory"):
        check_target(tmp_path / "file" / "out", force=False)
    if os.geteuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(InputError, match="no permission"):
            check_target(tmp_path / "locked" / "out", force=False)
    with (
        pytest.raises(InputError, match=r"could not be written|no permission"),
        staged_directory(Path("/proc/mra-export")),
    ):
        pytest.fail("the block must not run")


def test_an_interruption_between_the_renames_keeps_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_directory(target, force=True) as stage:
        (stage / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in target.iterdir()] == ["old"]


def test_an_interruption_after_the_renames_keeps_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new output has its name already: what was interrupted is said as it is, and the old one does not come back."""
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        renamed = rename(path, to)
        if path.name == "new":
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_directory(target, force=True) as stage:
        (stage / "new").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in target.iterdir()] == ["new"]


def test_an_interruption_of_a_first_output_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is brought back where nothing was, and the interruption is not taken for an error of the disk."""

    def interrupted(path: Path, to: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_directory(tmp_path / "out") as stage:
        (stage / "new").write_text("new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_interrupted", [False, True])
def test_a_link_to_nowhere_is_an_old_output_too(
    is_interrupted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    target.symlink_to("nowhere")
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        if path.name == "new" and is_interrupted:
            raise KeyboardInterrupt
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with contextlib.suppress(KeyboardInterrupt), staged_directory(target, force=True) as stage:
        (stage / "new").write_text("new")
    assert target.is_symlink() is is_interrupted
    assert target.is_dir() is not is_interrupted
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_interruption_right_after_the_staging_directory_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def interrupted(path: Path, *arguments: object, **named: object) -> None:
        make(path, *arguments, **named)  # type: ignore[arg-type]
        if path.name.startswith("."):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    for staged in (staged_directory, staged_file):
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "o"):
            pytest.fail("the block was entered")
        assert list(tmp_path.iterdir()) == []


def test_the_input_itself_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for target, source in (("in", "in"), ("", "in"), ("in", "in/../in")):
        with pytest.raises(InputError, match="is, holds or belongs to the input"):
            check_target(tmp_path / target, force=True, sources=[tmp_path / source])
    for other in ("i", "im", "io", "z", "inn/x"):  # beside it, wherever it stands in the alphabet
        check_target(tmp_path / other, force=False, sources=[tmp_path / "in"])


@pytest.mark.parametrize("staged", [staged_directory, staged_file])
def test_an_interruption_that_was_swallowed_counts(staged: Any, tmp_path: Path) -> None:
    INTERRUPTED.set()
    try:
        with pytest.raises(KeyboardInterrupt), staged(tmp_path / "o") as stage:
            (stage / "x" if stage.is_dir() else stage).write_text("new")
    finally:
        INTERRUPTED.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_no_file_can_have_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x cannot be written: File name too long\."):
        check_target(tmp_path / ("x" * 300), force=False)


def test_a_file_of_the_input_is_no_output_but_a_report_beside_it_is(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("model.onnx", "report.html", ".abc", "z.json"):
        (source / name).write_text("old")
        if name == "report.html":
            check_target(source / name, force=True, sources=[source])
        else:
            with pytest.raises(InputError, match="belongs to the input"):
                check_target(source / name, force=True, sources=[source])
    check_target(source / "new.onnx", force=False, sources=[source])


def test_the_hash_of_files_is_that_of_their_bytes_one_after_the_other(tmp_path: Path) -> None:
    parts = [b"", b"abc", bytes(range(256)) * 5000, b"d"]
    paths = [tmp_path / str(index) for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    assert file_sha256(*paths) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert file_sha256(paths[1]) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
