"""`embed --engine ray`: the bytes of the local engine, in a cluster of several nodes, with workers that are killed."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embed_support import PAGE, Stop, blocks, hidden, interrupt, make_texts, write_lines

from mra_export.bundle.manifest import read_bundle
from mra_export.embedding.journal import partial_path
from mra_export.embedding.run import Interrupted, embed
from mra_export.embedding.work import Worker
from mra_export.errors import DependencyError, InputError

ray = pytest.importorskip("ray", reason="ray is not installed")

pytestmark = pytest.mark.slow  # a cluster of processes
ROWS = 1200
ASKED: dict[str, Any] = {"prompt_text": "word3 word4 ", "dimensions": 40}
"""Of the texts, by which a worker has to go too."""


class Nodes:
    """A cluster of two nodes on this machine, two logical processors each; all its files are in RAY_TMPDIR."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "object_store_memory": 100 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        self.cluster.add_node(**node)
        self.cluster.wait_for_nodes()

    def workers(self) -> list[int]:
        """Processes that hold a session."""
        parents = {
            process.process.pid for node in self.cluster.list_all_nodes() for process in node.all_processes["raylet"]
        }
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent in parents and b"ray::MapWorker" in command and b"ChunkWorker" in command:
                found.append(int(folder.name))
        return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from mra_export.embedding.ray import require_ray

    require_ray()  # sets what Ray reads from the environment
    folder = tempfile.mkdtemp(prefix="mra-ray-", dir="/tmp")  # short, for Ray's sockets
    with pytest.MonkeyPatch.context() as patched:
        # Cluster leaves its address in Ray's default folder for all Rays of this user; without RAY_TMPDIR that is where an earlier
        # Ray may have worked, or may still.
        patched.setenv("RAY_TMPDIR", folder)
        made = Nodes()
        patched.setenv("RAY_ADDRESS", made.cluster.address)
        yield made
        ray.shutdown()
        made.cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("ray") / "texts.txt", make_texts(ROWS, seed=8))


@pytest.fixture(scope="module")
def expected(embed_bundle: Path, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The local engine's bytes, from chunks of another size."""
    output = tmp_path_factory.mktemp("expected") / "o.npy"
    embed(embed_bundle, lines, output, threads=2, **ASKED)
    return output.read_bytes()


def test_a_worker_that_is_killed_costs_no_row_and_no_bit(
    nodes: Nodes, embed_bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "o.npy"
    killed: list[int] = []
    left: list[int] = []

    def kill() -> None:
        before = nodes.workers()
        assert len(before) == 3
        killed.append(before[0])
        os.kill(before[0], signal.SIGKILL)
        left.append(ROWS // 5 - len((partial_path(output) / "journal.jsonl").read_text().splitlines()))

    result = embed(embed_bundle, lines, output, engine="ray", workers=3, chunk_rows=5, watcher=Stop(10, kill), **ASKED)
    assert killed
    assert left[0] > 100
    assert (result.workers, result.engine, result.resumed_rows) == (3, "ray", 0)
    assert killed[0] not in nodes.workers()
    assert output.read_bytes() == expected
    assert not hidden(tmp_path)


def test_a_run_begun_on_ray_goes_on_on_ray_and_ends_here(
    nodes: Nodes, embed_bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    output = tmp_path / "o.npy"
    options: dict[str, Any] = {"engine": "ray", "workers": 2, "chunk_rows": 50, **ASKED}
    for chunks in (3, 4):
        with pytest.raises(Interrupted, match=f"{150 if chunks == 3 else 350} of {ROWS} rows are kept"):
            embed(embed_bundle, lines, output, watcher=Stop(chunks, interrupt), **options)
    assert not ray.is_initialized()
    # The function body's last bits depend on the number of threads, so that it must be the workers'.
    threads = 0 if read_bundle(embed_bundle).library else 1
    result = embed(embed_bundle, lines, output, chunk_rows=50, threads=threads, **ASKED)
    assert (result.resumed_rows, result.engine) == (350, "local")
    assert output.read_bytes() == expected


def test_packed_files_pieces_and_rows_left_out_give_the_local_engines_bytes(
    nodes: Nodes, embed_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun here, in the midst of a chunk, and ended there; the file that all workers read is packed."""
    texts = make_texts(300, seed=9)
    rows = [json.dumps({"text": text if i % 7 else None}) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("".join(rows[:120]).encode()))
    (tmp_path / "b.json").write_text(f"[{','.join(rows[120:])}]")
    sources = [tmp_path / "a.jsonl.gz", tmp_path / "b.json"]
    options: dict[str, Any] = {
        "null": "skip",
        "chunk": 24,
        "overlap": 4,
        "output_type": "int8",
        "chunk_rows": 60,
        "threads": 1,
    }
    embed(embed_bundle, sources, tmp_path / "local.npy", **options)
    with monkeypatch.context() as patched:
        clock = itertools.count(0, 3).__next__  # each batch takes three seconds
        patched.setattr("mra_export.embedding.run.Worker", functools.partial(Worker, clock=clock))
        with pytest.raises(Interrupted):
            embed(embed_bundle, sources, tmp_path / "o.npy", watcher=Stop(2, interrupt), batch_tokens=2048, **options)
    theirs = ray.data.DataContext.get_current().target_max_block_size
    result = embed(embed_bundle, sources, tmp_path / "o.npy", engine="ray", workers=2, **options)
    assert ray.data.DataContext.get_current().target_max_block_size == theirs > 1
    assert 0 < result.resumed_rows < result.rows
    for name in ("{}.npy", "{}.rows.npy"):
        assert (tmp_path / name.format("o")).read_bytes() == (tmp_path / name.format("local")).read_bytes()
    assert not hidden(tmp_path)


def test_what_is_wrong_at_a_worker_is_said_as_here(
    nodes: Nodes, embed_bundle: Path, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"5 workers of 1 threads .* do not fit the Ray cluster, which has 4 CPUs"):
        embed(embed_bundle, lines, tmp_path / "o.npy", engine="ray", workers=5)
    source = shutil.copy(lines, tmp_path / "t.txt")
    change = Stop(0, lambda: write_lines(source, make_texts(ROWS, seed=9)))
    with pytest.raises(InputError, match=r"t.txt changed while it was being read"):
        embed(embed_bundle, source, tmp_path / "o.npy", engine="ray", workers=1, watcher=change)
    copied = shutil.copytree(embed_bundle, tmp_path / "bundle")
    spoil = Stop(0, lambda: (copied / "tokenizer.json").write_text("{}"))
    with pytest.raises(InputError, match=r"tokenizer.json on .* is missing or was changed"):
        embed(copied, lines, tmp_path / "o.npy", engine="ray", workers=1, watcher=spoil)
    assert not hidden(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(DependencyError, match=r"Ray cluster at RAY_ADDRESS=127\.0\.0\.1:1 cannot be reached"):
        embed(embed_bundle, lines, tmp_path / "o.npy", engine="ray", workers=1)


def test_the_pages_command_starts_a_cluster_of_its_own_and_leaves_nothing(embed_bundle: Path, tmp_path: Path) -> None:
    (command,) = [line for block in blocks("bash") for line in block.splitlines() if "--engine ray" in line]
    assert command in PAGE
    shutil.copytree(embed_bundle, tmp_path / "minilm-bundle")
    texts = make_texts(60, seed=4)
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    folder = Path(tempfile.mkdtemp(prefix="mra-", dir="/tmp"))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["RAY_TMPDIR"] = str(folder)
    done = subprocess.run(
        [sys.executable, "-m", "mra_export", *shlex.split(command)[1:]],
        cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"with-ray\.npy: 60 rows", done.stdout)
    assert "ray (1 x CPUExecutionProvider fp32)" in done.stdout  # 60 rows are one chunk
    assert "Traceback" not in done.stderr
    progress = re.compile("verifying|reading|writing|[0-9,]+ of [0-9,]+ rows")  # the last after half a minute
    assert [line for line in done.stderr.splitlines() if not progress.match(line)] == []
    folder.rmdir()  # it is empty
    embed(embed_bundle, tmp_path / "documents.jsonl", tmp_path / "here.npy", column="body")
    assert np.array_equal(np.load(tmp_path / "with-ray.npy"), np.load(tmp_path / "here.npy"))
