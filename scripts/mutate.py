"""Shows that the tests can fail: changes one thing at a time in a room of the package and runs that room's fast tests.

    python scripts/mutate.py [ROOM ...] [--sample 40] [--seed 0] [--workers 2]

cosmic-ray makes the changes, in copies of the checkout; a random sample of them is run. Each one that the tests do not see is
printed as a diff: a person says whether it changes what the code does. Not part of CI: a room takes minutes. It needs the extra
`mutation` in the environment of the tests.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "operators": (["mra_export/operators"], ["tests/operators", "tests/kernels/test_sources.py"]),
    "parity": (["mra_export/parity", "mra_export/numerics.py"], ["tests/parity", "tests/test_numerics.py"]),
    "export": (["mra_export/export"], ["tests/export"]),
    "outputs": (["mra_export/outputs.py"], ["tests/test_outputs.py"]),
    "bundle": (["mra_export/bundle", "mra_export/schema.py"], ["tests/bundle", "tests/test_schema.py"]),
    "journal": (
        ["mra_export/embedding/journal.py"],
        [f"tests/embedding/test_{name}.py" for name in ("journal", "journal_partial", "run")],
    ),
}
"""Room -> what is changed, and the tests that are to see it."""
ANNOTATIONS = "_BitOr"
"""In the names of cosmic-ray's operators that change annotations for the most part, which nothing runs."""
SIGNATURE = re.compile(r"\s*(def |\*,)|.*\) -> ")
"""A line of a function's head: the `*` there is no product."""
PATIENCE = 10.0
"""How many times as long as without a change the tests may take; a change with which they take longer is seen."""
PROCESSOR_TIME = 2.0
"""The same of processor time: one that does not end is seen soon, however much else the machine has to do."""
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "transformers.models.mra.modeling_mra")
"""What most tests import and nobody changes: imported once, ahead of the tests of every change."""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}  [default: all]")
    parser.add_argument("--sample", type=int, default=40, help="changes of a room  [default: 40]")
    parser.add_argument("--seed", type=int, default=0, help="of the sample  [default: 0]")
    parser.add_argument("--workers", type=int, default=2, help="copies that run tests at the same time  [default: 2]")
    options = parser.parse_args()
    if unknown := sorted(set(options.rooms) - set(ROOMS)):
        parser.error(f"no such room: {', '.join(unknown)}")
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mra-export-mutants-") as folder:
        copies = [make_copy(Path(folder) / str(worker)) for worker in range(options.workers)]
        for room in options.rooms or ROOMS:
            changes = sample(room, options.sample, options.seed)
            parts = [(copy, room, changes[worker :: len(copies)]) for worker, copy in enumerate(copies)]
            with ProcessPoolExecutor(len(copies)) as pool:
                unseen = sum(pool.map(run, parts))
            print(f"\n{room}: {len(changes) - unseen} of {len(changes)} changes seen", flush=True)
            survivors += unseen
    return min(survivors, 1)


def make_copy(target: Path) -> Path:
    """The tracked files of the checkout, as they are now."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)
    return target


def sample(room: str, count: int, seed: int) -> list[Any]:
    """Changes of a room, each a tuple of cosmic-ray's `MutationSpec`; paths are relative to a checkout."""
    from cosmic_ray.commands import init
    from cosmic_ray.modules import find_modules
    from cosmic_ray.work_db import WorkDB, use_db

    here = Path.cwd()
    os.chdir(ROOT)
    try:
        with use_db(":memory:", WorkDB.Mode.create) as database:
            init(find_modules([Path(name) for name in ROOMS[room][0]]), database, {})
            every = sorted(database.work_items, key=lambda item: repr(item.mutations))
    finally:
        os.chdir(here)
    fit = [item.mutations for item in every if ANNOTATIONS not in item.mutations[0].operator_name]
    fit = [change for change in fit if not SIGNATURE.match(line_of(change[0]))]
    return random.Random(seed).sample(fit, min(count, len(fit)))


def line_of(mutation: Any) -> str:
    """The line that is changed, as it is."""
    return (ROOT / mutation.module_path).read_text(encoding="utf-8").splitlines()[mutation.start_pos[0] - 1]


def run(part: tuple[Path, str, list[Any]]) -> int:
    """Applies changes in a copy, one after the other, and runs the tests; prints what they do not see, and counts it."""
    from cosmic_ray.mutating import use_mutation
    from cosmic_ray.plugins import get_operator

    copy, room, changes = part
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    os.environ |= {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    for name in HEAVY:
        importlib.import_module(name)
    started = time.monotonic()
    if not passes(room, None, None, None):
        raise SystemExit(f"{room}: tests fail without a change: see pytest {' '.join(ROOMS[room][1])}")
    patience = PATIENCE * (time.monotonic() - started)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_time = int(PROCESSOR_TIME * (used.ru_utime + used.ru_stime)) + 1
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # two changes of one second would be one to Python
    sys.dont_write_bytecode = True
    unseen = 0
    for (change,) in changes:
        name = str(change.module_path)
        operator = get_operator(change.operator_name)(**change.operator_args)
        with use_mutation(change.module_path, operator, change.occurrence) as (before, after):
            if not passes(room, name, patience, processor_time):
                print(".", end="", flush=True)
            else:
                diff = difflib.unified_diff(before.split("\n"), after.split("\n"), name, name, lineterm="")
                print("\nNOT SEEN", *diff, sep="\n", flush=True)
                unseen += 1
    return unseen


def passes(room: str, changed: str | None, patience: float | None, processor_time: int | None) -> bool:
    """Whether the tests pass within so many seconds, in a process that has imported nothing but what is heavy."""
    tests = multiprocessing.get_context("fork").Process(target=run_tests, args=(room, changed, processor_time))
    tests.start()
    tests.join(patience)
    if tests.exitcode is None:
        os.killpg(tests.pid or 0, signal.SIGKILL)
        tests.join()
    return tests.exitcode == 0


def run_tests(room: str, changed: str | None, processor_time: int | None) -> NoReturn:
    """Runs a room's fast tests and ends the process; it is the head of a group, so that nothing it started outlives it."""
    import pytest
    from hypothesis import Phase, settings

    os.setsid()
    if processor_time is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (processor_time, processor_time))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    settings.register_profile("any failure", phases=[Phase.explicit, Phase.generate])  # not the simplest one
    settings.load_profile("any failure")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not native and not engine and not slow", *ROOMS[room][1]]
    sys.exit(int(pytest.main(options, plugins=[QuickFirst(changed)])))


class QuickFirst:
    """A plugin of pytest: tests for which nothing is built go first, and those of the changed module ahead of others."""

    def __init__(self, changed: str | None) -> None:
        module = Path(changed or "none")
        self.own = Path("tests", *module.parts[1:-1], f"test_{module.stem.lstrip('_')}.py").resolve()

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """After those of tests/conftest.py, which is what pytest does with a plugin that it was given."""
        items.sort(key=lambda item: (self.builds(item), item.path != self.own))

    def builds(self, item: Any) -> bool:
        """Whether a test takes a fixture of ours that several tests share."""
        fixtures = [each for every in item._fixtureinfo.name2fixturedefs.values() for each in every]
        return any(each.scope != "function" and each.baseid.startswith("tests") for each in fixtures)


if __name__ == "__main__":
    sys.exit(main())
