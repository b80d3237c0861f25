"""What runs in place of the source: every kernel that nvcc compiles, and nothing where one is missing."""

from __future__ import annotations

import cuda_host
import cuda_ptx
import pytest
from cuda_host_cases import sanitized_cases
from ptx_source import PtxError
from ptx_translate import translate

pytestmark = pytest.mark.skipif(cuda_host.ON_DEVICE, reason="translated PTX is run on the host")


@pytest.mark.parametrize("architecture", cuda_ptx.ARCHITECTURES)
def test_every_kernel_is_translated(architecture: int) -> None:
    for operator in cuda_ptx.OPERATORS:
        kernels = cuda_ptx.kernels(operator, architecture)
        assert len(kernels) >= 17
        for name, text in kernels.items():
            assert f'extern "C" void {name}(' in translate(text)


def test_launches_run_the_ptx_and_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    case = sanitized_cases()["float16-sparse"]  # the path with several launches
    launched: list[str] = []
    find = cuda_ptx.function

    def counting(name: str, architecture: int, fault: str) -> int:
        launched.append(name)
        if "pool" not in name:
            raise PtxError("no kernel but pool")
        return find(name, architecture, fault)

    monkeypatch.setattr(cuda_ptx, "function", counting)
    with pytest.raises(PtxError, match="no kernel but pool"), cuda_ptx.translated(90):
        cuda_host.run(*case)
    assert ["pool" in name for name in launched] == [True, False]
    cuda_host.run(*case)  # the source again
    assert len(launched) == 2


def test_a_kernel_that_is_not_in_the_ptx() -> None:
    with pytest.raises(PtxError, match="the PTX for compute_90 has no kernel mra2_other_kernel"):
        cuda_ptx.function("mra2_other_kernel", 90)


def test_skips_aloud_without_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_ptx, "find_nvcc", lambda: None)
    with pytest.raises(pytest.skip.Exception, match="nvcc was not found"):
        cuda_ptx.kernels.__wrapped__("mra2_attention", 90)
