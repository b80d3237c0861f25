"""Counts what the compiled CUDA kernels need: registers, spills, shared memory, resident thread blocks, instructions of a loop.

No GPU is needed: nvcc compiles, ptxas tells registers and spills, the calculator of NVIDIA's toolkit how many blocks fit a
multiprocessor, and nvdisasm (on PATH, beside nvcc, or `pip install nvidia-cuda-nvdisasm`) shows the machine code. Threads and
shared memory are those of the launches: each type and head size is tried once. Writes docs/benchmarks/cuda_static.md and .json.

Example:
  python scripts/cuda_static.py
  python scripts/cuda_static.py --architectures 90 --print
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

REPO = Path(__file__).resolve().parent.parent
TARGET = REPO / "docs" / "benchmarks" / "cuda_static.md"
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
HEAD_DIMS = (32, 64, 128, 256)
HASHES = ((9, 32, 1), (9, 32, 0))  # hash_code_len, num_hash, fast_hash

sys.path[:0] = [str(REPO), str(REPO / "tests" / "support")]


@dataclass
class Shape:
    """How a kernel is launched: `shared_bytes` are the most of all head sizes."""

    threads: int = 0
    shared_bytes: int = 0
    types: set[str] = field(default_factory=set)
    head_dims: set[int] = field(default_factory=set)


class Loop(NamedTuple):
    """Of the loops with matrix instructions in them, and none around another, the one with the most; else so of multiplications."""

    instructions: int
    shortest: int  # the fewest that a pass executes that leaves out none of the operations named below, and no copy
    matrix: int  # HMMA: a product of 16 x 16 and 16 x 8
    multiplications: int  # FFMA


@dataclass
class Compiled:
    """A kernel's machine code for one architecture; spills in bytes."""

    registers: int
    spill_stores: int
    spill_loads: int
    blocks: int = 0
    loop: Loop | None = None


def nvcc_version() -> str:
    """Release and build, as "13.0.88"; empty without nvcc."""
    from mra_export.native.build import find_nvcc

    nvcc = find_nvcc()
    found = nvcc and re.search(
        r"\bV([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    )
    return found[1] if found else ""


def find_cuda_tool(name: str) -> str | None:
    """A program of the toolkit: on PATH, beside nvcc, or in NVIDIA's wheels."""
    from mra_export.native.build import find_nvcc

    nvcc = find_nvcc()
    candidates = [shutil.which(name), str(Path(nvcc).with_name(name)) if nvcc else None]
    for directory in sys.path:
        candidates += [str(path) for path in sorted(Path(directory).glob(f"nvidia/cu1[2-9]/bin/{name}"))]
    candidates.append(f"/usr/local/cuda/bin/{name}")
    return next((path for path in candidates if path and Path(path).is_file()), None)


def launch_shapes() -> dict[str, Shape]:
    """The launches of every type and head size, by mangled name: few blocks and all selected, short sequences and long ones."""
    import cuda_host
    import cuda_ptx
    import torch
    import yoso_cuda_host_cases as yoso

    from mra_export.operators.mra2_attention.spec import Mra2AttentionAttributes

    library = cuda_host.library()

    def start(call: Any, prefix: str) -> None:
        context, at = cuda_host.guarded(4, 0)
        call.context = context.data_ptr() + at
        needed = getattr(library, f"mra_{prefix}_workspace_size")(ctypes.byref(call))
        workspace, at = cuda_host.guarded(needed, 0)
        error = getattr(library, f"mra_{prefix}_run")(ctypes.byref(call), workspace.data_ptr() + at, needed)
        assert error == 0, f"cudaError_t {error}"

    shapes: dict[str, Shape] = {}
    for dtype in cuda_host.DTYPES:
        for head_dim in HEAD_DIMS:
            with cuda_ptx.recorded() as launches:
                for seq_len, num_blocks in ((96, 4), (96, 9), (4096, 512)):
                    q = torch.zeros(1, seq_len, head_dim, dtype=dtype)
                    mask = torch.ones(1, seq_len, dtype=torch.int32)
                    attributes = Mra2AttentionAttributes(1, num_blocks, 0, 0, 0, 1.0)
                    start(cuda_host.make_call(q, q, q, mask, 0, attributes), "cuda")
                for mode in (yoso.expectation(1), *(yoso.lsh(1, *hashes) for hashes in HASHES)):
                    tensors, constants, _ = yoso.make_case(mode, 1, 96, head_dim, dtype)
                    inputs = cuda_host.yoso_inputs(*tensors, *constants, attributes=mode)
                    start(cuda_host.make_yoso_call(inputs, 0, mode), "yoso")
            for launch in launches:
                shape = shapes.setdefault(launch.kernel, Shape())
                shape.threads = launch.threads
                shape.shared_bytes = max(shape.shared_bytes, launch.shared_bytes)
                shape.types.add(str(dtype).removeprefix("torch."))
                shape.head_dims.add(head_dim)
    return shapes


def compile_kernels(operator: str, architecture: int) -> dict[str, Compiled]:
    """The kernels of an operator for one architecture by mangled name; `loop` is None without nvdisasm, `blocks` still 0."""
    import cuda_ptx

    ptx = cuda_ptx.ptx_file(operator, architecture)
    ptxas, nvdisasm = find_cuda_tool("ptxas"), find_cuda_tool("nvdisasm")
    assert ptxas is not None, "nvcc is here without ptxas"
    inputs = [ptx.read_bytes(), ptxas.encode(), str(nvdisasm).encode()]
    with cuda_ptx.kept(f"{operator}-{architecture}.cubin", inputs) as cubin:
        told, code = cubin.with_suffix(".ptxas"), cubin.with_suffix(".sass")
        if not code.is_file():
            told.write_text(run([ptxas, f"-arch=sm_{architecture}", "-v", str(ptx), "-o", str(cubin)]).stderr)
            partial = code.with_suffix(".partial")
            partial.write_text(run([nvdisasm, "-c", str(cubin)]).stdout if nvdisasm else "")
            partial.rename(code)
    kernels = read_ptxas(told.read_text())
    for name, instructions in read_machine_code(code.read_text()):
        kernels[name].loop = main_loop(instructions)
    return kernels


def run(command: list[str], text: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a tool; leaves with what it says where it fails."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"cuda_static: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done


def read_ptxas(text: str) -> dict[str, Compiled]:
    """Registers and spills of each kernel in what `ptxas -v` writes."""
    form = re.compile(
        r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers", re.DOTALL
    )
    return {
        name: Compiled(int(registers), int(stores), int(loads)) for name, stores, loads, registers in form.findall(text)
    }


class Instruction(NamedTuple):
    """Of machine code."""

    address: int
    operation: str  # without modifiers
    target: int | None = None  # the address that it may branch to
    ends: bool = False  # whether what stands next never follows it


def read_machine_code(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    """The kernels in what `nvdisasm -c` writes."""
    for section in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition(",")
        labels: dict[str, int] = {}
        lines: list[tuple[int, str]] = []
        waiting: list[str] = []
        for line in body.splitlines():
            if label := re.match(r"\.(L_\w+):", line):
                waiting.append(label[1])
            elif instruction := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;", line):
                address = int(instruction[1], 16)
                labels |= dict.fromkeys(waiting, address)
                waiting = []
                lines.append((address, instruction[2]))
        instructions = []
        for address, what in lines:
            branch = re.search(r"\bBRA\S*\s+(?P<condition>\S+,\s*)?`\(\.(?P<label>L_\w+)\)", what)
            always = not what.startswith("@") and not (branch and branch["condition"])
            operation = re.sub(r"^@\S+\s+", "", what).split()[0].partition(".")[0]
            target = labels.get(branch["label"]) if branch else None
            ends = always and operation in ("BRA", "BRX", "EXIT", "RET", "JMP")
            instructions.append(Instruction(address, operation, target, ends))
        yield name, instructions


def main_loop(instructions: list[Instruction]) -> Loop | None:
    """None where nothing is repeated."""
    ends: dict[int, int] = {}
    for each in instructions:
        if each.target is not None and each.target < each.address:
            ends[each.target] = max(each.address, ends.get(each.target, 0))
    bodies = {place: [each for each in instructions if place[0] <= each.address <= place[1]] for place in ends.items()}
    for kind in ("HMMA", "FFMA", ""):
        having = {
            place: body for place, body in bodies.items() if not kind or any(each.operation == kind for each in body)
        }
        inner = [
            body
            for (start, end), body in having.items()
            if not any(start <= other and last <= end and (other, last) != (start, end) for other, last in having)
        ]
        if inner:
            body = max(inner, key=lambda body: (sum(each.operation == kind for each in body), len(body)))
            operations = [each.operation for each in body]
            return Loop(len(body), shortest_pass(body, kind), operations.count("HMMA"), operations.count("FFMA"))
    return None


def shortest_pass(body: list[Instruction], kind: str) -> int:
    """The fewest instructions from the first one back to it, over the passes with the most of operation `kind` and of copies.

    Branches forward are followed; of a loop within, one pass is counted. Where they do not lead back, it is all instructions.
    """
    place = {each.address: number for number, each in enumerate(body)}
    nowhere = (1, 0)
    best: list[tuple[int, int]] = [nowhere] * (
        len(body) + 1
    )  # to the end: minus the wanted operations, and the instructions
    for number in range(len(body) - 1, -1, -1):
        each = body[number]
        ways = [] if each.ends else [best[number + 1]]
        if each.target == body[0].address:
            ways.append((0, 0))
        elif each.target is not None and each.target > each.address and each.target in place:
            ways.append(best[place[each.target]])
        count, length = min((way for way in ways if way != nowhere), default=nowhere)
        if (count, length) != nowhere:
            best[number] = (count - (each.operation in (kind, "LDGSTS")), length + 1)
    return len(body) if best[0] == nowhere else best[0][1]


def resident_blocks(questions: Iterable[tuple[int, int, int, int]]) -> list[int]:
    """For each architecture, threads, registers and shared bytes: the blocks that a multiprocessor holds, by cuda_occupancy.h."""
    import cuda_host

    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "cuda_occupancy")
        source = REPO / "scripts" / "cuda_occupancy.cc"
        run(["g++", "-std=c++17", "-w", "-isystem", str(cuda_host.cuda_include()), str(source), "-o", program])
        asked = "".join(" ".join(map(str, question)) + "\n" for question in questions)
        return [int(line) for line in run([program], asked).stdout.split()]


def short_names(mangled: Iterable[str]) -> dict[str, str]:
    """As `mra2_mma_kernel<half, 64>`."""
    names = list(mangled)
    plain = run(["c++filt"], "\n".join(names)).stdout.splitlines()
    short = [re.sub(r"^(?:void )?mra::cuda::|\(.*", "", name) for name in plain]
    replaced = [name.replace("__half", "half").replace("__nv_bfloat16", "bfloat16") for name in short]
    return dict(zip(names, replaced, strict=True))


def count(operators: Iterable[str], architectures: Iterable[int]) -> dict[str, Any]:
    """The kernels that are launched, by short name; what docs/benchmarks/cuda_static.json holds."""
    import cuda_ptx

    shapes = launch_shapes()
    rows: dict[str, Any] = {}
    for operator in operators:
        for architecture in architectures:
            compiled = compile_kernels(operator, architecture)
            launched = list(compiled)
            if missing := set(launched) - set(shapes):
                sys.exit(
                    f"cuda_static: launch_shapes() launches no {', '.join(short_names(missing).values())}; add a case for it"
                )
            asked = [(architecture, shapes[n].threads, compiled[n].registers, shapes[n].shared_bytes) for n in launched]
            names = short_names(launched)
            claims = cuda_ptx.kernels(operator, architecture)
            for name, blocks in zip(launched, resident_blocks(asked), strict=True):
                shape, kernel = shapes[name], compiled[name]
                kernel.blocks = blocks
                row = {
                    "threads": shape.threads,
                    "shared_bytes": shape.shared_bytes,
                    "claimed_blocks": claims[name].min_blocks,
                }
                row |= {"types": sorted(shape.types), "head_dims": sorted(shape.head_dims), "architectures": {}}
                numbers = asdict(kernel) | {"loop": kernel.loop._asdict() if kernel.loop else None}
                rows.setdefault(names[name], row)["architectures"][str(architecture)] = numbers
    in_order = sorted(
        rows, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(?<=[ <])(\d+)", name)]
    )
    return {"nvcc": nvcc_version(), "kernels": {name: rows[name] for name in in_order}}


def page(found: dict[str, Any]) -> str:
    """docs/benchmarks/cuda_static.md."""
    kernels = found["kernels"]
    architectures = list(next(iter(kernels.values()))["architectures"])
    head = " | ".join(f"sm_{each}" for each in architectures)
    rule = "|---" * len(architectures)
    rows, loops = [], []
    for name, row in kernels.items():
        cells, counts = [], []
        for kernel in row["architectures"].values():
            spills = f", spills {kernel['spill_stores']}/{kernel['spill_loads']}" if kernel["spill_stores"] else ""
            claimed = f" of {row['claimed_blocks']}" if kernel["blocks"] < row["claimed_blocks"] else ""
            cells.append(f"{kernel['registers']}{spills}; {kernel['blocks']}{claimed}")
            loop = kernel["loop"] or Loop(0, 0, 0, 0)._asdict()
            main = f"{loop['matrix']} HMMA" if loop["matrix"] else f"{loop['multiplications']} FFMA"
            counts.append(f"{loop['shortest']} of {loop['instructions']} ({main})")
        rows.append(f"| `{name}` | {row['threads']} | {row['shared_bytes']} | {' | '.join(cells)} |")
        if any(
            kernel["loop"] and kernel["loop"]["matrix"] + kernel["loop"]["multiplications"]
            for kernel in row["architectures"].values()
        ):
            loops.append(f"| `{name}` | {' | '.join(counts)} |")
    return f"""# CUDA kernels: counted from machine code

Nothing here was measured on a GPU: it is what nvcc {found["nvcc"]} compiles, counted by `python scripts/cuda_static.py`. The tests
hold the kernels of the attention and of the selection to it (`tests/scripts/test_cuda_static.py`).

## Registers, spills, thread blocks

Threads a block, bytes of shared memory that a launch asks for (the most of all head sizes), and for each architecture: registers a
thread; bytes that are spilled to local memory, stored/loaded, where there are any; thread blocks that a multiprocessor holds at
once, by the calculator of NVIDIA's toolkit (`cuda_occupancy.h`), and how many the launch bounds claim where that is more.
`mra::YosoAttention` by hashing with 32 hashes of 9 bits.

| kernel | threads | shared bytes | {head} |
|---|---|---{rule}|
{chr(10).join(rows)}

## The inner loop

Of the innermost loop that has matrix instructions (HMMA, 16 x 8 x 16 each), or else multiplications (FFMA), and of several the one
with the most: the instructions that a warp executes at least in a pass with all of them and all copies, and all instructions that
stand there. In `mra2_mma_kernel` and `yoso_mma_kernel` a pass is a tile of 32 keys, and the shortest one a tile without padding.

| kernel | {head} |
|---{rule}|
{chr(10).join(loops)}
"""


def main() -> None:
    import cuda_ptx

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--architectures", type=int, nargs="+", default=ARCHITECTURES, metavar="NUMBER", help="as 90 for sm_90"
    )
    parser.add_argument("--operators", nargs="+", default=cuda_ptx.OPERATORS, choices=cuda_ptx.OPERATORS)
    parser.add_argument("--print", action="store_true", help="print the page and write nothing")
    arguments = parser.parse_args()
    for tool, package in (("nvcc", "the CUDA toolkit"), ("nvdisasm", "`pip install nvidia-cuda-nvdisasm`")):
        if not (nvcc_version() if tool == "nvcc" else find_cuda_tool(tool)):
            print(f"cuda_static: {tool} was not found; {package} has it", file=sys.stderr)
            sys.exit(4)
    found = count(arguments.operators, arguments.architectures)
    if arguments.print:
        print(page(found))
        return
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in found["kernels"].items())
    TARGET.with_suffix(".json").write_text(f'{{"nvcc": "{found["nvcc"]}", "kernels": {{\n{lines}\n}}}}\n')
    TARGET.write_text(page(found))
    print(TARGET)


if __name__ == "__main__":
    main()
