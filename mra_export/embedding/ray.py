"""`embed --engine ray`: the chunks of an input on the workers of Ray Data, with the bytes that the local engine gives."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import pickle
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.embedding.chunks import Chunk, Source
from mra_export.embedding.encoder import Encoder, TextOptions
from mra_export.embedding.pieces import Cut
from mra_export.embedding.runtimes import Runtime, runtime_of, variant_of
from mra_export.embedding.work import Part, Worker
from mra_export.errors import DependencyError, InputError, MraExportError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from mra_export.bundle.manifest import Bundle

__all__ = ["ChunkWorker", "ray_parts", "require_ray"]

OBJECT_STORE_BYTES = 256 << 20
"""Shared memory of a cluster of our own. Only finished vectors pass through it, a few MiB a chunk."""

MAX_BLOCKS = 10_000
"""Of Ray Data at most, each of which costs the driver time and memory."""


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
        source: the input, at the same paths too.
        cut: how texts are cut.
        options: of the texts.
        threads: of the session.
        batch_tokens: as in `Encoder`.
        runtime: the driver's.
    """

    def __init__(
        self,
        bundle: Path,
        sha256: str,
        source: Source,
        cut: Cut | None,
        options: TextOptions,
        threads: int,
        batch_tokens: int,
        runtime: Runtime,
    ) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processors are the sessions'
        self._bundle, self._sha256, self._threads = bundle, sha256, threads
        self._batch_tokens, self._runtime = batch_tokens, runtime
        self._source, self._cut, self._options = source, cut, options

    def __call__(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Chunks, as columns of their fields and of what is done of them, to the parts of their vectors, as they are made.

        Raises:
            InputError: the bundle or the input is not the driver's.
            DependencyError: this machine has other versions or another execution provider.
        """
        columns = [block[field.name].tolist() for field in dataclasses.fields(Chunk)]
        for done, *values in zip(block["done"].tolist(), *columns, strict=True):
            for part in self._worker.parts(Chunk(*values), frozenset(np.frombuffer(done, np.int64).tolist())):
                yield {"part": np.array([pickle.dumps(part)], dtype=object)}

    @functools.cached_property
    def _worker(self) -> Worker:
        """Made with the first chunk: Ray has no good word for an error in a constructor."""
        from mra_export.bundle.manifest import read_bundle
        from mra_export.outputs import file_sha256

        here = os.uname().nodename
        opened = read_bundle(self._bundle)
        if opened.manifest["manifest_sha256"] != self._sha256:
            raise InputError(
                f"{self._bundle} on {here} is another bundle than the one of the command. Copy it to all machines."
            )
        if (have := runtime_of(opened, self._runtime.name)) != self._runtime:
            raise DependencyError(
                f"The worker on {here} has {have.versions} and the {have.provider}; the command was started with "
                f"{self._runtime.versions} and the {self._runtime.provider}. Install the same on all machines: vectors would "
                "differ."
            )
        # The driver looked at every file; here those that are used.
        variant = variant_of(opened, self._runtime.name)
        weights = variant.file.with_suffix(".bin") if variant.backend == "openvino" else None
        for file in (variant.file, weights, opened.tokenizer_file, variant.library, *opened.module_weights):
            if file is None:
                continue
            listed = opened.manifest["files"][file.relative_to(self._bundle).as_posix()]["sha256"]
            if not file.is_file() or file_sha256(file) != listed:
                raise InputError(f"{file} on {here} is missing or was changed. Copy the bundle again.")
        encoder = Encoder(
            opened, self._options, threads=self._threads, batch_tokens=self._batch_tokens, runtime=self._runtime
        )
        return Worker(encoder, self._source, self._cut)


def ray_parts(
    model: Bundle,
    data: Source,
    pending: list[tuple[Chunk, frozenset[int]]],
    cut: Cut | None,
    options: TextOptions,
    *,
    workers: int | None,
    threads: int,
    batch_tokens: int,
    runtime: Runtime,
) -> tuple[int, Generator[Part]]:
    """Embeds chunks on the workers of a Ray cluster: the one that RAY_ADDRESS names, or one of this machine.

    A chunk whose worker dies is computed again by another.

    Args:
        model: the verified bundle, which all machines have at its path.
        data: the input, which all machines have at its path.
        pending: the chunks to embed, with places of rows that are done.
        cut: how texts are cut.
        options: of the texts.
        workers: sessions at the same time; None for as many as there are processors for.
        threads: of a session, 0 for one.
        batch_tokens: as in `Encoder`.
        runtime: that runs the model.

    Returns:
        The number of workers, and the parts of the output in the order in which they are done. Where a worker dies, some may
        come twice, and some not at all: what is missing has to be asked for again.

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
        used, asked = _workers(resources, workers, threads, len(pending), runtime.provider)
        return used, _results(
            ray, stack, model, data, pending, cut, options, used, threads, batch_tokens, runtime, asked
        )
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
    # Errors reach the caller as exceptions; Ray would print the traceback of each, and each worker's that it replaces.
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    quiet = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if ray.is_initialized():  # the caller's own
        yield
        return
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            _knock(address)  # Ray itself would try for minutes
            with _contained():
                ray.init(address=address, **quiet)
        except (OSError, ConnectionError, ValueError) as error:
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
    temporary = tempfile.mkdtemp(prefix="mra-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    try:
        with _contained():
            ray.init(
                address="local",
                num_cpus=max(processors, (workers or 1) * threads),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=temporary,
                **quiet,
            )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)


def _knock(address: str) -> None:
    """Opens and closes a connection to HOST:PORT; what is not of that form is Ray's to judge."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _contained() -> Iterator[None]:
    """For `ray.init`, which puts a handler of its own in the place of ours for SIGTERM, and greets on standard error."""
    handler = signal.getsignal(signal.SIGTERM)
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _results(
    ray: Any,
    stack: contextlib.ExitStack,
    model: Bundle,
    data: Source,
    pending: list[tuple[Chunk, frozenset[int]]],
    cut: Cut | None,
    options: TextOptions,
    workers: int,
    threads: int,
    batch_tokens: int,
    runtime: Runtime,
    asked: dict[str, int],
) -> Generator[Part]:
    with stack:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        # A block a chunk, as long as Ray can keep count of them, and each part of it is handed over, and written, as soon as it is
        # made: Ray would gather them until they have that size.
        stack.callback(setattr, context, "target_max_block_size", context.target_max_block_size)  # the caller's own
        context.target_max_block_size = 1
        items = [
            {**dataclasses.asdict(chunk), "done": np.array(sorted(done), np.int64).tobytes()} for chunk, done in pending
        ]
        arguments = {
            "bundle": model.path.absolute(),
            "sha256": model.manifest["manifest_sha256"],
            "source": dataclasses.replace(data, chunks=()),
            "cut": cut,
            "options": options,
            "threads": threads,
            "batch_tokens": batch_tokens,
            "runtime": runtime,
        }
        done = ray.data.from_items(items, override_num_blocks=min(len(items), MAX_BLOCKS)).map_batches(
            ChunkWorker,
            fn_constructor_kwargs=arguments,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **asked,
        )
        before = set(threading.enumerate())
        blocks = iter(done.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0))
        try:
            for block in blocks:
                yield from map(pickle.loads, block["part"].tolist())
        except ray.exceptions.RayError as error:
            raise _own(error) from error
        finally:
            # Where the work is broken off, Ray Data's threads go on for a moment. One that found Ray shut down would end the
            # process, without a word.
            blocks.close()
            for thread in set(threading.enumerate()) - before:
                if thread.name.startswith(("StreamingExecutor", "iter_threaded")):
                    thread.join(timeout=30)


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
