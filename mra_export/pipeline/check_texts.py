"""Compares what becomes of a text: the checkpoint's sentence-transformers files by sentence-transformers, and the exported ones."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.checkpoint.layout import MODULES_FILE, sentence_root, transformer_folder
from mra_export.checkpoint.text import TextContract, max_length, read_contract, tokenizer_limit
from mra_export.checkpoint.text_ids import (
    TOKENIZER_FILE,
    as_backend,
    ids_of,
    settings_between,
    source_tokenizer,
    tokenizer_texts,
)
from mra_export.numerics import cosine, least, relative_error, worst
from mra_export.operators.judge import TOLERANCES
from mra_export.parity.comparison import Comparison
from mra_export.quiet import quiet_transformers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.checkpoint.load import Checkpoint
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.openvino.ir import IrModel
    from mra_export.runners.torch import TransformersRunner
    from mra_export.trace import Array, Runner

__all__ = ["check_texts"]

_LONGEST_SLOW = 64
"""Tokens of a text whose vector onnx's slow evaluator is to compute."""
_CHAIN = 1e-4
"""Relative error of the modules after the encoder, which are float32 whatever the type of the encoder."""
_MAJOR = 6
"""The release of sentence-transformers from which on texts are tokenized as they are."""
_INSTALL = "Install it to have it compared: `pip install 'mra-export[check]'`."
_PROMPTS = 8
"""Prompts that are tried; a model may have hundreds, which differ in nothing but their text."""


@dataclass
class _Sample:
    """One text: with which prompt, and what the reference makes of it."""

    text: str
    prompt: str | None
    ids: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    vector: Array | None = None


def check_texts(
    checkpoint: Checkpoint,
    model: OnnxModel | IrModel,
    reference: TransformersRunner,
    runner: Runner,
    *,
    max_seq_len: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison | None:
    """Texts through the checkpoint's sentence-transformers files and through the exported directory.

    Ids have to be the same. Vectors are compared from end to end; where they differ by more than the type allows, the modules
    are compared on the exported encoder's own token vectors, since what the encoder computes is for other comparisons to say.

    Args:
        checkpoint: the model.
        model: the exported file, in its directory.
        reference: the encoder of `checkpoint`.
        runner: of `model`.
        max_seq_len: texts of more tokens are compared by their ids only; None for no such limit.
        progress: called with a line before each step.

    Returns:
        The comparison; None where the checkpoint has no sentence-transformers files, or the file gives no embeddings.

    Raises:
        InputError: a setting of the checkpoint cannot be honoured.
    """
    root = sentence_root(checkpoint.directory)
    if "sentence_embedding" not in model.outputs or not (root / MODULES_FILE).is_file():
        return None
    pooling, normalize = model.metadata.get("pooling"), model.metadata.get("normalize")
    is_asked = pooling is not None or normalize is not None
    expected = read_contract(root, pooling=pooling, normalize={"True": True, "False": False}.get(str(normalize)))
    written = read_contract(model.directory)
    positions = checkpoint.family.max_seq_len(checkpoint.config)
    tokenizer = source_tokenizer(checkpoint.directory, expected, positions)
    if tokenizer is None:
        return None
    candidate = f"{TOKENIZER_FILE} + {runner.name}"
    texts = tokenizer_texts(tokenizer)
    names = [None, *sorted(expected.prompts)[:_PROMPTS]]
    samples = [_Sample(text, name) for name in names for text in (texts if name is None else [*texts[:4], texts[-1]])]
    longest = min(positions, max_seq_len or positions, _LONGEST_SLOW if model.dtype == "bf16" else positions)

    model_of, title = None, "transformers' tokenizer and sentence-transformers' modules by their definition"
    notes = []
    if is_asked:
        notes.append("the pooling was chosen at the export, so that the modules are taken by their definition.")
    else:
        model_of, why = _sentence_transformers(root)
        if model_of is None:
            notes.append(why)
    if model_of is not None:
        import sentence_transformers

        title = f"sentence-transformers {sentence_transformers.__version__}"
        progress(f"{title}: {len(samples)} texts")
        chain: Callable[[Array], Array] = _run_sentence_transformers(model_of, samples, reference, longest)
    else:
        progress(f"{len(samples)} texts")
        chain = _run_definition(tokenizer, expected, root, samples, reference, longest)

    ids, failures = _compare_ids(tokenizer, model, written, samples, positions)
    metrics, wrong = _compare_vectors(expected, samples, runner, model, chain, failures)
    notes += wrong
    metrics["ids_agreement"] = ids.agreement
    limit = {"relative_error": TOLERANCES[model.dtype].outputs} if model.precision == model.dtype else {}
    if not expected.include_prompt and any(expected.prompts.values()):
        notes.append(
            "include_prompt is false: with a prompt only ids are compared, since the graph counts every token."
        )
    named = _differing_settings(expected, written) or ids.settings
    if named and (failures or expected.modules != written.modules):
        failures.insert(0, f"The exported directory does not do what {root} says by {', '.join(named)}.")
    return Comparison(title, candidate, metrics, limit, not failures, failures + notes)


def _sentence_transformers(root: Path) -> tuple[Any | None, str]:
    """The model as sentence-transformers loads it; or None and why not."""
    try:
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            from sentence_transformers import SentenceTransformer, __version__

            if int(__version__.split(".")[0]) < _MAJOR:
                return (
                    None,
                    f"sentence-transformers {__version__} is older than {_MAJOR} and takes blanks off texts. {_INSTALL}",
                )
            return SentenceTransformer(str(root), device="cpu", local_files_only=True), ""
    except ImportError as error:
        is_absent = isinstance(error, ModuleNotFoundError) and error.name == "sentence_transformers"
        return (
            None,
            f"sentence-transformers is not {'installed' if is_absent else f'to be imported ({error})'}. {_INSTALL}",
        )
    except Exception as error:
        first = " ".join(str(error).split())[:200]
        return None, f"sentence-transformers does not load {root}: {first}."


def _run_sentence_transformers(
    loaded: Any, samples: list[_Sample], reference: TransformersRunner, longest: int
) -> Callable[[Array], Array]:
    """Fills in the samples; the encoder alone is ours, since transformers' own MRA needs a GPU.

    Returns:
        sentence-transformers' modules over token vectors [1, tokens, hidden_size] without padding: [dimension].
    """
    import torch

    seen: dict[str, Any] = {}

    def forward(features: dict[str, Any], **_: Any) -> dict[str, Any]:
        inputs = {name: features[name].numpy() for name in ("input_ids", "attention_mask")}
        seen["ids"] = inputs["input_ids"][0].tolist()
        types = features.get("token_type_ids")
        seen["types"] = [0] * len(seen["ids"]) if types is None else types[0].tolist()
        if seen.get("hidden") is None:
            width = len(seen["ids"])
            if not 0 < width <= longest:  # a stand-in, of which nothing is taken
                features["attention_mask"] = torch.ones((1, max(width, 1)), dtype=torch.int64)
                hidden = np.zeros((1, max(width, 1), reference.checkpoint.config.hidden_size), np.float32)
            else:
                hidden = _encode(reference, seen["ids"], seen["types"])["last_hidden_state"]
        else:
            hidden = seen["hidden"]
            features["attention_mask"] = torch.ones(hidden.shape[:2], dtype=torch.int64)
        features["token_embeddings"] = torch.from_numpy(hidden)
        return features

    loaded[0].forward = forward
    for sample in samples:
        vector = loaded.encode([sample.text], prompt_name=sample.prompt, show_progress_bar=False)[0]
        sample.ids, sample.types = seen["ids"], seen["types"]
        sample.vector = vector if 0 < len(sample.ids) <= longest else None

    def chain(hidden: Array) -> Array:
        seen["hidden"] = hidden
        try:
            return np.asarray(loaded.encode([""], prompt="", show_progress_bar=False)[0])
        finally:
            seen["hidden"] = None

    return chain


def _run_definition(
    tokenizer: Any,
    contract: TextContract,
    root: Path,
    samples: list[_Sample],
    reference: TransformersRunner,
    longest: int,
) -> Callable[[Array], Array]:
    """The same by transformers' tokenizer and the modules' definition."""
    import torch

    from mra_export.checkpoint.module_torch import as_torch

    modules = as_torch(contract.modules, root)

    def chain(hidden: Array) -> Array:
        mask = torch.ones(hidden.shape[:2], dtype=torch.int64)
        return np.asarray(modules(torch.from_numpy(hidden), mask)[0].numpy())

    for sample in samples:
        sample.ids, sample.types = ids_of(tokenizer, [_prompted(contract, sample)])[0]
        if 0 < len(sample.ids) <= longest:
            sample.vector = chain(_encode(reference, sample.ids, sample.types)["last_hidden_state"])
    return chain


def _prompted(contract: TextContract, sample: _Sample) -> str:
    name = contract.default_prompt if sample.prompt is None else sample.prompt
    return contract.prompts.get(name or "", "") + sample.text


def _encode(runner: Any, ids: list[int], types: list[int]) -> dict[str, Array]:
    """One text through a model."""
    from mra_export.checkpoint.load import input_names

    names = input_names(runner.checkpoint.config) if hasattr(runner, "checkpoint") else runner.model.inputs
    tensors = {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": types}
    outputs: dict[str, Array] = runner.run({name: np.array([tensors[name]], np.int64) for name in names})
    return outputs


@dataclass
class _Ids:
    """What the exported directory's ids are.

    Attributes:
        settings: by which a tokenizer differs that gives other ids.
        agreement: share of texts with the same ids.
    """

    settings: list[str] = field(default_factory=list)
    agreement: float = 1.0


def _compare_ids(
    tokenizer: Any, model: OnnxModel | IrModel, written: TextContract, samples: Sequence[_Sample], positions: int
) -> tuple[_Ids, list[str]]:
    """The exported directory's ids against the reference's, by its tokenizer.json and by `AutoTokenizer`.

    Returns:
        What they are, and what is wrong, one sentence each.
    """
    from tokenizers import Tokenizer

    failures: list[str] = []
    result = _Ids()
    expected = as_backend(tokenizer)
    texts = [_prompted(written, sample) for sample in samples]

    def judge(found: list[tuple[list[int], list[int]]], what: str, backend: Any) -> None:
        wrong = [s.text for s, got in zip(samples, found, strict=True) if got != (s.ids, s.types)]
        if not wrong:
            return
        shown = repr(wrong[0] if len(wrong[0]) <= 40 else wrong[0][:40] + "...")
        failures.append(f"{len(wrong)} of {len(samples)} texts get other ids from {what}, {shown} among them.")
        result.agreement = min(result.agreement, 1 - len(wrong) / len(samples))
        if expected is not None and backend is not None:
            result.settings += [name for name in settings_between(expected, backend) if name not in result.settings]

    folder = transformer_folder(model.directory)
    file = folder / TOKENIZER_FILE
    if file.is_file():
        stored = Tokenizer.from_file(str(file))
        stored.no_padding()
        limit = max_length(written, tokenizer_limit(folder), positions)
        stored.enable_truncation(limit, direction=(stored.truncation or {}).get("direction", "right"))
        judge([(e.ids, e.type_ids) for e in map(stored.encode, texts)], f"its {TOKENIZER_FILE}", stored)
    again = source_tokenizer(folder, written, positions)
    if again is not None:
        judge(ids_of(again, texts), "AutoTokenizer", as_backend(again))
    elif not file.is_file():
        failures.append("The exported directory has no tokenizer, but the checkpoint has one.")
    return result, failures


def _compare_vectors(
    contract: TextContract,
    samples: list[_Sample],
    runner: Runner,
    model: OnnxModel | IrModel,
    chain: Callable[[Array], Array],
    failures: list[str],
) -> tuple[dict[str, float | None], list[str]]:
    """Of the reference's ids: the vectors from end to end, and the modules alone where that is not within the tolerance."""
    limit = TOLERANCES[model.dtype].outputs
    errors, largest, cosines = [], [], []
    encoder, modules = 0, 0
    for sample in samples:
        is_prompted = bool(_prompted(contract, replace(sample, text="")))
        if sample.vector is None or (is_prompted and not contract.include_prompt):
            continue
        outputs = _encode(runner, sample.ids, sample.types)
        got, want = outputs["sentence_embedding"][0], sample.vector
        if got.shape != want.shape:
            failures.append(f"The vectors have {got.size} numbers, the checkpoint's {want.size}.")
            return {"relative_error": None, "max_abs_error": None, "cosine_min": None}, []
        errors.append(relative_error(got, want))
        largest.append(float(np.abs(got - want).max(initial=0.0)))
        cosines.append(cosine(got.astype(np.float64), want.astype(np.float64)))
        if not errors[-1] <= limit:  # NaN is not within any limit
            is_chain = relative_error(got, chain(outputs["last_hidden_state"])) <= _CHAIN
            encoder, modules = encoder + is_chain, modules + (not is_chain)
    if modules:
        failures.append(f"{modules} of {len(errors)} texts get another vector from the modules after the encoder.")
    notes = []
    if encoder:
        notes.append(
            f"{encoder} of {len(errors)} texts differ by what the encoder computes, which the other comparisons judge."
        )
    numbers = {"relative_error": worst(errors), "max_abs_error": worst(largest), "cosine_min": least(cosines)}
    return dict(numbers), notes


def _differing_settings(expected: TextContract, written: TextContract) -> list[str]:
    """The settings by which the exported directory differs, as sentence-transformers' files name them."""
    names = {
        "max_seq_length": (expected.max_length, written.max_length),
        "do_lower_case": (expected.lowercase, written.lowercase),
        "prompts": (expected.prompts, written.prompts),
        "default_prompt_name": (expected.default_prompt, written.default_prompt),
        "processor_kwargs": (expected.tokenizer_options, written.tokenizer_options),
    }
    found = [name for name, (one, other) in names.items() if one != other]
    if expected.modules != written.modules:
        kinds = {type(module).__name__ for module in {*expected.modules} ^ {*written.modules}}
        found.append(f"modules ({', '.join(sorted(kinds)) or 'their order'})")
    return found
