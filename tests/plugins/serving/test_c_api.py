"""The library for C: a program of the examples, a Python that calls it by ctypes, and misuse under the sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import REPO
from serving_support import HERE, Driver, Refused, installed, mixed_texts, python_folder, runtime_library

from mra_export.embedding.layout import Layout

TEXTS = ["The ferry leaves at seven.", "naïve café", "日本語"]


def flags() -> list[str]:
    """As pkg-config gives them to whoever builds with it."""
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config was not found")
    folder = next(installed("shared").rglob("mra_serving.pc")).parent
    env = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    command = ["pkg-config", "--cflags", "--libs", "mra_serving"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()


def test_a_program_in_c(minilm_bundle: Path, tmp_path: Path, shared_driver: Driver) -> None:
    source, program = REPO / "examples" / "c" / "embed.c", tmp_path / "embed"
    library = installed("shared") / "lib"
    options = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    subprocess.run(["gcc", *options, source, "-o", program, *flags(), f"-Wl,-rpath,{library}"], check=True)
    done = subprocess.run([program, minilm_bundle, *TEXTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [text for _, text in printed] == TEXTS
    from tokenizers import Tokenizer

    shared_driver.ask("open", "m", minilm_bundle)
    tokenizer = Tokenizer.from_file(str(minilm_bundle / "tokenizer.json"))
    vectors = shared_driver.embed("m", [tokenizer.encode(text).ids for text in TEXTS])
    cosines = vectors @ vectors[0] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[0])
    assert [float(cosine) for cosine, _ in printed] == pytest.approx(cosines.tolist(), abs=2e-4)
    wrong = subprocess.run([program, "/nowhere", "a"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, wrong.stderr.split(".")[0]) == (2, "/nowhere is not a directory")


def test_a_python_that_calls_it(minilm_bundle: Path, tmp_path: Path) -> None:
    """Python is there already when the tokenizer asks for it, on its own threads and on others'."""
    library = python_folder() / "libmra_serving.so"
    command = [
        sys.executable,
        HERE / "c_api_program.py",
        library,
        minilm_bundle,
        tmp_path / "out.npz",
        runtime_library(),
    ]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    out = np.load(tmp_path / "out.npz")
    assert out["tables"].shape == (3, 384)
    for name in ("python", "batched", "environment"):
        assert np.abs(out[name] - out["tables"]).max() <= 1e-6, name
    for kind in ("float16", "int8"):
        numbers, scales = Layout(384, kind).stored(out["tables"], np.arange(3))
        assert np.array_equal(out[kind], numbers)
        if scales is not None:
            assert np.array_equal(out["scales"], scales)


def test_misuse_is_answered(any_driver: Driver, tiny_bundle: Path) -> None:
    *said, counted, total = any_driver.ask("c_misuse", tiny_bundle)
    expected = [
        "2 options must not be null.",
        "2 name must not be null.",
        "2 nothing is no option. mra_serving.h names them.",
        "2 threads=many must be an integer from 0 to 1024.",
        "2 device=tpu must be auto, cpu or gpu.",
        "0 ",
        "0 ",
        "2 directory must not be null.",
        "2 /nowhere is not a directory",
        "2 embedder must not be null.",
        "2 /nowhere is not a directory",
        "0 ",
        "2 embedder must not be null.",
        "2 numbers=7 must be MRA_FLOAT32",
        "2 vectors, out and for int8 scales must not be null",
        "2 Text 0 has 18446744073709551615 tokens",
        "2 A text must not be null.",
        "2 ",
        "2 embedder must not be null.",
        "0 ",
        "2 Text 0 has 18446744073709551615 tokens",
        "2 done must not be null",
        "2 seconds=-1.000000 must be from 0",
        "0 ",
        "19 The batcher was stopped.",
    ]
    assert len(said) == len(expected)
    for got, wanted in zip(said, expected, strict=True):
        assert got.startswith(wanted)
    assert counted == "1 2 0"
    assert float(total) > 1


# What ONNX Runtime is asked for.


def test_threads_that_all_share(tiny_bundle: Path, tmp_path: Path) -> None:
    texts = mixed_texts(120, 256, 12)
    with Driver("shared", tmp_path) as driver:
        driver.ask("open", "m", tiny_bundle, "shared_threads=1", "threads=2")
        first = driver.embed("m", texts)
        driver.ask("open", "m", tiny_bundle)  # beside it one with threads of its own
        assert np.abs(driver.embed("m", texts) - first).max() <= 1e-6
    with Driver("shared", tmp_path) as driver:
        driver.ask("open", "m", tiny_bundle)
        with pytest.raises(Refused, match="made without threads to share") as refused:
            driver.ask("open", "n", tiny_bundle, "shared_threads=1")
        assert refused.value.code == 2


def test_the_arena_has_a_limit(tiny_bundle: Path, tmp_path: Path) -> None:
    texts = mixed_texts(120, 256, 40)
    with Driver("shared", tmp_path) as driver:
        driver.ask("open", "m", tiny_bundle, f"arena_bytes={256 << 20}")
        with_limit = driver.embed("m", texts)
        with pytest.raises(Refused, match=r"arena_bytes=4096, but the arena that they share has 268435456"):
            driver.ask("open", "n", tiny_bundle, "arena_bytes=4096")
        driver.ask("open", "n", tiny_bundle)
        assert np.abs(driver.embed("n", texts) - with_limit).max() <= 1e-6
    with Driver("shared", tmp_path) as driver:
        driver.ask("open", "m", tiny_bundle, f"arena_bytes={3 << 20}")
        driver.embed("m", [[5, 6]])
        with pytest.raises(Refused, match=r"could not run .*memory"):
            driver.embed("m", [[7] * 256] * 32)
        driver.embed("m", [[5, 6]])  # and it goes on
