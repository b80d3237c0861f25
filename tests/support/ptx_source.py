"""Reads PTX as nvcc writes it: kernels, their parameters, registers and instructions, each with the number of its line.

Comments and performance directives are passed over; anything else that is not known here is a `PtxError` that names the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ENTRY = re.compile(
    r"^(?:\.visible |\.weak )?\.entry (?P<name>\w+)\((?P<parameters>[^)]*)\)(?P<directives>[^{]*)\{", re.MULTILINE
)
PARAMETER = re.compile(
    r"\.param (?:\.align \d+ )?\.(?P<type>[busf])(?P<bits>8|16|32|64) (?P<name>\w+)(?:\[(?P<count>\d+)\])?"
)
SHARED = re.compile(r"^\.extern \.shared (?:\.align \d+ )?\.b8 (?P<name>\w+)\[\];", re.MULTILINE)
# A label, the braces of a scope, or what ends with a semicolon and may have vectors in braces.
STATEMENT = re.compile(
    r"\s*(?:(?P<label>[$\w]+):|(?P<open>\{)|(?P<close>\})|(?P<text>[^;{}]*(?:\{[^{}]*\}[^;{}]*)*);)", re.ASCII
)
INSTRUCTION = re.compile(r"(?:@(?P<not>!?)(?P<guard>%?\w+)\s+)?(?P<opcode>[a-z][\w.:]*)\s*(?P<operands>.*)", re.DOTALL)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")
REGISTERS = re.compile(r"\.reg \.(?P<type>pred|[bf](?:16|32|64))\s+(?P<names>.*)", re.DOTALL)
NAME = re.compile(r"(?P<name>%?\w+)(?:<(?P<count>\d+)>)?")


class PtxError(Exception):
    """PTX that is not understood: the line, and what is there."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, or a label (`opcode` is empty, the label is the only operand)."""

    line: int
    opcode: str
    operands: tuple[str, ...]
    guard: str = ""  # a predicate register, with ! before it where it must be false

    def error(self, problem: str) -> PtxError:
        """What is wrong with it, and where."""
        return PtxError(f"line {self.line} of the PTX, `{self.opcode} {', '.join(self.operands)}`: {problem}")


@dataclass(frozen=True)
class KernelText:
    """A kernel that was found and not read yet; `line` is that of its opening brace."""

    name: str
    parameters: dict[str, int]  # bytes of each, in order
    body: str
    line: int
    shared: frozenset[str]  # names of the dynamic shared memory
    min_blocks: int = 0  # thread blocks per multiprocessor, as the launch bounds claim


@dataclass
class Kernel:
    """A kernel's registers by name, with the type that they were declared with, and its instructions in order."""

    name: str
    parameters: dict[str, int]
    shared: frozenset[str]
    registers: dict[str, str] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)


def find_kernels(text: str) -> dict[str, KernelText]:
    """The kernels of a PTX file by their (mangled) names.

    Raises:
        PtxError: a function that is not a kernel, or parameters of an unknown form.
    """
    text = re.sub(r"//[^\n]*", "", text)
    if function := re.search(r"^.*\.func\b.*", text, re.MULTILINE):
        raise PtxError(f"line {_line_of(text, function.start())} of the PTX: calls of functions are not known")
    shared = frozenset(match["name"] for match in SHARED.finditer(text))
    kernels = {}
    for match in ENTRY.finditer(text):
        parameters = {}
        for declaration in filter(None, map(str.strip, match["parameters"].split(","))):
            form = PARAMETER.fullmatch(declaration)
            if form is None:
                raise PtxError(
                    f"line {_line_of(text, match.start())} of the PTX: parameter `{declaration}` is not known"
                )
            parameters[form["name"]] = int(form["bits"]) // 8 * int(form["count"] or 1)
        end = text.index("\n}\n", match.end())
        line = _line_of(text, match.end())
        claim = re.search(r"\.minnctapersm (\d+)", match["directives"])
        kernels[match["name"]] = KernelText(
            match["name"], parameters, text[match.end() : end], line, shared, int(claim[1]) if claim else 0
        )
    return kernels


def read_kernel(text: KernelText) -> Kernel:
    """Reads a kernel's body.

    Raises:
        PtxError: a directive, or a form of statement, that is not known.
    """
    kernel = Kernel(text.name, text.parameters, text.shared)
    scopes: list[dict[str, str]] = [{}]  # of names that only hold there, what they are called here
    for line, match in _statements(text):
        if match["label"]:
            kernel.instructions.append(Instruction(line, "", (match["label"],)))
        elif match["open"]:
            scopes.append({})
        elif match["close"]:
            scopes.pop()
        elif statement := match["text"].strip():
            if statement.startswith(".pragma"):
                continue
            if registers := REGISTERS.fullmatch(statement):
                suffix = "" if len(scopes) == 1 else f"_{len(kernel.registers)}"
                scopes[-1] |= _declare(kernel, registers, suffix)
                continue
            names = {old: new for scope in scopes[1:] for old, new in scope.items()}
            if names:
                statement = re.sub(r"%?\w+", lambda word, names=names: names.get(word[0], word[0]), statement)
            kernel.instructions.append(_instruction(line, statement))
    return kernel


def _statements(text: KernelText) -> Iterator[tuple[int, re.Match[str]]]:
    """Each statement with the number of its line."""
    body = text.body.rstrip()
    position, line = 0, text.line
    while position < len(body):
        match = STATEMENT.match(body, position)
        if match is None:
            raise PtxError(f"line {line} of the PTX: `{body[position:].split()[0]}` begins no statement")
        start = next(index for index in range(position, len(body)) if not body[index].isspace())
        line += body.count("\n", position, start)
        yield line, match
        line += body.count("\n", start, match.end())
        position = match.end()


def _declare(kernel: Kernel, declaration: re.Match[str], suffix: str) -> dict[str, str]:
    """Adds the registers of a declaration; returns new names of those that have a suffix."""
    renamed = {}
    for match in map(NAME.fullmatch, map(str.strip, declaration["names"].split(","))):
        assert match is not None, declaration[0]
        if match["count"]:
            kernel.registers |= {f"{match['name']}{i}": declaration["type"] for i in range(int(match["count"]))}
        else:
            kernel.registers[match["name"] + suffix] = declaration["type"]
            renamed[match["name"]] = match["name"] + suffix
    return renamed


def _instruction(line: int, statement: str) -> Instruction:
    match = INSTRUCTION.fullmatch(statement)
    if match is None:
        raise PtxError(f"line {line} of the PTX: `{statement}` is not known")
    operands = tuple(operand.strip() for operand in OPERAND.findall(match["operands"]))
    return Instruction(line, match["opcode"], operands, f"{match['not']}{match['guard']}" if match["guard"] else "")


def _line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
