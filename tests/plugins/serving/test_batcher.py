"""The batcher across callers: its queue under ThreadSanitizer and AddressSanitizer, and the vectors that it gives."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from pathlib import Path

import pytest
from cpu_kernels import build_root
from serving_support import HERE, SOURCE, Driver, building, installed, mixed_texts, run, spell

SCENARIOS = (
    "abandon", "bad_texts", "deadlines", "delay", "drain", "due_after_delay", "full", "many_callers",
    "neither_long_nor_short_starve", "poison", "small_beside_large", "soak_and_abandon", "soak_and_drain", "spread_over_runs",
    "stop_in_a_callback",
)  # fmt: skip


@functools.cache
def program(sanitizers: str) -> Path:
    """The scenarios and the queue alone, without libraries that the sanitizers do not see."""
    binary = build_root() / f"batch-queue-{sanitizers.split(',')[0]}"
    sources = [HERE / "batch_queue_test.cc", SOURCE / "src" / "batch_queue.cc"]
    with building(binary, *sources, *(SOURCE / "src").glob("*.h"), SOURCE / "include", sanitizers) as is_to_build:
        if is_to_build:
            flags = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-Werror", f"-fsanitize={sanitizers}"]
            folders = [f"-I{SOURCE}", f"-I{SOURCE / 'include'}"]
            run("g++", *flags, "-fno-sanitize-recover=all", *folders, *sources, "-o", binary, "-lpthread")
    return binary


@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_the_queue_under_sanitizers(sanitizers: str) -> None:
    named = subprocess.run([program(sanitizers)], capture_output=True, text=True, check=True).stdout.split()
    assert tuple(named) == SCENARIOS  # each is run below
    env = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
    done = subprocess.run(
        [program(sanitizers), *SCENARIOS], capture_output=True, text=True, env=env, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert tuple(done.stdout.split()) == SCENARIOS
    assert done.stderr == ""


def test_the_vectors_of_batches_are_those_of_each_text_alone(any_driver: Driver, tiny_bundle: Path) -> None:
    texts = spell(mixed_texts(120, 256, 30))
    any_driver.ask("open", "m", tiny_bundle, "threads=1", "parallel_runs=2", "max_batch_tokens=1024")
    worst, ran, batches, still_open, is_counted = any_driver.ask("batch", "m", 8, 20, texts)
    assert float(worst) <= 1e-6
    assert 0 < int(batches) < int(ran)
    assert (still_open, is_counted) == ("0", "1")


def test_what_a_batcher_cannot_be_started_over(shared_driver: Driver, tiny_bundle: Path) -> None:
    shared_driver.ask("open", "m", tiny_bundle)
    nothing, large = shared_driver.ask("no_batcher", "m")
    assert nothing.startswith("The batcher needs an Embedder")
    assert large == "max_batch_tokens=1073741824 must be from 256 to 8192."


def test_the_benchmark_compares_with_separate_runs(tiny_bundle: Path) -> None:
    arguments = [
        "--bench",
        "--clients",
        "4",
        "--batch",
        "1",
        "--seconds",
        "0.2",
        "--compare-batcher",
        "--max-delay",
        "200",
        "--json",
    ]
    command = [installed("shared") / "bin" / "mra-embed", tiny_bundle, *arguments, "--max-delay", "200"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)["results"]
    assert [line["batcher"] for line in results] == [False, True]
    assert all(line["requests"] > 0 and line["texts_per_second"] > 0 for line in results)
