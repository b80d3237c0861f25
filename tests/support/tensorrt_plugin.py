"""The TensorRT plugin as the tests have it: with nvcc's kernels, with the host's, and in TensorRT-RTX."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import cuda_host
import onnx
import pytest
from paths import REPO, TESTS

from mra_export.native.headers import fetch_headers, find_headers

HERE = TESTS / "plugins" / "tensorrt"


def tensorrt_include() -> Path:
    return (find_headers("tensorrt") or fetch_headers("tensorrt")).path


def plugin_library() -> Path:
    """libmra_tensorrt.so as CMake builds it, for one architecture; MRA_TENSORRT_PLUGIN names another one."""
    if named := os.environ.get("MRA_TENSORRT_PLUGIN"):
        return Path(named)
    return cuda_host.nvcc_library("tensorrt")


@functools.cache
def harness() -> Path:
    include = tensorrt_include()
    options = ("-DMRA_HARNESS_HOST", "-isystem", str(include))
    return cuda_host.compile_host("plugin_harness", (HERE / "plugin_harness.cc",), options=options, kernels=False)


@functools.cache
def host_plugin() -> Path:
    names = ("register", "attention_plugin", "mra2_attention_plugin", "yoso_attention_plugin")
    sources = tuple(REPO / "plugins" / "tensorrt" / f"{name}.cc" for name in names)
    options = ("-isystem", str(tensorrt_include()), '-DMRA_CUDA_ARCHITECTURES="host"')
    return cuda_host.compile_host("libmra_tensorrt_host.so", (*sources, HERE / "host_cuda.cc"), options=options)


def logger_slots() -> list[str]:
    """The lines of logger_slot.cc, compiled with the headers that are here."""
    options = ("-isystem", str(tensorrt_include()), f"-I{REPO / 'plugins' / 'tensorrt'}")
    program = cuda_host.compile_host("logger_slot", (HERE / "logger_slot.cc",), options=options, kernels=False)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()


def read_errors(operator: str) -> dict[str, str]:
    command = [str(harness()), str(host_plugin()), operator, "errors"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


class Rtx:
    """TensorRT-RTX with the plugin loaded, once per process."""

    def __init__(self, folder: Path) -> None:
        self.trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
        libraries = Path(pytest.importorskip("tensorrt_rtx_libs").__file__).parent
        # The parser looks for a name that the wheel lacks: here is an empty library of that name, which needs the real one.
        alias = folder / "libtensorrt_rtx.so"
        command = [
            "g++",
            "-shared",
            "-x",
            "c++",
            "/dev/null",
            "-o",
            str(alias),
            "-Wl,-soname,libtensorrt_rtx.so",
            "-Wl,--no-as-needed",
        ]
        subprocess.run([*command, f"-L{libraries}", "-l:libtensorrt_rtx.so.1"], check=True)
        ctypes.CDLL(str(alias), mode=ctypes.RTLD_GLOBAL)
        trt = self.trt

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.errors: list[str] = []

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.ERROR:
                    self.errors.append(message)

        self.logger = Logger()
        registry = trt.get_plugin_registry()
        # Another module's tests may have loaded it.
        if not any(creator.name == "Mra2Attention" for creator in registry.all_creators):
            assert registry.load_library(str(plugin_library())) is not None
        self.creators = [
            (creator.name, creator.plugin_namespace, creator.plugin_version) for creator in registry.all_creators
        ]

    def parse(self, model: onnx.ModelProto) -> tuple[Any, Any, list[str]]:
        builder = self.trt.Builder(self.logger)
        network = builder.create_network(0)
        parser = self.trt.OnnxParser(network, self.logger)
        parsed = parser.parse(model.SerializeToString())
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        assert parsed == (not errors)
        return builder, network, errors
