"""`embed` obeys what a checkpoint says of its texts and vectors: prompts, limit, side, modules, dimensions."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch
from embed_support import HIDDEN, WORDS, run, run_json, write_lines
from safetensors.torch import save_file

from mra_export.bundle.manifest import read_bundle
from mra_export.checkpoint.module_torch import as_torch
from mra_export.checkpoint.modules import POOLING_MODES, width_of
from mra_export.checkpoint.text import read_contract
from mra_export.embedding.run import embed
from mra_export.embedding.token_ids import main as token_ids_main
from mra_export.embedding.token_ids import token_ids
from mra_export.errors import InputError
from mra_export.pipeline.create_bundle import create_bundle

SENTENCES = "config_sentence_transformers.json"
PROMPTS = {"prompts": {"query": "word1 word2 ", "passage": "word9 word9 word9 "}, "default_prompt_name": "query"}
TEXTS = ["", "word3", "word4 word5 word6 word7", " ".join(WORDS[i % 100] for i in range(120)), "word8 " * 40]
Files = dict[str, Any]


def pooling(*modes: str, **settings: Any) -> Files:
    return {"1_Pooling/config.json": {"pooling_mode": list(modes), **settings}}


def dense(ins: int, outs: int, **settings: Any) -> Files:
    """A dense layer in 2_Dense, as sentence-transformers writes it; half of them in the older format."""
    generator = torch.Generator().manual_seed(ins * outs)
    weights = {"linear.weight": torch.randn(outs, ins, generator=generator) / ins**0.5}
    weights["linear.bias"] = torch.randn(outs, generator=generator)
    if settings.get("use_residual") and ins != outs:
        weights["residual.weight"] = torch.randn(outs, ins, generator=generator) / ins**0.5
    config = {"in_features": ins, "out_features": outs, "activation_function": "torch.nn.modules.activation.Tanh"}
    return {"2_Dense/config.json": {**config, **settings}, "2_Dense": weights}


def layer_norm(size: int) -> Files:
    generator = torch.Generator().manual_seed(size)
    weights = {name: torch.randn(size, generator=generator) for name in ("norm.weight", "norm.bias")}
    return {"3_LayerNorm/config.json": {"dimension": size}, "3_LayerNorm": weights}


@pytest.fixture(scope="module")
def make(embed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a bundle of the same encoder with other files; its graph's own `sentence_embedding` is not asked for here."""

    def made(kinds: str = "Transformer Pooling", *files: Files, **options: Any) -> Path:
        folder = tmp_path_factory.mktemp("contract")
        shutil.copytree(embed_bundle, folder / "onnx")
        for name in ("manifest.json", "1_Pooling", "modules.json"):
            path = folder / "onnx" / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        places = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense", "LayerNorm": "3_LayerNorm"}
        listing = [
            {"type": f"sentence_transformers.models.{kind}", "path": places.get(kind, f"{i}_{kind}")}
            for i, kind in enumerate(kinds.split())
        ]
        (folder / "onnx" / "modules.json").write_text(json.dumps(listing))
        for name, content in {
            name: value for each in (pooling("mean"), *files) for name, value in each.items()
        }.items():
            path = folder / "onnx" / name
            path.parent.mkdir(exist_ok=True)
            if name.endswith(".json"):
                path.write_text(json.dumps(content))
            elif options.get("older"):
                path.mkdir(exist_ok=True)
                torch.save(content, path / "pytorch_model.bin")
            else:
                path.mkdir(exist_ok=True)
                save_file(content, path / "model.safetensors")
        file = folder / "onnx" / "onnx" / "model.onnx"
        graph = onnx.load(str(file))
        (output,) = [value for value in graph.graph.output if value.name == "sentence_embedding"]
        dimension = width_of(read_contract(folder / "onnx").modules, HIDDEN)
        output.type.tensor_type.shape.dim[1].dim_value = dimension
        onnx.save(graph, str(file))
        library = embed_bundle / "lib" / "libmra_onnxruntime.so"
        return create_bundle(
            folder / "onnx", folder / "bundle", check=False, library=library if library.is_file() else None
        ).path

    return made


def expected(bundle: Path, texts: list[str], prompt: str = "", *, skip: int = 0, limit: int = 96) -> np.ndarray:
    """By definition, without this package's embedding: a stock tokenizer, one text at a time, and torch's modules."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle)
    session = onnxruntime.InferenceSession(bundle / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    modules = as_torch(read_contract(bundle).modules, bundle).double()
    vectors = []
    for text in texts:
        ids = tokenizer(prompt + text, truncation=True, max_length=limit)["input_ids"]
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        hidden = torch.from_numpy(session.run(["last_hidden_state"], feed)[0]).double()
        mask = torch.ones(1, len(ids), dtype=torch.int64)
        mask[:, :skip] = 0
        vectors.append(modules(hidden, mask)[0].numpy())
    return np.stack(vectors)


def embedded(bundle: Path, texts: list[str], tmp_path: Path, **options: Any) -> np.ndarray:
    source = write_lines(tmp_path / "texts.txt", texts)
    return np.load(embed(bundle, source, tmp_path / "vectors.npy", force=True, **options).output)


KINDS = {
    **{mode: ("Transformer Pooling", pooling(mode)) for mode in POOLING_MODES},
    "all six": ("Transformer Pooling Normalize", pooling(*POOLING_MODES)),
    "dense": ("Transformer Pooling Dense", dense(HIDDEN, 40)),
    "dense alone, then length 1": (
        "Transformer Pooling Dropout Dense Normalize",
        dense(HIDDEN, 100, activation_function="torch.nn.modules.linear.Identity"),
    ),
    "residual": ("Transformer Pooling Dense", dense(HIDDEN, 40, use_residual=True)),
    "layer norm": ("Transformer Pooling LayerNorm", layer_norm(HIDDEN)),
    "truncate_dim": ("Transformer Pooling Normalize", {SENTENCES: {"truncate_dim": 24}}),
    "everything": (
        "Transformer Pooling Dense LayerNorm Normalize",
        pooling("cls", "max")
        | dense(2 * HIDDEN, 50, use_residual=True, activation_function="torch.nn.modules.activation.GELU")
        | layer_norm(50)
        | {SENTENCES: {"truncate_dim": 24, "similarity_fn_name": "dot"}},
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_vectors_are_those_of_the_modules(name: str, make: Callable[..., Path], tmp_path: Path) -> None:
    kinds, files = KINDS[name]
    bundle = make(kinds, files, older=name == "residual")
    wanted = expected(bundle, TEXTS)
    found = embedded(bundle, TEXTS, tmp_path)
    assert found.shape == wanted.shape == (len(TEXTS), read_bundle(bundle).dimension)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=4e-6)


def test_the_default_prompt_one_by_name_and_one_as_text(
    make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make("Transformer Pooling Normalize", {SENTENCES: PROMPTS})
    source = write_lines(tmp_path / "t.txt", TEXTS)
    cases: list[tuple[list[str], str, str | None]] = [
        ([], "word1 word2 ", "query"),
        (["--prompt", "query"], "word1 word2 ", "query"),
        (["--prompt", "passage"], "word9 word9 word9 ", "passage"),
        (["--prompt-text", "word20 "], "word20 ", None),
        (["--prompt-text", ""], "", None),
    ]
    seen = []
    for options, prompt, name in cases:
        code, result = run_json(capsys, bundle, source, "-o", tmp_path / "v.npy", "--force", *options)
        assert (code, result["prompt"], result["prompt_name"]) == (0, prompt, name)
        found = np.load(tmp_path / "v.npy")
        np.testing.assert_allclose(found, expected(bundle, TEXTS, prompt), atol=2e-6)
        seen.append(found)
    assert np.array_equal(seen[0], seen[1])
    assert np.abs(seen[0] - seen[2]).max() > 1e-3
    assert np.abs(seen[0] - seen[4]).max() > 1e-3
    assert run("embed", bundle, source, "-o", tmp_path / "v.npy", "--force") == 0
    assert "with the prompt 'word1 word2 ' ('query') before each" in capsys.readouterr().out


def test_prompts_that_cannot_be_are_named(make: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make("Transformer Pooling", {SENTENCES: PROMPTS})
    with pytest.raises(InputError, match=r"no prompt 'queries'. The model has passage, query"):
        embedded(bundle, TEXTS, tmp_path, prompt="queries")
    with pytest.raises(InputError, match=r"Both the prompt 'query' by name and a prompt's text"):
        embedded(bundle, TEXTS, tmp_path, prompt="query", prompt_text="")


def test_another_prompt_or_dimension_is_other_work(make: Callable[..., Path], tmp_path: Path) -> None:
    from embed_support import Stop, interrupt

    bundle = make("Transformer Pooling", {SENTENCES: PROMPTS})
    source = write_lines(tmp_path / "t.txt", TEXTS * 20)
    with pytest.raises(KeyboardInterrupt):
        embed(bundle, source, tmp_path / "v.npy", chunk_rows=20, watcher=Stop(2, interrupt))
    with pytest.raises(InputError, match=r'prompt was "word1 word2 ", now "word9 word9 word9 "'):
        embed(bundle, source, tmp_path / "v.npy", chunk_rows=20, prompt="passage")
    with pytest.raises(InputError, match=r"dimensions was null, now 8"):
        embed(bundle, source, tmp_path / "v.npy", chunk_rows=20, dimensions=8)
    assert embed(bundle, source, tmp_path / "v.npy", chunk_rows=20, prompt="query").resumed_rows == 40


@pytest.mark.parametrize("mode", ["mean", "cls", "weightedmean", "max"])
@pytest.mark.slow
def test_a_prompt_does_not_count_where_the_checkpoint_says_so(
    mode: str, make: Callable[..., Path], tmp_path: Path
) -> None:
    """The prompt has two words, and <s> before them; </s> after them counts where it is not a special token by name."""
    special = {"tokenizer_config.json": {"eos_token": "</s>", "bos_token": "<s>", "model_max_length": 96}}
    for files, skip in (({}, 4), (special, 3)):
        bundle = make("Transformer Pooling", pooling(mode, include_prompt=False), {SENTENCES: PROMPTS}, files)
        wanted = expected_without(bundle, mode, "word1 word2 ", skip)
        np.testing.assert_allclose(embedded(bundle, TEXTS, tmp_path), wanted, atol=2e-6)
        np.testing.assert_allclose(
            embedded(bundle, TEXTS, tmp_path, prompt_text=""), expected(bundle, TEXTS), atol=2e-6
        )


def expected_without(bundle: Path, mode: str, prompt: str, skip: int) -> np.ndarray:
    """Pooling by its definition, over the tokens after the prompt."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle)
    session = onnxruntime.InferenceSession(bundle / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    vectors = []
    for text in TEXTS:
        ids = tokenizer(prompt + text, truncation=True, max_length=96)["input_ids"]
        feed = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), np.int64)}
        feed["token_type_ids"] = np.zeros_like(feed["input_ids"])
        states = session.run(["last_hidden_state"], feed)[0][0].astype(np.float64)
        places = np.arange(1, len(ids) + 1)[skip:]
        rest = states[skip:]
        if not len(rest):
            vectors.append(states[0] if mode == "cls" else np.zeros(HIDDEN))
        elif mode == "weightedmean":
            vectors.append((rest * places[:, None]).sum(0) / places.sum())
        else:
            vectors.append({"mean": rest.mean(0), "cls": rest[0], "max": rest.max(0)}[mode])
    return np.stack(vectors)


def test_dimensions(make: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first numbers; of length 1 again where the vectors have it, and not where they do not."""
    for kinds in ("Transformer Pooling Normalize", "Transformer Pooling"):
        bundle = make(kinds)
        whole = embedded(bundle, TEXTS, tmp_path)
        cut = embedded(bundle, TEXTS, tmp_path, dimensions=10)
        wanted = whole[:, :10]
        if "Normalize" in kinds:
            wanted = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
        np.testing.assert_allclose(cut, wanted, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(embedded(bundle, TEXTS, tmp_path, dimensions=HIDDEN), whole)
    for wrong in (0, -1, HIDDEN + 1):
        with pytest.raises(InputError, match=rf"dimensions={wrong} must be from 1 to {HIDDEN}"):
            embedded(bundle, TEXTS, tmp_path, dimensions=wrong)
    source = write_lines(tmp_path / "t.txt", TEXTS)
    code, result = run_json(capsys, bundle, source, "-o", tmp_path / "v.parquet", "--dimensions", "7")
    assert (code, result["dimension"], result["hidden_size"]) == (0, 7, 7)
    made = pq.read_table(tmp_path / "v.parquet")
    assert made.schema.field("embedding").type.list_size == 7
    assert made.schema.metadata[b"mra_export.dimensions"] == b"7"
    assert made.schema.metadata[b"mra_export.prompt"] == b""


def test_the_limit_is_that_of_sentence_transformers(make: Callable[..., Path], tmp_path: Path) -> None:
    """Instead of the tokenizer's, which is 96: below it, above it, and as a fraction that is none."""
    for name, stated, limit in (
        ("sentence_bert_config.json", 16, 16),
        ("sentence_xlm-roberta_config.json", 16.0, 16),
        ("sentence_distilbert_config.json", 110, 110),
        ("sentence_bert_config.json", 100_000, 256),
    ):
        bundle = make("Transformer Pooling", {name: {"max_seq_length": stated}})
        assert read_bundle(bundle).tokenizer_max_length == limit
        np.testing.assert_allclose(embedded(bundle, TEXTS, tmp_path), expected(bundle, TEXTS, limit=limit), atol=2e-6)


def test_texts_are_cut_on_the_side_of_the_tokenizer(make: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"tokenizer_config.json": {"truncation_side": "left", "model_max_length": 20}}
    bundle = make("Transformer Pooling", settings)
    assert (read_bundle(bundle).truncation_side, read_bundle(bundle).tokenizer_max_length) == ("left", 20)
    found = embedded(bundle, TEXTS, tmp_path)
    np.testing.assert_allclose(found, expected(bundle, TEXTS, limit=20), atol=2e-6)
    last = " ".join(TEXTS[3].split()[-18:])
    np.testing.assert_allclose(embedded(bundle, [last], tmp_path)[0], found[3], atol=2e-6)


def test_the_tokenizer_beside_a_cpp_program(
    make: Callable[..., Path], capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    side = {"tokenizer_config.json": {"truncation_side": "left", "model_max_length": 20}}
    bundle = make("Transformer Pooling", {SENTENCES: PROMPTS}, side)
    ids = {word: 4 + i for i, word in enumerate(WORDS)}
    one, nine, last = ids["word1"], ids["word9"], ids["word8"]

    def given(text: str, **options: Any) -> list[int]:
        (found,) = token_ids(bundle, io.BytesIO(f"{text}\n".encode()), **options)
        return found

    assert given("word8") == [0, one, ids["word2"], last, 2]
    assert given("word8", prompt="passage") == [0, nine, nine, nine, last, 2]
    assert given("word8", prompt_text="word1 ") == [0, one, last, 2]
    assert given("word8", prompt_text="") == [0, last, 2]
    assert given("word1 " * 30 + "word8") == [0, *[one] * 17, last, 2]
    assert given("word8", prompt="document") == [0, last, 2]  # every model has this one
    with pytest.raises(InputError, match="no prompt 'title'"):
        given("word8", prompt="title")
    uncounted = make("Transformer Pooling", pooling("mean", include_prompt=False), {SENTENCES: PROMPTS})
    with pytest.raises(
        InputError, match=r"include_prompt=false: the tokens of the prompt 'word1 word2 ' must not count"
    ):
        list(token_ids(uncounted, io.BytesIO(b"word8\n")))
    (found,) = token_ids(uncounted, io.BytesIO(b"word8\n"), prompt_text="")
    assert found == [0, last, 2]
    for options, code, text in (
        (["--prompt", "passage"], 0, f"0 {nine} {nine} {nine} {last} 2\n"),
        (["--prompt-text", ""], 0, f"0 {last} 2\n"),
        (["--prompt", "title"], 2, ""),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"word8\n")))
        assert token_ids_main([str(bundle), *options]) == code
        assert capsysbinary.readouterr().out.decode() == text


def test_a_bundle_of_the_bundle_says_the_same(make: Callable[..., Path], tmp_path: Path) -> None:
    bundle = make(*KINDS["everything"], {SENTENCES: PROMPTS})
    again = create_bundle(bundle, tmp_path / "again", check=False)
    for name in ("embedding", "text", "tokenizer"):
        assert again.manifest[name] == read_bundle(bundle).manifest[name]


def test_weights_that_do_not_fit_are_refused(make: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"2_Dense do not fit its config\.json"):
        make("Transformer Pooling Dense", dense(HIDDEN, 40) | {"2_Dense": dense(HIDDEN, 41)["2_Dense"]})
    with pytest.raises(InputError, match=r"2_Dense has no model\.safetensors and no pytorch_model\.bin"):
        make("Transformer Pooling Dense", {"2_Dense/config.json": dense(HIDDEN, 40)["2_Dense/config.json"]})


def test_a_graph_of_other_modules_is_refused(embed_bundle: Path, tmp_path: Path) -> None:
    """As where modules.json was changed after the export."""
    shutil.copytree(embed_bundle, tmp_path / "onnx")
    (tmp_path / "onnx" / "manifest.json").unlink()
    (tmp_path / "onnx" / SENTENCES).write_text('{"truncate_dim": 5}')
    with pytest.raises(InputError, match=r"gives vectors of 64 numbers, but .*modules\.json makes 5"):
        create_bundle(tmp_path / "onnx", tmp_path / "b", check=False)


def test_a_prompt_is_part_of_each_piece(make: Callable[..., Path], tmp_path: Path) -> None:
    """Three words of ten tokens: the prompt has four, and two are special."""
    bundle = make("Transformer Pooling", {SENTENCES: PROMPTS})
    source = write_lines(tmp_path / "t.txt", ["word3 word4 word5 word6 word7 word8 word10"])
    prompt = "word1 word1 word1 word1 "
    result = embed(bundle, source, tmp_path / "v.npy", chunk=9, prompt_text=prompt)
    pieces = ["word3 word4 word5", "word6 word7 word8", "word10"]
    assert (result.rows, result.truncated, result.tokens) == (3, 0, 9 + 9 + 7)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), expected(bundle, pieces, prompt), atol=2e-6)
    with pytest.raises(
        InputError, match=r"--chunk 6 leaves no room for text: 6 tokens of each chunk .* or the prompt's"
    ):
        embed(bundle, source, tmp_path / "v.npy", force=True, chunk=6, prompt_text=prompt)
