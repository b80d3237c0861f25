"""Translates the PTX of a kernel into a C++ function on tests/kernels/cuda_host/ptx/ptx_runtime.h, instruction by instruction.

Most instructions are rows of `VALUES`: the opcode, the types of its operands, and the C++ expression of its result. Those that
access memory, meet other threads or have vectors for operands are functions below. What is in neither, with all its modifiers, is
a `PtxError`, as is an operand of a form or width that the instruction was not seen with.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ptx_source import Instruction, Kernel, KernelText, read_kernel

INTEGER = r"(?P<type>[su](?:16|32|64))"
WIDENED = r"(?P<type>[su](?:16|32))"
WORDS = r"(?P<type>[su](?:32|64))"
BITS = r"(?P<type>b(?:16|32|64))"
COMPARED = r"(?P<type>[bsu](?:16|32|64))"
RELATION = r"(?P<relation>eq|ne|lt|le|gt|ge|lo|ls|hi|hs)"
ORDERED = r"(?P<relation>eq|lt|le|gt|ge)"
UNORDERED = r"(?P<relation>neu|ltu|leu|gtu|geu)"
LOGIC = r"(?P<logic>and|or|xor)"
RELATIONS = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "lo": "<",
    "le": "<=",
    "ls": "<=",
    "gt": ">",
    "hi": ">",
    "ge": ">=",
    "hs": ">=",
}
OPPOSITES = {"neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
LOGICS = {"and": "&", "or": "|", "xor": "^"}

# Opcode; types of the operands, the result's first: "t" is the opcode's, "u" the same without a sign, "w" twice as wide, "v" that
# without a sign; the result. {T}, {U}, {W} are those types in C++; {R} and {L} the relation and the logical operator.
VALUES = (
    (rf"add\.{INTEGER}", "u u u", "{a} + {b}"),
    (rf"sub\.{INTEGER}", "u u u", "{a} - {b}"),
    (rf"mul\.lo\.{INTEGER}", "u u u", "1u * {a} * {b}"),
    (rf"mad\.lo\.{INTEGER}", "u u u u", "1u * {a} * {b} + {c}"),
    (rf"mul\.wide\.{WIDENED}", "w t t", "({W}){a} * {b}"),
    (rf"mad\.wide\.{WIDENED}", "v t t v", "({V})(({W}){a} * {b}) + {c}"),
    (rf"mul\.hi\.{WORDS}", "t t t", "multiply_high({a}, {b})"),
    (rf"div\.{INTEGER}", "t t t", "divide<{T}>({a}, {b})"),
    (rf"rem\.{INTEGER}", "t t t", "remainder<{T}>({a}, {b})"),
    (rf"min\.{INTEGER}", "t t t", "{a} < {b} ? {a} : {b}"),
    (rf"max\.{INTEGER}", "t t t", "{a} > {b} ? {a} : {b}"),
    (r"abs\.(?P<type>s(?:16|32|64))", "u t", "{a} < 0 ? 0u - ({U}){a} : ({U}){a}"),
    (r"neg\.(?P<type>s(?:16|32|64))", "u u", "0u - {a}"),
    (rf"{LOGIC}\.{BITS}", "t t t", "{a} {L} {b}"),
    (rf"{LOGIC}\.pred", "pred pred pred", "{a} {L} {b}"),
    (rf"not\.{BITS}", "t t", "~{a}"),
    (r"not\.pred", "pred pred", "!{a}"),
    (rf"shl\.{BITS}", "t t u32", "shift_left<{T}>({a}, {b})"),
    (r"shr\.(?P<type>[bsu](?:16|32|64))", "t t u32", "shift_right<{T}>({a}, {b})"),
    (r"shf\.l\.wrap\.b32", "b32 b32 b32 u32", "funnel_left({a}, {b}, {c})"),
    (r"shf\.r\.wrap\.b32", "b32 b32 b32 u32", "funnel_right({a}, {b}, {c})"),
    (r"popc\.b32", "u32 b32", "count_bits({a})"),
    (r"clz\.b32", "u32 b32", "leading_zeros({a})"),
    (r"brev\.b32", "b32 b32", "reverse_bits({a})"),
    (r"bfind\.u32", "u32 u32", "highest_bit({a})"),
    (r"bfind\.shiftamt\.u32", "u32 u32", "{a} == 0 ? 0xffffffffu : leading_zeros({a})"),
    (r"bfi\.(?P<type>b(?:32|64))", "t t t u32 u32", "insert_bits<{T}>({a}, {b}, {c}, {d})"),
    (r"bfe\.(?P<type>[su]32)", "t t u32 u32", "extract_bits({a}, {b}, {c})"),
    (r"prmt\.b32", "b32 b32 b32 b32", "permute_bytes({a}, {b}, {c})"),
    (r"lop3\.b32", "b32 b32 b32 b32 u32", "logic3({a}, {b}, {c}, {d})"),
    (rf"setp\.{RELATION}\.{COMPARED}", "pred t t", "{a} {R} {b}"),
    (rf"setp\.{RELATION}\.{LOGIC}\.{COMPARED}", "pred t t pred", "({a} {R} {b}) {L} {c}"),
    (rf"setp\.{ORDERED}\.f32", "pred f32 f32", "{a} {R} {b}"),
    (rf"setp\.{ORDERED}\.{LOGIC}\.f32", "pred f32 f32 pred", "({a} {R} {b}) {L} {c}"),
    (rf"setp\.{UNORDERED}\.f32", "pred f32 f32", "!({a} {R} {b})"),
    (rf"setp\.{UNORDERED}\.{LOGIC}\.f32", "pred f32 f32 pred", "!({a} {R} {b}) {L} {c}"),
    (r"setp\.ne\.f32", "pred f32 f32", "{a} < {b} || {a} > {b}"),
    (r"setp\.num\.f32", "pred f32 f32", "{a} == {a} && {b} == {b}"),
    (r"setp\.nan\.f32", "pred f32 f32", "{a} != {a} || {b} != {b}"),
    (r"selp\.(?P<type>[bsu](?:16|32|64)|f32)", "t t t pred", "{c} ? {a} : {b}"),
    (r"mov\.(?P<type>b16|[su](?:16|32|64)|f32|pred)", "t t", "{a}"),
    (r"add(?:\.rn)?\.f32", "f32 f32 f32", "{a} + {b}"),
    (r"sub(?:\.rn)?\.f32", "f32 f32 f32", "{a} - {b}"),
    (r"mul(?:\.rn)?\.f32", "f32 f32 f32", "{a} * {b}"),
    (r"fma\.rn\.f32", "f32 f32 f32 f32", "__builtin_fmaf({a}, {b}, {c})"),
    (r"fma\.rm\.f32", "f32 f32 f32 f32", "fma_down({a}, {b}, {c})"),
    (r"div\.rn\.f32", "f32 f32 f32", "{a} / {b}"),
    (r"rcp\.rn\.f32", "f32 f32", "1.0f / {a}"),
    (r"sqrt\.rn\.f32", "f32 f32", "__builtin_sqrtf({a})"),
    (r"sqrt\.approx\.ftz\.f32", "f32 f32", "sqrt_approx_ftz({a})"),
    (r"ex2\.approx\.ftz\.f32", "f32 f32", "exp2_approx_ftz({a})"),
    (r"min\.f32", "f32 f32 f32", "minimum({a}, {b})"),
    (r"max\.f32", "f32 f32 f32", "maximum({a}, {b})"),
    (r"abs\.f32", "f32 f32", "__builtin_fabsf({a})"),
    (r"neg\.f32", "f32 f32", "-{a}"),
    (r"cvt\.(?P<to>[su](?:8|16|32|64))\.(?P<type>[su](?:8|16|32|64))", "to> t>", "{a}"),
    (r"cvt\.rn\.f32\.(?P<type>[su](?:16|32|64))", "f32 t", "(f32){a}"),
    (r"cvt\.rzi\.s32\.f32", "s32 f32", "f32_to_s32({a})"),
    (r"cvt\.rzi\.u32\.f32", "u32 f32", "f32_to_u32({a})"),
    (r"cvt\.rni\.f32\.f32", "f32 f32", "round_even({a})"),
    (r"cvt\.sat\.f32\.f32", "f32 f32", "saturate({a})"),
    (r"cvt\.f32\.f16", "f32 b16", "f16_to_f32({a})"),
    (r"cvt\.f32\.bf16", "f32 b16", "bf16_to_f32({a})"),
    (r"cvt\.rn\.f16\.f32", "b16 f32", "f32_to_f16({a})"),
    (r"cvt\.rn\.bf16\.f32", "b16 f32", "f32_to_bf16({a})"),
    (r"cvt\.rn\.f16x2\.f32", "b32 f32 f32", "(u32)f32_to_f16({a}) << 16 | f32_to_f16({b})"),
    (r"cvt\.rn\.bf16x2\.f32", "b32 f32 f32", "(u32)f32_to_bf16({a}) << 16 | f32_to_bf16({b})"),
    (r"cvta(?:\.to)?\.global\.u64", "u64 u64", "{a}"),
    (r"cvta\.shared\.u64", "u64 u64", "(u64)shared.base + {a}"),
    (r"cvta\.to\.shared\.u64", "u64 u64", "{a} - (u64)shared.base"),
    (r"vote\.sync\.ballot\.b32", "b32 pred u32", "ballot({b}, {a})"),
    (r"match\.any\.sync\.b32", "b32 b32 u32", "match_any({b}, {a})"),
)
SPECIAL = {
    "%tid.x": "thread_index()",
    "%ctaid.x": "block_index()",
    "%ntid.x": "block_size()",
    "%nctaid.x": "grid_size()",
    "%laneid": "lane_index()",
}
# The operand of a shuffle within the whole warp that says where it ends.
CLAMPS = {"up": "0", "down": "31", "bfly": "31", "idx": "31"}
SOURCES = {
    "up": "(s32)lane_index() - (s32){by}",
    "down": "(s32)(lane_index() + {by})",
    "bfly": "(s32)(lane_index() ^ {by})",
    "idx": "(s32)({by} & 31)",
}


def translate(text: KernelText) -> str:
    """The kernel as a C++ function of its name, which takes a pointer to each parameter.

    Raises:
        PtxError: something in it is not known; the message names the line.
    """
    return _Translator(read_kernel(text)).function()


class _Translator:
    """Translates the instructions of one kernel, and keeps account of the registers that they use."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.parameters = list(kernel.parameters)
        self.used: dict[str, str] = {}  # registers in C++ and their types

    def function(self) -> str:
        body = [self.statement(instruction) for instruction in self.kernel.instructions]
        by_type: dict[str, list[str]] = {}
        for name, kind in self.used.items():
            by_type.setdefault(_cpp(kind), []).append(
                f"{name} = 0"
            )  # a register that nothing wrote is the same each time
        return "\n".join(
            (
                f'extern "C" void {self.kernel.name}(const unsigned char* const* params) {{',
                "  const Shared shared = shared_memory();",
                "  (void)params, (void)shared;",
                *(f"  {kind} {', '.join(names)};" for kind, names in by_type.items()),
                *body,
                "}\n",
            )
        )

    def statement(self, i: Instruction) -> str:
        if not i.opcode:
            return f"{_label(i.operands[0])}:;"
        code = self.instruction(i)
        if i.guard:
            wanted = self.value(i, i.guard.lstrip("!"), "pred")
            return f"  if ({'!' if i.guard[0] == '!' else ''}{wanted}) {{ {code} }}"
        return f"  {code}" if "; " not in code else f"  {{ {code} }}"

    def instruction(self, i: Instruction) -> str:
        for pattern, form in FORMS:
            if match := pattern.fullmatch(i.opcode):
                return form(self, match, i)
        for pattern, types, expression in COMPILED_VALUES:
            if match := pattern.fullmatch(i.opcode):
                if len(types) != len(i.operands):
                    raise i.error(f"{len(types)} operands were expected")
                return self.simple(i, match.groupdict(), types, expression)
        raise i.error("this instruction is not known")

    def simple(self, i: Instruction, groups: dict[str, str], types: list[str], expression: str) -> str:
        kind = groups.get("type", "b32")
        unsigned = "u" + kind[1:] if kind[0] in "bsu" else kind
        wide = f"{kind[0]}{2 * int(kind[1:])}" if kind[1:] in ("16", "32") else kind
        letters = {"t": kind, "u": unsigned, "w": wide, "v": "u" + wide[1:], "to": groups.get("to", "")}
        values = {}
        named = [(letters.get(name.rstrip(">"), name), name.endswith(">")) for name in types]
        for letter, operand, (own, narrow) in zip("abcd", i.operands[1:], named[1:], strict=False):
            values[letter] = self.value(i, operand, own, narrow=narrow)
        relation = groups.get("relation", "")
        result = expression.format(
            T=_cpp(kind),
            U=_cpp(unsigned),
            W=_cpp(wide),
            V=_cpp(letters["v"]),
            R=RELATIONS.get(relation) or OPPOSITES.get(relation, ""),
            L=LOGICS.get(groups.get("logic", ""), ""),
            **values,
        )
        return self.assign(i, i.operands[0], result, named[0][0], narrow=named[0][1])

    def register(self, i: Instruction, operand: str, kind: str, *, narrow: bool = False) -> tuple[str, str]:
        """A register's name in C++ and its own type; it must be as wide as `kind`, or may be wider if `narrow`."""
        own = self.kernel.registers.get(operand)
        if own is None:
            raise i.error(f"the operand {operand} is not known")
        fits = _bits(own) >= _bits(kind) if narrow else _bits(own) == _bits(kind)
        if (own == "pred") != (kind == "pred") or not fits:
            raise i.error(f"{operand} is a register of .{own}, where .{kind} is expected")
        name = operand.lstrip("%") + "_"  # f32 is a type
        self.used[name] = own
        return name, own

    def value(self, i: Instruction, operand: str, kind: str, *, narrow: bool = False) -> str:
        """An operand that is read as a value of type `kind`."""
        if operand in self.kernel.registers:
            name, own = self.register(i, operand, kind, narrow=narrow)
            if kind == "f32":
                return name if own == "f32" else f"as_float({name})"
            if own == "f32":
                name = f"as_bits({name})"
            return name if _cpp(own) == _cpp(kind) else f"({_cpp(kind)}){name}"
        if operand in SPECIAL and _bits(kind) == 32 and kind != "f32":
            return f"({_cpp(kind)}){SPECIAL[operand]}"
        if operand in self.parameters and _bits(kind) == 64:
            return f"(u64)params[{self.parameters.index(operand)}]"
        if operand in self.kernel.shared and _bits(kind) in (32, 64):
            return f"({_cpp(kind)})0"
        if kind == "pred" and operand in ("0", "1", "-1"):
            return "false" if operand == "0" else "true"
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand) and _bits(kind) == 32:
            bits = f"0x{operand[2:]}u"
            return f"as_float({bits})" if kind == "f32" else f"({_cpp(kind)}){bits}"
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", operand) and kind not in ("f32", "pred"):
            number = int(operand, 0) if operand.startswith("0x") else int(operand)
            if not -(1 << (_bits(kind) - 1)) <= number < 1 << _bits(kind):
                raise i.error(f"{operand} is too large for .{kind}")
            return f"({_cpp(kind)}){number % (1 << 64)}ull"
        raise i.error(f"the operand {operand} is not known as .{kind}")

    def assign(self, i: Instruction, operand: str, result: str, kind: str, *, narrow: bool = False) -> str:
        """Stores a result of type `kind`; into a wider register it is extended by its sign, or by zeros."""
        if operand == "_":
            return f"(void)({result});"
        name, own = self.register(i, operand, kind, narrow=narrow)
        if kind == "f32":
            return f"{name} = {result};" if own == "f32" else f"{name} = as_bits({result});"
        if kind == "pred":
            return f"{name} = {result};"
        if own == "f32":
            return f"{name} = as_float((u32)({result}));"
        if kind[0] == "s" and _bits(own) > _bits(kind):
            return f"{name} = ({_cpp(own)})(s64)({_cpp(kind)})({result});"
        return f"{name} = ({_cpp(kind)})({result});"

    def vector(self, i: Instruction, operand: str, count: int) -> list[str]:
        """The elements of {a, b, ...}; of one element there are no braces."""
        if operand.startswith("{") != (count > 1):
            raise i.error(f"{operand} does not have {count} elements")
        elements = [element.strip() for element in operand.strip("{}").split(",")]
        if len(elements) != count:
            raise i.error(f"{operand} does not have {count} elements")
        return elements

    def address(self, i: Instruction, operand: str, space: str, size: int) -> str:
        """A checked pointer to `size` bytes at [register], [register+offset], or the same of a parameter or of shared memory."""
        match = re.fullmatch(r"\[(?P<base>%?\w+)(?:\+(?P<offset>-?\d+))?\]", operand)
        if match is None:
            raise i.error(f"the address {operand} is not known")
        base, offset = match["base"], int(match["offset"] or 0)
        if space == "param":
            if base in self.parameters:
                if not 0 <= offset <= self.kernel.parameters[base] - size:
                    raise i.error(f"{size} bytes at {offset} of a parameter of {self.kernel.parameters[base]}")
                return f"params[{self.parameters.index(base)}] + {offset}"
            return f"at({self.value(i, base, 'u64')} + (u64){offset}ll, {size})"
        if space == "shared":
            kind = "u64" if self.kernel.registers.get(base) == "b64" else "u32"
            return f"at_shared(shared, (u32){self.value(i, base, kind)} + (u32){offset}, {size})"
        return f"at({self.value(i, base, 'u64')} + (u64){offset}ll, {size})"


def _branch(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    return f"goto {_label(i.operands[0])};"


def _load(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    kind, count, space = match["type"], int(match["count"] or 1), match["space"] or "generic"
    size = _bits(kind) // 8
    address = t.address(i, i.operands[1], space, size * count)
    lines = [f"const unsigned char* from = {address};"]
    for n, element in enumerate(t.vector(i, i.operands[0], count)):
        lines.append(t.assign(i, element, f"load<{_cpp(kind)}>(from + {n * size})", kind, narrow=True))
    return " ".join(lines)


def _store(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    kind, count, space = match["type"], int(match["count"] or 1), match["space"] or "generic"
    size = _bits(kind) // 8
    lines = [f"unsigned char* to = {t.address(i, i.operands[0], space, size * count)};"]
    for n, element in enumerate(t.vector(i, i.operands[1], count)):
        lines.append(f"store<{_cpp(kind)}>(to + {n * size}, {t.value(i, element, kind, narrow=True)});")
    return " ".join(lines)


def _atomic_add(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    returns = match["name"] == "atom"
    address, operand = i.operands[-2:]
    result = (
        f"atomic_add({t.address(i, address, match['space'] or 'generic', 4)}, {t.value(i, operand, match['type'])})"
    )
    return t.assign(i, i.operands[0], result, match["type"]) if returns else f"{result};"


def _unpack(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    part = _bits(match["type"]) // 2
    whole = t.value(i, i.operands[1], match["type"])
    low, high = t.vector(i, i.operands[0], 2)
    lines = [f"const {_cpp(match['type'])} whole = {whole};"]
    lines += [t.assign(i, x, f"whole >> {shift}", f"b{part}") for x, shift in ((low, 0), (high, part)) if x != "_"]
    return " ".join(lines)


def _pack(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    kind = match["type"]
    part = _bits(kind) // 2
    low, high = (t.value(i, x, f"b{part}") for x in t.vector(i, i.operands[1], 2))
    return t.assign(i, i.operands[0], f"({_cpp(kind)}){high} << {part} | {low}", kind)


def _move(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    if i.operands[0].startswith("{"):
        return _unpack(t, match, i)
    return _pack(t, match, i) if i.operands[1].startswith("{") else t.simple(i, match.groupdict(), ["t", "t"], "{a}")


def _barrier(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    if i.operands != ("0",):
        raise i.error("only barrier 0 for all threads is known")
    return "barrier();"


def _warp_barrier(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    return f"warp_barrier({t.value(i, i.operands[0], 'u32')});"


def _shuffle(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    result, value, by, clamp, lanes = i.operands
    result, _, inside = result.partition("|")
    lines = [f"check_clamp({t.value(i, clamp, 'u32')}, {CLAMPS[match['mode']]});"]
    lines.append(f"const s32 source = {SOURCES[match['mode']].format(by=t.value(i, by, 'u32'))};")
    lines.append(t.assign(i, result, f"shuffle({t.value(i, lanes, 'u32')}, {t.value(i, value, 'b32')}, source)", "b32"))
    if inside:
        lines.append(t.assign(i, inside, "source >= 0 && source < 32", "pred"))
    return " ".join(lines)


def _copy_async(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    if i.operands[2] != "16" or len(i.operands) > 4:
        raise i.error("only copies of 16 bytes are known")
    to, source = t.address(i, i.operands[0], "shared", 16), t.address(i, i.operands[1], "global", 16)
    return f"copy_async({to}, {source}, {t.value(i, i.operands[3], 'u32') if len(i.operands) == 4 else '16'});"


def _copy_wait(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    return f"copy_wait({t.value(i, i.operands[0], 'u32')});"


def _load_matrix(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    row = t.address(i, i.operands[1], "shared", 16)
    lines = [f"u32 out[4]; load_matrix(out, {row}, {'true' if match['trans'] else 'false'});"]
    lines += [t.assign(i, x, f"out[{n}]", "b32") for n, x in enumerate(t.vector(i, i.operands[0], 4))]
    return " ".join(lines)


def _mma(t: _Translator, match: re.Match[str], i: Instruction) -> str:
    d, a, b, c = (t.vector(i, operand, count) for operand, count in zip(i.operands, (4, 4, 2, 4), strict=True))
    lines = [f"f32 sum[4] = {{{', '.join(t.value(i, x, 'f32') for x in c)}}};"]
    for name, values in (("a", a), ("b", b)):
        lines.append(f"const u32 {name}[] = {{{', '.join(t.value(i, x, 'b32') for x in values)}}};")
    lines.append(f"mma_{match['type']}(sum, a, b);")
    lines += [t.assign(i, x, f"sum[{n}]", "f32") for n, x in enumerate(d)]
    return " ".join(lines)


def _fixed(code: str) -> Callable[[_Translator, re.Match[str], Instruction], str]:
    def form(t: _Translator, match: re.Match[str], i: Instruction) -> str:
        if i.operands:
            raise i.error("no operand was expected")
        return code

    return form


SPACE = r"(?:\.(?P<space>param|global|shared))?"
VECTOR = r"(?:\.v(?P<count>[24]))?\.(?P<type>[busf](?:8|16|32|64))"
FORMS = tuple(
    (re.compile(pattern), form)
    for pattern, form in (
        (r"bra(?:\.uni)?", _branch),
        (r"ret|exit", _fixed("return;")),
        (rf"ld{SPACE}(?:\.(?:nc|cg|ca|volatile))?{VECTOR}", _load),
        (rf"ld\.volatile{SPACE}{VECTOR}", _load),
        (rf"st{SPACE}(?:\.(?:cg|wb))?{VECTOR}", _store),
        (rf"st\.volatile{SPACE}{VECTOR}", _store),
        (r"(?P<name>atom|red)(?:\.(?P<space>global|shared))?\.add\.(?P<type>u32)", _atomic_add),
        (r"mov\.(?P<type>b(?:32|64))", _move),
        (r"bar\.sync|barrier\.sync", _barrier),
        (r"bar\.warp\.sync", _warp_barrier),
        (r"membar\.gl|fence\.(?:acq_rel|sc)\.gpu", _fixed("fence();")),
        (r"shfl\.sync\.(?P<mode>up|down|bfly|idx)\.b32", _shuffle),
        (r"cp\.async\.c[ag]\.shared\.global", _copy_async),
        (r"cp\.async\.commit_group", _fixed("copy_commit();")),
        (r"cp\.async\.wait_group", _copy_wait),
        (r"ldmatrix\.sync\.aligned\.m8n8\.x4(?P<trans>\.trans)?\.shared\.b16", _load_matrix),
        (r"mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.(?P<type>f16|bf16)\.(?P=type)\.f32", _mma),
    )
)
COMPILED_VALUES = tuple((re.compile(pattern), types.split(), expression) for pattern, types, expression in VALUES)


def _cpp(kind: str) -> str:
    return {"pred": "bool"}.get(kind, kind.replace("b", "u"))


def _bits(kind: str) -> int:
    return 1 if kind == "pred" else int(kind[1:])


def _label(name: str) -> str:
    return name.replace("$", "L_")
