"""RoBERTa-PreLayerNorm: `RobertaPreLayerNormModel` and its heads, with softmax attention of standard operators.

What transformers does, and the exported files do as well:

* Its eager attention adds the lowest float to the logit of a key that is padding (or, in a decoder, comes later). Added to any
  logit it gives itself again, so that a row without any other key weighs all keys equally, later ones too, and is not NaN. That
  concerns rows at padding only. In float16 a file gives such rows some finite value.
* Positions are counted from the ids that are not `pad_token_id`, whatever the mask says. What stands at padding after the tokens
  changes nothing for them; padding before or between tokens has to be `pad_token_id`, or it moves the positions of those that
  follow, by one each.
* The tokens have `max_position_embeddings - pad_token_id - 1` positions; transformers fails with an index out of range beyond.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from mra_export.dtypes import dtype_of_onnx
from mra_export.errors import InputError
from mra_export.families import ENCODER_TASKS, MASKED, Family, OnnxLayer
from mra_export.parity import Judge, Tolerance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir
    from onnx import ModelProto
    from torch import Tensor

__all__ = ["FAMILY", "DenseAttentionAttributes", "RobertaPreLayerNormFamily"]

ATTENTION_OPSET = 23
"""The first that has the operator Attention."""


class DenseJudge(Judge):
    """Allows standard operators in half types what they cost: logits and weights are rounded to the type between them.

    Twice the error against float64 of torch's own eager attention in that type, on normal queries and keys scaled so that the
    logits have a standard deviation of 6: 2.3e-3 in float16 and 1.8e-2 in bfloat16.
    """

    def tolerance(self, dtype: str) -> Tolerance:
        """The largest errors that pass, by type of the candidate."""
        usual = super().tolerance(dtype)
        return replace(usual, operator={"fp16": 5e-3, "bf16": 4e-2}.get(dtype, usual.operator))


@dataclass(frozen=True)
class DenseAttentionAttributes:
    """Softmax attention.

    Attributes:
        num_heads: H; the hidden size of the inputs is H * head_dim.
        is_causal: 1 if a token attends to itself and those before it only, as in a decoder.
        scale: factor of the logits.
    """

    num_heads: int
    is_causal: int
    scale: float

    def as_dict(self) -> dict[str, Any]:
        """Attribute name -> value."""
        return asdict(self)


class RobertaPreLayerNormFamily(Family):
    """`mra_export.families.Family` for `model_type` "roberta-prelayernorm"."""

    model_type = "roberta-prelayernorm"
    title = "RoBERTa-PreLayerNorm"
    tasks = (*ENCODER_TASKS, "text-generation")
    operator = ("mra", "DenseAttention")  # until `lower` writes standard operators in its place
    # What targets fuse; ONNX Runtime 1.31 on a CPU is as fast with it as with the plain form, see docs/families.md.
    default_opset = ATTENTION_OPSET

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is not one of a plain encoder or decoder."""
        from transformers.activations import ACT2FN

        heads, hidden, pad = config.num_attention_heads, config.hidden_size, config.pad_token_id
        if heads < 1 or hidden < 1 or hidden % heads:
            raise InputError(
                f"hidden_size={hidden} must be a positive multiple of num_attention_heads={heads}. Check config.json."
            )
        if config.num_hidden_layers < 1:
            raise InputError(f"num_hidden_layers={config.num_hidden_layers} must be at least 1. Check config.json.")
        if not config.layer_norm_eps > 0:
            raise InputError(f"layer_norm_eps={config.layer_norm_eps} must be positive. Check config.json.")
        if pad is None or not 0 <= pad < config.vocab_size:
            raise InputError(
                f"pad_token_id={pad} must be between 0 and vocab_size - 1 = {config.vocab_size - 1}: positions are counted "
                "from the ids that are not padding. Check config.json."
            )
        if self.max_seq_len(config) < 1:
            raise InputError(
                f"max_position_embeddings={config.max_position_embeddings} must be at least pad_token_id + 2 = {pad + 2}: the "
                f"first {pad + 1} rows of the table are not for tokens. Check config.json."
            )
        if isinstance(config.hidden_act, str) and config.hidden_act not in ACT2FN:
            raise InputError(f"hidden_act={config.hidden_act!r} is none that transformers has. Check config.json.")
        kind = getattr(config, "position_embedding_type", None)
        if kind not in (None, "absolute"):
            raise InputError(
                f"position_embedding_type={kind!r}: newer releases of transformers ignore it, so that one checkpoint would be "
                'two models; only "absolute" is supported. Check config.json.'
            )
        if getattr(config, "add_cross_attention", False):
            raise InputError(
                "add_cross_attention=true: a model that reads an encoder's output is not exported. "
                "Set it to false in config.json if the checkpoint has none."
            )
        if getattr(config, "output_attentions", False):
            raise InputError(
                "output_attentions=true: fused attention gives no attention matrix. Set it to false in config.json."
            )

    def check_task(self, config: Any, task: str) -> None:
        """Raises `InputError` if the model has no such head, or would see what it is to predict."""
        super().check_task(config, task)
        if task == "text-generation" and not getattr(config, "is_decoder", False):
            raise InputError(
                "The task text-generation needs is_decoder=true in config.json: without it each token attends to the ones "
                "that it is to predict. Set it if the model was trained so, or choose another --task."
            )
        if task == "question-answering" and config.num_labels != 2:
            raise InputError(
                f"num_labels={config.num_labels}, but question-answering has 2, where an answer starts and where it ends: "
                "transformers cannot run such a head. Check id2label in config.json."
            )

    def attributes(self, config: Any) -> DenseAttentionAttributes:
        """The attributes of every attention layer of the model."""
        heads = config.num_attention_heads
        is_causal = int(bool(getattr(config, "is_decoder", False)))
        return DenseAttentionAttributes(heads, is_causal, float((config.hidden_size // heads) ** -0.5))

    def attributes_from(self, values: Mapping[str, Any]) -> DenseAttentionAttributes:
        """The attributes from what a file or a manifest says."""
        return DenseAttentionAttributes(values["num_heads"], values["is_causal"], values["scale"])

    def max_seq_len(self, config: Any) -> int:
        """The table of positions without the rows up to that of the padding token."""
        return int(config.max_position_embeddings) - int(getattr(config, "pad_token_id", 1)) - 1

    def prepare(self, model: Any, options: Mapping[str, Any]) -> None:
        """Sets what does not change the result: eager attention, which is defined for every mask, no cache, no chunks."""
        model.config.use_cache = False
        model.config._attn_implementation = "eager"
        for layer in model.base_model.encoder.layer:
            layer.chunk_size_feed_forward = 0

    def attention_modules(self, model: Any) -> list[tuple[str, Any]]:
        """Name and module of every self-attention, first layer first."""
        return [(f"layer.{i}", layer.attention.self) for i, layer in enumerate(model.base_model.encoder.layer)]

    def replace_attention(self, model: Any, compute: Callable[..., Tensor]) -> None:
        """Puts in the place of every self-attention its projections followed by `compute(layer, query, key, value)`."""
        from torch import nn

        class Attention(nn.Module):
            def __init__(self, original: Any, index: int) -> None:
                super().__init__()
                self.query, self.key, self.value = original.query, original.key, original.value
                self.index = index

            def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
                projected = (self.query(hidden_states), self.key(hidden_states), self.value(hidden_states))
                return compute(self.index, *projected), None

        for index, layer in enumerate(model.base_model.encoder.layer):
            layer.attention.self = Attention(layer.attention.self, index)

    def attend(
        self, attributes: DenseAttentionAttributes, tensors: Sequence[Tensor], mask: Tensor, choice: Any = None
    ) -> Tensor:
        """Softmax attention (Vaswani et al., 2017, section 3.2; `eager_attention_forward` in transformers).

        float64 is computed in float64, any other type in float32.
        """
        import torch

        query, key, value = tensors
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        batch, seq_len, hidden = query.shape
        shape = (batch, seq_len, attributes.num_heads, hidden // attributes.num_heads)
        q, k, v = (x.to(wide).reshape(shape).transpose(1, 2) for x in (query, key, value))
        keep = (mask != 0)[:, None, None, :]
        if attributes.is_causal:
            keep = keep & torch.ones((seq_len, seq_len), dtype=torch.bool, device=mask.device).tril()
        bias = torch.zeros(keep.shape, dtype=wide, device=mask.device).masked_fill(~keep, MASKED["fp32"])
        weight = torch.softmax(q @ k.transpose(2, 3) * attributes.scale + bias, dim=-1)
        return (weight @ v).transpose(1, 2).reshape(batch, seq_len, hidden).to(query.dtype)

    def lower(self, model: onnx_ir.Model, nodes: list[onnx_ir.Node], attributes: Any, opset: int) -> None:
        """Writes the operator Attention in the place of each node, or below opset 23 the products and the softmax."""
        import onnx_ir as ir

        graph = model.graph
        dtype = nodes[0].inputs[0].dtype  # type: ignore[union-attr]
        assert dtype is not None
        builder = _Builder(graph, nodes[0], dtype)
        fused = opset >= ATTENTION_OPSET
        bias = _bias(builder, nodes[0].inputs[3], bool(attributes.is_causal), whole=fused)
        for index, node in enumerate(nodes):
            query, key, value = list(node.inputs)[:3]
            context = node.outputs[0]
            builder.before = node
            name = f"layer.{index}"
            if fused:
                heads = attributes.num_heads
                settings = {"q_num_heads": heads, "kv_num_heads": heads, "scale": attributes.scale}
                made = builder.node("Attention", [query, key, value, bias], name=f"{name}.Attention", **settings)
            else:
                made = _plain(builder, query, key, value, bias, attributes, name)
            made.type, made.shape = context.type, context.shape
            ir.convenience.replace_all_uses_with(context, made)
            graph.remove(node, safe=True)
            for each, kind in ((query, "query"), (key, "key"), (value, "value"), (made, "context")):
                each.name = f"{name}.{kind}"  # type: ignore[union-attr]
        model.opset_imports.pop(self.operator[0], None)
        model.metadata_props["attention"] = json.dumps(attributes.as_dict())

    def layers(self, model: ModelProto) -> list[OnnxLayer]:
        """The attention layers of an exported file, by the names of their values."""
        metadata = {p.key: p.value for p in model.metadata_props}
        made = {output for node in model.graph.node for output in node.output}
        try:
            attributes = self.attributes_from(json.loads(metadata["attention"]))
        except (KeyError, ValueError, TypeError):
            return []
        found: list[OnnxLayer] = []
        while f"layer.{len(found)}.context" in made:
            name = f"layer.{len(found)}"
            query, key, value, context = (f"{name}.{kind}" for kind in ("query", "key", "value", "context"))
            if not made.issuperset((query, key, value)):
                return []
            found.append(OnnxLayer(f"{name}.Attention", query, key, value, context, attributes, None))
        return found

    def judge(self, attributes: Any, constants: Sequence[tuple[Tensor, ...]] = ()) -> Judge:
        """Arithmetic only."""
        return DenseJudge(self, attributes, constants)


class _Builder:
    """Appends standard operators to a graph before a node."""

    def __init__(self, graph: onnx_ir.Graph, before: onnx_ir.Node, dtype: onnx_ir.DataType) -> None:
        self.graph, self.before, self.dtype = graph, before, dtype
        self._constants = 0

    def node(self, op_type: str, inputs: list[Any], *, name: str | None = None, **attributes: Any) -> onnx_ir.Value:
        import onnx_ir as ir

        node = ir.node(op_type, inputs, attributes, name=name)
        self.graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, value: Any) -> onnx_ir.Value:
        """A small initializer: int64, or a scalar of the graph's float type."""
        import numpy as np
        import onnx_ir as ir

        name = f"attention_constant_{self._constants}"
        self._constants += 1
        kind = self.dtype if isinstance(value, float) else ir.DataType.INT64
        tensor = ir.tensor(np.asarray(value).astype(kind.numpy()), dtype=kind, name=name)
        made = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(np.shape(value)), const_value=tensor)
        self.graph.initializers[name] = made
        return made


def _bias(builder: _Builder, mask: Any, is_causal: bool, *, whole: bool) -> onnx_ir.Value:
    """What is added to the logits, once for all layers: 0, or the lowest number where a key has no weight.

    [batch, 1, 1, seq_len], or with `whole` or `is_causal` [batch, 1, seq_len, seq_len]: ONNX Runtime's Attention does not
    broadcast its mask over the queries.
    """
    import onnx_ir as ir

    masked = MASKED[str(dtype_of_onnx(builder.dtype))]
    keep = builder.node("Cast", [mask], to=int(ir.DataType.BOOL))
    keep = builder.node("Unsqueeze", [keep, builder.constant([1, 2])])
    if whole or is_causal:
        length = builder.node("Shape", [mask], start=1, end=2)  # [1]
        if is_causal:
            scalar = builder.node("Squeeze", [length, builder.constant([0])])
            index = builder.node("Range", [builder.constant(0), scalar, builder.constant(1)])
            row = builder.node("Unsqueeze", [index, builder.constant([1])])
            keep = builder.node("And", [keep, builder.node("LessOrEqual", [index, row])])
        else:
            one = builder.constant([1])
            square = builder.node("Concat", [one, one, length, one], axis=0)
            keep = builder.node("Expand", [keep, square])
    return builder.node("Where", [keep, builder.constant(0.0), builder.constant(masked)])


def _plain(
    builder: _Builder, query: Any, key: Any, value: Any, bias: Any, attributes: DenseAttentionAttributes, name: str
) -> onnx_ir.Value:
    """Attention by matrix products and a softmax, in the pattern that runtimes know and fuse."""
    heads = builder.constant([0, 0, attributes.num_heads, -1])
    cut = {}
    for kind, tensor, perm in (("q", query, [0, 2, 1, 3]), ("k", key, [0, 2, 3, 1]), ("v", value, [0, 2, 1, 3])):
        cut[kind] = builder.node("Transpose", [builder.node("Reshape", [tensor, heads])], perm=perm)
    product = builder.node("MatMul", [cut["q"], cut["k"]], name=f"{name}.logits")
    logits = builder.node("Mul", [product, builder.constant(attributes.scale)])
    weight = builder.node("Softmax", [builder.node("Add", [logits, bias])], axis=-1, name=f"{name}.softmax")
    mixed = builder.node("MatMul", [weight, cut["v"]], name=f"{name}.mix")
    joined = builder.node("Transpose", [mixed], perm=[0, 2, 1, 3])
    return builder.node("Reshape", [joined, builder.constant([0, 0, -1])])


FAMILY = RobertaPreLayerNormFamily()
