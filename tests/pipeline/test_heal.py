"""The command heal from end to end: what is written, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from fidelity_support import letters, save_dense
from safetensors.torch import load_file

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.cli.app import cli
from mra_export.errors import InputError
from mra_export.fidelity.memory import memory_path
from mra_export.pipeline import heal as module
from mra_export.pipeline.fidelity import fidelity
from mra_export.pipeline.heal import heal

TEXTS = [*letters([160, 150, 155, 158, 140, 145, 152, 159, 130, 135, 156, 157, 147, 143, 149, 153]), *letters([20, 30])]
FEW = {"steps": 6, "texts_per_step": 4, "learning_rate": 3e-4, "evaluate_every": 3}


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dense(tmp_path_factory.mktemp("dense") / "dense")


@pytest.fixture(scope="module")
def small(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("small") / "mra"
    from_dense(dense, output, block_per_row=1)
    return output


def test_it_writes_the_best_step(small: Path, dense: Path, tmp_path: Path) -> None:
    result = heal(small, tmp_path / "healed", teacher=dense, texts=TEXTS, weights="all", **FEW)
    assert result.after.mean > result.before.mean
    assert result.after.least >= result.before.least
    assert (result.texts, result.held_out, result.steps, result.ended) == (12, 4, 6, "steps")
    assert result.after == next(point for point in result.curve if point.step == result.best_step)
    assert [path.name for path in tmp_path.iterdir()] == ["healed"]
    assert set(result.files) == {path.name for path in small.iterdir()}
    for name in set(result.files) - {"README.md", "model.safetensors"}:
        assert (tmp_path / "healed" / name).read_bytes() == (small / name).read_bytes(), name
    card = (tmp_path / "healed" / "README.md").read_text()
    assert card.index("Healed by mra-export") < card.index("Converted by mra-export")
    assert f"rose from {result.before.mean:.4f} to {result.after.mean:.4f} on average" in card
    assert any("16 of 18 texts are long enough" in note for note in result.notes)
    before, after = (load_file(each / "model.safetensors") for each in (small, tmp_path / "healed"))
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("encoder.layer.")}
    # Another command finds the figures that were told, and more of them than of the start.
    held_out = dict(enumerate(TEXTS[:16]))
    found = [
        fidelity(dense, each, texts={str(n): text for n, text in held_out.items()}) for each in (small, result.output)
    ]
    assert found[1].agreement.mean > found[0].agreement.mean
    told = sorted(float(each) for each in found[1].cosines)
    assert any(each == pytest.approx(result.after.least, abs=1e-5) for each in told)


def test_a_head_stays(dense: Path, tmp_path: Path) -> None:
    from dense_support import save, tiny

    model = tiny("bert", "ForMaskedLM", positions=256, num_hidden_layers=3)
    source = save(model, tmp_path / "dense")
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(dense / name, source / name)
    from_dense(source, tmp_path / "mra", block_per_row=1)
    heal(tmp_path / "mra", tmp_path / "healed", teacher=source, texts=TEXTS, **FEW)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("mra", "healed"))
    assert set(before) == set(after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".attention." in name}
    assert load_checkpoint(tmp_path / "healed").task.name == "fill-mask"


def test_where_no_step_is_better_nothing_is_written(small: Path, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"None of the 2 steps was better than the start on the 4 held-out texts"
    ) as error:
        heal(small, tmp_path / "healed", teacher=dense, texts=TEXTS, **FEW | {"steps": 2, "learning_rate": 50.0})
    assert "smaller --learning-rate than 50" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_costs_no_step(
    small: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = module.save_weights

    def full(weights: Any, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_weights", full)
    with pytest.raises(InputError, match="healed could not be written: No space left"):
        heal(small, tmp_path / "healed", teacher=dense, texts=TEXTS, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == [memory_path(tmp_path / "healed").name]
    monkeypatch.setattr(module, "save_weights", save)
    said: list[str] = []
    heal(small, tmp_path / "healed", teacher=dense, texts=TEXTS[::-1], **FEW, progress=said.append)
    assert any(line.startswith("going on after step 6 of 6") for line in said)
    assert not any(line.startswith("step ") for line in said)
    assert [path.name for path in tmp_path.iterdir()] == ["healed"]


def other_words(dense: Path, target: Path) -> Path:
    shutil.copytree(dense, target)
    words = (target / "vocab.txt").read_text().split("\n")
    first, second = words.index("a"), words.index("b")
    words[first], words[second] = words[second], words[first]
    (target / "vocab.txt").write_text("\n".join(words))
    return target


def without_tokenizer(dense: Path, target: Path) -> Path:
    shutil.copytree(dense, target)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (target / name).unlink()
    return target


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": []}, "There are no texts: the file is empty"),
        (
            {"texts": letters([20, 32])},
            "the longest has 32 tokens, and up to 64 tokens every layer of .* selects all blocks",
        ),
        ({"texts": TEXTS[:3]}, "Only 3 of the 3 texts have more than 64 tokens"),
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"texts_per_step": 0}, "texts_per_step=0 must be at least 1"),
        ({"minutes": 0.0}, "minutes=0 must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be above 0"),
        ({"weights": "none"}, "weights='none' must be one of attention, all, last"),
    ],
)
def test_refused(small: Path, dense: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        heal(small, tmp_path / "healed", **{"teacher": dense, "texts": TEXTS, **options})
    assert list(tmp_path.iterdir()) == []


def test_teachers_that_are_refused(small: Path, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"reads a text as other tokens than .* does"):
        heal(small, tmp_path / "healed", teacher=other_words(dense, tmp_path / "other"), texts=TEXTS)
    with pytest.raises(InputError, match="has no tokenizer, so nothing shows that it reads texts as"):
        heal(small, tmp_path / "healed", teacher=without_tokenizer(dense, tmp_path / "none"), texts=TEXTS)
    for source in (small, dense):
        with pytest.raises(InputError, match="is, holds or belongs to the input"):
            heal(small, source, teacher=dense, texts=TEXTS, force=True)
    assert not (tmp_path / "healed").exists()


def test_a_limit_that_differs_is_no_other_tokenizer(small: Path, dense: Path, tmp_path: Path) -> None:
    """The teacher's own file may cut texts where the student reads on."""
    shutil.copytree(dense, tmp_path / "short")
    settings = json.loads((dense / "tokenizer_config.json").read_text())
    (tmp_path / "short" / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 100}))
    result = heal(small, tmp_path / "healed", teacher=tmp_path / "short", texts=TEXTS, **FEW)
    assert result.after.mean > result.before.mean


def test_the_command(small: Path, dense: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    output, plot = tmp_path / "healed", tmp_path / "curve.png"
    arguments = [
        "heal",
        small,
        "--teacher",
        dense,
        "--texts",
        tmp_path / "texts.txt",
        "-o",
        output,
        "--plot",
        plot,
        "--json",
    ]
    options = [each for name, value in FEW.items() for each in (f"--{name.replace('_', '-')}", value)]
    found = CliRunner().invoke(cli, [str(each) for each in [*arguments, *options, "-q"]])
    assert found.exit_code == 0, found.output
    told = json.loads(found.output)
    assert told["outputs"] == [str(output), str(plot)]
    assert told["after"]["mean"] > told["before"]["mean"]
    assert [point["step"] for point in told["curve"]] == [0, 3, 6]
    assert set(told["curve"][0]) == {"step", "mean", "low", "least", "loss", "seconds"}
    assert plot.read_bytes().startswith(b"\x89PNG")
    bad = CliRunner().invoke(cli, [str(each) for each in [*arguments, "--plot", tmp_path / "curve.xyz", "--force"]])
    assert "must end with one of" in str(bad.exception)
