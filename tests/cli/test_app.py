"""The command line: help, JSON, exit codes, and errors that say what is wrong and what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoints import save_checkpoint
from command_line import run, run_json
from paths import REPO
from safetensors.torch import load_file, save_file

from mra_export.cli import cli
from mra_export.errors import InputError
from mra_export.export.onnx_model import MODEL_FILE

COMMANDS = sorted(cli.commands)


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]], ids=lambda c: c[0] if c else "group")
def test_help_has_a_worked_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"mra-export {command[0] if command else 'onnx'}" in text


def test_help_does_not_import_what_is_heavy() -> None:
    code = "import sys, mra_export.cli; print([m for m in ('torch', 'transformers', 'onnx', 'numpy', 'rich') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_a_flag_that_is_the_value_of_an_option_is_none(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("onnx", tmp_path / "absent", "-o", "--json", "-q") == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err[:6]) == ("", "Error:")
    assert run("onnx", tmp_path / "absent", "-o", "o", "--json", "-q") == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_every_command_is_in_the_readme() -> None:
    readme = (REPO / "README.md").read_text()
    for name in COMMANDS:
        assert f"mra-export {name}" in readme, name


def test_the_task_names_are_those_of_the_package() -> None:
    pass


@pytest.mark.slow
def test_onnx_and_check(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = run_json(capsys, "onnx", tiny_checkpoint, "-o", tmp_path / "o", "--pooling", "mean", "--normalize")
    assert code == 0
    assert result["ok"] is True
    assert result["command"] == "onnx"
    assert result["outputs"] == [str(tmp_path / "o")]
    assert all(c["ok"] for c in result["comparisons"])
    assert result["model_outputs"] == ["last_hidden_state", "sentence_embedding"]
    code, result = run_json(capsys, "check", tiny_checkpoint, tmp_path / "o", "--report", tmp_path / "r.html")
    assert code == 0
    assert result["outputs"] == [str(tmp_path / "r.html")]
    assert {"reference", "candidate", "metrics", "tolerance", "ok"} <= set(result["comparisons"][0])
    assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
    assert run("check", tiny_checkpoint, tmp_path / "o" / MODEL_FILE, "--max-seq-len", 64) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].startswith("PASSED")
    assert "one token" in captured.err
    assert "one token" not in captured.out


@pytest.mark.slow
def test_check_without_artifacts_takes_what_the_source_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_checkpoint(tmp_path / "c")
    code, result = run_json(capsys, "check", source)
    assert (code, result["ok"]) == (2, False)
    assert "holds no .onnx, .engine or .xml file" in result["error"]
    assert run("onnx", source, "-o", tmp_path / "o", "--no-check", "-q") == 0
    shutil.move(tmp_path / "o" / "onnx", source / "onnx")
    capsys.readouterr()
    code, result = run_json(capsys, "check", source, "--max-seq-len", 40)
    assert (code, result["ok"]) == (0, True)


@pytest.mark.slow
def test_a_failed_check_ends_with_3(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_checkpoint(tmp_path / "other", seed=1)
    assert run("onnx", other, "-o", tmp_path / "o", "--no-check", "-q") == 0
    capsys.readouterr()
    code, result = run_json(capsys, "check", tiny_checkpoint, tmp_path / "o", "--max-seq-len", 64)
    assert code == 3
    assert result["ok"] is False
    assert "starts in layer.0: arithmetic before its attention" in result["error"]
    assert run("check", tiny_checkpoint, tmp_path / "o", "--max-seq-len", 64) == 3
    captured = capsys.readouterr()
    assert captured.out.startswith("FAILED")
    assert "layer.1" in captured.out
    assert "Traceback" not in captured.err


@pytest.mark.slow
def test_random_init_needs_only_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_checkpoint(tmp_path / "c")
    (source / "model.safetensors").unlink()
    code, result = run_json(capsys, "onnx", source, "-o", tmp_path / "o", "--random-init", 7, "--task", "fill-mask")
    assert code == 0
    assert result["task"] == "fill-mask"
    code, result = run_json(
        capsys, "check", source / "config.json", tmp_path / "o", "--random-init", 7, "--max-seq-len", 40
    )
    assert code == 0
    code, result = run_json(capsys, "onnx", source, "-o", tmp_path / "p")
    assert code == 2
    assert "--random-init SEED" in result["error"]


def settings(changes: dict[str, Any]) -> Any:
    def damage(source: Path) -> None:
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def poison(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    weights["encoder.layer.1.attention.self.key.weight"][3, 4] = float("nan")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


def drop(source: Path) -> None:
    weights = load_file(source / "model.safetensors")
    del weights["encoder.layer.1.attention.self.key.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: (s / "config.json").unlink(), "has no config.json"),
        (lambda s: (s / "config.json").write_text("{"), "is not a valid configuration"),
        (lambda s: (s / "config.json").write_text("[]"), "is not a valid configuration"),
        (lambda s: (s / "config.json").write_text("{}"), "names no model_type"),
        (settings({"model_type": "bert"}), r"model_type 'bert' is not one that this tool exports.*from-dense"),
        (settings({"model_type": "nonsense"}), "was refused by transformers"),
        (settings({"block_per_row": 0}), "block_per_row=0 must be at least 1. Check config.json."),
        (settings({"hidden_size": 72, "num_attention_heads": 6}), "head_dim=12 .* must be a multiple of 8"),
        (settings({"num_attention_heads": 5}), "hidden_size=64 must be a positive multiple of num_attention_heads=5"),
        (settings({"approx_mode": "half"}), "approx_mode='half' must be one of full, sparse"),
        (settings({"max_position_embeddings": 16}), "max_position_embeddings=16 must be at least 32"),
        (settings({"initial_prior_diagonal_n_blocks": -1}), "initial_prior_diagonal_n_blocks=-1 must be between 0 and"),
        (settings({"position_embedding_type": "relative_key"}), "position_embedding_type='relative_key'"),
        (settings({"architectures": ["MraForSomethingElse"]}), "MraForSomethingElse is none that this tool exports"),
        (settings({"architectures": ["MraForMaskedLM"]}), "has no weights for cls.predictions.*Choose the --task"),
        (settings({"intermediate_size": 100}), "could not be loaded|do not fit config.json"),
        (lambda s: (s / "model.safetensors").unlink(), "could not be loaded.*--random-init"),
        (lambda s: (s / "model.safetensors").write_bytes(b"garbage"), "could not be loaded"),
        (lambda s: os.truncate(s / "model.safetensors", 5000), "could not be loaded"),
        (settings({"num_hidden_layers": 0}), "num_hidden_layers=0 must be at least 1"),
        (settings({"layer_norm_eps": -1.0}), "layer_norm_eps=-1.0 must be positive"),
        (settings({"initial_prior_diagonal_n_blocks": 10**20}), "must be between 0 and 1048576"),
        (settings({"block_per_row": "4"}), 'block_per_row="4" must be an integer'),
        (
            settings({"max_position_embeddings": 512}),
            r"do not fit config.json: .*position.* .258, 64. there and .514, 64.",
        ),
        (settings({"vocab_size": 90}), r"do not fit config.json: .*word_embeddings.weight"),
        (poison, "encoder.layer.1.attention.self.key.weight has 1 values that are NaN or infinite, of 4096"),
        (drop, "has no weights for encoder.layer.1.attention.self.key.weight"),
    ],
)
def test_a_bad_checkpoint_is_one_message(
    damage: Any, message: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, source)
    damage(source)
    assert run("onnx", source, "-o", tmp_path / "out", "-q") == 2
    captured = capsys.readouterr()
    import re

    assert re.search(message, captured.err.replace("\n", " ")), captured.err
    assert captured.err.startswith("Error: ")
    assert "Traceback" not in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["onnx"], "Missing argument 'MODEL'"),
        (["onnx", "x"], "Missing option '-o'"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["onnx", "{tiny}", "-o", "{tmp}/o", "--fp16", "--bf16"], "bf16 and fp16 exclude each other"),
        (["onnx", "{tiny}", "-o", "{tmp}/o", "--opset", "9"], "opset=9 must be between 17 and"),
        (["onnx", "{tiny}", "-o", "{tmp}/o", "--normalize"], "it needs --pooling, one of cls"),
        (["onnx", "{tiny}", "-o", "{tmp}/o", "--task", "summarise"], "'summarise' is not one of"),
        (["onnx", "{tiny}", "-o", "{tmp}/exists"], "already exists. Choose another path, or add --force"),
        (["onnx", "{tmp}/absent", "-o", "{tmp}/o"], "absent does not exist. Give a checkpoint directory or a hub id"),
        (["onnx", "{tiny}", "-o", "{tmp}/exists/file/o"], "is not a directory"),
        (["onnx", "{tiny}", "-o", "{tmp}/o", "--task", "multiple-choice"], "has no weights for classifier"),
        (["check", "{tiny}", "{tmp}/absent.onnx"], "absent.onnx does not exist"),
        (["check", "{tiny}", "{tmp}/exists/file"], "is no .onnx, .engine or .xml file and no directory"),
        (["check", "{tiny}", "{onnx}", "--report", "{tmp}/exists"], "already exists"),
        (["check", "{tiny}", "{onnx}", "--plugin-lib", "{tmp}/absent.so"], "absent.so does not exist"),
        (["check", "{tiny}", "{onnx}", "--max-seq-len", "0"], "0 is not in the range"),
        (["check", "{tiny}", "{onnx}", "--max-seq-len", "257"], "max_seq_len=257 is above the model's"),
        (["check", "{tiny}", "{onnx}", "--kernel-sources", "{tmp}/exists"], "exists has no cuda_kernel.cu"),
        (["from-dense", "{tiny}", "-o", "{tmp}/o"], "mra"),
        (["onnx", "{tiny}", "-o", "{tmp}/" + "x" * 300], "cannot be written: File name too long"),
        (["onnx", "{tiny}", "-o", "{tmp}/o", "--random-init", str(2**70)], "is not in the range"),
        (
            ["check", "{tiny}", "{onnx}", "--max-seq-len", "40", "--plugin-lib", "/etc/passwd"],
            "is not the operator library",
        ),
    ],
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_bad_usage_ends_with_2(
    arguments: list[str],
    message: str,
    as_json: bool,
    tiny_checkpoint: Path,
    tiny_export: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "exists").mkdir()
    (tmp_path / "exists" / "file").touch()
    filled = [a.format(tiny=tiny_checkpoint, onnx=tiny_export, tmp=tmp_path) for a in arguments]
    assert run(*filled, *(["--json"] if as_json else [])) == 2
    captured = capsys.readouterr()
    if as_json:
        result = json.loads(captured.out)
        assert result["ok"] is False
        assert message in result["error"]
    else:
        assert message in captured.err.replace("\n", " ")
        assert not captured.out
    assert "Traceback" not in captured.err
    assert [p.name for p in tmp_path.iterdir()] == ["exists"]


def test_the_input_is_never_replaced(tiny_checkpoint: Path, tiny_export: Path, tmp_path: Path, capsys: Any) -> None:
    source = tmp_path / "folder" / "source"
    shutil.copytree(tiny_checkpoint, source)
    before = sorted(p.name for p in source.iterdir())
    for target in (source, source.parent, source / "config.json", source / ".." / "source"):
        assert run("onnx", source, "-o", target, "--force", "-q") == 2
        assert "is, holds or belongs to the input" in capsys.readouterr().err
    assert run("check", source, tiny_export, "--report", source / "model.safetensors", "--force", "-q") == 2
    assert sorted(p.name for p in source.iterdir()) == before
    assert load_file(source / "model.safetensors")


def test_a_tokenizer_of_another_model_is_named(
    minilm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_checkpoint(tmp_path / "c")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        if (minilm / name).is_file():
            shutil.copyfile(minilm / name, source / name)
    assert run("onnx", source, "-o", tmp_path / "o", "-q") == 2
    assert "The tokenizer has 30522 tokens, but the model's vocab_size is 120" in capsys.readouterr().err


def test_weights_beyond_half_precision_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_checkpoint(tmp_path / "c")
    weights = load_file(source / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = 1e6
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    assert run("onnx", source, "-o", tmp_path / "o", "--fp16", "-q", "--no-check") == 2
    assert (
        "output.dense.weight reaches 1e+06, beyond what the type asked for can hold (65504)" in capsys.readouterr().err
    )


def test_a_closed_standard_output_is_no_bug(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mra_export", "doctor", "--json"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_verbose_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mra_export", "onnx", str(tmp_path / "absent"), "-o", str(tmp_path / "o"), "-v"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert "does not exist" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_export_leaves_nothing(how: signal.Signals, tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mra_export", "onnx", str(tiny_checkpoint), "-o", str(tmp_path / "o")]
    # A shell's background job ignores SIGINT, and its children with it.
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(how, signal.SIG_DFL)
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".o.*")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    assert list(tmp_path.glob(".o.*"))
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + how
    assert "Interrupted; no output was written." in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_of_code_from_a_string_ends_as_any_other(how: str, tmp_path: Path) -> None:
    """CPython remembers a KeyboardInterrupt that passes through exec, and kills `python -m` for it after a clean exit."""
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, time\nfrom mra_export import cli\n"
        f"cli.cli.main = lambda **_: exec('os.kill(os.getpid(), signal.{how}); time.sleep(9)')\ncli.main([])\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(getattr(signal, how), signal.SIG_DFL),
    )
    assert result.returncode == 128 + getattr(signal, how)
    assert result.stderr == "Interrupted; no output was written.\n"


@pytest.mark.parametrize(("how", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_an_error_that_an_interruption_became(how: str, code: int, as_json: bool, tmp_path: Path) -> None:
    """Libraries swallow the exception, and fail on what it left undone. Afterwards the process is as it was before."""
    (tmp_path / "interrupted.py").write_text(
        "import contextlib, os, signal, time\n"
        "from mra_export import cli\n"
        "from mra_export.outputs import INTERRUPTED\n"
        "def broken(**_):\n"
        "    with contextlib.suppress(KeyboardInterrupt):\n"
        f"        os.kill(os.getpid(), signal.{how})\n"
        "        time.sleep(9)\n"
        "    raise RuntimeError('the work is incomplete')\n"
        "numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)\n"
        "before = list(map(signal.getsignal, numbers))\n"
        "cli.cli.main = broken\n"
        "try:\n"
        f"    cli.main(['doctor', *['--json'] * {as_json}])\n"
        "finally:\n"
        "    assert not INTERRUPTED.is_set()\n"
        "    assert list(map(signal.getsignal, numbers)) == before\n"
    )
    result = subprocess.run(
        [sys.executable, "interrupted.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(
            getattr(signal, how), signal.SIG_DFL
        ),  # nohup and the like leave some of them ignored
    )
    message = "Interrupted; no output was written."
    assert result.returncode == code, result.stderr
    if as_json:
        assert json.loads(result.stdout) == {"ok": False, "command": "doctor", "outputs": [], "error": message}
        assert result.stderr == ""
    else:
        assert (result.stdout, result.stderr) == ("", message + "\n")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError(), 4, "There is not enough memory for this. Give smaller sizes"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "There is not enough memory for this."),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 4, "There is not enough memory for this."),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            2,
            "/tmp/x: No space left on device. Free some space, or set TMPDIR to a larger folder.",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device. Free some space"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            2,
            "/a/b: Permission denied. Check its permissions.",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "c"),
            2,
            "c: No such file or directory. It was removed",
        ),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "d"), 2, "d: Is a directory."),
        (InputError("x=1 must be 2. Mend it."), 2, "x=1 must be 2. Mend it."),
        (ValueError("odd"), 1, "This is a bug in mra-export. ValueError: odd Run it again with -v"),
        (EOFError("Ran out of input"), 1, "This is a bug in mra-export. EOFError: Ran out of input"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_what_ended_a_command(
    error: Exception, code: int, message: str, as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli.commands["doctor"], "callback", lambda **_: failing())
    assert run("doctor", *["--json"] * as_json) == code
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["error"] if as_json else shown.err.strip().removeprefix("Error: ")).startswith(
        message
    )


@pytest.mark.slow
def test_json_for_a_terminal_that_is_not_utf_8(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mra_export", "onnx", "\u00e9\u20ac", "-o", str(tmp_path / "o"), "--json", "-q"],
        env={**os.environ, "PYTHONIOENCODING": "ascii", "HF_HUB_OFFLINE": "1"}, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "\u00e9\u20ac" in json.loads(result.stdout)["error"]
