"""What is kept of each row of an output: the vector in its type, and facts about it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mra_export.errors import InputError

__all__ = ["OUTPUT_TYPES", "Layout", "companion", "drop_companion", "npy_header"]

OUTPUT_TYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
"""Name -> NumPy's."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layout:
    """Rows of an output.

    Attributes:
        hidden_size: numbers in a vector.
        output_type: one of `OUTPUT_TYPES`.
        gaps: whether rows of the input may be missing.
        pieces: whether a row is a piece of a text, so that their number is not known before.
    """

    hidden_size: int
    output_type: str = "float32"
    gaps: bool = False
    pieces: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a number."""
        return np.dtype(OUTPUT_TYPES[self.output_type])

    @property
    def row_bytes(self) -> int:
        """Of a vector."""
        return self.hidden_size * self.dtype.itemsize

    @property
    def facts(self) -> np.dtype[Any] | None:
        """What is kept beside the vector; None where the place says all.

        row: of the input. chunk: of the text, counted from 0; begin, end: its characters. scale: vector = numbers * scale.
        """
        fields = [("row", "<i8")]
        if self.pieces:
            fields += [("chunk", "<i8"), ("begin", "<i8"), ("end", "<i8")]
        if self.output_type == "int8":
            fields.append(("scale", "<f4"))
        return np.dtype(fields) if self.gaps or len(fields) > 1 else None

    def stored(self, vectors: Array, rows: Array) -> tuple[Array, Array | None]:
        """Vectors in the output's type, and their scales for int8.

        int8: numbers = round(vector * 127 / its largest absolute value), half to even; scale = that value / 127. It is the
        vector's own, so that it does not depend on the other texts; a vector of zeros has scale 0.

        Args:
            vectors: float32 [rows, hidden_size].
            rows: of the input, for the message.

        Raises:
            InputError: a value is not finite, or is not in the type.
        """
        _refuse(
            np.isfinite(vectors).all(axis=1),
            rows,
            "has values that are not finite. Run `mra-export check` on the bundle's model; in fp16 it may overflow where fp32 "
            "does not.",
        )
        if self.output_type == "float32":
            return np.ascontiguousarray(vectors, dtype=self.dtype), None
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        if self.output_type == "float16":
            limit = float(np.finfo(np.float16).max)
            _refuse(
                largest < limit + 16,  # which would be rounded up
                rows,
                f"has values beyond {limit:.0f}, the largest of float16. Write float32, or let the export normalize.",
            )
            return vectors.astype(self.dtype), None
        safe = np.where(largest > 0, largest, np.float32(1)).astype(np.float64)
        numbers = np.rint(vectors.astype(np.float64) * (127 / safe)[:, None]).astype(np.int8)
        return numbers, (largest / np.float32(127)).astype(np.float32)


def _refuse(fine: Any, rows: Array, what: str) -> None:
    if not fine.all():
        raise InputError(f"The vector of row {rows[int(np.flatnonzero(~fine)[0])]} {what}")


def npy_header(rows: int, columns: int | None, dtype: np.dtype[Any]) -> bytes:
    """The header of a .npy file of that shape, as NumPy writes it.

    Args:
        rows: how many.
        columns: of a matrix; None for a vector.
        dtype: of the elements.
    """
    buffer = io.BytesIO()
    shape = (rows,) if columns is None else (rows, columns)
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def companion(output: Path) -> Path:
    """Where the facts of a .npy output are: OUT.npy -> OUT.rows.npy."""
    return output.with_suffix(".rows.npy")


def drop_companion(output: Path) -> None:
    """Removes the facts of an output that was replaced by one that has none; another file of that name stays."""
    path = companion(output)
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            *_, dtype = np.lib.format.read_array_header_1_0(file)
    except (OSError, ValueError):
        return
    if dtype.names and dtype.names[0] == "row" and set(dtype.names) <= {"row", "chunk", "begin", "end", "scale"}:
        path.unlink()
