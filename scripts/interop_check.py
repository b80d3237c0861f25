"""Loads an exported directory in the clients that people have, and compares their embeddings with PyTorch's.

The clients are plain ONNX Runtime, optimum and sentence-transformers. Their releases pin transformers below the one
that this package may be installed with, so they run in a virtual environment of their own, which the first call makes and
later calls reuse. It sees nothing of this package: only the exported directory and the texts.

Example:
  python scripts/interop_check.py ./minilm-onnx --checkpoint ./minilm-mra

Exit codes: 0 all clients agree; 2 bad input; 3 a client fails or differs; 4 the environment cannot be made.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = Path(__file__).with_name("interop-requirements.txt")
MARKER = "mra-export-interop.json"


# What runs in the clients' environment: nothing of this package may be imported from here to the next rule.


def run_clients(directory: Path, expected: Path, report: Path) -> None:
    """Runs every client and writes a list of {client, version, vectors or error} to `report` (.json beside .npz)."""
    import numpy as np

    with np.load(expected) as file:
        texts = [str(text) for text in file["texts"]]
    found: list[dict[str, Any]] = []
    vectors: dict[str, Any] = {}
    for client in (with_onnxruntime, with_optimum, with_sentence_transformers):
        entry: dict[str, Any] = {"client": client.__name__.removeprefix("with_").replace("_", "-")}
        try:
            entry["version"], vectors[entry["client"]] = client(directory, texts)
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            entry["error"] = f"{type(error).__name__}: {lines[0] if lines else ''}"
        found.append(entry)
    np.savez(report.with_suffix(".npz"), **vectors)
    report.write_text(json.dumps(found), encoding="utf-8")


def tokenize(directory: Path, texts: list[str], kind: str) -> Any:
    """The texts as one padded batch, cut where sentence-transformers would cut them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    limits = directory / "sentence_bert_config.json"
    settings = json.loads(limits.read_text(encoding="utf-8")) if limits.is_file() else {}
    length = settings.get("max_seq_length") or tokenizer.model_max_length
    return tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors=kind)


def pool_as_files_say(directory: Path, hidden: Any, mask: Any) -> Any:
    """Token vectors to sentence vectors by modules.json and 1_Pooling/config.json, in numpy.

    Args:
        directory: the exported directory.
        hidden: [batch, seq_len, hidden_size].
        mask: [batch, seq_len].

    Returns:
        [batch, hidden_size].
    """
    import numpy as np

    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    settings = json.loads((directory / modules[1]["path"] / "config.json").read_text(encoding="utf-8"))
    modes = [name for name, on in settings.items() if name.startswith("pooling_mode") and on]
    kinds = {module["type"].rpartition(".")[2] for module in modules}
    if kinds - {"Transformer", "Pooling", "Normalize"} or modes not in (
        ["pooling_mode_cls_token"],
        ["pooling_mode_mean_tokens"],
    ):
        raise SystemExit(
            f"{directory} has modules or a pooling that only sentence-transformers applies: leave out optimum."
        )
    if settings.get("pooling_mode_cls_token"):
        vectors = hidden[:, 0]
    else:
        vectors = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)
    if any(module["type"].endswith("Normalize") for module in modules):
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def with_onnxruntime(directory: Path, texts: list[str]) -> tuple[str, Any]:
    """The file itself, in a session without any library: its output sentence_embedding."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(directory / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    batch = tokenize(directory, texts, "np")
    feed = {i.name: batch[i.name] for i in session.get_inputs()}
    return onnxruntime.__version__, session.run(["sentence_embedding"], feed)[0]


def with_optimum(directory: Path, texts: list[str]) -> tuple[str, Any]:
    """`ORTModelForFeatureExtraction`, which finds the file by itself: its last_hidden_state, pooled."""
    from importlib.metadata import version

    from optimum.onnxruntime import ORTModelForFeatureExtraction

    model = ORTModelForFeatureExtraction.from_pretrained(directory)
    batch = tokenize(directory, texts, "pt")
    hidden = model(**batch).last_hidden_state.numpy()
    return version("optimum-onnx"), pool_as_files_say(directory, hidden, batch["attention_mask"].numpy())


def with_sentence_transformers(directory: Path, texts: list[str]) -> tuple[str, Any]:
    """`SentenceTransformer` with its ONNX backend, as users call it."""
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(directory), backend="onnx", device="cpu")
    return sentence_transformers.__version__, model.encode(texts, batch_size=len(texts))


# What runs in this package's environment.


def expected_vectors(directory: Path, checkpoint: Path, texts: list[str], target: Path) -> None:
    """Writes what the package's PyTorch model gives: texts, and vectors float32 [texts, hidden_size]."""
    import numpy as np

    from mra_export.checkpoint.load import input_names, load_checkpoint
    from mra_export.checkpoint.text import read_contract
    from mra_export.errors import InputError
    from mra_export.runners.torch import TransformersRunner

    loaded = load_checkpoint(checkpoint)
    modules = read_contract(directory).modules
    if not modules:
        raise InputError(f"{directory} has no modules.json, so its pooling is not known. Export it with --pooling.")
    batch = tokenize(loaded.directory, texts, "np")
    inputs = {name: batch[name].astype(np.int64) for name in input_names(loaded.config)}
    runner = TransformersRunner(loaded, modules)
    np.savez(target, texts=np.array(texts), vectors=runner.run(inputs)["sentence_embedding"])


def default_texts() -> list[str]:
    """Sentences of many lengths, from two words to more than most models take."""
    from mra_export.parity.cases import SENTENCES

    sentences = SENTENCES.read_text(encoding="utf-8").split("\n")
    sentences = [sentence for sentence in sentences if sentence]
    return ["Good morning", *sentences[:6], " ".join(sentences[:4]), " ".join(sentences[:12]), " ".join(sentences)]


def environment(directory: Path | None = None) -> Path:
    """The clients' virtual environment, made if it is not there and reused as long as the requirements stay the same.

    Args:
        directory: where; None for `mra-export` in the user's cache directory (MRA_EXPORT_CACHE_DIR, XDG_CACHE_HOME).

    Returns:
        Its Python.

    Raises:
        DependencyError: it cannot be made.
        InputError: the directory is in use for something else.
    """
    from mra_export.errors import DependencyError, InputError
    from mra_export.native.headers import headers_cache_dir

    requirements = REQUIREMENTS.read_text(encoding="utf-8") + "".join(f"{line}\n" for line in _same_torch())
    wanted = {
        "requirements": hashlib.sha256(requirements.encode()).hexdigest(),
        "python": sys.version.split()[0],
    }
    if directory is None:
        directory = headers_cache_dir().parent / f"interop-{wanted['python']}"
    python = directory / "bin" / "python"
    marker = directory / MARKER
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.with_name(f".{directory.name}.lock")):
            if marker.is_file() and json.loads(marker.read_text(encoding="utf-8")) == wanted:
                return python
            if directory.is_dir() and any(directory.iterdir()) and not (directory / "pyvenv.cfg").is_file():
                raise InputError(f"{directory} is not empty and no virtual environment. Choose another --venv.")
            print(f"making the clients' environment in {directory}", file=sys.stderr)
            shutil.rmtree(directory, ignore_errors=True)
            venv.create(directory, with_pip=True, symlinks=True)
            listed = directory / "requirements.txt"
            listed.write_text(requirements, encoding="utf-8")
            # Most of what is installed is never imported: Python compiles the rest when it is.
            options = ["--quiet", "--disable-pip-version-check", "--no-compile", "-r", str(listed)]
            _checked([str(python), "-m", "pip", "install", *options])
            marker.write_text(json.dumps(wanted), encoding="utf-8")
    except (OSError, subprocess.SubprocessError) as error:
        raise DependencyError(
            f"The clients' environment cannot be made in {directory}: {error} Give another place with --venv."
        ) from error
    return python


def _same_torch() -> list[str]:
    """torch as it is here: it is not what is compared, and its wheel is large."""
    from importlib.metadata import version

    return [f"torch=={version('torch').partition('+')[0]}"]


def _checked(command: list[str]) -> None:
    from mra_export.errors import DependencyError

    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise DependencyError(
            f"pip cannot install the clients ({REQUIREMENTS.name}): {' '.join(lines[:2])} "
            "Check the network and the package index."
        )


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps two calls from making the same environment at the same time."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file, to see that clients only read."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def judge(found: list[dict[str, Any]], vectors: dict[str, Any], expected: Any, dtype: str) -> list[dict[str, Any]]:
    """One row per client: least cosine, relative error (Frobenius), and whether the type's tolerance holds."""
    import numpy as np

    from mra_export.operators.judge import TOLERANCES

    tolerance = TOLERANCES[dtype]
    truth = expected.astype(np.float64)
    rows = []
    for entry in found:
        row = {**entry, "ok": False, "cosine": None, "max_error": None, "relative_error": None}
        actual = vectors.get(entry["client"])
        if actual is not None and actual.shape != truth.shape:
            row["error"] = f"gave {actual.shape}, expected {truth.shape}"
        elif actual is not None:
            actual = actual.astype(np.float64)
            norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(truth, axis=1)
            row["cosine"] = float(((actual * truth).sum(1) / norms).min())
            row["max_error"] = float(np.abs(actual - truth).max())
            row["relative_error"] = float(np.linalg.norm(actual - truth) / np.linalg.norm(truth))
            # Written so that NaN does not pass.
            row["ok"] = bool(row["cosine"] >= tolerance.cosine and row["relative_error"] <= tolerance.outputs)
        rows.append(row)
    return rows


def print_rows(rows: list[dict[str, Any]], dtype: str, count: int, changed: list[str]) -> None:
    """The table for people."""
    from mra_export.operators.judge import TOLERANCES

    passed = all(row["ok"] for row in rows) and not changed
    limits = TOLERANCES[dtype]
    print(
        f"{'PASSED' if passed else 'FAILED'}  {sum(r['ok'] for r in rows)} of {len(rows)} clients, {count} texts, "
        f"{dtype}; cosine >= {limits.cosine}, relative error <= {limits.outputs:g}"
    )
    for row in rows:
        name = f"{row['client']} {row.get('version', '')}".strip()
        if row.get("error"):
            detail = row["error"]
        else:
            detail = (
                f"least cosine {row['cosine']:.7f}  max error {row['max_error']:.1e}  "
                f"relative error {row['relative_error']:.1e}"
            )
        print(f"  {'PASSED' if row['ok'] else 'FAILED'}  {name:<28}{detail}")
    if changed:
        print(f"  FAILED  files of the directory were changed or written: {', '.join(changed)}")


def check(directory: Path, *, checkpoint: Path | None, expected: Path | None, place: Path | None, as_json: bool) -> int:
    """Runs the check; the exit code."""
    import numpy as np

    from mra_export.errors import DependencyError, InputError
    from mra_export.export.onnx_model import read_onnx

    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory. Give what `mra-export onnx` wrote.")
    model = read_onnx(directory / "onnx" / "model.onnx")
    if model.dtype == "bf16":
        raise InputError(f"{directory} is bfloat16, which ONNX Runtime cannot run on CPUs. Check an fp32 export.")
    if "sentence_embedding" not in model.outputs:
        raise InputError(f"{directory} has no output sentence_embedding to compare. Export it with --pooling.")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if expected is None:
            assert checkpoint is not None
            expected = work / "expected.npz"
            expected_vectors(directory, checkpoint, default_texts(), expected)
        try:
            with np.load(expected) as file:
                count, truth = len(file["texts"]), file["vectors"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{expected} holds no texts and vectors: {error}. Give an .npz with these two.") from error
        python = environment(place)
        before = snapshot(directory)
        report = work / "report.json"
        command = [str(python), "-I", str(Path(__file__).resolve()), str(directory.resolve()), "--report", str(report)]
        settings = {
            "ORT_DISABLE_TELEMETRY": "1",
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        done = subprocess.run(
            [*command, "--expected", str(expected.resolve())],
            cwd=work,
            env=settings,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not report.is_file():
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DependencyError(
                f"The clients' environment {python.parents[1]} does not work: {last[0]} Remove it and try again."
            )
        found = json.loads(report.read_text(encoding="utf-8"))
        with np.load(report.with_suffix(".npz")) as file:
            vectors = {name: file[name] for name in file.files}
        after = snapshot(directory)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    rows = judge(found, vectors, truth, model.dtype)
    ok = all(row["ok"] for row in rows) and not changed
    if as_json:
        print(json.dumps({"ok": ok, "dtype": model.dtype, "texts": count, "clients": rows, "changed": changed}))
    else:
        print_rows(rows, model.dtype, count, changed)
    return 0 if ok else 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="EXPORTED_DIR", help="what `mra-export onnx` wrote")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="what it was exported from, to be run here in PyTorch")
    source.add_argument("--expected", type=Path, help=".npz with texts [n] and vectors [n, hidden_size] instead")
    parser.add_argument("--venv", type=Path, help="the clients' environment; default: under the user's cache directory")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # the call inside the clients' environment
    options = parser.parse_args(arguments)
    if options.report is not None:
        run_clients(options.directory, options.expected, options.report)
        return 0
    sys.path.insert(0, str(ROOT))
    from mra_export.errors import MraExportError

    try:
        return check(
            options.directory,
            checkpoint=options.checkpoint,
            expected=options.expected,
            place=options.venv,
            as_json=options.json,
        )
    except MraExportError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
