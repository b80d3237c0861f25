"""What the serving tests share: builds of the library, the driver that runs many cases in one process, and bundles."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpu_kernels import build, build_root
from paths import REPO, TESTS

from mra_export.bundle.manifest import seal
from mra_export.native.build import find_nvcc, find_openvino
from mra_export.native.headers import fetch_headers, find_headers

HERE = TESTS / "plugins" / "serving"
SOURCE = REPO / "plugins" / "serving"
Texts = Sequence[Sequence[int]]


@contextlib.contextmanager
def once(path: Path) -> Iterator[bool]:
    """Locks; whether the block is to make `path`, which two test processes share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = path.with_name(f"{path.name}.done")
        yield not done.exists()
        done.touch()


@contextlib.contextmanager
def building(tree: Path, *made_of: str | Path) -> Iterator[bool]:
    """Locks a build tree; whether it must be built: the last time it was, the files or words that it is made of were others."""
    digest = hashlib.sha256()
    for part in made_of:
        files = (
            [part]
            if isinstance(part, str) or part.is_file()
            else sorted(path for path in part.rglob("*") if path.is_file())
        )
        for file in files:
            digest.update(str(file).encode() + b"\0" + (file.read_bytes() if isinstance(file, Path) else b""))
    tree.parent.mkdir(parents=True, exist_ok=True)
    stamp = tree.with_name(f"{tree.name}.made-of")
    with tree.with_name(f"{tree.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not (stamp.exists() and stamp.read_text() == digest.hexdigest())
        stamp.write_text(digest.hexdigest())


def run(*command: str | Path | None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def runtime_library() -> Path:
    ort = pytest.importorskip("onnxruntime")
    return sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"))[-1]


def configure(source: Path, tree: Path, *arguments: str) -> None:
    run("cmake", "-S", source, "-B", tree, *arguments)


@functools.cache
def installed(kind: str) -> Path:
    """The prefix of an installed library: "shared", optimized; or "static", under AddressSanitizer and UBSan, not optimized."""
    if shutil.which("cmake") is None:
        pytest.skip("cmake was not found")
    tree, prefix = build_root() / f"serving-{kind}", build_root() / f"serving-{kind}-prefix"
    headers = find_headers("onnxruntime") or fetch_headers("onnxruntime")
    hosting = f"-DMRA_SERVING_PYTHON={'AUTO' if kind == 'shared' else 'OFF'}"
    backend = [*engine_backend(kind), *openvino_backend(kind), hosting]
    with building(tree, SOURCE, str(headers), str(runtime_library()), *backend) as is_to_build:
        if not is_to_build:
            return prefix
        arguments = [f"-DMRA_ONNXRUNTIME_INCLUDE={headers.path}", f"-DMRA_ONNXRUNTIME_LIBRARY={runtime_library()}"]
        if kind == "shared":
            arguments += ["-DBUILD_SHARED_LIBS=ON"]
        else:
            # Under sanitizers the optimizer takes three times as long as all else of the compiler.
            arguments += ["-DMRA_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=None", "-DMRA_SERVING_TOOLS=OFF"]
        configure(SOURCE, tree, "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", *arguments, *backend)
        run("cmake", "--build", tree, "--parallel", "2")
        run("cmake", "--install", tree, "--prefix", prefix)
    return prefix


def python_folder() -> Path:
    """Where libmra_serving_python.so is."""
    folder = installed("shared") / "lib"
    if not (folder / "libmra_serving_python.so").is_file():
        pytest.skip("Python's headers were not found: apt-get install libpython3-dev")
    return folder


def cuda_include() -> Path | None:
    """The folder of cuda_runtime_api.h beside nvcc, or None."""
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True, check=False)
    roots = [Path(root) for root in re.findall(r"TOP=(\S+)", dry.stderr)]
    folders = [root / folder for root in roots for folder in ("include", "targets/x86_64-linux/include")]
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").is_file()), None)


def rtx_library() -> Path | None:
    """libtensorrt_rtx.so.1 of the pip wheel, or None."""
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    return None if found is None or found.origin is None else Path(found.origin).parent / "libtensorrt_rtx.so.1"


@functools.cache
def fake_tensorrt() -> Path:
    """TensorRT and CUDA in host memory, compiled against TensorRT's headers."""
    folder = build_root() / "serving-fake"
    folder.mkdir(parents=True, exist_ok=True)
    library, source, headers = folder / "libnvinfer_fake.so", HERE / "fake_tensorrt.cc", tensorrt_headers()
    with folder.with_name("serving-fake.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stubs = _stubs(headers)
        if (
            library.exists()
            and (folder / "made-of").exists()
            and (folder / "made-of").read_text() == source.read_text() + stubs
        ):
            return library
        (folder / "fake_tensorrt_stubs.h").write_text(stubs)
        command = ["g++", "-std=c++17", "-g1", "-shared", "-fPIC", "-w", f"-I{folder}", "-isystem", headers]
        command += ["-isystem", cuda_include(), source, "-o", library, "-Wl,-soname,libnvinfer_fake.so"]
        run(*command, "-fsanitize=address,undefined")
        (folder / "made-of").write_text(source.read_text() + stubs)
    return library


def _stubs(headers: Path) -> str:
    """Classes that implement TensorRT's interfaces, each function by ending the process."""
    text = ""
    for file, name in (
        ("NvInferImpl.h", "VRuntime"),
        ("NvInferImpl.h", "VCudaEngine"),
        ("NvInferImpl.h", "VExecutionContext"),
        ("NvInferRuntimeCommon.h", "IPluginRegistry"),
    ):
        source = re.sub(
            r"//[^\n]*|/\*.*?\*/|^#if ENABLE_FEATURE.*?^#endif", "", (headers / file).read_text(), flags=re.S | re.M
        )
        found = re.search(rf"class {name}\b[^;{{]*\{{(.*?)\n\}};", source, re.S)
        assert found is not None, name
        functions = re.findall(r"virtual\s+([^;{}]*?)=\s*0\s*;", found[1])
        assert len(functions) > 10, name
        base = f"nvinfer1::{'apiv::' if name.startswith('V') else ''}{name}"
        bodies = ""
        for function in (" ".join(words.split()) for words in functions):
            bodies += f'  {function} override {{ unused("{name}: {function.split("(")[0].split()[-1]}"); }}\n'
        text += f"namespace nvinfer1 {{ class {name}Stub : public {base} {{ public:\n{bodies}}}; }}\n"
    return text


def tensorrt_headers() -> Path:
    return (find_headers("tensorrt") or fetch_headers("tensorrt")).path


def engine_backend(kind: str) -> list[str]:
    """CMake's arguments for the backend of engines: with TensorRT-RTX of the wheel, or under the sanitizers with the fake."""
    include = cuda_include()
    library = rtx_library() if kind == "shared" else fake_tensorrt() if include is not None else None
    if include is None or library is None:
        return ["-DMRA_SERVING_TENSORRT=OFF"]
    arguments = [
        "-DMRA_SERVING_TENSORRT=ON",
        f"-DMRA_TENSORRT_INCLUDE={tensorrt_headers()}",
        f"-DMRA_TENSORRT_LIBRARY={library}",
    ]
    if kind == "static":
        return [*arguments, f"-DMRA_CUDART_LIBRARY={library}", f"-DMRA_CUDA_INCLUDE={include}"]
    return [*arguments, f"-DCUDAToolkit_ROOT={include.parent}"]


def openvino_backend(kind: str) -> list[str]:
    """CMake's arguments for the wheel's OpenVINO; not under the sanitizers, which its libraries are without."""
    found = find_openvino() if kind == "shared" else None
    return ["-DMRA_SERVING_OPENVINO=OFF"] if found is None else ["-DMRA_SERVING_OPENVINO=ON", f"-DOpenVINO_DIR={found}"]


@functools.cache
def driver(kind: str) -> Path:
    """The driver, built by a project that finds the installed library."""
    prefix, tree = installed(kind), build_root() / f"serving-{kind}-consumer"
    with building(tree, SOURCE, HERE / "consumer", HERE / "driver.cc") as is_to_build:
        if not is_to_build:
            return tree / "driver"
        flags = "-g1 -fsanitize=address,undefined -fno-sanitize-recover=all" if kind == "static" else "-O2"
        configure(HERE / "consumer", tree, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_CXX_FLAGS={flags}")
        run("cmake", "--build", tree)
    return tree / "driver"


class Refused(Exception):
    """What the library answered instead of a value: code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Driver:
    """A driver process; a context manager, which at the end holds the process to a clean exit (of leaks too)."""

    def __init__(self, kind: str, folder: Path) -> None:
        env = {
            **os.environ,
            "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "LSAN_OPTIONS": f"suppressions={HERE / 'lsan.supp'}:print_suppressions=0",
        }
        self._out = folder / "vectors.bin"
        self._errors = (folder / "driver.err").open("w+")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(
            [str(driver(kind))], encoding="utf-8", errors="surrogateescape", env=env, **pipes
        )

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._process.communicate()
        self._errors.seek(0)
        said = self._errors.read()
        self._errors.close()
        if kind is None:
            assert self._process.returncode == 0, said[-6000:]
            assert said == ""

    def ask(self, *fields: str | int | Path) -> list[str]:
        """The fields of an answer after "ok"; `Refused` for an error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\t".join(map(str, fields)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline().rstrip("\n").split("\t")
        if answer[0] == "error":
            raise Refused(int(answer[1]), answer[2])
        if answer[0] != "ok":
            self._process.wait()
            self._errors.seek(0)
            raise AssertionError(f"the driver died after {fields[:3]}: {self._errors.read()[-6000:]}")
        return answer[1:]

    def embed(self, name: str, texts: Texts) -> np.ndarray:
        rows, columns = map(int, self.ask("embed", name, self._out, spell(texts)))
        return np.fromfile(self._out, np.float32).reshape(rows, columns)


def spell(texts: Texts) -> str:
    return ";".join(" ".join(map(str, text)) for text in texts)


def python_vectors(bundle: Path, texts: Texts) -> np.ndarray:
    """What ONNX Runtime's Python session makes of each text alone, padded to the end of its last block."""
    import onnxruntime as ort

    manifest = json.loads((bundle / "manifest.json").read_text())
    variant = manifest["variants"][0]
    options = ort.SessionOptions()
    if variant["library"]:
        options.register_custom_ops_library(str(bundle / variant["library"]))
    session = ort.InferenceSession(str(bundle / variant["file"]), options, providers=["CPUExecutionProvider"])
    vectors = []
    for text in texts:
        width = min(-(-len(text) // 32) * 32, manifest["model"]["max_seq_len"])
        ids = np.full((1, width), manifest["model"]["pad_token_id"], np.int64)
        ids[0, : len(text)] = text
        mask = (np.arange(width) < len(text)).astype(np.int64)[None]
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feed = {name: feed[name] for name in manifest["model"]["inputs"]}
        if "sentence_embedding" in manifest["model"]["outputs"]:
            vectors.append(session.run(["sentence_embedding"], feed)[0][0])
        else:
            vectors.append(session.run(["last_hidden_state"], feed)[0][0, : len(text)].astype(np.float64).mean(0))
    return np.array(vectors)


def mixed_texts(vocab_size: int, max_seq_len: int, count: int = 40, seed: int = 0) -> list[list[int]]:
    """Texts of one token to the longest, every boundary of a block among them."""
    generator = np.random.default_rng(seed)
    lengths = [1, 2, 31, 32, 33, 64, 65, max_seq_len - 1, max_seq_len]
    lengths += [int(n) for n in generator.lognormal(3.5, 1, count).clip(1, max_seq_len)]
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths[:count]]


def write_manifest(bundle: Path, manifest: dict[str, Any]) -> Path:
    bundle.mkdir(parents=True, exist_ok=True)
    (bundle / "manifest.json").write_bytes(seal(manifest))
    return bundle


def relist(bundle: Path) -> None:
    """Writes the manifest anew for the files that lie in a bundle now."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {
        path.relative_to(bundle).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    write_manifest(bundle, manifest)


def native_library() -> Path:
    return build() / "plugins" / "onnxruntime" / "libmra_onnxruntime.so"
