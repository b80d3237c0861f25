"""The sizes of a profile: how they are written, and those that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_support import assert_message, run

from mra_export.engine.ranges import Range, parse_range

RANGES = [
    (("--seq-len", "0:1:2"), "--seq-len=0:1:2: the least size is 0, but must be at least 1"),
    (("--batch", "0:0:0"), "--batch=0:0:0: the least size is 0"),
    (("--batch", "-1:1:2"), "the least size is -1"),
    (("--batch", "4:2:8"), "--batch=4:2:8 must not decrease"),
    (("--seq-len", "16:64:32"), "must not decrease"),
    (
        ("--seq-len", "1:128:257"),
        "the longest sequence is 257, but the model has max_position_embeddings=256. Give at most 256",
    ),
    (("--seq-len", "300"), "the longest sequence is 300"),
    (("--batch", "1:2"), "must be MIN:OPT:MAX, for example 1:8:32"),
    (("--batch", "one:two:three"), "must be MIN:OPT:MAX"),
    (("--batch", ""), "must be MIN:OPT:MAX"),
    (("--batch", "1:8:3000000000"), "the largest size is 3000000000, but TensorRT's sizes end at 2147483647"),
    (("--batch", "9" * 30), "the largest size is 9+, but"),
    (
        ("--batch", "1:8:100000000"),
        "The largest input, 100000000x256 tokens, needs more workspace than TensorRT-RTX .* gives",
    ),
    (("--choices", "1:2:4"), "is for multiple choice; .* is feature-extraction"),
]


@pytest.mark.parametrize(("options", "message"), RANGES, ids=[" ".join(o) for o, _ in RANGES])
def test_profiles_that_do_not_fit(
    options: tuple[str, ...], message: str, model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    output = tmp_path / "model.engine"
    code, out, err = run("trt", model, "-o", output, "--backend", "rtx", "--plugin-lib", plugin, *options)
    assert (code, out) == (2, "")
    assert_message(err, message)
    assert list(tmp_path.iterdir()) == []


def test_one_number_is_a_fixed_size() -> None:
    assert parse_range("7", "--batch") == Range(7, 7, 7)
    assert str(parse_range("1:8:32", "--batch")) == "1:8:32"
