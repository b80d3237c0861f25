"""`embed` in OpenVINO: the vectors of ONNX Runtime, bits that depend on nothing but the text, and work that is kept apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_support import run
from embed_support import TEXTS, write_lines
from hypothesis import given
from hypothesis import strategies as st

from mra_export.bundle.manifest import read_bundle
from mra_export.embedding.batching import plan_batches
from mra_export.embedding.encoder import Encoder
from mra_export.embedding.journal import Partial
from mra_export.embedding.run import embed
from mra_export.embedding.runtimes import runtime_of
from mra_export.errors import DependencyError, InputError
from mra_export.openvino.core import release


def encoder(bundle: Path, threads: int = 1, **options: int) -> Encoder:
    opened = read_bundle(bundle)
    return Encoder(opened, threads=threads, runtime=runtime_of(opened, "openvino"), **options)


def test_the_vectors_are_those_of_onnx_runtime(openvino_bundle: Path, lines: Path, tmp_path: Path) -> None:
    made = {
        name: embed(openvino_bundle, lines, tmp_path / f"{name}.npy", runtime=name)
        for name in ("onnxruntime", "openvino")
    }
    one, other = (np.load(result.output) for result in made.values())
    assert np.abs(one - other).max() <= 1e-6
    assert (made["openvino"].runtime, made["openvino"].precision, made["openvino"].provider) == (
        "openvino",
        "fp32",
        "OpenVINO",
    )
    assert (made["onnxruntime"].runtime, made["onnxruntime"].precision) == ("onnxruntime", "fp32")


def test_the_bits_depend_on_the_text_alone(openvino_bundle: Path) -> None:
    """Not on the threads, the other texts and the size of the batch."""
    together = encoder(openvino_bundle).encode(TEXTS).vectors
    assert np.array_equal(
        encoder(openvino_bundle, threads=2, batch_tokens=300).encode(TEXTS[::-1]).vectors[::-1], together
    )
    alone = encoder(openvino_bundle)
    for place in range(0, len(TEXTS), 15):
        assert np.array_equal(alone.encode([TEXTS[place]]).vectors[0], together[place])


def test_unfinished_work_of_another_runtime_is_not_gone_on_with(
    openvino_bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vectors.npy"
    whole = embed(openvino_bundle, lines, tmp_path / "whole.npy", runtime="openvino", chunk_rows=20).output.read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Partial, "publish", stop)
        embed(openvino_bundle, lines, output, runtime="openvino", chunk_rows=20)
    with pytest.raises(InputError, match=r'runtime was "openvino", now "onnxruntime"'):
        embed(openvino_bundle, lines, output, chunk_rows=20)
    result = embed(openvino_bundle, lines, output, runtime="openvino", chunk_rows=20)
    assert result.resumed_rows == len(TEXTS)
    assert output.read_bytes() == whole


def test_what_is_not_there_is_named_with_the_command(
    openvino_bundle: Path, embed_bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "vectors.npy"
    with pytest.raises(InputError, match=r"has nothing for OpenVINO\..* `mra-export bundle --openvino DIR`"):
        embed(embed_bundle, lines, output, runtime="openvino")
    with pytest.raises(
        InputError, match=r"is a directory for OpenVINO, not a bundle\..* `mra-export bundle ONNX --openvino"
    ):
        embed(openvino_bundle.parent, lines, output, runtime="openvino")
    with pytest.raises(InputError, match="runtime='torch' must be one of onnxruntime, openvino"):
        embed(openvino_bundle, lines, output, runtime="torch")
    monkeypatch.setattr("mra_export.openvino.core.release", lambda: "2025.4.0")
    with pytest.raises(DependencyError, match=rf"was built for OpenVINO {release()}, and 2025\.4\.0 is installed"):
        embed(openvino_bundle, lines, output, runtime="openvino")
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(DependencyError, match=r"OpenVINO is not installed.*mra-export\[openvino\]"):
        embed(openvino_bundle, lines, output, runtime="openvino")
    assert not list(tmp_path.iterdir())
    embed(openvino_bundle, lines, output)  # ONNX Runtime runs it without


def test_the_command_says_which_runtime_it_was(
    openvino_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "texts.txt", TEXTS[:3])
    code, answer = run(
        "embed", openvino_bundle, source, "-o", tmp_path / "v.npy", "--runtime", "openvino", capsys=capsys
    )
    assert code == 0
    assert (answer["runtime"], answer["precision"], answer["provider"]) == ("openvino", "fp32", "OpenVINO")


def test_a_bundle_without_onnx_runtimes_library_runs(openvino_bundle: Path, lines: Path, tmp_path: Path) -> None:
    """What only another runtime needs is not asked for; `verify_bundle` looks at it all the same."""
    copied = Path(shutil.copytree(openvino_bundle, tmp_path / "bundle"))
    (copied / "lib" / "libmra_onnxruntime.so").write_bytes(b"of another machine")
    opened = read_bundle(copied)
    found = Encoder(opened, runtime=runtime_of(opened, "openvino")).encode(TEXTS[:4]).vectors
    assert np.array_equal(found, encoder(openvino_bundle).encode(TEXTS[:4]).vectors)


SIZES = {power * times for power in (1, 2, 4, 8, 16, 32, 64, 128, 256) for times in (1, 3)}


@given(st.lists(st.integers(0, 300), max_size=80), st.integers(1, 4000), st.integers(0, 300))
def test_few_shapes_hold_each_text_once(lengths: list[int], max_tokens: int, other: int) -> None:
    batches = plan_batches(lengths, max_tokens=max_tokens, step=32, max_length=300, few_shapes=True)
    assert sorted(int(row) for batch in batches for row in batch.rows) == list(range(len(lengths)))
    assert [batch.width for batch in batches] == sorted((batch.width for batch in batches), reverse=True)
    for batch in batches:
        assert len(batch.rows) in SIZES
        assert len(batch.rows) * batch.width <= max_tokens or len(batch.rows) == 1
        assert batch.width % 8 == 0 or batch.width == 300
        for row in batch.rows:
            padding = batch.width - max(1, lengths[row])
            assert 0 <= padding <= max(7, lengths[row] / 8)
            assert max(1, -(-lengths[row] // 32)) == -(-batch.width // 32)
    # A text's width is its own affair.
    alone = {
        length: plan_batches([length], max_tokens=1, step=32, max_length=300, few_shapes=True)[0].width
        for length in lengths
    }
    assert all(alone[lengths[row]] == batch.width for batch in batches for row in batch.rows)
    beside = plan_batches([*lengths, other], max_tokens=max_tokens, step=32, max_length=300, few_shapes=True)
    assert all(alone[lengths[row]] == batch.width for batch in beside for row in batch.rows if row < len(lengths))
