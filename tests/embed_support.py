"""A tiny bundle with a tokenizer, texts for it, and processes that start quickly, for the tests of `embed`."""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
from functools import cache
from pathlib import Path
from typing import Any

from conftest import save_checkpoint

WORDS = [f"word{i}" for i in range(116)]
MAX_LENGTH = 96
HIDDEN = 64


def save_tokenizer(path: Path) -> None:
    """A tokenizer of whole words, with BERT's special tokens around a text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate([*special, *WORDS])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.enable_padding(length=32)  # as files of sentence-transformers have it: embed must not use it
    tokenizer.save(str(path))


def make_bundle(folder: Path, **settings: Any) -> Path:
    """A bundle of two small layers, pooled by the mean, that cuts texts to `MAX_LENGTH` tokens."""
    from mra_export.pipeline.create_bundle import create_bundle

    checkpoint = save_checkpoint(folder / "checkpoint", hidden_size=HIDDEN, block_per_row=1, **settings)
    save_tokenizer(checkpoint / "tokenizer.json")
    (checkpoint / "tokenizer_config.json").write_text(f'{{"model_max_length": {MAX_LENGTH}}}')
    (checkpoint / "1_Pooling").mkdir()
    (checkpoint / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in kinds]
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    return create_bundle(checkpoint, folder / "bundle", check=False).path


def make_texts(count: int, *, seed: int = 0, longest: int = 120) -> list[str]:
    """Texts of 0 to `longest` words, most of them short."""
    rng = random.Random(seed)
    lengths = [min(longest, int(rng.lognormvariate(2.5, 1.1))) for _ in range(count)]
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


@cache
def processes() -> multiprocessing.context.ForkServerContext:
    """Starts processes that have imported already what takes long to import."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["transformers", "embed_support", "mra_export.embedding.run", "mra_export.pipeline.create_bundle"]
    )
    return context


def embed_in_child(answer: Any, limit: int | None, *arguments: Any, **options: Any) -> None:
    """Runs `embed` and sends (resumed rows or error, peak memory in MiB) to `answer`.

    Args:
        answer: the end of a pipe.
        limit: bytes that a file may have at most; None for any.
        arguments: of `embed`, as are `options`.
    """
    from mra_export.embedding.run import embed
    from mra_export.errors import MraExportError

    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        told: Any = embed(*arguments, **options).resumed_rows
    except MraExportError as error:
        told = str(error)
    answer.send((told, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def start_child(limit: int | None, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """A process that runs `embed_in_child`, and the other end of its pipe."""
    answer, theirs = processes().Pipe(duplex=False)
    process = processes().Process(target=embed_in_child, args=(theirs, limit, *arguments), kwargs=options, daemon=True)
    process.start()
    theirs.close()
    return process, answer
