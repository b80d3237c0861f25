"""The program mra-embed and the helper that gives it token ids: vectors in order, bounded memory, exit codes, the benchmark."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from measures import relative_error
from paths import REPO
from serving_support import installed, mixed_texts, python_folder, python_vectors

from mra_export.embedding.token_ids import token_ids
from mra_export.errors import InputError

UNUSUAL = [
    "",
    " ",
    "naïve café, Zürich, Straße",
    "Ελληνικά: σίσυφος",
    "日本語のテキスト",
    "한국어",
    "😀👍🏽 emoji",
    "\x00null\x07\ttab",
    "line\u2028separator\x85next",
    "[SEP] [MASK] [PAD]",
    "a" * 5000,
    "word " * 2000,
]


def program() -> Path:
    return installed("shared") / "bin" / "mra-embed"


def mra_embed(*arguments: str | Path, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(program()), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def lines_of(texts: list[list[int]]) -> str:
    return "".join(" ".join(map(str, text)) + "\n" for text in texts)


def vectors_of(stdout: str) -> np.ndarray:
    return np.array([json.loads(line) for line in stdout.splitlines()], np.float32)


def test_vectors_come_in_the_order_of_the_lines(tiny_bundle: Path, tmp_path: Path) -> None:
    texts = mixed_texts(120, 256, 50)
    (tmp_path / "ids").write_text(lines_of(texts))
    as_json = mra_embed(tiny_bundle, "--window", "7", text=lines_of(texts))
    assert as_json.returncode == 0, as_json.stderr
    assert as_json.stderr == ""
    with (tmp_path / "ids").open("rb") as ids:
        binary = subprocess.run(
            [program(), tiny_bundle, "--binary", "--window=7"], stdin=ids, capture_output=True, check=True
        )
    raw = np.frombuffer(binary.stdout, np.float32).reshape(len(texts), 64)
    assert np.array_equal(vectors_of(as_json.stdout), raw)
    assert relative_error(raw, python_vectors(tiny_bundle, texts)) <= 1e-5
    one_window = mra_embed(tiny_bundle, text=lines_of(texts).rstrip("\n").replace(" ", "\t ").replace("\n", "\r\n"))
    assert relative_error(vectors_of(one_window.stdout), raw) <= 1e-6
    assert mra_embed(tiny_bundle, text="").stdout == ""


def test_from_text_to_vectors_as_in_python(minilm_bundle: Path) -> None:
    """python -m mra_export.embedding.token_ids BUNDLE < TEXTS | mra-embed BUNDLE, against transformers and ONNX Runtime."""
    from transformers import AutoTokenizer

    sentences = (REPO / "mra_export" / "data" / "sentences.txt").read_text().splitlines()[:6]
    texts = [*sentences, *(text for text in UNUSUAL if "\n" not in text)]
    command = [sys.executable, "-m", "mra_export.embedding.token_ids", str(minilm_bundle)]
    helper = subprocess.run(command, input="\n".join(texts).encode() + b"\n", capture_output=True, check=True)
    ids = [[int(word) for word in line.split()] for line in helper.stdout.decode().splitlines()]
    most = json.loads((minilm_bundle / "manifest.json").read_text())["tokenizer"]["max_length"]
    tokenizer = AutoTokenizer.from_pretrained(minilm_bundle)
    assert ids == [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts]
    assert max(map(len, ids)) == most
    done = mra_embed(minilm_bundle, text=helper.stdout.decode())
    assert done.returncode == 0, done.stderr
    assert relative_error(vectors_of(done.stdout), python_vectors(minilm_bundle, ids)) <= 1e-5


def test_texts_themselves_give_the_same_vectors(minilm_bundle: Path) -> None:
    """mra-embed BUNDLE --texts, by tables and by Python, against the ids of the helper."""
    texts = [*(text for text in UNUSUAL if "\n" not in text), "one", "two"]
    lines = "\n".join(texts) + "\n"
    ids = "".join(" ".join(map(str, row)) + "\n" for row in token_ids(minilm_bundle, io.BytesIO(lines.encode())))
    expected = vectors_of(mra_embed(minilm_bundle, "--window", "5", text=ids).stdout)
    folder = python_folder()
    for more in ([], ["--tokenizer", "python", "--backend-dir", str(folder)]):
        done = mra_embed(minilm_bundle, "--texts", "--window", "5", "-v", *more, text=lines)
        assert done.returncode == 0, done.stderr
        assert np.array_equal(vectors_of(done.stdout), expected)
        assert ("ids by tokenizers" if more else "ids by tables of WordPiece") in done.stderr
    prompted = mra_embed(minilm_bundle, "--texts", "--prompt-text", "on", text="e\n")
    assert np.array_equal(vectors_of(prompted.stdout)[0], expected[-2])
    bad = subprocess.run(
        [program(), minilm_bundle, "--texts", "--window", "1"], input=b"a\n\xff\n", capture_output=True, check=False
    )
    assert bad.returncode == 2
    assert b"Line 2 is not UTF-8 from byte 0 on" in bad.stderr
    assert len(bad.stdout.splitlines()) == 1


def test_the_helper_says_what_it_cannot_do(tiny_bundle: Path, minilm_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        list(token_ids(tiny_bundle, io.BytesIO(b"text\n")))
    with pytest.raises(InputError, match="Line 2 is not UTF-8"):
        list(token_ids(minilm_bundle, io.BytesIO(b"text\n\xff\n")))
    command = [sys.executable, "-m", "mra_export.embedding.token_ids"]
    done = subprocess.run([*command, str(tiny_bundle)], input="text\n", capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("token_ids: ")


def test_memory_stays_bounded_however_much_comes(tiny_bundle: Path, tmp_path: Path) -> None:
    """Ten times the input takes no more memory at its peak than 16 MiB: one more window would be 20 MiB of ids."""
    peaks = []
    for count in (2_000, 20_000):
        (tmp_path / "ids").write_text("5 6 7 8\n" * count)
        script = (
            "import resource, subprocess, sys\n"
            "with open(sys.argv[3]) as ids, open(sys.argv[4], 'wb') as out:\n"
            "    subprocess.run([sys.argv[1], sys.argv[2], '--binary', '--window', '512'], stdin=ids, stdout=out, check=True)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        )
        command = [
            sys.executable,
            "-c",
            script,
            str(program()),
            str(tiny_bundle),
            str(tmp_path / "ids"),
            str(tmp_path / "out"),
        ]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        assert (tmp_path / "out").stat().st_size == count * 64 * 4
    assert peaks[1] - peaks[0] <= 16 * 1024, peaks


BAD_LINES = {
    "5 6\n\n7\n": "Line 2 has no token ids",
    "5 6\n7 x\n": "Line 2 holds something else than token ids",
    "5 6.5\n": "Line 1 holds something else than token ids",
    "5 --6\n": "Line 1 holds something else than token ids",
    "5\n6\n" + "7 " * 257 + "\n": "Line 3 has more than 256 tokens",
    "5\n6 120\n": "Line 2 has the token id 120 at place 1; ids are 0 to 119",
    "5\n-6\n": "Line 2 has the token id -6 at place 0",
    "5 99999999999999999999\n": "Line 1 holds a number that is no token id",
    "\x00\n": "Line 1 holds something else than token ids",
}


@pytest.mark.parametrize("text", BAD_LINES, ids=BAD_LINES.values())
def test_a_bad_line_is_named(text: str, tiny_bundle: Path) -> None:
    done = mra_embed(tiny_bundle, "--window", "1", text=text)
    assert done.returncode == 2
    assert BAD_LINES[text] in done.stderr
    good = int(BAD_LINES[text].split()[1]) - 1
    assert len(done.stdout.splitlines()) == good  # what stands before it was embedded


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "BUNDLE is missing"),
        (["BUNDLE", "more"], 2, "more is one too many"),
        (["BUNDLE", "--nothing"], 2, "--nothing is no option"),
        (["BUNDLE", "--window"], 2, "--window needs a value"),
        (["BUNDLE", "--window", "0"], 2, "--window=0 must be an integer from 1"),
        (["BUNDLE", "--threads=x"], 2, "--threads=x must be an integer"),
        (["BUNDLE", "--binary=1"], 2, "--binary takes no value"),
        (["BUNDLE", "--device", "tpu"], 2, "--device=tpu must be auto, cpu or gpu"),
        (["BUNDLE", "--json"], 2, "belong to --bench"),
        (["BUNDLE", "--bench", "--binary"], 2, "leave out --binary"),
        (["BUNDLE", "--compare-batcher"], 2, "--compare-batcher belongs to --bench"),
        (["BUNDLE", "--bench", "--texts"], 2, "leave out --texts"),
        (["BUNDLE", "--prompt", "query"], 2, "belong to --texts"),
        (["BUNDLE", "--texts"], 2, "has no tokenizer"),
        (["BUNDLE", "--bench", "--lengths", "9-3"], 2, "--lengths=3 must be an integer from 9"),
        (["BUNDLE", "--bench", "--lengths", "1:2"], 2, "must be N, LOW-HIGH or lognormal"),
        (["BUNDLE", "--bench", "--seconds", "nan"], 2, "--seconds=nan must be a number"),
        (["/nowhere"], 2, "/nowhere is not a directory"),
        (["BUNDLE", "--variant", "tensorrt"], 2, "variant='tensorrt' is not in"),
        (["BUNDLE", "--device", "gpu"], 4, "has no CUDA provider"),
    ],
)
def test_bad_usage_and_a_missing_environment_have_their_exit_codes(
    arguments: list[str], code: int, message: str, tiny_bundle: Path
) -> None:
    done = mra_embed(*(str(tiny_bundle) if word == "BUNDLE" else word for word in arguments), text="5\n")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_help_names_every_option(tiny_bundle: Path) -> None:
    done = mra_embed("--help")
    assert done.returncode == 0
    source = (REPO / "plugins" / "serving" / "tools" / "mra_embed.cc").read_text()
    options = {word.split('"')[1] for word in source.split("name == ")[1:]}
    assert len(options) > 20
    assert not [option for option in options if option not in done.stdout]
    assert mra_embed("--version").stdout.startswith("mra-embed 0.")
    assert "native operator) on cpu" in mra_embed(tiny_bundle, "-v", text="5\n").stderr


def test_a_reader_that_goes_away_ends_it(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("5 6\n" * 20_000)
    command = f"'{program()}' '{tiny_bundle}' < '{tmp_path / 'ids'}' | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True, timeout=120)
    assert len(done.stdout.splitlines()) == 1


def test_the_benchmark_reports_throughput_and_percentiles(tiny_bundle: Path) -> None:
    arguments = [
        "--bench",
        "--clients",
        "1,2",
        "--batch",
        "1,16",
        "--lengths",
        "16,lognormal:40:0.8",
        "--seconds",
        "0.1",
    ]
    done = mra_embed(tiny_bundle, *arguments, "--compare-padding", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    assert answer["command"] == "mra-embed"
    assert len(answer["results"]) == 2 * 2 * 2 * 2
    for line in answer["results"]:
        assert line["requests"] >= 1
        assert line["texts_per_second"] > 0
        assert 0 < line["p50_ms"] <= line["p90_ms"] <= line["p99_ms"] <= line["max_ms"]
    mixed = [line for line in answer["results"] if line["lengths"].startswith("lognormal") and line["batch"] == 16]
    shares = {
        padding: [line["padding_share"] for line in mixed if line["padding"] == padding]
        for padding in ("block", "longest")
    }
    assert max(shares["block"]) < min(shares["longest"])
    table = mra_embed(tiny_bundle, "--bench", "--seconds", "0.05", "--batch", "4").stdout.splitlines()
    assert table[0].startswith("onnxruntime ")
    assert table[1].split()[:3] == ["clients", "batch", "lengths"]
    assert len(table) == 3
