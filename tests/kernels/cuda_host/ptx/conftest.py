"""What runs as the kernels here: their PTX for each architecture, with the threads in each order."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator

import pytest
import torch
from cuda_host_cases import DTYPES
from cuda_ptx import ARCHITECTURES, ORDERS, PROGRAMS, Program, translated

HEAD_DIMS = (32, 64, 128, 256)  # the bounds that kernels are compiled for


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --full-sweep every test runs with every program."""
    if "program" in metafunc.fixturenames and metafunc.config.getoption("--full-sweep"):
        metafunc.parametrize("program", PROGRAMS, indirect=True, ids=[f"{a}-{order}" for a, order in PROGRAMS])


def choose(item: pytest.Item) -> Program:
    """The program of a test that has no parameter for it.

    Types and head sizes take turns with the architectures: each meets each, and few kernels are compiled for more than one. The
    order follows from the test's name.
    """
    values = getattr(item, "callspec", None)
    parameters = values.params if values is not None else {}
    kind = DTYPES.index(parameters.get("dtype", torch.float32))
    head_dim = next(i for i, bound in enumerate(HEAD_DIMS) if parameters.get("head_dim", 64) <= bound)
    turn = int.from_bytes(hashlib.sha256(item.name.encode()).digest()[:4], "big")
    return Program(ARCHITECTURES[(kind + head_dim) % len(ARCHITECTURES)], ORDERS[turn % len(ORDERS)])


@pytest.fixture
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The compiled kernels in place of the source."""
    chosen: Program = getattr(request, "param", None) or choose(request.node)
    request.node.user_properties.append(("program", f"compute_{chosen.architecture}, threads {chosen.order}"))
    monkeypatch.setenv("MRA_HOST_ORDER", chosen.order)
    with translated(chosen.architecture):
        yield chosen


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.CallInfo[None], None]:
    """Says with a failure which program it was."""
    report = (yield).get_result()  # type: ignore[attr-defined]
    if report.failed and hasattr(report.longrepr, "addsection"):
        for name, text in item.user_properties:
            report.longrepr.addsection(name, str(text))
