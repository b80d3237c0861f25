"""A tiny bundle with a tokenizer, texts for it, and processes that start quickly, for the tests of `embed`."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import re
import resource
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_checkpoint
from paths import REPO

from mra_export.cli import main
from mra_export.embedding.journal import partial_path
from mra_export.embedding.run import Interrupted, embed

WORDS = [f"word{i}" for i in range(116)]
MAX_LENGTH = 96
HIDDEN = 64
PAGE = (REPO / "docs" / "embed.md").read_text()


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
    tokenizer.enable_padding(
        pad_id=1, pad_token="<pad>", length=32
    )  # as files of sentence-transformers have it: embed must not use it
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


TEXTS = make_texts(300, seed=1)


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


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = run("embed", *arguments, "--json", "-q")
    return code, json.loads(capsys.readouterr().out)


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


class Stop:
    """A watcher that does something when the journal holds so many chunks."""

    def __init__(self, chunks: int, action: Any) -> None:
        self.chunks, self.action, self.done = chunks, action, 0

    def step(self, text: str) -> None:
        pass

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        if self.chunks == 0:
            self.action()

    def advance(self, rows: int, size: int) -> None:
        self.done += size > 0
        if self.done == self.chunks:
            self.done = -1_000_000
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


def journal(output: Path) -> int:
    with contextlib.suppress(OSError):
        return (partial_path(output) / "journal.jsonl").read_bytes().count(b"\n")
    return 0


def begun(bundle: Path, source: Path, output: Path, *, chunks: int = 5) -> Path:
    """An interrupted run's partial directory."""
    with pytest.raises(Interrupted, match=f"Interrupted; {20 * chunks} of 300 rows are kept"):
        embed(bundle, source, output, chunk_rows=20, watcher=Stop(chunks, interrupt))
    return partial_path(output)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
