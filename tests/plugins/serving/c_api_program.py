"""Calls the library for C from Python: c_api_program.py LIBRARY BUNDLE OUT.npz ONNXRUNTIME. It ends with 0 where all is well."""

from __future__ import annotations

import ctypes as c
import json
import sys
import threading
from pathlib import Path

import numpy as np

TEXTS = ["The ferry leaves at seven.", "naïve café", "日本語"]
DONE = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p, c.POINTER(c.c_float), c.c_size_t, c.c_size_t)
LOG = c.CFUNCTYPE(None, c.c_void_p, c.c_int, c.c_char_p)

library, bundle, out, runtime = sys.argv[1:]
mra = c.CDLL(library)
for name in ("mra_version", "mra_last_error", "mra_info"):
    getattr(mra, name).restype = c.c_char_p
mra.mra_options_new.restype = c.c_void_p
mra.mra_dimension.restype = c.c_size_t
mra.mra_submit_texts.argtypes = [c.c_void_p, c.c_void_p, c.c_void_p, c.c_size_t, c.c_char_p, c.c_char_p, c.c_double, DONE, c.c_void_p, c.c_void_p]  # fmt: skip  # noqa: E501


def fine(code: int) -> None:
    """Ends the program with what went wrong."""
    if code != 0:
        sys.exit(f"{code}: {mra.mra_last_error().decode()}")


def opened(env: int | None = None, **options: str) -> c.c_void_p:
    """An embedder."""
    given = c.c_void_p(mra.mra_options_new())
    for name, value in options.items():
        fine(mra.mra_options_set(given, name.encode(), value.encode()))
    if env is not None:
        fine(mra.mra_options_set_onnxruntime_env(given, c.c_void_p(env)))
    embedder = c.c_void_p()
    fine(mra.mra_open(bundle.encode(), given, c.byref(embedder)))
    mra.mra_options_free(given)
    return embedder


def texts() -> tuple[c.Array[c.c_char_p], int]:
    """As C has them."""
    return (c.c_char_p * len(TEXTS))(*[text.encode() for text in TEXTS]), len(TEXTS)


def embedded(embedder: c.c_void_p, numbers: int = 0, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and scales."""
    vectors = np.zeros((len(TEXTS), mra.mra_dimension(embedder)), dtype)
    scales = np.zeros(len(TEXTS), np.float32)
    places = vectors.ctypes.data_as(c.c_void_p), scales.ctypes.data_as(c.c_void_p)
    fine(mra.mra_embed_texts(embedder, texts()[0], None, c.c_size_t(len(TEXTS)), None, None, numbers, *places))
    return vectors, scales


def own_environment() -> int:
    """An OrtEnv of the program's own: of the table of functions, the fourth is CreateEnv."""
    ort = c.CDLL(runtime)
    ort.OrtGetApiBase.restype = c.POINTER(c.c_void_p)
    get_api = c.CFUNCTYPE(c.POINTER(c.c_void_p), c.c_uint32)(ort.OrtGetApiBase()[0])
    create = c.CFUNCTYPE(c.c_void_p, c.c_int, c.c_char_p, c.POINTER(c.c_void_p))(get_api(21)[3])
    env = c.c_void_p()
    assert create(3, b"program", c.byref(env)) is None
    assert env.value is not None
    return env.value


heard: list[str] = []
log = LOG(lambda _, level, message: heard.append(f"{level} {message.decode()}"))
fine(mra.mra_set_log(log, None))
by_tables = opened()
info = json.loads(mra.mra_info(by_tables))
assert info["tokenizer"] == "tables of WordPiece"
assert info["dimension"] == 384
assert info["prompts"] == {}
assert info["default_prompt"] is None
assert any(line.startswith("0 onnxruntime ") and "ids by tables of WordPiece" in line for line in heard), heard
result = {"tables": embedded(by_tables)[0], "float16": embedded(by_tables, 1, np.float16)[0]}
result["int8"], result["scales"] = embedded(by_tables, 2, np.int8)

by_python = opened(tokenizer="python", backend_dir=str(Path(library).parent))
assert json.loads(mra.mra_info(by_python))["tokenizer"].startswith("tokenizers ")
result["python"] = embedded(by_python)[0]
wrong: list[str] = []


def again() -> None:
    """One of several threads of this Python."""
    for _ in range(5):
        if np.abs(embedded(by_python)[0] - result["python"]).max() > 1e-6:
            wrong.append("other vectors")


threads = [threading.Thread(target=again) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not wrong

ids, length = (c.c_int64 * 4)(), c.c_size_t()
encoded = TEXTS[0].encode()
fine(mra.mra_tokenize(by_tables, encoded, c.c_size_t(len(encoded)), None, None, ids, c.c_size_t(4), c.byref(length)))
assert (ids[0], length.value) == (101, 8)
assert mra.mra_tokenize(by_tables, b"\xff", c.c_size_t(1), None, None, None, c.c_size_t(0), c.byref(length)) == 2
assert b"Text 0 is not UTF-8 from byte 0 on" in mra.mra_last_error()

batcher = c.c_void_p()
fine(mra.mra_batcher_start(by_python, None, c.byref(batcher)))
came, answers = threading.Event(), []


def answer(_: object, code: int, message: bytes, vectors: object, rows: int, columns: int) -> None:
    """Called by a thread of the batcher."""
    answers.append((code, message, np.ctypeslib.as_array(vectors, (rows, columns)).copy() if code == 0 else None))
    came.set()


done = DONE(answer)
fine(mra.mra_submit_texts(batcher, texts()[0], None, len(TEXTS), None, None, 60.0, done, None, None))
assert came.wait(60)
mra.mra_batcher_stop(batcher, 1)
mra.mra_batcher_free(batcher)
assert answers[0][:2] == (0, b"")
result["batched"] = answers[0][2]

own = opened(own_environment())
result["environment"] = embedded(own)[0]
for embedder in (by_tables, by_python, own):
    mra.mra_close(embedder)
fine(mra.mra_set_log(None, None))
np.savez(out, **result)
