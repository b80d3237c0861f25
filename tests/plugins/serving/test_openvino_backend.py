"""OpenVINO in the C++ serving library: Python's vectors, many threads, few shapes, and what is said where it cannot run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_support import change, with_openvino
from measures import relative_error
from serving_support import Driver, Refused, installed, mixed_texts, relist, spell

from mra_export.bundle.chain import vector_of
from mra_export.bundle.manifest import read_bundle
from mra_export.bundle.module_files import read_steps
from mra_export.embedding.batching import batches_run, plan_batches
from mra_export.embedding.runtimes import open_runtime, runtime_of
from mra_export.openvino.core import release

FILE = "openvino/openvino_model.xml"
OPENVINO = "variant=openvino"


@pytest.fixture
def driver(extension: Path, tmp_path: Path) -> Iterator[Driver]:
    with Driver("shared", tmp_path) as process:
        yield process


@pytest.fixture
def copied(openvino_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(openvino_bundle, tmp_path / "bundle"))


def in_python(bundle: Path, texts: list[list[int]]) -> np.ndarray:
    """Each text's vector as `mra-export embed --runtime openvino` makes it."""
    opened = read_bundle(bundle)
    run, steps = open_runtime(opened, runtime_of(opened, "openvino"), threads=1), read_steps(opened, None)

    def vectors(inputs: dict[str, Any]) -> np.ndarray:
        lengths = inputs["attention_mask"].sum(axis=1)
        return np.stack([vector_of(row[:length], steps) for row, length in zip(run(inputs), lengths, strict=True)])

    out = np.empty((len(texts), opened.dimension or 0), np.float32)
    options = {"max_tokens": 1, "step": opened.length_step, "max_length": opened.max_seq_len, "few_shapes": True}
    for batch, found in batches_run(vectors, texts, hidden_size=out.shape[1], pad_id=opened.pad_token_id, **options):  # type: ignore[arg-type]
        out[batch.rows] = found
    return out


def test_it_is_taken_before_the_onnx_file_and_gives_pythons_vectors(driver: Driver, openvino_bundle: Path) -> None:
    texts = mixed_texts(120, 256, 40)
    assert driver.ask("open", "m", openvino_bundle)[:4] == ["openvino", FILE, "cpu", release()]
    vectors = driver.embed("m", texts)
    assert relative_error(vectors, in_python(openvino_bundle, texts)) <= 1e-6
    assert driver.ask("open", "m", openvino_bundle, "variant=onnxruntime")[:2] == ["onnxruntime", "onnx/model.onnx"]
    assert relative_error(driver.embed("m", texts), vectors) <= 1e-5
    for option in (OPENVINO, f"variant={FILE}", "device=cpu"):
        assert driver.ask("open", "m", openvino_bundle, option)[0] == "openvino"


@pytest.mark.parametrize(("precision", "low", "high"), [("bf16", 1e-5, 2e-2), ("int8-weights", 1e-4, 2e-2)])
def test_the_precision_is_that_of_the_file(
    precision: str,
    low: float,
    high: float,
    driver: Driver,
    embed_bundle: Path,
    extension: Path,
    tmp_path: Path,
) -> None:
    """Each text alone, since to int8 a difference in the last bit of a sum may be a step."""
    texts = mixed_texts(120, 256, 14)
    bundle = with_openvino(embed_bundle, tmp_path / "made", precision, extension)
    driver.ask("open", "m", bundle, OPENVINO)
    vectors = np.concatenate([driver.embed("m", [text]) for text in texts])
    assert relative_error(vectors, in_python(bundle, texts)) <= 1e-6
    driver.ask("open", "m", bundle, "variant=onnxruntime")
    assert low < relative_error(vectors, driver.embed("m", texts)) < high  # not float32, and the same model


def test_many_threads_at_once(driver: Driver, openvino_bundle: Path) -> None:
    texts = spell(mixed_texts(120, 256, 20))
    for options in (("threads=1", "parallel_runs=3"), ("threads=2", "parallel_runs=1")):
        driver.ask("open", "m", openvino_bundle, OPENVINO, *options)
        assert float(driver.ask("threads", "m", 6, 8, texts)[0]) <= 1e-6


def test_shapes_are_few(driver: Driver, openvino_bundle: Path) -> None:
    """Runs of 12 and 1 texts of 17 to 20 tokens, filled up to 24; and the most padding is an eighth."""
    driver.ask("open", "m", openvino_bundle, OPENVINO, "max_batch_tokens=2048")
    before = [int(number) for number in driver.ask("counters", "m")]
    driver.embed("m", [[7] * (17 + n % 4) for n in range(13)])
    counted, _, padded, runs = (int(now) - then for now, then in zip(driver.ask("counters", "m"), before, strict=True))
    assert (counted, padded, runs) == (13, 13 * 24, 2)
    for length in (1, 8, 9, 63, 64, 65, 127, 128, 129, 200, 255, 256):
        start = int(driver.ask("counters", "m")[2])
        driver.embed("m", [[7] * length])
        [batch] = plan_batches([length], max_tokens=1, step=32, max_length=256, few_shapes=True)
        assert int(driver.ask("counters", "m")[2]) - start == batch.width


def test_good_and_bad_requests_for_some_seconds(driver: Driver, openvino_bundle: Path) -> None:
    driver.ask("open", "m", openvino_bundle, OPENVINO, "threads=1", "parallel_runs=2", "max_batch_tokens=512")
    *_, good, refused, wrong = map(int, driver.ask("soak", "m", 4, 2))
    assert good > 0
    assert refused > 0
    assert wrong == 0


def test_without_pooling_the_mean_is_made_if_asked(
    driver: Driver, tiny_export: Path, extension: Path, tmp_path: Path
) -> None:
    """Here with the function body, which needs no library."""
    bundle = with_openvino(tiny_export, tmp_path / "made", "fp32", extension, portable=True)
    answer = driver.ask("open", "m", bundle, "mean_of_tokens=1")
    assert (answer[0], answer[4]) == ("openvino", "mean of tokens")
    texts = mixed_texts(120, 256, 12)
    vectors = driver.embed("m", texts)
    driver.ask("open", "m", bundle, "mean_of_tokens=1", "variant=onnxruntime")
    assert relative_error(vectors, driver.embed("m", texts)) <= 1e-5


def another_release(bundle: Path) -> None:
    change(bundle, lambda m: m["variants"][1].update(backend_version="2025.4.0"))


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(bundle: Path) -> None:
        text = (bundle / name).read_text()
        assert old in text
        (bundle / name).write_text(text.replace(old, new))
        relist(bundle)

    return damage


def no_library(bundle: Path) -> None:
    (bundle / "lib" / "libmra_openvino.so").write_text("no library")
    relist(bundle)


def cut_off(bundle: Path) -> None:
    file = bundle / FILE
    file.write_bytes(file.read_bytes()[:5000])
    relist(bundle)


HINT = '<inference_precision_hint value="f32" />'
CANNOT: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "another release": (another_release, 4, r"is for OpenVINO 2025\.4\.0, and the OpenVINO here is 2"),
    "no library": (no_library, 4, r"libmra_openvino\.so cannot be loaded by OpenVINO"),
    "cut off": (cut_off, 2, r"cannot read .*openvino_model\.xml"),
    "precision": (
        replaced(FILE, '<precision value="fp32" />', '<precision value="bf16" />'),
        2,
        r"notes precision=bf16, manifest\.json says fp32",
    ),
    "no hint": (replaced(FILE, HINT, ""), 2, "notes inference_precision_hint=, which must be f32 or bf16"),
    "hint": (
        replaced(FILE, HINT, HINT.replace("f32", "f16")),
        2,
        "inference_precision_hint=f16, which must be f32 or bf16",
    ),
    "output": (replaced(FILE, 'output_names="sentence_embedding"', 'output_names="other"'), 2, "sentence_embedding"),
    "input": (
        replaced(FILE, 'names="token_type_ids"', 'names="other"'),
        2,
        "has the input other, which manifest.json does not",
    ),
}


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_run_is_said_and_the_onnx_file_taken(what: str, driver: Driver, copied: Path) -> None:
    damage, code, said = CANNOT[what]
    damage(copied)
    with pytest.raises(Refused, match=said) as refused:
        driver.ask("open", "m", copied, OPENVINO)
    assert refused.value.code == code
    backend, *_, passed_over = driver.ask("open", "m", copied)
    assert backend == "onnxruntime"
    assert re.search(said, passed_over)


def test_a_gpu_is_not_what_it_runs_on(driver: Driver, openvino_bundle: Path) -> None:
    with pytest.raises(
        Refused, match=r"openvino_model\.xml runs on the CPU, and the device gpu was asked for"
    ) as refused:
        driver.ask("open", "m", openvino_bundle, OPENVINO, "device=gpu")
    assert refused.value.code == 2


def test_libraries_that_are_missing_are_named(driver: Driver, openvino_bundle: Path, tmp_path: Path) -> None:
    """The backend; and a backend whose OpenVINO is not where it was."""
    for make, said in (
        (lambda folder: None, "No such file or directory"),
        (without_openvino, r"libopenvino\.so\.\d+: cannot open shared object file"),
    ):
        folder = tmp_path / said[:5]
        folder.mkdir()
        make(folder)
        with pytest.raises(
            Refused, match=f"libmra_serving_openvino.so cannot be loaded: .*{said}.*-DMRA_SERVING_OPENVINO=ON"
        ) as refused:
            driver.ask("open", "m", openvino_bundle, OPENVINO, f"backend_dir={folder}")
        assert refused.value.code == 4
        assert driver.ask("open", "m", openvino_bundle, f"backend_dir={folder}")[0] == "onnxruntime"


def without_openvino(folder: Path) -> None:
    name = "libmra_serving_openvino.so"
    content = (installed("shared") / "lib" / name).read_bytes()
    [place] = {match[0] for match in re.findall(rb"((/[^:\0]+)*/openvino/libs)", content)}
    (folder / name).write_bytes(content.replace(place, b"/" + b"x" * (len(place) - 1)))


def test_what_was_opened_is_said(openvino_bundle: Path) -> None:
    def mra_embed(*options: str) -> subprocess.CompletedProcess[str]:
        command = [str(installed("shared") / "bin" / "mra-embed"), str(openvino_bundle), *options]
        return subprocess.run(command, input="5 6\n", capture_output=True, text=True, check=True)

    assert f"openvino {release()} runs {FILE}, fp32 (native operator) on cpu" in mra_embed("-v").stderr
    answer = json.loads(mra_embed("--bench", "--json", "--seconds", "0.05", "--batch", "1").stdout)
    assert (answer["backend"], answer["file"], answer["precision"]) == ("openvino", FILE, "fp32")
