"""What the processor has for arithmetic of reduced precision, as Linux says it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Processor", "read_processor"]

_INSTRUCTIONS = {
    "int8": {"amx_int8": "AMX-INT8", "avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "asimddp": "DotProd"},
    "bf16": {"amx_bf16": "AMX-BF16", "avx512_bf16": "AVX512-BF16", "bf16": "BF16"},
}
"""Type -> the kernel's name of instructions for it -> their name, fastest first."""


@dataclass(frozen=True)
class Processor:
    """The instructions of a processor.

    Attributes:
        vendor: as in "AuthenticAMD"; empty where that is not said.
        flags: Linux's names of what it has.
    """

    vendor: str
    flags: frozenset[str]

    @property
    def instructions(self) -> dict[str, str | None]:
        """ "int8" and "bf16" -> the instructions for it, None where there are none; empty where nothing is known."""
        if not self.flags:
            return {}
        return {
            kind: next((title for flag, title in names.items() if flag in self.flags), None)
            for kind, names in _INSTRUCTIONS.items()
        }

    @property
    def is_bfloat16_fast(self) -> bool:
        """Whether it multiplies bfloat16 faster than float32.

        AMX does, and AVX512-BF16 of AMD. Intel's AVX512-BF16 is half as fast as float32, and without any such instructions
        bfloat16 is only emulated.
        """
        return "amx_bf16" in self.flags or ("avx512_bf16" in self.flags and self.vendor == "AuthenticAMD")


def read_processor(path: Path = Path("/proc/cpuinfo")) -> Processor:
    """The processor of this machine; one without any flags where the system does not say."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    facts = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    vendor = next((value for name, value in facts if name == "vendor_id"), "")
    return Processor(
        vendor, frozenset(f for name, value in facts if name in ("flags", "Features") for f in value.split())
    )
