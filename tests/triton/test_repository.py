"""The model repository: engines and the plugin in it, other tasks, and its place in a bundle."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import save_checkpoint
from paths import REPO
from triton_support import (
    TEXTS,
    copy_tokenizer,
    engine,
    python_model,
    read_config,
    run_ensemble,
    sizes,
    strings,
    vector,
    with_engines,
)

from mra_export.bundle.manifest import Bundle, read_bundle
from mra_export.bundle.verify import verify_bundle
from mra_export.checkpoint.load import load_checkpoint
from mra_export.engine.ranges import Range
from mra_export.errors import InputError
from mra_export.export.exporter import export_onnx
from mra_export.native.libraries import find_library
from mra_export.pipeline.create_bundle import create_bundle
from mra_export.triton.repository import RepositoryWriter, write_model_repository
from mra_export.triton.settings import TritonSettings

pytest.importorskip(
    "tritonclient.grpc", reason="tritonclient[grpc] is not installed (pip install 'mra-export[triton]')"
)


def test_engines_for_different_gpus_are_one_model(bundle: Bundle, tmp_path: Path) -> None:
    from tritonclient.grpc import model_config_pb2 as pb

    made = with_engines(
        bundle,
        engine(bundle, "hopper.engine", tmp_path / "e", compute_capability="9.0"),
        engine(bundle, "any.engine", tmp_path / "e", compute_capability="8.0", hardware_compatible=True),
        engine(bundle, "small.engine", tmp_path / "e", profiles=sizes((1, 1, 4), (1, 32, 64))),
        engine(bundle, "full.engine", tmp_path / "e", precision="fp32"),
    )
    repository = write_model_repository(made, tmp_path / "r")
    assert repository.models == ("mra_onnx", "mra_trt_fp16_16x200", "mra_trt_fp16_4x64", "mra_trt_fp32")
    assert repository.gpu
    config = read_config(tmp_path / "r" / "mra_trt_fp16_16x200")
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert dict(config.cc_model_filenames) == {"9.0": "model_9.0.plan"}
    folder = tmp_path / "r" / config.name / "1"
    assert (folder / "model_9.0.plan").read_bytes() == b"engine hopper.engine"
    assert (folder / config.default_model_filename).read_bytes() == b"engine any.engine"
    assert config.max_batch_size == 16
    assert [(g.kind, list(g.profile)) for g in config.instance_group] == [(pb.ModelInstanceGroup.KIND_GPU, ["0"])]
    assert [each.name for each in config.input] == list(bundle.inputs)
    assert [each.name for each in config.output] == list(bundle.outputs)
    for name, batch, longest in (("mra_trt_fp16_16x200", 16, 200), ("mra_trt_fp16_4x64", 4, 64)):
        config = read_config(tmp_path / "r" / name)
        shapes = [(w.batch_size, *w.inputs["input_ids"].dims) for w in config.model_warmup]
        assert max(shapes) == (batch, longest)  # the largest fits in the GPU's memory, or the server does not start
        assert all(1 <= rows <= batch and 1 <= length <= longest for rows, length in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("class_name", ["MraForMultipleChoice", "MraForSequenceClassification"])
def test_other_tasks(class_name: str, tokenizer_files: Path, tmp_path: Path) -> None:
    """Three axes for multiple choice; logits for a text in text classification. Weights in a file of their own, too."""
    source = save_checkpoint(tmp_path / "checkpoint", class_name, vocab_size=200, num_hidden_layers=1, pad_token_id=0)
    copy_tokenizer(tokenizer_files, source)
    directory = export_onnx(load_checkpoint(source), tmp_path / "onnx").directory
    file = directory / "onnx" / "model.onnx"
    onnx.save_model(
        onnx.load(str(file)), str(file), save_as_external_data=True, location="model.onnx_data", size_threshold=1024
    )
    text = class_name == "MraForSequenceClassification"
    create_bundle(directory, tmp_path / "b", check=False, triton=RepositoryWriter(TritonSettings(tokenizer=text)))
    folder = tmp_path / "b" / "triton" / "mra_onnx"
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    config = read_config(folder)
    assert {tuple(each.dims) for each in config.input} == {(-1,) if text else (-1, -1)}
    for warmup in config.model_warmup:
        feed = {}
        for name, value in warmup.inputs.items():
            path = folder / "warmup" / value.input_data_file
            shape = (warmup.batch_size, *value.dims)
            row = np.zeros(value.dims, np.int64) if value.zero_data else np.fromfile(path, "<i8", np.prod(value.dims))
            feed[name] = np.broadcast_to(row.reshape(value.dims), shape)
        (logits,) = session.run(None, feed)
        assert logits.shape == (warmup.batch_size, *([3] if text else value.dims[:1]))
        assert np.isfinite(logits).all()
    if text:
        outputs = run_ensemble(folder.parent, "mra_onnx_text", TEXTS[3], session)
        made = read_bundle(tmp_path / "b")
        np.testing.assert_allclose(outputs["logits"], vector(made, session, TEXTS[3], "logits"), atol=1e-6)
        assert list(read_config(folder.parent / "mra_onnx_texts").output[0].dims) == [3]


def test_engines_find_the_plugin(bundle: Bundle, tmp_path: Path) -> None:
    """That of the repository, opened from its working directory; or the one they carry."""
    library = tmp_path / "libmra_tensorrt.so"
    library.write_bytes(b"a library")
    plain = with_engines(bundle, engine(bundle, "plain.engine", tmp_path / "e", library=library))
    made = write_model_repository(plain, tmp_path / "plain")
    plugin = "mra_trt_fp16/1/libmra_tensorrt.so"
    assert made.backend_options == (f"--backend-config=tensorrt,plugins={plugin}",)
    assert (tmp_path / "plain" / plugin).read_bytes() == b"a library"
    commands = made.commands(Path("DIR"))
    assert (
        f"MRA_TENSORRT_REGISTER=1 tritonserver --model-repository=. --disable-auto-complete-config {made.backend_options[0]}"
        in (commands["server"])
    )
    assert "--gpus all -e ORT_DISABLE_TELEMETRY=1 -e MRA_TENSORRT_REGISTER=1 " in commands["docker"]
    assert "TensorRT is 10.14.1" in made.describe(Path("DIR"))

    carrying = with_engines(bundle, engine(bundle, "carrying.engine", tmp_path / "e"))
    made = write_model_repository(carrying, tmp_path / "carrying")
    assert made.backend_options == ("--backend-config=tensorrt,version-compatible=true",)
    assert made.environment == ("ORT_DISABLE_TELEMETRY=1",)


@pytest.mark.engine
@pytest.mark.parametrize("asked", [False, True])
def test_the_plugin_registers_itself_where_triton_opens_it(asked: bool) -> None:
    """With TensorRT-RTX, which has the registry of TensorRT 11: a library that is only opened, as Triton's backend opens it."""
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    plugin = find_library("tensorrt")
    if plugin is None:
        pytest.skip("libmra_tensorrt.so was not built")
    code = (
        "import ctypes, sys, tensorrt_rtx; registry = tensorrt_rtx.get_plugin_registry(); ctypes.CDLL(sys.argv[1]); "
        "print([c.plugin_namespace for c in registry.all_creators if c.name == 'Mra2Attention'])"
    )
    environment = {**os.environ, **({"MRA_TENSORRT_REGISTER": "1"} if asked else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, str(plugin)], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ("['', 'mra']" if asked else "[]")
    assert "libmra_tensorrt.so" not in done.stderr


def test_the_image_is_chosen_by_the_engine_that_needs_its_own(bundle: Bundle, tmp_path: Path) -> None:
    old = engine(bundle, "old.engine", tmp_path / "e", backend_version="10.9.0", version_compatible=True)
    older = engine(
        bundle, "older.engine", tmp_path / "e", backend_version="9.0.1", version_compatible=True, precision="fp32"
    )
    exact = engine(bundle, "exact.engine", tmp_path / "e", backend_version="11.0.0", precision="bf16")
    made = write_model_repository(with_engines(bundle, old, older), tmp_path / "compatible")
    assert made.tensorrt == "10.9.0"
    assert made.backend_options == ("--backend-config=tensorrt,version-compatible=true",)
    assert write_model_repository(with_engines(bundle, old, exact), tmp_path / "exact").tensorrt == "11.0.0"


def test_engines_for_rtx_are_left_out_and_said_so(bundle: Bundle, tmp_path: Path) -> None:
    made = with_engines(bundle, engine(bundle, "ahead.engine", tmp_path / "e", backend="rtx"))
    repository = write_model_repository(made, tmp_path / "r")
    assert repository.models == ("mra_onnx",)
    assert not repository.gpu
    assert "ahead.engine is for TensorRT-RTX" in repository.describe(tmp_path / "r")


@pytest.mark.parametrize(
    ("engines", "settings", "message"),
    [
        ([{}, {}], {}, "Triton could not choose"),
        ([{}, {"precision": "fp32", "backend_version": "10.3.0"}], {}, r"different TensorRTs \(10.14.1, 10.3.0\)"),
        ([{"profiles": sizes((2, 8, 16), (1, 32, 64))}], {}, r"batches of 2:8:16.*--batch 1:8:16"),
        ([{}], {"batch": Range(1, 8, 32)}, r"--batch=1:8:32 is outside the profile 1:8:16 of 0.engine"),
        ([{"profiles": sizes((1, 8, 16), (32, 32, 64))}], {"seq_len": Range(1, 32, 64)}, "outside the profile 32:32:64"),
        ([{"profiles": sizes((1, 8, 16), (1, 32, 64))}], {"tokenizer": True}, r"takes 1 to 64 tokens.*--seq-len 1:32:64"),
        ([{"profiles": sizes((1, 8, 16), (64, 128, 200))}], {"tokenizer": True}, r"takes 64 to 200 tokens"),
    ],
)  # fmt: skip
def test_engines_that_cannot_be_served_are_refused(
    bundle: Bundle, tmp_path: Path, engines: list[dict[str, Any]], settings: dict[str, Any], message: str
) -> None:
    made = [engine(bundle, f"{i}.engine", tmp_path / "e", **changes) for i, changes in enumerate(engines)]
    with pytest.raises(InputError, match=message):
        write_model_repository(with_engines(bundle, *made), tmp_path / "r", TritonSettings(**settings))
    assert not (tmp_path / "r").exists()


def test_texts_are_cut_where_the_engine_ends_if_asked(bundle: Bundle, tmp_path: Path) -> None:
    made = with_engines(bundle, engine(bundle, "s.engine", tmp_path / "e", profiles=sizes((1, 8, 16), (1, 32, 64))))
    settings = TritonSettings(tokenizer=True, seq_len=Range(1, 32, 64))
    repository = write_model_repository(made, tmp_path / "r", settings)
    models = ["mra_onnx", "mra_trt_fp16", "mra_onnx_text", "mra_onnx_texts", "mra_trt_fp16_text", "mra_trt_fp16_texts"]
    assert repository.models == ("mra_tokenizer", *models)
    with python_model(tmp_path / "r" / "mra_tokenizer") as execute:
        (response,) = execute([{"text": strings(TEXTS[-1])}])
    assert response.tensors["input_ids"].shape == (1, 64)


def test_the_repository_is_part_of_the_bundle(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Listed, verified, at home where it is copied to, the same bytes again, and damage is seen."""
    from mra_export.cli import main

    output = tmp_path / "it's here"
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "bundle",
                str(bundle.path),
                "-o",
                str(output),
                "--no-check",
                "--triton",
                "--triton-tokenizer",
                "--json",
                "-q",
            ]
        )
    assert stop.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["triton"]["models"] == ["mra_tokenizer", "mra_onnx", "mra_onnx_text", "mra_onnx_texts"]
    assert printed["triton"]["commands"]["server"].startswith(
        f"cd '{tmp_path}/it'\"'\"'s here/triton' && ORT_DISABLE_TELEMETRY=1 tritonserver "
    )

    moved = tmp_path / "moved"
    shutil.copytree(output, moved)
    again = verify_bundle(moved)
    ours = {n: e for n, e in again.manifest["files"].items() if n.startswith("triton/")}
    assert ours == {n: e for n, e in bundle.manifest["files"].items() if n.startswith("triton/")}
    for name in ours:
        file = moved / name
        assert not (output / name).is_symlink()
        assert (output / name).stat().st_nlink == 1  # a link would be a copy after the next upload, or refused
        if file.suffix in (".pbtxt", ".py", ".txt"):
            assert str(tmp_path) not in file.read_text()
            assert not re.search(r'"/', file.read_text()), name
    config = moved / "triton" / "mra_onnx" / "config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 32", "max_batch_size: 33"))
    with pytest.raises(InputError, match=r"triton/mra_onnx/config\.pbtxt was changed"):
        verify_bundle(moved)


def test_a_bundle_without_triton_has_no_repository(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from mra_export.cli import main

    with pytest.raises(SystemExit) as stop:
        main(
            ["bundle", str(bundle.path), "-o", str(tmp_path / "b"), "--no-check", "--triton-tokenizer", "--json", "-q"]
        )
    assert stop.value.code == 2
    assert "add --triton" in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "b").exists()
    with pytest.raises(SystemExit) as stop:
        main(["bundle", str(bundle.path), "-o", str(tmp_path / "b"), "--no-check", "--json", "-q"])
    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out)["triton"] is None
    assert not [name for name in read_bundle(tmp_path / "b").manifest["files"] if name.startswith("triton/")]


def test_the_documentation_shows_what_is_printed(bundle: Bundle, tmp_path: Path) -> None:
    from mra_export.cli import cli

    text = (REPO / "docs" / "triton.md").read_text()
    made = write_model_repository(bundle, tmp_path / "r", TritonSettings(tokenizer=True))
    shown = re.sub(r" \\\n +", " ", text)
    for name, command in made.commands(Path("minilm-bundle/triton")).items():
        assert command in shown, f"{name}: {command}"
    options = [option for p in cli.commands["bundle"].params for option in p.opts if option.startswith("--triton")]
    assert len(options) > 5
    assert [option for option in options if option not in text] == []
