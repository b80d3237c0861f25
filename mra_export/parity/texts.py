"""Real texts as inputs of a file, one a run without padding: to calibrate it, to tune it, and to prove what it lost."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mra_export.checkpoint.layout import transformer_folder
from mra_export.checkpoint.text import read_contract
from mra_export.checkpoint.text_ids import ids_of, source_tokenizer
from mra_export.errors import InputError
from mra_export.parity.cases import SENTENCES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.openvino.ir import IrModel
    from mra_export.trace import Inputs

__all__ = ["calibration_texts", "no_tokenizer", "proof_texts", "samples_of", "sha256_of_texts", "tuning_texts"]

_FOLDER = SENTENCES.parent
_LONGEST = 512
"""Tokens of a text at most, where the model takes more."""
_LONGEST_JOINED = 1024
"""Tokens of all texts together, which are one more input where the model takes more than `_LONGEST`."""
_RANDOM_LENGTHS = (3, 5, 9, 14, 20, 31, 32, 48, 64, 90, 128, 200, 256, 333, 400, 512)
"""Of random ids; longer ones are cut to what the model takes."""


def calibration_texts() -> list[str]:
    """The 64 from which the ranges are measured: short and long, questions, code, lists, letters, other languages."""
    return _lines(_FOLDER / "calibration.txt")


def tuning_texts() -> list[str]:
    """Texts by which a setting is chosen; none of them is among the others."""
    return _lines(_FOLDER / "tuning.txt")


def proof_texts() -> list[str]:
    """Texts by which a file is judged; none of them is among the others."""
    return [*_lines(_FOLDER / "proof.txt"), *_lines(SENTENCES)]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def sha256_of_texts(texts: Sequence[str]) -> str:
    """Of texts one after the other, each with a line feed."""
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode("utf-8", "surrogatepass")).hexdigest()


def no_tokenizer(folder: Path) -> InputError:
    """What to say of a model that texts cannot be given to."""
    return InputError(
        f"{folder} has no tokenizer, and without one no text can be given to the model. Put its tokenizer.json or vocab.txt "
        "beside config.json, and export the checkpoint again. Only a model with --random-init is run on random ids."
    )


def samples_of(
    model: OnnxModel | IrModel,
    texts: Sequence[str],
    *,
    random_ids: bool = False,
    joined: bool = False,
    longest: int | None = None,
) -> list[Inputs]:
    """Texts as inputs of a file.

    Args:
        model: the file, in a directory with its tokenizer.
        texts: the texts; each is cut at what the model takes, and at 512 tokens.
        random_ids: whether random ids take their place where there is no tokenizer, as many as there are texts.
        joined: whether one more input has all texts together, cut at 1024 tokens, for a model that takes more than 512.
        longest: texts are cut there too, in tokens; None for no such limit.

    Returns:
        A batch of one without padding for each.

    Raises:
        InputError: there is no tokenizer, or it is not the model's.
    """
    positions = min(model.position_limit or _LONGEST, longest or _LONGEST_JOINED)
    folder = transformer_folder(model.directory)
    tokenizer = source_tokenizer(folder, read_contract(model.directory), positions)
    if tokenizer is None and random_ids:
        generator = np.random.default_rng(int(sha256_of_texts(texts)[:8], 16))
        lengths = [min(_RANDOM_LENGTHS[i % len(_RANDOM_LENGTHS)], positions) for i in range(len(texts))]
        return [_inputs(model, generator.integers(0, model.vocabulary or 100, n).tolist()) for n in lengths]
    if tokenizer is None:
        raise no_tokenizer(folder)
    if model.vocabulary is not None and len(tokenizer) > model.vocabulary:
        raise InputError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens, but the model has {model.vocabulary}: they do not belong "
            "together."
        )
    tokenizer.model_max_length = min(positions, _LONGEST)
    found = [ids for ids, _ in ids_of(tokenizer, texts)]
    if joined and positions > _LONGEST:
        tokenizer.model_max_length = min(positions, _LONGEST_JOINED)
        found.append(ids_of(tokenizer, [" ".join(texts)])[0][0])
    return [_inputs(model, ids) for ids in found if ids]


def _inputs(model: OnnxModel | IrModel, ids: list[int]) -> Inputs:
    """A batch of one; of a multiple choice one choice."""
    array = np.array(ids, np.int64).reshape((1,) * (len(model.input_axes["input_ids"]) - 1) + (-1,))
    every = {
        "input_ids": array,
        "attention_mask": np.ones_like(array),
        "token_type_ids": np.zeros_like(array),
    }
    return {name: every[name] for name in model.inputs}
