"""Types of vectors, and what is kept beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embed_support import HIDDEN, begun, hidden, interrupt

from mra_export.embedding.journal import Partial
from mra_export.embedding.layout import Layout, companion, npy_header
from mra_export.embedding.run import Interrupted, embed
from mra_export.errors import InputError


def test_int8_is_each_vectors_largest_value_times_127() -> None:
    vectors = np.array([[0.5, -0.25, 0.001953125], [0, 0, 0], [-3, 3, 1.5], [1e-30, -2e-30, 0]], np.float32)
    numbers, scales = Layout(3, "int8").stored(vectors, np.arange(4))
    assert numbers.dtype == np.int8
    assert numbers.tolist() == [[127, -64, 0], [0, 0, 0], [-127, 127, 64], [64, -127, 0]]  # 63.5 to the even number
    assert scales is not None
    np.testing.assert_allclose(scales, [0.5 / 127, 0, 3 / 127, 2e-30 / 127], rtol=1e-6)
    np.testing.assert_allclose(numbers * scales[:, None], vectors, atol=3 / 254 + 1e-6)


def test_float16_is_rounded_and_held_to_its_range() -> None:
    vectors = np.array([[65504, 65519.9, -1 / 3]], np.float32)
    stored, _ = Layout(3, "float16").stored(vectors, np.arange(1))
    assert stored.tolist() == [[65504, 65504, -0.333251953125]]
    with pytest.raises(
        InputError, match=r"vector of row 7 has values beyond 65504, the largest of float16. Write float32"
    ):
        Layout(1, "float16").stored(np.array([[1], [-65520]], np.float32), np.array([3, 7]))
    for kind in ("float16", "int8", "float32"):
        with pytest.raises(InputError, match=r"vector of row 3 has values that are not finite"):
            Layout(1, kind).stored(np.array([[np.nan]], np.float32), np.array([3]))


def test_what_is_kept_of_a_row() -> None:
    assert Layout(4).facts is None
    assert Layout(4, "float16").facts is None
    names = [Layout(4, *rest).facts for rest in (("int8",), ("float32", True), ("int8", True, True))]
    assert [kind.names for kind in names if kind is not None] == [
        ("row", "scale"),
        ("row",),
        ("row", "chunk", "begin", "end", "scale"),
    ]
    assert companion(Path("a/v.1.npy")) == Path("a/v.1.rows.npy")


@pytest.mark.parametrize("dtype", ["<f4", "<f2", "|i1"])
def test_the_header_is_numpys(dtype: str, tmp_path: Path) -> None:
    vectors = np.arange(12).astype(dtype).reshape(4, 3)
    np.save(tmp_path / "v.npy", vectors)
    assert npy_header(4, 3, vectors.dtype) + vectors.tobytes() == (tmp_path / "v.npy").read_bytes()


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_the_types_in_both_kinds_of_output(
    kind: str, bundle: Path, lines: Path, expected: bytes, tmp_path: Path
) -> None:
    full = np.frombuffer(expected[-300 * HIDDEN * 4 :], np.float32).reshape(-1, HIDDEN)
    options: dict[str, Any] = {"chunk_rows": 20, "output_type": kind}
    with pytest.MonkeyPatch.context() as patched, pytest.raises(Interrupted, match="300 of 300 rows are kept"):
        patched.setattr(Partial, "publish", lambda *_: interrupt())
        embed(bundle, lines, tmp_path / "o.npy", **options)
    result = embed(bundle, lines, tmp_path / "o.npy", **options)
    assert (result.output_type, result.resumed_rows) == (kind, 300)
    embed(bundle, lines, tmp_path / "o.parquet", **options)
    made = pq.read_table(tmp_path / "o.parquet")
    assert made.schema.field("embedding").type.value_type == (pa.float16() if kind == "float16" else pa.int8())
    vectors = made["embedding"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, HIDDEN)
    assert np.array_equal(np.load(tmp_path / "o.npy"), vectors)
    if kind == "float16":
        assert made.schema.names == ["row", "embedding"]
        assert np.array_equal(vectors, full.astype(np.float16))
        assert result.outputs == (tmp_path / "o.npy",)
    else:
        assert made.schema.names == ["row", "scale", "embedding"]
        facts = np.load(tmp_path / "o.rows.npy")
        assert facts["row"].tolist() == list(range(300))
        assert facts["scale"].tolist() == made["scale"].to_pylist()
        assert np.array_equal(np.abs(vectors).max(axis=1), np.full(300, 127))
        np.testing.assert_allclose(vectors * facts["scale"][:, None], full, atol=np.abs(full).max() / 253)
    assert not hidden(tmp_path)


def test_work_in_another_type_is_not_continued(bundle: Path, lines: Path, tmp_path: Path) -> None:
    begun(bundle, lines, tmp_path / "o.npy")
    with pytest.raises(InputError, match='output_type was "float32", now "float16"'):
        embed(bundle, lines, tmp_path / "o.npy", chunk_rows=20, output_type="float16")
    with pytest.raises(InputError, match="output_type='binary' must be one of float32, float16, int8"):
        embed(bundle, lines, tmp_path / "o.npy", output_type="binary")


def test_the_file_beside_the_vectors_is_not_replaced_unasked(bundle: Path, lines: Path, tmp_path: Path) -> None:
    (tmp_path / "o.rows.npy").write_text("mine")
    with pytest.raises(InputError, match=r"o\.rows\.npy already exists"):
        embed(bundle, lines, tmp_path / "o.npy", output_type="int8")
    embed(bundle, lines, tmp_path / "o.npy")  # needs none
    assert (tmp_path / "o.rows.npy").read_text() == "mine"
    np.save(tmp_path / "o.rows.npy", np.zeros(3))
    embed(bundle, lines, tmp_path / "o.npy", force=True)
    assert np.load(tmp_path / "o.rows.npy").tolist() == [0, 0, 0]
    embed(bundle, lines, tmp_path / "o.npy", output_type="int8", force=True)
    assert np.load(tmp_path / "o.rows.npy").dtype.names == ("row", "scale")
    embed(bundle, lines, tmp_path / "o.npy", force=True)
    assert not (tmp_path / "o.rows.npy").exists()  # it would say what is no longer there
