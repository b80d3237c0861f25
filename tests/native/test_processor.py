"""What a processor has, by what Linux says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mra_export.native.processor import Processor, read_processor


@pytest.mark.parametrize(
    ("vendor", "flags", "instructions", "fast"),
    [
        ("AuthenticAMD", "avx2 avx512_vnni avx512_bf16", {"int8": "AVX512-VNNI", "bf16": "AVX512-BF16"}, True),
        ("GenuineIntel", "avx_vnni avx512_vnni avx512_bf16", {"int8": "AVX512-VNNI", "bf16": "AVX512-BF16"}, False),
        ("GenuineIntel", "avx512_bf16 amx_bf16 amx_int8", {"int8": "AMX-INT8", "bf16": "AMX-BF16"}, True),
        ("GenuineIntel", "avx2 fma avx_vnni", {"int8": "AVX-VNNI", "bf16": None}, False),
        ("AuthenticAMD", "avx2 fma", {"int8": None, "bf16": None}, False),
    ],
)
def test_processors(vendor: str, flags: str, instructions: dict[str, str | None], fast: bool, tmp_path: Path) -> None:
    lines = ["processor\t: 0", f"vendor_id\t: {vendor}", f"flags\t\t: fpu {flags}", "bugs\t\t: spectre_v1 amx_bf16"]
    (tmp_path / "cpuinfo").write_text("\n".join(lines * 2))
    found = read_processor(tmp_path / "cpuinfo")
    assert (found.vendor, found.instructions, found.is_bfloat16_fast) == (vendor, instructions, fast)


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert read_processor(tmp_path / "cpuinfo") == Processor("", frozenset())
    assert read_processor(tmp_path / "cpuinfo").instructions == {}
    assert not read_processor(tmp_path / "cpuinfo").is_bfloat16_fast
