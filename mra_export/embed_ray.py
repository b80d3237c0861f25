"""`embed --engine ray`: the chunks of a file on the workers of Ray Data, with the bytes that the local engine gives."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.embed_input import Chunk, ChunkReader, InputFile
from mra_export.embed_model import Encoded, Encoder, provider, versions
from mra_export.errors import DependencyError, InputError, MraExportError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from mra_export.bundle_manifest import Bundle

__all__ = ["ChunkWorker", "ray_chunks", "require_ray"]

OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a cluster of our own. Only finished vectors pass through it, a few MiB a chunk."""


def require_ray() -> Any:
    """The module ray, with `ray.data`.

    Raises:
        DependencyError: it is not installed.
    """
    # Ray reads these when it is imported: it reports no usage and sets up no environments for workers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # Its C++ side logs to standard error; all of it is in Ray's log files too.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"The engine ray needs Ray Data, which is not installed ({error}). Install it with `pip install "
            "'mra-export[ray]'`, or leave out --engine ray."
        ) from error
    return ray


class ChunkWorker:
    """What an actor of Ray Data holds: a session and a reader of the input.

    Args:
        bundle: the bundle's directory, which this machine has at the same path.
        sha256: of its manifest, as the driver verified it.
        source: the input, at the same path too.
        threads: of the session.
        batch_tokens: as in `Encoder`.
        on: the driver's execution provider.
        made_by: the driver's `versions`.

    Raises:
        InputError: the bundle is not the driver's.
        DependencyError: this machine has other versions or another execution provider.
    """

    def __init__(
        self,
        bundle: Path,
        sha256: str,
        source: InputFile,
        threads: int,
        batch_tokens: int,
        on: str,
        made_by: dict[str, str],
    ) -> None:
        from mra_export.bundle_manifest import read_bundle
        from mra_export.manifest import file_sha256

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processors are the sessions'
        here = os.uname().nodename
        if (have := versions()) != made_by or provider() != on:
            raise DependencyError(
                f"The worker on {here} has {have} and the {provider()}; the command was started with {made_by} and the {on}. "
                "Install the same on all machines: vectors would differ."
            )
        opened = read_bundle(bundle)
        if opened.manifest["manifest_sha256"] != sha256:
            raise InputError(
                f"{bundle} on {here} is another bundle than the one of the command. Copy it to all machines."
            )
        # The driver looked at every file; here those that are used.
        for file in (opened.model_file, opened.tokenizer_file, opened.library):
            if file is None:
                continue
            listed = opened.manifest["files"][file.relative_to(bundle).as_posix()]["sha256"]
            if not file.is_file() or file_sha256(file) != listed:
                raise InputError(f"{file} on {here} is missing or was changed. Copy the bundle again.")
        self._encoder = Encoder(opened, threads=threads, batch_tokens=batch_tokens, on=on)
        self._reader = ChunkReader(source)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Chunks, as columns of their fields, to their vectors."""
        done: list[Encoded] = []
        for values in zip(*(block[field.name].tolist() for field in dataclasses.fields(Chunk)), strict=True):
            done.append(self._encoder.encode(self._reader.texts(Chunk(*values))))
        return {
            "index": block["index"],
            "vectors": np.array([each.vectors.tobytes() for each in done], dtype=object),
            "truncated": np.array([each.truncated for each in done]),
            "tokens": np.array([each.tokens for each in done]),
            "computed": np.array([each.computed for each in done]),
        }


def ray_chunks(
    model: Bundle,
    data: InputFile,
    pending: list[Chunk],
    *,
    workers: int | None,
    threads: int,
    batch_tokens: int,
    on: str,
) -> tuple[int, Generator[tuple[int, Encoded]]]:
    """Embeds chunks on the workers of a Ray cluster: the one that RAY_ADDRESS names, or one of this machine.

    A chunk whose worker dies is computed again by another.

    Args:
        model: the verified bundle, which all machines have at its path.
        data: the input, which all machines have at its path.
        pending: the chunks to embed.
        workers: sessions at the same time; None for as many as there are processors for.
        threads: of a session, 0 for one.
        batch_tokens: as in `Encoder`.
        on: the execution provider.

    Returns:
        The number of workers, and the chunks' indices and vectors in the order in which they are done.

    Raises:
        InputError: the cluster has fewer processors than that.
        DependencyError: the cluster cannot be reached.
    """
    ray = require_ray()
    threads = threads or 1
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(_cluster(ray, workers, threads))
        resources = ray.cluster_resources()
        used, asked = _workers(resources, workers, threads, len(pending), on)
        return used, _results(ray, stack, model, data, pending, used, threads, batch_tokens, on, asked)
    except BaseException:
        stack.close()
        raise


def _workers(
    resources: dict[str, float], workers: int | None, threads: int, chunks: int, on: str
) -> tuple[int, dict[str, int]]:
    """How many workers, and what each asks of Ray."""
    asked = {"num_cpus": threads, **({"num_gpus": 1} if on.startswith("CUDA") else {})}
    processors, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    room = processors // threads
    if "num_gpus" in asked:
        room = min(room, gpus)
    if room < (workers or 1):
        raise InputError(
            f"{workers or 1} workers of {threads} threads on the {on} do not fit the Ray cluster, which has {processors} CPUs "
            f"and {gpus} GPUs. Give --workers {room} or less, fewer --threads, or a larger cluster."
        )
    return min(workers or room, chunks), asked


@contextlib.contextmanager
def _cluster(ray: Any, workers: int | None, threads: int) -> Iterator[None]:
    """A connection to the cluster of RAY_ADDRESS, or a cluster of this machine that ends with the block."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if ray.is_initialized():  # the caller's own
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address, **quiet)
        except Exception as error:
            raise DependencyError(
                f"The Ray cluster at RAY_ADDRESS={address} cannot be reached: {str(error).splitlines()[0]} Start it, or unset "
                "RAY_ADDRESS to use this machine alone."
            ) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    processors = len(os.sched_getaffinity(0))
    # Ray's sockets lie in here, and the path of a socket has at most 107 characters.
    temporary = tempfile.mkdtemp(prefix="mra-", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=max(processors, (workers or 1) * threads),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=temporary,
            **quiet,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _results(
    ray: Any,
    stack: contextlib.ExitStack,
    model: Bundle,
    data: InputFile,
    pending: list[Chunk],
    workers: int,
    threads: int,
    batch_tokens: int,
    on: str,
    asked: dict[str, int],
) -> Generator[tuple[int, Encoded]]:
    with stack:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        # A block a chunk: each is handed over, and written, as soon as it is done, and no more than one is lost with a worker.
        items = [dataclasses.asdict(chunk) for chunk in pending]
        arguments = {
            "bundle": model.path.absolute(),
            "sha256": model.manifest["manifest_sha256"],
            "source": dataclasses.replace(data, chunks=()),
            "threads": threads,
            "batch_tokens": batch_tokens,
            "on": on,
            "made_by": versions(),
        }
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            ChunkWorker,
            fn_constructor_kwargs=arguments,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **asked,
        )
        try:
            for row in done.iter_rows():
                vectors = np.frombuffer(row["vectors"], np.float32).reshape(-1, model.hidden_size)
                yield row["index"], Encoded(vectors, row["truncated"], row["tokens"], row["computed"])
        except ray.exceptions.RayError as error:
            raise _own(error) from error


def _own(error: BaseException) -> MraExportError:
    """The error that a worker met, as the local engine would have raised it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MraExportError):
            return type(seen)(str(getattr(seen, "cause", None) or seen))
        cause = getattr(seen, "cause", None)
        seen = cause if isinstance(cause, BaseException) else seen.__cause__
    text = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
    return MraExportError(f"Ray failed: {text.strip()} What was done is kept; run the command again to go on.")
