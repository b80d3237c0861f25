"""The tokenizer.json that is written gives the ids that sentence-transformers gives, whatever the source's files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentence_support import POSITIONS, edit_json, save_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mra_export.checkpoint.text import TextContract
from mra_export.checkpoint.text_ids import (
    NASTY_TEXTS,
    as_backend,
    ids_of,
    settings_between,
    source_tokenizer,
    tokenizer_texts,
    write_tokenizer,
)
from mra_export.errors import InputError

TEXT = "Paris CAFÉ 我们 [SEP] word"
Edit = Callable[[Path], None]


def in_config(**settings: Any) -> Edit:
    return lambda directory: edit_json(directory / "tokenizer_config.json", **settings)


def in_tokenizer(change: Callable[[dict[str, Any]], Any]) -> Edit:
    def edit(directory: Path) -> None:
        content = json.loads((directory / "tokenizer.json").read_text())
        change(content)
        (directory / "tokenizer.json").write_text(json.dumps(content))

    return edit


def baked(content: dict[str, Any]) -> None:
    """Padding and truncation to a fixed length, as many a tokenizer.json on the hub has it."""
    content["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "[PAD]",
    }  # fmt: skip


def write(
    tmp_path: Path, family: str, edit: Edit, contract: TextContract, positions: int = POSITIONS
) -> tuple[Any, list[str]]:
    """The tokenizer that is written, and the notes."""
    source, target = save_tokenizer(tmp_path / "source", family), save_tokenizer(tmp_path / "target", family)
    edit(source)
    for name in ("tokenizer_config.json", "config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    notes = write_tokenizer(source, target, contract, positions)
    return Tokenizer.from_file(str(target / "tokenizer.json")), notes


@pytest.mark.parametrize(
    ("family", "edit"),
    [
        ("bert", in_config()),
        ("bert", in_config(do_lower_case=True)),
        ("bert", in_config(strip_accents=True)),
        ("bert", in_config(do_lower_case=True, strip_accents=False)),
        ("bert", in_config(tokenize_chinese_chars=False)),
        ("bert", in_config(truncation_side="left")),
        ("bert", in_config(model_max_length=9)),
        ("bert", in_config(model_max_length=...)),
        ("bert", in_config(tokenizer_class="PreTrainedTokenizerFast", do_lower_case=True)),
        ("bert", in_config(added_tokens_decoder={"700": {"content": "Word", "normalized": True, "special": False}})),
        ("bert", in_config(additional_special_tokens=["lazy"])),
        ("bert", in_config(sep_token="[MASK]")),
        ("bert", in_tokenizer(baked)),
        ("bert", in_tokenizer(lambda content: content["normalizer"].update(lowercase=True))),
        ("bert", in_tokenizer(lambda content: content["post_processor"].update(single=[{"Sequence": {"id": "A", "type_id": 0}}]))),
        ("roberta", in_config()),
        ("roberta", in_config(add_prefix_space=True)),
        ("roberta", in_config(truncation_side="left", model_max_length=20)),
        ("roberta", in_config(tokenizer_class="PreTrainedTokenizerFast")),
        ("roberta", in_tokenizer(baked)),
    ],
)  # fmt: skip
def test_all_that_auto_tokenizer_applies_is_in_the_file(family: str, edit: Edit, tmp_path: Path) -> None:
    made, _ = write(tmp_path, family, edit, TextContract())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "source")
    limit = min(theirs.model_max_length, POSITIONS)
    for text in tokenizer_texts(theirs):
        want = theirs(text, truncation=True, max_length=limit)["input_ids"]
        assert made.encode(text).ids == want, text
    assert made.padding is None
    assert made.truncation["max_length"] == limit


def tokens(made: Any, text: str = TEXT) -> str:
    return " ".join(made.encode(text).tokens)


def test_tokenizer_config_wins_over_tokenizer_json(tmp_path: Path) -> None:
    made, _ = write(tmp_path, "bert", in_config(do_lower_case=True), TextContract())
    assert made.encode("Paris").tokens == ["[CLS]", "paris", "[SEP]"]
    kept, _ = write(tmp_path / "kept", "bert", in_config(do_lower_case=False), TextContract())
    assert kept.encode("Paris").tokens == ["[CLS]", "Paris", "[SEP]"]


def test_lower_case_comes_before_all_else_but_special_tokens(tmp_path: Path) -> None:
    made, _ = write(tmp_path, "bert", in_config(), TextContract(lowercase=True))
    assert made.encode("Paris CAFÉ [SEP]").tokens == ["[CLS]", "paris", "café", "[SEP]", "[SEP]"]
    roberta, _ = write(tmp_path / "r", "roberta", in_config(), TextContract(lowercase=True))
    assert roberta.encode("Ab").tokens == ["<s>", "a", "b", "</s>"]


def test_the_limit_of_the_contract_and_the_side_are_in_the_file(tmp_path: Path) -> None:
    contract = TextContract(max_length=4)
    made, _ = write(tmp_path, "bert", in_config(truncation_side="left", model_max_length=3), contract)
    assert made.encode("the quick brown fox").tokens == ["[CLS]", "brown", "fox", "[SEP]"]
    capped, _ = write(tmp_path / "b", "bert", in_config(), TextContract(max_length=400), positions=5)
    assert capped.truncation["max_length"] == 5


def test_arguments_for_the_tokenizer_are_applied(tmp_path: Path) -> None:
    contract = TextContract(tokenizer_options={"do_lower_case": True, "truncation_side": "left"})
    made, _ = write(tmp_path, "bert", in_config(do_lower_case=False), contract)
    assert made.encode("Paris").tokens[1] == "paris"
    assert made.truncation["direction"] == "left"


def test_padding_on_the_left_becomes_right(tmp_path: Path) -> None:
    made, notes = write(tmp_path, "bert", in_config(padding_side="left"), TextContract())
    assert [note.partition(":")[0] for note in notes] == ["padding_side=left became right"]
    assert json.loads((tmp_path / "target" / "tokenizer_config.json").read_text())["padding_side"] == "right"
    assert made.padding is None


@pytest.mark.parametrize(
    ("family", "settings", "named"),
    [
        (
            "bert",
            {"do_lower_case": True, "never_split": None, "max_length": 128, "unk_token": "[UNK]", "name_or_path": "x"},
            None,
        ),
        ("bert", {"lowercase": True, "strip_accent": False}, "lowercase, strip_accent, which Bert"),
        ("roberta", {"do_lower_case": True}, "do_lower_case, which Roberta"),
    ],
)
def test_keys_that_the_class_does_not_know_are_named(
    family: str, settings: dict[str, Any], named: str | None, tmp_path: Path
) -> None:
    _, notes = write(tmp_path, family, in_config(**settings), TextContract())
    assert len(notes) == (named is not None)
    assert named is None or f"tokenizer_config.json has {named}" in notes[0]


def test_a_setting_that_no_file_can_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"tokenizer_config.json has split_special_tokens=True, which cannot be carried over: of"
    ):
        write(tmp_path, "bert", in_config(split_special_tokens=True), TextContract())


def test_a_class_that_was_only_guessed_does_not_replace_the_vocabulary(tmp_path: Path) -> None:
    def edit(directory: Path) -> None:
        edit_json(directory / "tokenizer_config.json", tokenizer_class=...)
        edit_json(directory / "config.json", model_type="mra")  # for which transformers takes RoBERTa's class

    made, _ = write(tmp_path, "bert", edit, TextContract())
    assert made.encode("Paris").tokens == ["[CLS]", "Paris", "[SEP]"]


def test_the_class_that_transformers_5_writes_is_known_to_4_too(tmp_path: Path) -> None:
    made, _ = write(
        tmp_path, "bert", in_config(tokenizer_class="TokenizersBackend", truncation_side="left"), TextContract()
    )
    assert made.encode("Paris").tokens == ["[CLS]", "Paris", "[SEP]"]
    assert made.truncation["direction"] == "left"


def test_no_vocabulary_is_no_tokenizer(tmp_path: Path) -> None:
    assert write_tokenizer(tmp_path, tmp_path, TextContract(), 64) == []
    assert not list(tmp_path.iterdir())


def test_texts_are_of_every_kind_and_one_is_beyond_the_limit(tmp_path: Path) -> None:
    made = source_tokenizer(save_tokenizer(tmp_path / "t"), TextContract(), POSITIONS)
    texts = tokenizer_texts(made)
    assert texts[: len(NASTY_TEXTS)] == NASTY_TEXTS
    assert {"", " "} < set(texts)
    joined = " ".join(texts)
    assert all(word in joined for word in ("[SEP]", "crème", "我", "\U0001f600", "\x00", "\u2028"))
    made.model_max_length = 1 << 20
    long = made(texts[-1])["input_ids"]
    assert len(long) > 2 * POSITIONS
    assert long[1:9] != long[-9:-1]
    assert ids_of(made, ["Paris"]) == [(made("Paris")["input_ids"], [0, 0, 0])]


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (in_config(), []),
        (in_config(do_lower_case=True), ["do_lower_case"]),
        (in_config(strip_accents=True), ["strip_accents"]),
        (in_config(tokenize_chinese_chars=False), ["tokenize_chinese_chars"]),
        (in_config(truncation_side="left"), ["truncation_side"]),
        (in_config(model_max_length=9), ["max_seq_length"]),
        (in_config(additional_special_tokens=["lazy"]), ["added_tokens"]),
    ],
)
def test_what_differs_between_two_tokenizers_is_named(edit: Edit, names: list[str], tmp_path: Path) -> None:
    made = []
    for name, change in (("a", in_config()), ("b", edit)):
        change(save_tokenizer(tmp_path / name))
        made.append(as_backend(source_tokenizer(tmp_path / name, TextContract(), POSITIONS)))
    assert settings_between(*made) == names
