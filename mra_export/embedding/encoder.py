"""Texts to vectors with a bundle: its tokenizer, its model in a runtime, the modules that follow the encoder."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.bundle.chain import vector_of
from mra_export.bundle.module_files import cut_to, read_steps
from mra_export.checkpoint.modules import width_of
from mra_export.embedding.batching import batches_run
from mra_export.embedding.runtimes import TOKENS, Runtime, open_runtime, runtime_of
from mra_export.errors import InputError
from mra_export.openvino.ir import IR_FILE
from mra_export.optional import require_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from mra_export.bundle.manifest import Bundle

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "Encoded",
    "EncodedBatch",
    "Encoder",
    "TextOptions",
    "prompt_tokens",
    "require_embedding_bundle",
    "text_options",
]

EMBEDDING = "sentence_embedding"
DEFAULT_BATCH_TOKENS = 2048
"""Tokens of a batch. Larger batches cost more padding and gain nothing on a CPU (docs/benchmarks/batching.md)."""
TOKENIZE_BYTES = 1 << 20
"""Of the texts that are tokenized in one call: the tokenizer keeps what it cuts off until the call ends."""


@dataclass(frozen=True)
class Encoded:
    """The vectors of a chunk and how they came about.

    Attributes:
        vectors: float32 [texts, hidden_size].
        truncated: texts that were longer than the maximum length and were cut.
        tokens: of the texts, after that.
        computed: tokens that the model ran, padding included.
    """

    vectors: np.ndarray[Any, Any]
    truncated: int
    tokens: int
    computed: int


@dataclass(frozen=True)
class EncodedBatch:
    """The vectors of a batch.

    Attributes:
        rows: places of its texts in the window, int64 [batch].
        width: tokens to which each was padded.
        vectors: float32 [batch, dimension].
        lengths: tokens of each text, int64 [batch].
        cut: whether it was longer than the maximum length, bool [batch].
    """

    rows: np.ndarray[Any, Any]
    width: int
    vectors: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]
    cut: np.ndarray[Any, Any]


@dataclass(frozen=True)
class TextOptions:
    """What decides a text's vector beside the bundle.

    Attributes:
        prompt: what is put before each text, "" for nothing.
        prompt_name: its name in the bundle; None where it was given as text, or there is none.
        dimensions: numbers to which the vectors are cut; None for all.
        dimension: numbers in a vector, after that.
    """

    prompt: str
    prompt_name: str | None
    dimensions: int | None
    dimension: int


def text_options(
    bundle: Bundle, *, prompt: str | None = None, prompt_text: str | None = None, dimensions: int | None = None
) -> TextOptions:
    """What was asked for, looked up in the bundle.

    Args:
        bundle: that gives one vector a text.
        prompt: name of a prompt; None for the bundle's default.
        prompt_text: the prompt itself, "" for none; None for the one by name.
        dimensions: numbers to which the vectors are cut; None for all.

    Raises:
        InputError: the bundle has no such prompt or not so many dimensions, or both kinds of prompt are given.
    """
    text = bundle.prompt(prompt, prompt_text)
    name = None if prompt_text is not None else prompt if prompt is not None else bundle.default_prompt
    modules = cut_to(bundle.modules, bundle.dimension, dimensions)
    return TextOptions(text, name, dimensions, width_of(modules, bundle.hidden_size))


def require_embedding_bundle(path: Path) -> Bundle:
    """The verified bundle at `path`, of which `Encoder` can be made.

    Raises:
        InputError: it is no bundle, is damaged, or does not give one vector a text.
    """
    from mra_export.bundle.verify import is_bundle, verify_bundle

    if not is_bundle(path) and (path / "onnx").is_dir():
        raise InputError(
            f"{path} is an ONNX directory, not a bundle. Make one of it: `mra-export bundle {path} -o BUNDLE`."
        )
    if not is_bundle(path) and (path / IR_FILE).is_file():
        raise InputError(
            f"{path} is a directory for OpenVINO, not a bundle. Make one of it and of the ONNX directory that it is from: "
            f"`mra-export bundle ONNX --openvino {path} -o BUNDLE`."
        )
    bundle = verify_bundle(path)
    if not bundle.modules or TOKENS not in bundle.outputs:
        raise InputError(
            f"{path} does not give one vector a text: it has no output {EMBEDDING}, but {', '.join(bundle.outputs)}. Export the "
            "checkpoint with `--task feature-extraction --pooling mean` and bundle that."
        )
    if bundle.tokenizer_file is None:
        raise InputError(
            f"{path} has no tokenizer.json. Put the checkpoint's into the ONNX directory and bundle that again."
        )
    return bundle


class Encoder:
    """A model in a runtime, and a tokenizer.

    Args:
        bundle: whose files were verified.
        options: of the texts; None for what the bundle says.
        threads: of the runtime, 0 for its choice.
        batch_tokens: most tokens of a batch, padding included.
        runtime: of the bundle; None for ONNX Runtime.

    Raises:
        InputError: the runtime cannot run the model.
        DependencyError: the runtime or tokenizers is not installed, or not of the version that the bundle needs.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: TextOptions | None = None,
        *,
        threads: int = 0,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime_of(bundle, "onnxruntime") if runtime is None else runtime
        self._tokens = open_runtime(bundle, runtime, threads)
        assert bundle.tokenizer_file is not None
        self.tokenizer = require_tokenizers().Tokenizer.from_file(str(bundle.tokenizer_file))
        self.tokenizer.no_padding()
        self.max_length = bundle.tokenizer_max_length
        self.tokenizer.enable_truncation(self.max_length, direction=bundle.truncation_side)
        self.options = text_options(bundle) if options is None else options
        self._skip = 0 if bundle.include_prompt else prompt_tokens(self.tokenizer, self.options.prompt)
        self._steps = read_steps(bundle, self.options.dimensions)
        self._bundle = bundle
        self._batch_tokens = batch_tokens
        # OpenVINO compiles anew for each shape, and sums in an order that depends on the width.
        self._few_shapes = runtime.name == "openvino"

    def encode(self, texts: Sequence[str], done: Callable[[int], None] = lambda texts: None) -> Encoded:
        """Texts to vectors, in their order.

        With the native operator a text gets the same bits whatever the others are, and with any number of threads. The
        function body sums in an order that depends on both: there the last bits differ.

        Args:
            texts: a window; they are batched among themselves.
            done: called after each batch with its number of texts.
        """
        vectors = np.empty((len(texts), self.options.dimension), np.float32)
        truncated = tokens = computed = 0
        for batch in self.batches(texts):
            vectors[batch.rows] = batch.vectors
            truncated += int(batch.cut.sum())
            tokens += int(batch.lengths.sum())
            computed += len(batch.rows) * batch.width
            done(len(batch.rows))
        return Encoded(vectors, truncated, tokens, computed)

    def batches(self, texts: Sequence[str], done: Container[int] = ()) -> Iterator[EncodedBatch]:
        """As `encode`, one batch after the other; they are the same whatever is done.

        Args:
            texts: a window.
            done: places of texts; a batch of which all are done is left out.
        """
        ids: list[list[int]] = []
        types: list[list[int]] = []
        cut: list[bool] = []
        for part in _parts(texts):
            for encoding in self.tokenizer.encode_batch_fast([self.options.prompt + text for text in part]):
                ids.append(encoding.ids)
                types.append(encoding.type_ids)
                cut.append(bool(encoding.overflowing))
        for batch, vectors in batches_run(
            self._run,
            ids,
            types,
            max_tokens=self._batch_tokens,
            step=self._bundle.length_step,
            hidden_size=self.options.dimension,
            max_length=self._bundle.max_seq_len,
            pad_id=self._bundle.pad_token_id,
            done=done,
            few_shapes=self._few_shapes,
        ):
            lengths = np.array([len(ids[row]) for row in batch.rows])
            yield EncodedBatch(batch.rows, batch.width, vectors, lengths, np.array([cut[row] for row in batch.rows]))

    @contextlib.contextmanager
    def whole_texts(self) -> Iterator[None]:
        """The tokenizer cuts nothing off while the block runs."""
        truncation = self.tokenizer.truncation
        self.tokenizer.no_truncation()
        try:
            yield
        finally:
            self.tokenizer.enable_truncation(**truncation)

    def _run(self, inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
        """The vectors of a batch, float32 [batch, dimension].

        A runtime sums over the tokens in one order or another, which depends on the size of the batch and on the number of
        threads; so its output `sentence_embedding` is left aside.
        """
        hidden = self._tokens(inputs)
        lengths = inputs["attention_mask"].sum(axis=1)
        rows = zip(hidden, lengths, strict=True)
        return np.stack([vector_of(row[: int(length)], self._steps, self._skip) for row, length in rows])


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens of a prompt that do not count where `include_prompt` is false, as sentence-transformers counts them.

    Args:
        tokenizer: with its truncation.
        prompt: "" for none.

    Returns:
        Those of the prompt alone, special tokens included, but for a special one at its end.
    """
    if not prompt:
        return 0
    ids = tokenizer.encode(prompt).ids
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    return len(ids) - (bool(ids) and ids[-1] in special)


def _parts(texts: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = []
    size = 0
    for text in texts:
        if not parts or size + len(text) > TOKENIZE_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(text)
    return parts
