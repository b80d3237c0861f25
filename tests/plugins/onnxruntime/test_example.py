"""The C++ example: built against the headers and the pip wheel's own shared library, and the same numbers as Python."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_checkpoint
from cpu_kernels import build, build_root
from paths import REPO

from mra_export.checkpoint.load import load_checkpoint
from mra_export.export.exporter import export_onnx
from mra_export.export.onnx_model import MODEL_FILE
from mra_export.native.headers import find_headers

ort = pytest.importorskip("onnxruntime")

TEXTS = ("5 6 7 8 9 10 11", "12 13", " ".join(str(4 + i * 7 % 100) for i in range(200)))


@pytest.fixture(scope="module")
def library() -> Path:
    return build() / "plugins" / "onnxruntime" / "libmra_onnxruntime.so"


@pytest.fixture(scope="module")
def example(library: Path) -> Path:
    runtimes = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    assert runtimes, "the onnxruntime wheel has no shared library"
    headers = find_headers("onnxruntime")
    assert headers is not None  # build() found or fetched them
    tree = build_root() / "example"
    configure = ["cmake", "-S", str(REPO / "examples" / "cpp" / "onnxruntime"), "-B", str(tree)]
    configure += [f"-DMRA_ONNXRUNTIME_INCLUDE={headers.path}", f"-DMRA_ONNXRUNTIME_LIBRARY={runtimes[-1]}"]
    for command in (configure, ["cmake", "--build", str(tree)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return tree / "mra_embed"


@pytest.fixture(scope="module", params=["none", "mean"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("example")
    checkpoint = load_checkpoint(save_checkpoint(directory / "checkpoint"))
    normalize = True if request.param != "none" else None
    return export_onnx(checkpoint, directory / "exported", pooling=request.param, normalize=normalize).model.parents[1]


def run_example(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, check=False)


def test_the_same_vectors_as_python(example: Path, exported: Path, library: Path, tmp_path: Path) -> None:
    ids_file = tmp_path / "ids.txt"
    ids_file.write_text("\n".join(TEXTS) + "\n")
    done = run_example(example, exported, library, ids_file, "2")
    assert done.returncode == 0, done.stderr
    vectors = np.array([[float(x) for x in line.split()] for line in done.stdout.splitlines()])

    ids = [[int(x) for x in text.split()] for text in TEXTS]
    longest = max(map(len, ids))
    feed = {
        "input_ids": np.array([row + [0] * (longest - len(row)) for row in ids]),
        "attention_mask": np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
        "token_type_ids": np.zeros((len(ids), longest), np.int64),
    }
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(str(exported / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))
    if "sentence_embedding" in outputs:
        expected = outputs["sentence_embedding"].astype(np.float64)
        assert np.array_equal(vectors.astype(np.float32), outputs["sentence_embedding"])
    else:
        states = outputs["last_hidden_state"].astype(np.float64)
        expected = np.array([row[: len(text)].mean(0) for row, text in zip(states, ids, strict=True)])
    assert np.linalg.norm(vectors - expected) <= 1e-7 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1 2 x 3\n", "'1 2 x 3' is not a line of token ids"), ("\n\n", "holds no token ids")],
)
def test_what_it_cannot_read_it_names(
    text: str, message: str, example: Path, exported: Path, library: Path, tmp_path: Path
) -> None:
    ids_file = tmp_path / "ids.txt"
    ids_file.write_text(text)
    done = run_example(example, exported, library, ids_file)
    assert done.returncode == 1
    assert message in done.stderr


def test_a_missing_library_or_model_is_an_error(example: Path, exported: Path, library: Path, tmp_path: Path) -> None:
    ids_file = tmp_path / "ids.txt"
    ids_file.write_text("5 6\n")
    assert "nowhere.so" in run_example(example, exported, tmp_path / "nowhere.so", ids_file).stderr
    assert "model.onnx" in run_example(example, tmp_path, library, ids_file).stderr
    assert run_example(example).returncode == 2
