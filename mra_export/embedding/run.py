"""One vector for each text of a file: in a stream, resumable, here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mra_export.embedding.chunks import CHUNK_ROWS, Chunk, InputFile
from mra_export.embedding.encoder import (
    DEFAULT_BATCH_TOKENS,
    Encoded,
    Encoder,
    provider,
    require_embedding_bundle,
    versions,
)
from mra_export.embedding.input import ChunkReader, scan
from mra_export.embedding.journal import Partial, partial_path, rows_kept
from mra_export.errors import InputError
from mra_export.optional import require_pyarrow
from mra_export.outputs import check_target, file_sha256

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from mra_export.bundle.manifest import Bundle

__all__ = ["ENGINES", "OUTPUT_KINDS", "EmbedResult", "Interrupted", "Watcher", "embed"]

ENGINES = ("local", "ray")
OUTPUT_KINDS = (".npy", ".parquet")
ROW_GROUP = 8192
"""Rows of a parquet row group, which are in memory at a time."""


class Watcher(Protocol):
    """Who is told of the progress."""

    def step(self, text: str) -> None:
        """Something begins."""

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        """The embedding begins: rows and bytes in all, and those that an earlier run did."""

    def advance(self, rows: int, size: int) -> None:
        """So many rows are embedded, so many bytes of the input are done."""


class _Nobody:
    def step(self, text: str) -> None:
        pass

    def start(self, rows: int, size: int, *, rows_done: int, size_done: int) -> None:
        pass

    def advance(self, rows: int, size: int) -> None:
        pass


class Interrupted(KeyboardInterrupt):
    """The work was interrupted; the text says what is kept."""


@dataclass(frozen=True)
class EmbedResult:
    """What `embed` did.

    Attributes:
        output: the file.
        rows: vectors in it.
        hidden_size: numbers in a vector.
        truncated: texts that were longer than `max_length` and were cut.
        max_length: tokens of a text at most, special tokens included.
        tokens: of all texts, after that.
        computed_tokens: that the model ran, padding included.
        resumed_rows: that an earlier run had left.
        seconds: of this run, from the first row.
        engine: one of `ENGINES`.
        workers: sessions that ran at the same time.
        provider: ONNX Runtime's execution provider.
    """

    output: Path
    rows: int
    hidden_size: int
    truncated: int
    max_length: int
    tokens: int
    computed_tokens: int
    resumed_rows: int
    seconds: float
    engine: str
    workers: int
    provider: str

    @property
    def rows_per_second(self) -> float:
        """Of the rows of this run."""
        return (self.rows - self.resumed_rows) / self.seconds if self.seconds else 0.0

    @property
    def padded_share(self) -> float:
        """Of the tokens that the model ran."""
        return 1 - self.tokens / self.computed_tokens if self.computed_tokens else 0.0


def embed(
    bundle: Path,
    source: Path,
    output: Path,
    *,
    column: str = "text",
    id_columns: Sequence[str] = (),
    engine: str = "local",
    workers: int | None = None,
    threads: int = 0,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    chunk_rows: int = CHUNK_ROWS,
    force: bool = False,
    watcher: Watcher | None = None,
) -> EmbedResult:
    """Embeds each text of a file; the output appears whole or not at all, and its bytes are the same however often the work
    was interrupted, with any number of threads and workers, and with both engines.

    That holds with the native operator in the bundle, on processors of the same kind. A bundle without it runs the function
    body, whose last bits depend on the number of threads.

    Memory does not grow with the input. What is done is kept in a hidden directory beside the output; the same call goes on
    from there. `engine`, `workers`, `threads`, `id_columns` and `force` may change in between: they do not change a vector.

    Args:
        bundle: the bundle's directory.
        source: a .txt, .jsonl or .parquet file; see `scan`.
        output: a .npy file, float32 [rows, hidden_size]; or a .parquet file with the columns row (int64), those of
            `id_columns`, and embedding (fixed-size list of float32).
        column: where the texts are in jsonl and parquet.
        id_columns: columns of the input to put into a parquet output.
        engine: "local" for this process, "ray" for workers of Ray Data; the cluster that RAY_ADDRESS names, or one of this
            machine that lives as long as the call.
        workers: of Ray; None for as many as there are processors for.
        threads: of a session; 0 for ONNX Runtime's choice, or one for a worker of Ray.
        batch_tokens: most tokens of a batch, padding included.
        chunk_rows: rows that are batched and journalled together.
        force: replace an existing output, and throw away work that was begun with another input, bundle or option.
        watcher: is told of the progress.

    Raises:
        InputError: the bundle, the input, the output or an option is wrong.
        DependencyError: a package is missing.
        Interrupted: a KeyboardInterrupt while some rows are done; they are kept.
    """
    watcher = watcher or _Nobody()
    ids = tuple(id_columns)
    _check_options(output, ids, engine, workers, threads, batch_tokens)
    check_target(output, force=force, sources=[bundle, source])
    if output.is_dir():
        raise InputError(f"{output} is a directory; the output is a file. Choose another path.")
    if output.suffix == ".parquet":
        require_pyarrow()
    if engine == "ray":
        from mra_export.embedding.ray import require_ray

        require_ray()
    on = provider()
    watcher.step(f"verifying {bundle}")
    model = require_embedding_bundle(bundle)
    data = scan(source, column=column, id_columns=ids, chunk_rows=chunk_rows, progress=watcher.step)
    settings = {
        "manifest_sha256": model.manifest["manifest_sha256"],
        "column": data.column,
        "batch_tokens": batch_tokens,
        "chunk_rows": chunk_rows,
        "provider": on,
        "versions": versions(),
    }
    if model.library is None:  # the function body's sums depend on them
        settings["threads"] = threads or int(engine == "ray")
    partial: Partial | None = None
    try:
        with Partial.open(output, data, model.hidden_size, settings, force=force) as partial:
            watcher.start(
                data.rows,
                sum(chunk.size for chunk in data.chunks),
                rows_done=partial.found,
                size_done=sum(data.chunks[index].size for index in partial.records),
            )
            begun = time.monotonic()
            pending = [chunk for chunk in data.chunks if chunk.index not in partial.records]
            used = 1
            results: Generator[tuple[int, Encoded]]
            if pending and engine == "ray":
                from mra_export.embedding.ray import ray_chunks

                used, results = ray_chunks(
                    model, data, pending, workers=workers, threads=threads, batch_tokens=batch_tokens, on=on
                )
            else:
                results = _local_chunks(model, data, pending, threads, batch_tokens, on, watcher)
            with contextlib.closing(results):
                for index, encoded in results:
                    chunk = data.chunks[index]
                    if index not in partial.records:  # Ray may run a chunk again whose worker died after its answer
                        partial.write(chunk, encoded)
                        watcher.advance(chunk.rows if engine == "ray" else 0, chunk.size)
            seconds = time.monotonic() - begun
            if missing := [chunk.index for chunk in data.chunks if chunk.index not in partial.records]:
                raise AssertionError(f"chunks {missing[:5]} were not computed")
            watcher.step(f"writing {output}")
            if output.suffix == ".parquet":
                _write_parquet(partial, data, ids, model)
                partial.publish(partial.path / "out.parquet")
            else:
                partial.publish(partial.vectors)
    except KeyboardInterrupt as error:
        if partial is not None and partial.published:
            raise Interrupted(f"Interrupted at the very end; {output} is complete.") from error
        if kept := rows_kept(output, data):
            raise Interrupted(
                f"Interrupted; {kept} of {data.rows} rows are kept in {partial_path(output)}. "
                "Run the same command again to go on from there."
            ) from error
        raise
    records = partial.records.values()
    return EmbedResult(
        output=output,
        rows=data.rows,
        hidden_size=model.hidden_size,
        truncated=sum(record.truncated for record in records),
        max_length=model.tokenizer_max_length,
        tokens=sum(record.tokens for record in records),
        computed_tokens=sum(record.computed for record in records),
        resumed_rows=partial.found,
        seconds=seconds,
        engine=engine,
        workers=used,
        provider=on,
    )


def _check_options(
    output: Path, ids: tuple[str, ...], engine: str, workers: int | None, threads: int, batch_tokens: int
) -> None:
    if output.suffix not in OUTPUT_KINDS:
        raise InputError(f"{output} must end in {' or '.join(OUTPUT_KINDS)}: that decides what is written.")
    if ids and output.suffix != ".parquet":
        raise InputError(f"{output} cannot hold --id-column {ids[0]}; write a .parquet file instead.")
    for name in ids:
        if name in ("row", "embedding") or ids.count(name) > 1:
            raise InputError(
                f"--id-column {name} would be in the output twice. Leave it out, or rename it in the input."
            )
    if engine not in ENGINES:
        raise InputError(f"engine={engine!r} must be one of {', '.join(ENGINES)}.")
    if workers is not None and engine != "ray":
        raise InputError(f"--workers {workers} is for --engine ray; --threads is what the engine {engine} has.")
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers} must be at least 1.")
    if threads < 0:
        raise InputError(f"threads={threads} must not be negative; 0 leaves it to ONNX Runtime.")
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens} must be at least 1.")


def _local_chunks(
    model: Bundle,
    data: InputFile,
    pending: list[Chunk],
    threads: int,
    batch_tokens: int,
    on: str,
    watcher: Watcher,
) -> Generator[tuple[int, Encoded]]:
    """The chunks in order, embedded in this process."""
    if not pending:
        return
    encoder = Encoder(model, threads=threads, batch_tokens=batch_tokens, on=on)
    reader = ChunkReader(data)
    for chunk in pending:
        yield chunk.index, encoder.encode(reader.texts(chunk), lambda texts: watcher.advance(texts, 0))


def _write_parquet(partial: Partial, data: InputFile, ids: tuple[str, ...], model: Bundle) -> None:
    """Writes out.parquet from the vectors and the input's id columns, a row group at a time."""
    pa = require_pyarrow()
    fields = [pa.field("row", pa.int64(), nullable=False)]
    tables: Iterator[Any] = iter(())
    if ids:
        schema, tables = ChunkReader(data).ids(ids, ROW_GROUP)
        fields += list(schema)
    vector = pa.list_(pa.field("element", pa.float32(), nullable=False), model.hidden_size)
    fields.append(pa.field("embedding", vector, nullable=False))
    schema = pa.schema(fields, {"mra_export.manifest_sha256": model.manifest["manifest_sha256"]})
    with pa.parquet.ParquetWriter(
        partial.path / "out.parquet", schema, compression="zstd", use_dictionary=list(ids)
    ) as writer:
        row = 0
        while row < data.rows:
            others = next(tables) if ids else None
            count = min(ROW_GROUP, data.rows - row) if others is None else len(others)
            columns = [pa.array(np.arange(row, row + count), pa.int64())]
            columns += [] if others is None else [others[name] for name in ids]
            values = pa.array(partial.read(row, count).reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(values, type=vector))
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)
            row += count
    if ids and file_sha256(data.path) != data.sha256:
        raise InputError(f"{data.path} changed while it was being read. Let it alone, and run the command again.")
