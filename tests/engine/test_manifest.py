"""The check of an engine against its manifest, in Python and in the C++ header: the same verdict in the same words."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import REPO

from mra_export.engine.gpu import covers
from mra_export.engine.manifest import Manifest, check_engine, manifest_path, read_manifest, write_manifest
from mra_export.errors import DependencyError, InputError, MraExportError

HEADER = REPO / "plugins" / "serving" / "engine_manifest.h"
PROGRAM = r"""
#include <iostream>
#include <string>
#include "engine_manifest.h"
int main() {  // one check a line: engine, backend, version, compute capability and plugin, tabs between them
  for (std::string line; std::getline(std::cin, line);) {
    std::string fields[5];
    int i = 0;
    for (char c : line) {
      if (c == '\t') ++i;
      else fields[i] += c;
    }
    std::cout << mra::serving::check_engine(fields[0], {fields[1], fields[2], fields[3], fields[4]}) << '\x1e';
  }
}
"""


@functools.cache
def checker() -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ was not found, so the C++ header cannot be compiled")
    folder = Path(tempfile.mkdtemp(prefix="mra-manifest-"))
    (folder / "check.cc").write_text(PROGRAM)
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]
    command += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{HEADER.parent}"]
    done = subprocess.run(
        [*command, str(folder / "check.cc"), "-o", str(folder / "check")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "check"


def check_in_cpp(requests: list[tuple[str, ...]]) -> list[str]:
    text = "".join("\t".join(request) + "\n" for request in requests)
    done = subprocess.run([str(checker())], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\x1e")[:-1]


Agrees = Callable[[list[tuple[str, ...]], Callable[[list[str]], bool]], None]


@pytest.fixture(params=["Python", pytest.param("C++", marks=pytest.mark.native)])
def agrees(request: pytest.FixtureRequest) -> Agrees:
    """Asks the header too, and holds what it says of each request to a condition; for Python alone it asks nothing."""

    def ask(requests: list[tuple[str, ...]], condition: Callable[[list[str]], bool]) -> None:
        if request.param == "C++":
            said = check_in_cpp(requests)
            assert len(said) == len(requests)
            assert condition(said), said

    return ask


def make_engine(folder: Path, **changes: Any) -> Path:
    """An engine file of 1000 bytes, a plugin beside it, and a manifest that is true of both but for `changes`."""
    folder.mkdir(exist_ok=True)
    engine, plugin = folder / "model.engine", folder / "libmra_tensorrt.so"
    engine.write_bytes(bytes(range(250)) * 4)
    plugin.write_bytes(b"plugin")
    manifest = Manifest(
        format=1,
        mra_export="0.1.0",
        backend="tensorrt",
        backend_version="10.14.1.48",
        version_compatible=False,
        compute_capability="8.9",
        hardware_compatible=False,
        gpu='NVIDIA "L4" \u20ac é',
        engine_bytes=1000,
        engine_sha256=hashlib.sha256(engine.read_bytes()).hexdigest(),
        plugin_name="Mra2Attention",
        plugin_version="1",
        plugin_sha256=hashlib.sha256(b"plugin").hexdigest(),
        plugin_embedded=False,
        plugin_architectures="80-real,86-real,90",
        plugin_layers=2,
        precision="fp16",
        precision_proof="parsed",
        tensor_types={"HALF": 3},
        weights_stripped=False,
        task=None,
        inputs={"input_ids": {"min": [1, 1], "opt": [1, 2], "max": [2, 2]}},
        outputs=["logits"],
        onnx_sha256="0" * 64,
        onnx_dtype="fp16",
        attributes=[{"scale": 0.125}],
        pooling=None,
        parity=[{"metrics": {"cosine_min": 1.0e-3, "nothing": None}, "tolerance": {}, "ok": True}],
        versions={"torch": None},
    )
    write_manifest(dataclasses.replace(manifest, **changes), manifest_path(engine))
    return engine


GOOD = {"backend": "tensorrt", "backend_version": "10.14.1.48", "compute_capability": "8.9"}
ANY_GPU: dict[str, Any] = {"hardware_compatible": True, "compute_capability": "8.0"}
NEWER: dict[str, Any] = {"version_compatible": True}
# Changes of the manifest, changes of the machine, the error (None: it loads).
CASES: list[tuple[dict[str, Any], dict[str, str], type[MraExportError] | None, str]] = [
    ({}, {}, None, ""),
    ({}, {"backend_version": "10.14.1"}, None, ""),
    ({}, {"backend_version": "10.14.1.49"}, DependencyError, "10.14.1.48 exactly; this is 10.14.1.49"),
    ({}, {"backend_version": "10.14"}, DependencyError, "exactly"),
    ({}, {"backend_version": "11.0.0"}, DependencyError, "needs TensorRT 10.14.1.48 exactly; this is 11.0.0"),
    ({}, {"backend_version": "unknown"}, DependencyError, "this is unknown"),
    (NEWER, {"backend_version": "10.15.0"}, None, ""),
    (NEWER, {"backend_version": "11.0.0"}, None, ""),
    (NEWER, {"backend_version": "10.9.9"}, DependencyError, "10.14.1.48 or newer"),
    ({}, {"backend": "rtx"}, DependencyError, "built by TensorRT, which TensorRT-RTX cannot load"),
    ({"backend": "rtx"}, {}, DependencyError, "built by TensorRT-RTX, which TensorRT cannot load"),
    ({}, {"compute_capability": "9.0"}, DependencyError, "compute capability 8.9 exactly .* this one has 9.0"),
    ({}, {"compute_capability": "8.6"}, DependencyError, "this one has 8.6"),
    (ANY_GPU, {"compute_capability": "12.0"}, None, ""),
    (ANY_GPU, {"compute_capability": "7.5"}, DependencyError, "8.0 or newer"),
    (ANY_GPU, {"compute_capability": "nine"}, DependencyError, "this one has nine"),
    ({**ANY_GPU, "plugin_architectures": "80-real"}, {"compute_capability": "9.0"}, DependencyError, "architectures 80-real"),
    ({**ANY_GPU, "plugin_architectures": ""}, {"compute_capability": "9.0"}, None, ""),
    ({"plugin_sha256": "f" * 64}, {}, DependencyError, "is not the plugin that .* was built with"),
    ({"plugin_sha256": "f" * 64, "plugin_embedded": True}, {}, None, ""),
    ({}, {"plugin": "missing.so"}, DependencyError, "which does not exist"),
    ({"plugin_name": "Other"}, {}, InputError, "needs the plugin Other"),
    ({"plugin_name": "YosoAttention"}, {}, None, ""),
    ({"plugin_name": "", "plugin_version": "", "plugin_sha256": "", "plugin_layers": 0}, {}, None, ""),
    ({"engine_bytes": 1001}, {}, InputError, "has 1000 bytes, its manifest says 1001: it was cut off"),
    ({"engine_sha256": "0" * 64}, {}, InputError, "the SHA-256 differs"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "machine", "error", "message"), CASES, ids=range(len(CASES)))
def test_both_checks_say_the_same(
    changes: dict[str, Any],
    machine: dict[str, str],
    error: type[MraExportError] | None,
    message: str,
    tmp_path: Path,
    agrees: Agrees,
) -> None:
    engine = make_engine(tmp_path, **changes)
    asked = {**GOOD, "plugin": str(tmp_path / "libmra_tensorrt.so"), **machine}
    if "missing" in asked["plugin"]:
        asked["plugin"] = str(tmp_path / asked["plugin"])
    said = ""
    if error is None:
        check_engine(engine, **{**asked, "plugin": Path(asked["plugin"])})  # type: ignore[arg-type]
    else:
        with pytest.raises(error, match=message) as caught:
            check_engine(engine, **{**asked, "plugin": Path(asked["plugin"])})  # type: ignore[arg-type]
        said = str(caught.value)
    agrees([(str(engine), *asked.values())], lambda answers: answers == [said])


def test_what_is_left_out_is_not_checked(tmp_path: Path, agrees: Agrees) -> None:
    engine = make_engine(tmp_path)
    assert check_engine(engine).gpu == 'NVIDIA "L4" \u20ac é'
    agrees([(str(engine), "", "", "", "")], lambda said: said == [""])


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b31m", "\u202e", "\x7f", "\U000e0041"], ids=ascii)
def test_text_that_would_steer_a_terminal_is_refused_and_not_obeyed(text: str, tmp_path: Path, agrees: Agrees) -> None:
    engine = make_engine(tmp_path, gpu=f"a{text}b")
    with pytest.raises(InputError, match="holds a control character") as caught:
        check_engine(engine)
    assert str(caught.value).isprintable()
    agrees(
        [(str(engine), "", "", "", ""), (f"{tmp_path}/no{text}where", "", "", "", "")],
        lambda said: "holds a control character" in said[0] and all(each.isprintable() for each in said),
    )


def test_an_engine_that_was_cut_off(tmp_path: Path, agrees: Agrees) -> None:
    engine = make_engine(tmp_path)
    engine.write_bytes(engine.read_bytes()[:700])
    with pytest.raises(InputError, match="has 700 bytes, its manifest says 1000: it was cut off") as caught:
        check_engine(engine)
    agrees([(str(engine), "", "", "", "")], lambda said: said == [str(caught.value)])


def test_an_engine_with_a_flipped_bit(tmp_path: Path, agrees: Agrees) -> None:
    engine = make_engine(tmp_path)
    damaged = bytearray(engine.read_bytes())
    damaged[517] ^= 4
    engine.write_bytes(damaged)
    with pytest.raises(InputError, match="SHA-256 differs") as caught:
        check_engine(engine)
    agrees([(str(engine), "", "", "", "")], lambda said: said == [str(caught.value)])


def test_no_engine_and_no_manifest(tmp_path: Path, agrees: Agrees) -> None:
    with pytest.raises(InputError, match="does not exist"):
        check_engine(tmp_path / "none.engine")
    engine = make_engine(tmp_path)
    manifest_path(engine).unlink()
    with pytest.raises(InputError, match=r"has no manifest model\.engine\.json beside it"):
        check_engine(engine)
    agrees(
        [(str(tmp_path / "none.engine"), "", "", "", ""), (str(engine), "", "", "", "")],
        lambda said: "does not exist" in said[0] and "has no manifest" in said[1],
    )


NOT_MANIFESTS = {
    "empty": "",
    "no object": "[]",
    "no format": "{}",
    "format is text": '{"format": "1"}',
    "format of the future": '{"format": 2}',
    "format is a fraction": '{"format": 1.0}',
    "trailing comma": '{"format": 1,}',
    "two objects": '{"format": 1}{}',
    "only a brace": "{",
    "open string": '{"format',
    "half an escape": '{"format\\',
    "half a code point": '{"a": "\\u12',
    "deep": '{"a":' + "[" * 100_000,
    "huge number": '{"format": 99999999999999999999999999}',
    "control character": '{"form\x01at": 1}',
    "plugin_embedded is a number": None,
    "engine_bytes is text": None,
    "lacks precision": None,
}


@pytest.mark.parametrize("kind", NOT_MANIFESTS)
def test_what_is_no_manifest(kind: str, tmp_path: Path, agrees: Agrees) -> None:
    engine = make_engine(tmp_path)
    text = NOT_MANIFESTS[kind]
    if text is None:
        fields = json.loads(manifest_path(engine).read_text())
        if kind.startswith("lacks"):
            del fields["precision"]
        else:
            fields[kind.split()[0]] = 1 if kind.endswith("number") else "1000"
        text = json.dumps(fields)
    manifest_path(engine).write_text(text)
    with pytest.raises(InputError, match=r"manifest|format|lacks|is no"):
        read_manifest(engine)
    agrees([(str(engine), "", "", "", "")], lambda said: said[0].startswith(f"{engine}.json "))


def test_a_manifest_that_was_cut_off_anywhere_is_refused(tmp_path: Path, agrees: Agrees) -> None:
    whole = manifest_path(make_engine(tmp_path / "whole")).read_text().rstrip()
    requests = []
    for size in range(0, len(whole), 7):
        engine = make_engine(tmp_path / str(size))
        manifest_path(engine).write_text(whole[:size])
        with pytest.raises(InputError):
            check_engine(engine)
        requests.append((str(engine), "", "", "", ""))
    agrees(requests, lambda said: all("is not a readable manifest" in each for each in said))


@pytest.mark.native
def test_random_damage_never_harms_the_reader(tmp_path: Path) -> None:
    """The program runs under AddressSanitizer; the two readers agree on whether the damaged text is still a good manifest."""
    generator = random.Random(0)
    whole = manifest_path(make_engine(tmp_path / "whole")).read_text()
    requests, verdicts = [], []
    for index in range(300):
        engine = make_engine(tmp_path / str(index))
        text = list(whole)
        for _ in range(generator.randrange(1, 4)):
            text[generator.randrange(len(text))] = generator.choice('{}[]",:\\u0129eE+-. tfn')
        manifest_path(engine).write_text("".join(text))
        try:
            check_engine(engine)
            verdicts.append(True)
        except MraExportError:
            verdicts.append(False)
        requests.append((str(engine), "", "", "", ""))
    said = check_in_cpp(requests)
    # The C++ reader needs fewer fields than Python: it may accept more, never less.
    assert not [pair for pair in zip(verdicts, said, strict=True) if pair[0] and pair[1]]
    assert any(verdicts)
    assert any(said)


def test_the_header_is_up_to_date() -> None:
    command = [sys.executable, str(REPO / "scripts" / "generate_engine_manifest.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.native
def test_version_text(tmp_path: Path) -> None:
    source = tmp_path / "version.cc"
    source.write_text(
        '#include "engine_manifest.h"\n#include <cstdio>\n'
        "int main() { for (int v : {101401, 10701, 110000}) std::puts(mra::serving::version_text(v).c_str()); }\n"
    )
    checker()  # skips where there is no compiler
    subprocess.run(
        ["g++", "-std=c++17", f"-I{HEADER.parent}", str(source), "-o", str(tmp_path / "version")], check=True
    )
    done = subprocess.run([str(tmp_path / "version")], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10.14.1", "1.7.1", "11.0.0"]


@pytest.mark.parametrize(
    ("architectures", "gpu", "expected"),
    [
        ("80-real,90", "9.0", True),
        ("80-real", "8.9", True),
        ("86-real", "8.0", False),
        ("80-real", "9.0", False),
        ("80", "9.0", True),
        ("80-virtual", "12.0", True),
        ("120", "9.0", False),
        ("100-real, 120", "12.1", True),
        ("native", "9.0", False),
        ("", "9.0", False),
    ],
)
def test_architectures_and_gpus(architectures: str, gpu: str, expected: bool, tmp_path: Path, agrees: Agrees) -> None:
    assert covers(architectures, gpu) is expected
    engine = make_engine(tmp_path, **ANY_GPU, plugin_architectures=architectures)
    if architectures and ", " not in architectures:
        agrees([(str(engine), "", "", gpu, "")], lambda said: (said[0] == "") is expected)
