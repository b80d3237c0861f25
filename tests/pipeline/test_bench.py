"""The timing of exported models, and the dense model that they are timed against."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from checkpoints import save_checkpoint

from mra_export.checkpoint.load import load_checkpoint
from mra_export.cli import main
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import read_onnx
from mra_export.pipeline.bench import bench, dense_twin, in_turns


@pytest.mark.slow
def test_the_dense_twin_is_the_model_with_the_full_budget(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(save_checkpoint(tmp_path / "c", block_per_row=8))
    path = export_onnx(checkpoint, tmp_path / "o").model
    mask = np.ones((2, 100), np.int64)
    mask[1, 60:] = 0
    ids = np.random.default_rng(0).integers(0, 120, mask.shape)
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    results = [onnxruntime.InferenceSession(m).run(None, inputs)[0] for m in (str(path), dense_twin(read_onnx(path)))]
    np.testing.assert_allclose(results[0][mask == 1], results[1][mask == 1], atol=1e-4)


def test_every_backend_gets_a_row_a_size(tiny_export: Path) -> None:
    rows = bench(
        read_onnx(tiny_export / "onnx" / "model.onnx"), batches=[1, 2], seq_lens=[32, 64], threads=1, seconds=0.01
    )
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert row.turns >= 5
        assert row.latency_p90_ms >= row.latency_ms > 0
        assert row.tokens_per_second == pytest.approx(row.batch * row.seq_len / row.latency_ms * 1e3)
    assert all(row.faster_than_dense == 1.0 for row in rows if row.backend == "dense attention")


def test_calls_are_timed_in_turns() -> None:
    order: list[str] = []
    times = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.0, at_least=3)
    assert [len(v) for v in times.values()] == [3, 3]
    assert "".join(order) == "ab" + "aabb" * 3


@pytest.mark.slow
def test_half_types_are_refused_on_a_cpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "o", dtype="fp16").model
    with pytest.raises(InputError, match="is of type fp16; on a CPU only fp32 is compared"):
        bench(read_onnx(path), batches=[1], seq_lens=[32])


@pytest.mark.slow
def test_the_command(tiny_checkpoint: Path, tiny_export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(tiny_checkpoint), "--seq-len", "16:32:32", "--threads", "1", "--json", "-q"])
    assert stop.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is True
    assert {row["seq_len"] for row in result["rows"]} == {16, 32}
    with pytest.raises(SystemExit) as stop:
        main(["bench", str(tiny_export), "--seq-len", "1:64:300"])
    assert stop.value.code == 2
    assert "max_position_embeddings=256" in capsys.readouterr().err
