"""scripts/cuda_static.py: how it reads the tools, and that the attention's and selection's kernels keep to the committed table."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import pytest
from paths import REPO

SCRIPT = REPO / "scripts" / "cuda_static.py"
PAGE = REPO / "docs" / "benchmarks" / "cuda_static.md"
TABLE: dict[str, Any] = json.loads(PAGE.with_suffix(".json").read_text())
ARCHITECTURES = (80, 90, 100)
# The kernels of the attention and of the selection, which are to spill nothing.
NAMES = [name for name in TABLE["kernels"] if name.startswith("mra2_") and "pool" not in name]
# What spills today, and of which fewer blocks fit than the launch bounds claim. What is mended fails here until it is taken out.
SPILLS: set[tuple[int, str]] = set()
TOO_FEW_BLOCKS: set[tuple[int, str]] = set()


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_static", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cuda_static"] = module
    spec.loader.exec_module(module)
    return module


cuda_static = load_script()


@functools.cache
def counted(architecture: int) -> dict[str, Any]:
    """The kernels as they are now; skips the test where what counts them is not that of the table."""
    version = cuda_static.nvcc_version()
    if version != TABLE["nvcc"]:
        pytest.skip(f"the table is that of nvcc {TABLE['nvcc']}, here is {version or 'none'}")
    kernels: dict[str, Any] = cuda_static.count(["mra2_attention"], [architecture])["kernels"]
    return kernels


def rows(broken: set[tuple[int, str]], why: str, architectures: tuple[int, ...] = ARCHITECTURES) -> list[Any]:
    """Each architecture and kernel; those that are broken are expected to fail."""
    return [
        pytest.param(
            architecture, name, marks=[pytest.mark.xfail(strict=True, reason=why)] * ((architecture, name) in broken)
        )
        for architecture in architectures
        for name in NAMES
    ]


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text() == cuda_static.page(TABLE)


def test_every_broken_kernel_is_in_the_table() -> None:
    for architecture, name in SPILLS | TOO_FEW_BLOCKS:
        assert architecture in ARCHITECTURES
        assert name in NAMES


@pytest.mark.native
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_has_every_kernel(architecture: int) -> None:
    """And what does not depend on nvcc is as the table says. Otherwise run scripts/cuda_static.py again."""
    kernels = counted(architecture)
    wanted = {name: row for name, row in TABLE["kernels"].items() if name.startswith("mra2_")}
    fixed = ("threads", "shared_bytes", "claimed_blocks", "types", "head_dims")
    assert {n: [row[k] for k in fixed] for n, row in kernels.items()} == {
        n: [row[k] for k in fixed] for n, row in wanted.items()
    }


@pytest.mark.native
@pytest.mark.parametrize(("architecture", "name"), rows(SPILLS, "spills; see docs/benchmarks/cuda_static.md"))
def test_no_spills(architecture: int, name: str) -> None:
    kernel = counted(architecture)[name]["architectures"][str(architecture)]
    assert (kernel["spill_stores"], kernel["spill_loads"]) == (0, 0)


@pytest.mark.native
@pytest.mark.parametrize(
    ("architecture", "name"), rows(TOO_FEW_BLOCKS, "the launch bounds claim more blocks than fit", (90, 100))
)
def test_as_many_blocks_as_the_launch_bounds_claim(architecture: int, name: str) -> None:
    """They are written for 228 KB of shared memory; elsewhere they only bound registers."""
    row = counted(architecture)[name]
    assert row["architectures"][str(architecture)]["blocks"] >= row["claimed_blocks"]


@pytest.mark.native
@pytest.mark.parametrize(("architecture", "name"), rows(set(), ""))
def test_no_more_instructions_and_registers_than_the_table_has(architecture: int, name: str) -> None:
    now = counted(architecture)[name]["architectures"][str(architecture)]
    table = TABLE["kernels"][name]["architectures"][str(architecture)]
    assert now["registers"] <= table["registers"]
    if now["loop"] is None:
        pytest.skip("nvdisasm was not found, so instructions are not counted: pip install nvidia-cuda-nvdisasm")
    assert now["loop"]["shortest"] <= table["loop"]["shortest"]
    assert now["loop"]["matrix"] == table["loop"]["matrix"]


def test_reads_ptxas() -> None:
    told = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    40 bytes stack frame, 28 bytes spill stores, 64 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 40 bytes cumulative stack size
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""
    assert cuda_static.read_ptxas(told) == {
        "_Z1av": cuda_static.Compiled(128, 28, 64),
        "_Z1bv": cuda_static.Compiled(32, 0, 0),
    }


CODE = """
\t.section\t.text._Z1av,"ax",@progbits
.text._Z1av:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   FFMA R2, R2, R3, R4 ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/              @!P0 BRA `(.L_x_2) ;
        /*0050*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   ISETP.GE.AND P0, PT, R2, R3, PT ;
        /*0070*/             @P2 BRA.U UP0, `(.L_x_1) ;
        /*0080*/                   BRA `(.L_x_0) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
\t.section\t.text._Z1bv,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_finds_the_inner_loop() -> None:
    """From L_x_1 to the last branch back to it: six instructions, of which four come back; the loop around it is not it."""
    kernels = dict(cuda_static.read_machine_code(CODE))
    assert cuda_static.main_loop(kernels["_Z1av"]) == cuda_static.Loop(6, 4, 2, 0)
    assert cuda_static.main_loop(kernels["_Z1bv"]) is None


def loop_of(*operations: str) -> Any:
    """A loop of operations, each of 16 bytes; those with a number branch there, and do not go on where it has a ! before it."""
    instructions = []
    for number, what in enumerate(operations):
        operation, _, target = what.partition(" ")
        to = int(target.strip("!")) * 16 if target else None
        instructions.append(cuda_static.Instruction(number * 16, operation, to, "!" in target))
    return cuda_static.main_loop(instructions)


def test_a_loop_of_multiplications_within_one_of_matrices_is_not_it() -> None:
    assert loop_of("HMMA", "FFMA", "BRA 1", "BRA 0", "FFMA", "BRA 4") == cuda_static.Loop(4, 4, 1, 1)
    assert loop_of("FFMA", "BRA 0") == cuda_static.Loop(2, 2, 0, 1)


def test_the_shortest_pass_leaves_out_no_matrix_instruction() -> None:
    """A branch around two instructions; one around a matrix instruction, which is not taken; one out of the loop."""
    assert loop_of("HMMA", "BRA 4", "MOV", "MOV", "BRA 6", "HMMA", "BRA 9", "BRA 0", "MOV") == cuda_static.Loop(
        8, 6, 2, 0
    )
    assert loop_of("LDGSTS", "BRA 4", "LDGSTS", "MOV", "HMMA", "BRA 0") == cuda_static.Loop(6, 6, 1, 0)
    # Only by way of an instruction before: all are counted.
    assert loop_of("HMMA", "BRA !5", "MOV", "BRA 0", "MOV", "BRA !3", "BRA 0") == cuda_static.Loop(7, 7, 1, 0)
    # Two ways that both come back, the second with no branch around it.
    assert loop_of("HMMA", "BRA 3", "BRA !0", "MOV", "MOV", "BRA 0") == cuda_static.Loop(6, 3, 1, 0)


@pytest.mark.native
def test_asks_the_calculator_of_nvidia() -> None:
    """Of an H100's 228 KB: seven blocks of 32256 bytes, six of 16 bytes more; then limits of threads and of registers."""
    questions = [(90, 64, 128, 32256), (90, 64, 128, 32272), (80, 1024, 32, 0), (120, 512, 64, 0), (80, 256, 128, 0)]
    assert cuda_static.resident_blocks(questions) == [7, 6, 2, 2, 2]


def test_names_are_short() -> None:
    mangled = "_ZN3mra4cuda15mra2_mma_kernelI6__halfLi64EEEvNS0_11Mra2ProblemE"
    assert cuda_static.short_names([mangled]) == {mangled: "mra2_mma_kernel<half, 64>"}


def test_a_page_without_spills_says_nothing_of_them() -> None:
    row = {"threads": 64, "shared_bytes": 128, "claimed_blocks": 7, "types": ["float16"], "head_dims": [64]}
    kernel = {"registers": 80, "spill_stores": 0, "spill_loads": 0, "blocks": 7, "loop": None}
    spilling = kernel | {"spill_stores": 4, "spill_loads": 8, "blocks": 6}
    page = cuda_static.page(
        {"nvcc": "13", "kernels": {"k<half>": row | {"architectures": {"90": kernel, "100": spilling}}}}
    )
    assert "| `k<half>` | 64 | 128 | 80; 7 | 80, spills 4/8; 6 of 7 |" in page
    assert "| kernel | sm_90 | sm_100 |" in page
