"""`mra-export doctor`: what is installed, what does not agree, and how that is mended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_support import assert_message, run

from mra_export.engine import gpu


def test_doctor_opens_the_plugin(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mra_export.native import libraries

    monkeypatch.setattr(libraries, "find_library", lambda kind, path=None: plugin if kind == "tensorrt" else None)
    code, out, err = run("doctor", "--json")
    assert code == 0, err
    shown = json.loads(out)["plugin"]
    assert shown["version"] == "1"
    assert shown["exports"] == "getCreators, setLoggerFinder, mraBuildInfo"
    assert shown["architectures"]
    assert int(shown["tensorrt_headers"].split(".")[0]) >= 10
    assert int(shown["cuda_runtime"].split(".")[0]) >= 12
    code, out, _ = run("doctor")
    assert f"for GPUs {shown['architectures']}; headers of TensorRT {shown['tensorrt_headers']}" in " ".join(
        out.split()
    )


def test_doctor_says_what_does_not_agree(plugin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mra_export.pipeline import doctor

    versions: dict[str, str | None] = {"tensorrt": "10.3.0", "tensorrt-rtx": None, "polygraphy": None}
    monkeypatch.setattr(gpu, "find_gpus", lambda: (gpu.Gpu("Tesla T4", "7.5"),))
    monkeypatch.setattr(gpu, "driver_version", lambda: 11080)
    info, problems = doctor._tensorrt(plugin, versions)
    assert info is not None
    text = " ".join(problem.text for problem in problems)
    assert_message(text, "polygraphy is not installed")
    assert_message(text, r"headers of TensorRT 10\.[0-9]+, newer than the TensorRT 10\.3\.0 that is installed")
    assert_message(text, r"The plugin needs CUDA 1[0-9]\.[0-9]+; the driver serves CUDA 11\.8 at most")
    assert_message(text, r"and Tesla T4 has compute capability 7\.5")
    assert len(problems) == 4

    nothing = {"tensorrt": None, "tensorrt-rtx": None, "polygraphy": None}
    info, problems = doctor._tensorrt(None, nothing)
    assert info is None
    assert [problem.fix for problem in problems] == ["pip install tensorrt", "mra-export build tensorrt"]
    (tmp_path / "libmra_tensorrt.so").write_text("no library")
    info, problems = doctor._tensorrt(tmp_path / "libmra_tensorrt.so", {**versions, "polygraphy": "0.53"})
    assert info is None
    assert_message(problems[0].text, "cannot be loaded")


def test_doctor_names_a_runtime_that_is_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mra_export.native import libraries
    from mra_export.pipeline import doctor

    library = tmp_path / "libmra_onnxruntime.so"
    monkeypatch.setattr(libraries, "find_library", lambda kind, path=None: library if kind == "onnxruntime" else None)
    for version, told in (("1.19.2", True), ("1.21.0", False), ("1.32.0", False)):
        monkeypatch.setattr(
            doctor, "_package", lambda name, version=version: version if name == "onnxruntime" else None
        )
        problems = [problem for problem in doctor.diagnose().problems if "too old" in problem.text]
        assert [(problem.fix, problem.essential) for problem in problems] == [
            ("pip install --upgrade onnxruntime", False)
        ] * told


def test_doctor_tells_what_the_processor_has(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import replace

    from mra_export.cli.tables import print_diagnosis
    from mra_export.pipeline import doctor

    found = doctor.Diagnosis({}, {}, None, [], {"int8": None, "bf16": "AMX-BF16"}, {}, [])
    print_diagnosis(found)
    print_diagnosis(replace(found, processor={}))
    out = capsys.readouterr().out
    assert out.count("int8 on this CPU") == 1
    assert "no instructions for it: works, but slower" in out
    assert "AMX-BF16" in out
