"""TensorRT and TensorRT-RTX: which is taken, and what one of them lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_support import build

from mra_export.engine import backend as tensorrt_backend
from mra_export.engine import gpu
from mra_export.errors import DependencyError, InputError, MraExportError


def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = set()
    gpus: tuple[gpu.Gpu, ...] = ()
    monkeypatch.setattr(tensorrt_backend.importlib.util, "find_spec", lambda name: object() if name in there else None)
    monkeypatch.setattr(tensorrt_backend, "find_gpus", lambda: gpus)
    select = tensorrt_backend.select_backend
    with pytest.raises(DependencyError, match=r"Neither TensorRT nor TensorRT-RTX is installed. Run `pip install"):
        select("auto")
    with pytest.raises(DependencyError, match=r"backend rtx is not installed. Run `pip install tensorrt-rtx`"):
        select("rtx")
    there.add("tensorrt")
    with pytest.raises(DependencyError, match=r"CUDA's driver shows none here. Build ahead of time with --backend rtx"):
        select("auto")
    there.add("tensorrt_rtx")
    assert select("auto") == "rtx"
    gpus = (gpu.Gpu("NVIDIA H100", "9.0"),)
    assert select("auto") == "tensorrt"
    assert select("rtx") == "rtx"
    there.remove("tensorrt")
    assert select("auto") == "rtx"
    with pytest.raises(InputError, match="backend='cuda' must be auto, tensorrt or rtx"):
        select("cuda")


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        (
            "version_compatible",
            2,
            "--version-compatible needs the lean runtime of a full TensorRT; TensorRT-RTX has none",
        ),
        ("timing_cache", 2, "--timing-cache is for TensorRT; TensorRT-RTX has none"),
        ("strip_weights", 4, "--strip-weights needs a GPU"),
    ],
)
def test_options_that_a_backend_lacks(
    option: str, code: int, message: str, model: Path, plugin: Path, rtx: Any, tmp_path: Path
) -> None:
    if option == "strip_weights" and gpu.find_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MraExportError, match=message) as caught:
        build(model, tmp_path / "model.engine", plugin, **{option: tmp_path / "cache" if "cache" in option else True})
    assert caught.value.exit_code == code
    assert list(tmp_path.iterdir()) == []
