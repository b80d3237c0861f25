"""Texts to vectors with a bundle: its tokenizer, its ONNX file in ONNX Runtime, its pooling."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.embedding.batching import run_batched
from mra_export.errors import DependencyError, InputError
from mra_export.optional import require_onnxruntime, require_tokenizers
from mra_export.runners.session import check_runtime, open_session, runtime_errors, session_options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mra_export.bundle.manifest import Bundle
    from mra_export.checkpoint.pooling import Pooling

__all__ = ["DEFAULT_BATCH_TOKENS", "Encoded", "Encoder", "pool", "provider", "require_embedding_bundle", "versions"]

TOKENS = "last_hidden_state"
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


def require_embedding_bundle(path: Path) -> Bundle:
    """The verified bundle at `path`, of which `Encoder` can be made.

    Raises:
        InputError: it is no bundle, is damaged, or does not give one vector a text.
        DependencyError: ONNX Runtime is not installed, or too old for the bundle's library.
    """
    from mra_export.bundle.verify import is_bundle, verify_bundle

    if not is_bundle(path) and (path / "onnx").is_dir():
        raise InputError(
            f"{path} is an ONNX directory, not a bundle. Make one of it: `mra-export bundle {path} -o BUNDLE`."
        )
    bundle = verify_bundle(path)
    if bundle.pooling is None or TOKENS not in bundle.outputs:
        raise InputError(
            f"{path} does not give one vector a text: it has no output {EMBEDDING}, but {', '.join(bundle.outputs)}. Export the "
            "checkpoint with `--task feature-extraction --pooling mean` and bundle that."
        )
    if bundle.tokenizer_file is None:
        raise InputError(
            f"{path} has no tokenizer.json. Put the checkpoint's into the ONNX directory and bundle that again."
        )
    check_runtime(bundle.library)
    return bundle


def provider() -> str:
    """ONNX Runtime's execution provider: CUDA where this build has it and sees a GPU, else the CPU.

    Raises:
        DependencyError: ONNX Runtime is not installed.
    """
    found = require_onnxruntime().get_available_providers()
    return "CUDAExecutionProvider" if "CUDAExecutionProvider" in found and _sees_gpu() else "CPUExecutionProvider"


def versions() -> dict[str, str]:
    """Versions of what computes the vectors, by name.

    Raises:
        DependencyError: ONNX Runtime or tokenizers is not installed.
    """
    return {"onnxruntime": require_onnxruntime().__version__, "tokenizers": require_tokenizers().__version__}


class Encoder:
    """A session and a tokenizer.

    Args:
        bundle: whose files were verified.
        threads: of the session, 0 for ONNX Runtime's choice.
        batch_tokens: most tokens of a batch, padding included.
        on: execution provider; what `provider` says.

    Raises:
        InputError: ONNX Runtime cannot run the model.
        DependencyError: ONNX Runtime or tokenizers is not installed, or ONNX Runtime too old for the bundle.
    """

    def __init__(
        self, bundle: Bundle, *, threads: int = 0, batch_tokens: int = DEFAULT_BATCH_TOKENS, on: str = ""
    ) -> None:
        ort = require_onnxruntime()
        options = session_options(bundle.library, threads=threads)
        # One set of buffers for each shape of a batch, kept for good, would add up: there are many shapes.
        options.enable_mem_pattern = False
        providers = list(dict.fromkeys((on or provider(), "CPUExecutionProvider")))
        try:
            self._session = open_session(str(bundle.model_file), options, providers)
        except InputError as error:
            raise InputError(
                f"ONNX Runtime {ort.__version__} cannot run {bundle.model_file} ({bundle.dtype}) on the {providers[0]}: "
                f"{str(error.__cause__ or error).splitlines()[0]} Bundle an export in another type, or use another ONNX Runtime."
            ) from error
        if (got := self._session.get_providers()[0]) != providers[0]:
            raise DependencyError(
                f"ONNX Runtime has the {providers[0]} but could not start it, and would use the {got}. Mend its CUDA "
                "libraries, or hide the GPU with CUDA_VISIBLE_DEVICES=-1."
            )
        assert bundle.tokenizer_file is not None
        self._tokenizer = require_tokenizers().Tokenizer.from_file(str(bundle.tokenizer_file))
        self._tokenizer.no_padding()
        own = self._tokenizer.truncation or {}
        self.max_length = bundle.tokenizer_max_length
        self._tokenizer.enable_truncation(self.max_length, direction=own.get("direction", "right"))
        assert bundle.pooling is not None
        self._pooling = bundle.pooling
        self._bundle = bundle
        self._batch_tokens = batch_tokens

    def encode(self, texts: Sequence[str], done: Callable[[int], None] = lambda texts: None) -> Encoded:
        """Texts to vectors, in their order.

        With the native operator a text gets the same bits whatever the others are, and with any number of threads. The
        function body sums in an order that depends on both: there the last bits differ.

        Args:
            texts: a window; they are batched among themselves.
            done: called after each batch with its number of texts.
        """
        ids: list[list[int]] = []
        types: list[list[int]] = []
        truncated = 0
        for part in _parts(texts):
            for encoding in self._tokenizer.encode_batch_fast(part):
                ids.append(encoding.ids)
                types.append(encoding.type_ids)
                truncated += bool(encoding.overflowing)
        vectors, computed = run_batched(
            self._run,
            ids,
            types,
            max_tokens=self._batch_tokens,
            step=self._bundle.length_step,
            hidden_size=self._bundle.hidden_size,
            max_length=self._bundle.max_seq_len,
            pad_id=self._bundle.pad_token_id,
            done=done,
        )
        return Encoded(vectors, truncated, sum(map(len, ids)), computed)

    def _run(self, inputs: dict[str, Any]) -> np.ndarray[Any, Any]:
        with runtime_errors(str(self._bundle.model_file)):
            hidden = self._session.run([TOKENS], {name: inputs[name] for name in self._bundle.inputs})[0]
        return pool(hidden, inputs["attention_mask"].sum(axis=1), self._pooling)


def pool(hidden: np.ndarray[Any, Any], lengths: Sequence[int], pooling: Pooling) -> np.ndarray[Any, Any]:
    """Token vectors to text vectors, as the model's own output has them but for the last bits.

    ONNX Runtime sums over the tokens in one order or another, which depends on the size of the batch and on the number of
    threads. Here it is one order, in float64.

    Args:
        hidden: float32 [batch, width, hidden_size].
        lengths: tokens of each text, without padding, which is on the right.
        pooling: of the bundle.

    Returns:
        float32 [batch, hidden_size].
    """
    vectors = np.empty((len(hidden), hidden.shape[2]), np.float32)
    for row, length in enumerate(lengths):
        wide = hidden[row, : int(length)].astype(np.float64)
        vector = wide[0] if pooling.mode == "cls" else wide.mean(axis=0)
        if pooling.normalize:
            vector = vector / max(float(np.sqrt((vector * vector).sum())), 1e-12)
        vectors[row] = vector
    return vectors


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


def _sees_gpu() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return hidden not in ("", "-1") and Path("/dev/nvidiactl").exists()
