"""Says whether a shared library was cut off, before it is loaded: the loader maps it, and what is missing ends the process."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING

from mra_export.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_whole", "cut_off"]

_LAYOUTS = {1: ("HHIIIIIHHHHHH", "IIIIIIII", (1, 4)), 2: ("HHIQQQIHHHHHH", "IIQQQQQQ", (2, 5))}
"""Class of ELF -> header after `e_ident`, segment, and the places of `p_offset` and `p_filesz` in it; see elf(5)."""
_IDENT_BYTES = 16
_PT_LOAD = 1


def check_whole(library: Path) -> None:
    """Refuses a library that was cut off; what else may be wrong with it, the loader says.

    Raises:
        InputError: the file is shorter than its own headers say.
    """
    if wrong := cut_off(library):
        raise InputError(f"{wrong}. Copy it again, or build it again with `mra-export build`.")


def cut_off(library: Path) -> str:
    """What is wrong with a shared library that is shorter than its headers say; empty for any other file.

    The hash of a manifest says the same, and more; this is for a library that comes without one, or was listed after it was cut
    off. The C++ library does it in plugins/serving/src/shared_library.h.
    """
    if not library.is_file():
        return ""
    try:
        with library.open("rb") as file:
            size = library.stat().st_size
            ident = file.read(_IDENT_BYTES)
            order = 1 if sys.byteorder == "little" else 2
            if ident[:4] != b"\x7fELF" or len(ident) < _IDENT_BYTES or ident[4] not in _LAYOUTS or ident[5] != order:
                return ""
            header_format, segment_format, (at_offset, at_size) = _LAYOUTS[ident[4]]
            header = file.read(struct.calcsize(f"={header_format}"))
            extent = _IDENT_BYTES + struct.calcsize(f"={header_format}")
            if len(header) == extent - _IDENT_BYTES:
                fields = struct.unpack(f"={header_format}", header)
                _, _, _, _, e_phoff, e_shoff, _, _, e_phentsize, e_phnum, e_shentsize, e_shnum, _ = fields
                segment_bytes = struct.calcsize(f"={segment_format}")
                extent = max(extent, e_shoff + e_shnum * e_shentsize, e_phoff + e_phnum * segment_bytes)
                if extent <= size and e_phentsize == segment_bytes:
                    file.seek(e_phoff)
                    for segment in struct.iter_unpack(f"={segment_format}", file.read(e_phnum * segment_bytes)):
                        if segment[0] == _PT_LOAD:
                            extent = max(extent, segment[at_offset] + segment[at_size])
    except OSError:  # the loader says it better
        return ""
    if extent <= size:
        return ""
    return (
        f"{library} has {size} bytes, and its own headers say that it has {extent} at least: it was cut off or damaged"
    )
