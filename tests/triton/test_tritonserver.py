"""A real tritonserver serves the model repository.

The server is PyPI's (scripts/triton_server.sh), without the onnxruntime backend, for which `triton_encoder_model.py` then stands
in; all else is real. With MRA_EXPORT_TRITONSERVER=/opt/tritonserver the same tests run a full server, as in NVIDIA's image.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import TESTS
from triton_support import TEXTS, make_bundle, open_session, read_config, vector

from mra_export.bundle.manifest import Bundle
from mra_export.triton.repository import Repository, write_model_repository
from mra_export.triton.settings import TritonSettings

pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc] is not installed (pip install 'mra-export[triton]')"
)


TEXT: dict[str, Any] = {"prompts": {"query": "a query about the city: "}, "default_prompt": None}
"""What the repository's generator is told of prompts."""


@dataclass(frozen=True)
class Installation:
    """A tritonserver: its program, its backends, and what has to be in the environment of its python backend."""

    program: Path
    backends: Path
    environment: dict[str, str]


def find_server() -> Installation:
    if home := os.environ.get("MRA_EXPORT_TRITONSERVER"):
        return Installation(Path(home) / "bin" / "tritonserver", Path(home) / "backends", {})
    venv = Path(sys.prefix) / "triton-server"
    if not list(venv.glob(".mra-export-*")):
        pytest.skip(f"no tritonserver in {venv}: run scripts/triton_server.sh, or set MRA_EXPORT_TRITONSERVER")
    (site,) = venv.glob("lib/python*/site-packages")
    home = site / "pytriton" / "tritonserver"
    libraries = f"{site / 'nvidia_pytriton.libs'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    path = f"{venv / 'bin'}:{os.environ['PATH']}"
    return Installation(home / "bin" / "tritonserver", home / "backends", {"PATH": path, "LD_LIBRARY_PATH": libraries})


@pytest.fixture(scope="module")
def bundle(minilm_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Without pooling in the model, so that every kind of step is served."""
    find_server()
    return make_bundle(minilm_dense, tmp_path_factory.getbasetemp(), pooled=False)


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def server(bundle: Bundle, grpc_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has loaded the repository, warm-ups included."""
    found = find_server()
    repository = tmp_path_factory.mktemp("served") / "models"
    prompted = dataclasses.replace(bundle, manifest={**bundle.manifest, "text": TEXT})
    made = write_model_repository(prompted, repository, TritonSettings(tokenizer=True, pooling="mean", normalize=True))
    if not (found.backends / "onnxruntime").is_dir():
        put_stand_in(repository / "mra_onnx")
    yield from running(found, made, repository, grpc_port)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def running(found: Installation, made: Repository, repository: Path, grpc_port: int) -> Iterator[str]:
    port = free_port()
    log = repository.with_name("log")
    command = [str(found.program), *made.arguments(".").split(), f"--backend-directory={found.backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-metrics=false"]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **found.environment}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=repository, env=environment, stdout=output, stderr=output)
        try:
            address = f"http://127.0.0.1:{port}/v2"
            deadline = time.monotonic() + 120
            while not is_ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"tritonserver did not get ready: {log.read_text()[-4000:]}")
                time.sleep(0.1)
            yield address
            assert process.poll() is None, log.read_text()[-4000:]
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def put_stand_in(folder: Path) -> None:
    """Gives a model to the python backend, with nothing else changed."""
    from google.protobuf import text_format

    config = read_config(folder)
    config.parameters["model"].string_value = config.default_model_filename
    config.backend, config.default_model_filename = "python", "model.py"
    config.ClearField("platform")
    (folder / "config.pbtxt").write_text(text_format.MessageToString(config))
    shutil.copyfile(TESTS / "support" / "triton_encoder_model.py", folder / "1" / "model.py")


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health/ready", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def infer(address: str, model: str, **inputs: tuple[str, list[int], list[Any]]) -> dict[str, np.ndarray]:
    body = [{"name": n, "datatype": t, "shape": s, "data": d} for n, (t, s, d) in inputs.items()]
    request = urllib.request.Request(f"{address}/models/{model}/infer", json.dumps({"inputs": body}).encode())
    with urllib.request.urlopen(request, timeout=60) as response:
        outputs = json.load(response)["outputs"]
    return {each["name"]: np.array(each["data"]).reshape(each["shape"]) for each in outputs}


def embed(address: str, text: str) -> np.ndarray:
    return infer(address, "mra_onnx_text", text=("BYTES", [1, 1], [text]))["sentence_embedding"]


def pooled(states: np.ndarray, count: int) -> np.ndarray:
    mean = states[:, :count].mean(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def test_texts_become_the_vectors_of_onnx_runtime(server: str, bundle: Bundle) -> None:
    """Many at a time and of many lengths, so that Triton batches: no vector may depend on what shares its batch."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    session = open_session(bundle)
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda text: embed(server, text), TEXTS * 6))
    for text, given in zip(TEXTS * 6, found, strict=True):
        states = vector(bundle, session, text, "last_hidden_state")
        count = len(tokenizer(text, truncation=True, max_length=bundle.tokenizer_max_length)["input_ids"])
        np.testing.assert_allclose(given, pooled(states, count), atol=2e-6)


def test_many_texts_share_batches_by_length(server: str) -> None:
    """The python backend calls the encoder itself; what comes out is what each text gets alone."""
    texts = [text for text in TEXTS for _ in range(7)]
    before = batches(server)
    found = infer(server, "mra_onnx_texts", text=("BYTES", [len(texts), 1], texts))["sentence_embedding"]
    assert {size for size, count in batches(server).items() if count > before.get(size, 0)} >= {7, 21}
    for text, given in zip(texts, found, strict=True):
        np.testing.assert_allclose(given, embed(server, text)[0], atol=2e-6)


@pytest.mark.parametrize("model", ["mra_onnx_text", "mra_onnx_texts"])
def test_a_request_may_name_a_prompt(server: str, model: str) -> None:
    text = ("BYTES", [1, 1], ["Jena"])
    named = infer(server, model, text=text, prompt_name=("BYTES", [1, 1], ["query"]))["sentence_embedding"]
    np.testing.assert_allclose(named, embed(server, TEXT["prompts"]["query"] + "Jena"), atol=2e-6)
    none = infer(server, model, text=text, prompt_name=("BYTES", [1, 1], [""]))["sentence_embedding"]
    np.testing.assert_allclose(none, embed(server, "Jena"), atol=2e-6)
    with pytest.raises(urllib.error.HTTPError) as error:
        infer(server, model, text=text, prompt_name=("BYTES", [1, 1], ["queries"]))
    assert "no prompt 'queries'. The model has query." in json.load(error.value)["error"]


def test_requests_with_and_without_a_prompt_come_together(server: str) -> None:
    """Triton may put them into one batch, in which an input is there for some only."""
    names: list[Any] = [None, "query", ""] * 12
    with ThreadPoolExecutor(12) as pool:
        inputs = [{} if name is None else {"prompt_name": ("BYTES", [1, 1], [name])} for name in names]
        calls = [
            pool.submit(infer, server, model, text=("BYTES", [1, 1], ["Jena"]), **given)
            for given, model in zip(inputs, ["mra_onnx_text", "mra_onnx_texts"] * 18, strict=True)
        ]
    wanted = {name: embed(server, (TEXT["prompts"]["query"] if name else "") + "Jena") for name in (None, "query", "")}
    for name, call in zip(names, calls, strict=True):
        np.testing.assert_allclose(call.result()["sentence_embedding"], wanted[name], atol=2e-6)


def test_the_example_is_a_client(server: str, grpc_port: int) -> None:
    root = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
    command = [sys.executable, str(root / "examples" / "triton" / "client.py"), f"--url=127.0.0.1:{grpc_port}"]
    done = subprocess.run([*command, *TEXTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text, line in zip(TEXTS, done.stdout.splitlines(), strict=True):
        np.testing.assert_allclose(json.loads(line), embed(server, text)[0], atol=2e-6)
    done = subprocess.run([*command, "--prompt=query", "Jena"], capture_output=True, text=True, check=True)
    wanted = embed(server, TEXT["prompts"]["query"] + "Jena")[0]
    np.testing.assert_allclose(json.loads(done.stdout), wanted, atol=2e-6)
    done = subprocess.run([*command, "--model=none", "text"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "none" in done.stderr


@pytest.mark.parametrize("model", ["mra_tokenizer", "mra_onnx_text", "mra_onnx_texts"])
def test_text_that_is_not_utf8_is_an_invalid_argument(server: str, grpc_port: int, model: str) -> None:
    """Of the three models that take text; a server before 23.09 has no such code."""
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    text = InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"caf\xe9"]], dtype=np.object_))
    with InferenceServerClient(f"127.0.0.1:{grpc_port}") as client, pytest.raises(InferenceServerException) as error:
        client.infer(model, [text])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "text is not UTF-8" in error.value.message()


def batches(address: str) -> dict[int, int]:
    """Size -> how many batches of it the encoder ran."""
    with urllib.request.urlopen(f"{address}/models/mra_onnx/stats", timeout=5) as response:
        (stats,) = json.load(response)["model_stats"]
    return {each["batch_size"]: each["compute_infer"]["count"] for each in stats["batch_stats"]}


def test_the_warm_up_ran_before_the_server_was_ready(server: str) -> None:
    assert {1, 8} <= set(batches(server))


def test_the_tokenizer_takes_several_texts(server: str, bundle: Bundle) -> None:
    outputs = infer(server, "mra_tokenizer", text=("BYTES", [len(TEXTS), 1], TEXTS))
    assert list(outputs) == list(bundle.inputs)
    assert {array.shape for array in outputs.values()} == {(len(TEXTS), bundle.max_seq_len)}


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("mra_onnx_text", {"text": ("BYTES", [2, 1], ["one", "two"])}, "batch-size must be <= 1"),
        ("mra_onnx_text", {"other": ("BYTES", [1, 1], ["one"])}, "other"),
        ("mra_onnx", {n: ("INT64", [1, 4], [0] * 4) for n in ("input_ids", "attention_mask")}, "expected 3 inputs"),
        (
            "mra_onnx",
            {n: ("INT32", [1, 4], [0] * 4) for n in ("input_ids", "attention_mask", "token_type_ids")},
            "INT64",
        ),
        (
            "mra_onnx",
            {n: ("INT64", [1, 4], [10**9] * 4) for n in ("input_ids", "attention_mask", "token_type_ids")},
            "out of data bounds",
        ),
    ],
)
def test_bad_requests_get_an_error_and_the_server_lives(
    server: str, model: str, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        infer(server, model, **inputs)
    assert 400 <= error.value.code < 600
    assert message in json.load(error.value)["error"]
    np.testing.assert_allclose(np.linalg.norm(embed(server, "still there")), 1, rtol=1e-5)
