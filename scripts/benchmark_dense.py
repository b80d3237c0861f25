"""Times the ways to write softmax attention into an ONNX file, side by side in ONNX Runtime on a CPU, with the largest error.

The model is RoBERTa-PreLayerNorm with random weights; half of the last row is padding. The file's default form was chosen by this.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mra_export.checkpoint.load import load_checkpoint  # noqa: E402
from mra_export.export.exporter import export_onnx  # noqa: E402
from mra_export.optional import require_onnxruntime  # noqa: E402
from mra_export.pipeline.bench_engines import bound_run  # noqa: E402  (the repository's own package, found through the line above)
from mra_export.pipeline.turns import in_turns  # noqa: E402
from mra_export.runners.torch import TransformersRunner  # noqa: E402

FORMS = {"MatMul and Softmax, opset 20": 20, "Attention, opset 23": 23}
MULTI_HEAD = "com.microsoft MultiHeadAttention"


def with_multi_head_attention(path: Path) -> bytes:
    """The file with ONNX Runtime's own operator in the place of each Attention, and the mask of tokens as its mask."""
    import onnx

    model = onnx.load(str(path))
    mask = onnx.helper.make_node("Cast", ["attention_mask"], ["key_padding_mask"], to=onnx.TensorProto.INT32)
    for node in model.graph.node:
        if node.op_type == "Attention":
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            inputs = [*list(node.input)[:3], "", "key_padding_mask"]
            node.CopyFrom(
                onnx.helper.make_node(
                    "MultiHeadAttention",
                    inputs,
                    list(node.output),
                    name=node.name,
                    domain="com.microsoft",
                    num_heads=values["q_num_heads"],
                    scale=values["scale"],
                )
            )
    model.graph.node.insert(0, mask)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return bytes(model.SerializeToString())


def main() -> None:
    """Prints a table in Markdown."""
    onnxruntime = require_onnxruntime()
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--seq-len", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each length")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    rows: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = transformers.RobertaPreLayerNormConfig(
            vocab_size=1000, hidden_size=options.hidden, num_hidden_layers=options.layers,
            num_attention_heads=options.hidden // 64, intermediate_size=4 * options.hidden,
            max_position_embeddings=max(options.seq_len) + 2, type_vocab_size=1,
        )  # fmt: skip
        config.save_pretrained(folder / "checkpoint")
        checkpoint = load_checkpoint(folder / "checkpoint", random_init=0)
        files: dict[str, Any] = {
            form: str(export_onnx(checkpoint, folder / f"opset-{opset}", opset=opset).model)
            for form, opset in FORMS.items()
        }
        files[MULTI_HEAD] = with_multi_head_attention(folder / "opset-23" / "onnx" / "model.onnx")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sessions = {
            form: onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
            for form, file in files.items()
        }
        reference = TransformersRunner(checkpoint)
        for seq_len in options.seq_len:
            ids = np.random.default_rng(0).integers(4, 1000, (options.batch, seq_len))
            mask = np.ones_like(ids)
            mask[-1, seq_len // 2 :] = 0
            feed = {"input_ids": ids, "attention_mask": mask}
            expected = reference.run(feed)["last_hidden_state"][mask == 1]
            times = in_turns({form: bound_run(s, feed) for form, s in sessions.items()}, options.seconds)
            best = statistics.median(times["Attention, opset 23"])
            for form, values in times.items():
                error = np.abs(sessions[form].run(None, feed)[0][mask == 1] - expected).max()
                median = statistics.median(values)
                rows.append(f"| {seq_len} | {form} | {median:.1f} | {median / best:.2f} | {error:.1e} |")
    print(
        f"ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} CPUs ({platform.machine()}), batch {options.batch}, "
        f"{options.layers} layers, hidden size {options.hidden}\n"
    )
    print("| tokens | attention | ms | against Attention | largest error |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
