"""The modules after the encoder in NumPy: what torch and the definitions say, whatever the number of threads."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from mra_export.bundle import chain
from mra_export.bundle.chain import Step, vector_of
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.modules import (
    ACTIVATIONS,
    POOLING_MODES,
    Dense,
    LayerNorm,
    Module,
    Normalize,
    Pooling,
    Truncate,
    as_stated,
)

HIDDEN = 24


def random_states(tokens: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(tokens).standard_normal((tokens, HIDDEN)).astype(np.float32)


def steps_of(modules: list[Module], folder: Path) -> list[Step]:
    """The modules with random weights, which are written for torch too."""
    random = np.random.default_rng(0)
    steps: list[Step] = []
    for module in modules:
        weights: dict[str, np.ndarray[Any, Any]] = {}
        if isinstance(module, Dense):
            shape = (module.out_features, module.in_features)
            weights["linear.weight"] = random.standard_normal(shape)
            if module.bias:
                weights["linear.bias"] = random.standard_normal(shape[0])
            if module.residual and shape[0] != shape[1]:
                weights["residual.weight"] = random.standard_normal(shape)
        elif isinstance(module, LayerNorm):
            weights = {name: random.standard_normal(module.dimension) for name in ("norm.weight", "norm.bias")}
        weights = {name: value.astype(np.float32) for name, value in weights.items()}
        if isinstance(module, Dense | LayerNorm):
            (folder / module.folder).mkdir()
            save_file(weights, folder / module.folder / "model.safetensors")
        steps.append((as_stated(module), {name: value.astype(np.float64) for name, value in weights.items()}))
    return steps


CHAINS: dict[str, list[Module]] = {
    **{mode: [Pooling((mode,))] for mode in POOLING_MODES},
    "all six": [Pooling(POOLING_MODES)],
    "in another order": [Pooling(("max", "cls")), Normalize()],
    **{name: [Pooling(("mean",)), Dense("d", HIDDEN, 40, activation=name)] for name in ACTIVATIONS},
    "without bias": [Pooling(("mean",)), Dense("d", HIDDEN, 10, bias=False)],
    "residual": [Pooling(("mean",)), Dense("d", HIDDEN, HIDDEN, residual=True, activation="SiLU")],
    "residual of another width": [Pooling(("mean",)), Dense("d", HIDDEN, 10, residual=True)],
    "layer norm": [Pooling(("mean",)), LayerNorm("n", HIDDEN)],
    "cut, as truncate_dim does it": [Pooling(("mean",)), Normalize(), Truncate(7)],
    "cut to more than there is": [Pooling(("mean",)), Truncate(1000)],
    "everything": [
        Pooling(("cls", "weightedmean")),
        Dense("d", 2 * HIDDEN, 40, activation="GELU"),
        LayerNorm("n", 40),
        Dense("e", 40, 30, residual=True),
        Normalize(),
        Truncate(20),
    ],
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_vector_is_that_of_torch(name: str, tmp_path: Path) -> None:
    steps = steps_of(CHAINS[name], tmp_path)
    reference = as_torch(CHAINS[name], tmp_path).double()
    for tokens in (1, 2, 37):
        states = random_states(tokens)
        mask = torch.ones(1, tokens, dtype=torch.int64)
        expected = reference(torch.from_numpy(states).double()[None], mask)[0].numpy()
        found = vector_of(states, steps)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_the_tokens_of_a_prompt_do_not_count() -> None:
    """By hand, as sentence-transformers' Pooling has it: a mask of zeros at the prompt, and places that count from its start."""
    states = np.array([[1, -9], [2, 8], [30, 4], [50, 6]], np.float32)
    expected = {
        "cls": [30, 4],
        "max": [50, 6],
        "mean": [40, 5],
        "mean_sqrt_len_tokens": [80 / math.sqrt(2), 10 / math.sqrt(2)],
        "weightedmean": [(3 * 30 + 4 * 50) / 7, (3 * 4 + 4 * 6) / 7],
        "lasttoken": [50, 6],
    }
    assert set(expected) == set(POOLING_MODES)
    for mode, vector in expected.items():
        found = vector_of(states, [({"kind": "Pooling", "modes": [mode]}, {})], 2)
        np.testing.assert_allclose(found, vector, rtol=1e-7)


@pytest.mark.parametrize("skip", [4, 9])
def test_where_no_token_counts_it_is_zeros_and_the_first_token(skip: int) -> None:
    states = random_states(4)
    for mode in POOLING_MODES:
        found = vector_of(states, [({"kind": "Pooling", "modes": [mode]}, {}), ({"kind": "Normalize"}, {})], skip)
        expected = states[0] / np.linalg.norm(states[0]) if mode == "cls" else np.zeros(HIDDEN)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert (vector_of(states[:0], [({"kind": "Pooling", "modes": [mode]}, {})]) == 0).all()


def test_large_numbers_do_not_overflow() -> None:
    identity = {"linear.weight": np.eye(2)}
    for name, expected in {"Sigmoid": [0, 1], "SiLU": [0, 1e4], "GELU": [0, 1e4], "Tanh": [-1, 1]}.items():
        dense = {"kind": "Dense", "activation": name, "residual": False}
        steps: list[Step] = [({"kind": "Pooling", "modes": ["cls"]}, {}), (dense, identity)]
        with np.errstate(all="raise", under="ignore"):
            np.testing.assert_allclose(vector_of(np.array([[-1e4, 1e4]], np.float32), steps), expected, atol=1e-30)


@pytest.mark.parametrize("kind", ["", "CNN", "Gate", "Maxout", "Other", "Softmax", "Whitening", "normalize"])
def test_a_module_that_nobody_knows_is_no_module(kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind} is no module"):
        vector_of(random_states(2), [({"kind": kind}, {})])


def test_the_bits_do_not_depend_on_threads() -> None:
    """A product of this size is one that BLAS divides among its threads."""
    code = (
        "import numpy as np, hashlib, sys; sys.path.insert(0, sys.argv[1]); from chain import vector_of; "
        "g = np.random.default_rng(0); d = {'kind': 'Dense', 'activation': 'Identity', 'residual': False}; "
        "v = vector_of(g.standard_normal((9, 1024)).astype('f4'), [({'kind': 'Pooling', 'modes': ['mean']}, {}), "
        "(d, {'linear.weight': g.standard_normal((1792, 1024))})]); print(hashlib.sha256(v.tobytes()).hexdigest())"
    )
    told = set()
    for threads in ("1", "2", "4"):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, threads)}
        folder = str(Path(chain.__file__).parent)
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, folder], env=environment, capture_output=True, text=True, check=True
        )
        told.add(done.stdout)
    assert len(told) == 1
