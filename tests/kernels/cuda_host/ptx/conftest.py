"""What runs as the kernels here: their PTX for each architecture, with the threads in each order."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator

import pytest
from cuda_ptx import PROGRAMS, Program, translated


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With --full-sweep every test runs with every program."""
    if "program" in metafunc.fixturenames and metafunc.config.getoption("--full-sweep"):
        metafunc.parametrize("program", PROGRAMS, indirect=True, ids=[f"{a}-{order}" for a, order in PROGRAMS])


@pytest.fixture
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Program]:
    """The compiled kernels in place of the source; which, follows from the test's name where it has no parameter for it."""
    turn = int.from_bytes(hashlib.sha256(request.node.name.encode()).digest()[:4], "big")
    chosen: Program = getattr(request, "param", None) or PROGRAMS[turn % len(PROGRAMS)]
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
