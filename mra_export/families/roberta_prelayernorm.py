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
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families._base import ENCODER_TASKS, OnnxLayer
from mra_export.families._bert import BertFamily
from mra_export.operators.softmax_attention.judge import DenseJudge
from mra_export.operators.softmax_attention.spec import ATTENTION_OPSET, DenseAttentionAttributes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir
    from onnx import ModelProto
    from torch import Tensor

    from mra_export.operators.judge import Judge

__all__ = ["FAMILY", "RobertaPreLayerNormFamily"]


class RobertaPreLayerNormFamily(BertFamily):
    """`mra_export.families._base.Family` for `model_type` "roberta-prelayernorm"."""

    model_type = "roberta-prelayernorm"
    title = "RoBERTa-PreLayerNorm"
    tasks = (*ENCODER_TASKS, "text-generation")
    operator = ("mra", "DenseAttention")  # until `lower` writes standard operators in its place
    # What targets fuse; ONNX Runtime 1.31 on a CPU is as fast with it as with the plain form, see docs/families.md.
    default_opset = ATTENTION_OPSET

    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is not one of a plain encoder or decoder."""
        from transformers.activations import ACT2FN

        super().validate(config)
        pad = config.pad_token_id
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

    def attention_result(self, context: Tensor) -> tuple[Tensor | None, ...]:
        """The context, and no attention matrix."""
        return context, None

    def attend(
        self, attributes: DenseAttentionAttributes, tensors: Sequence[Tensor], mask: Tensor, choice: Any = None
    ) -> Tensor:
        """Softmax attention; `choice` is None."""
        from mra_export.operators.softmax_attention.reference import softmax_attention

        query, key, value = tensors
        return softmax_attention(query, key, value, mask, attributes)

    def lower(self, model: onnx_ir.Model, nodes: list[onnx_ir.Node], attributes: Any, opset: int) -> None:
        """Writes the operator Attention in the place of each node, or below opset 23 the products and the softmax."""
        from mra_export.operators.softmax_attention.lowering import lower

        lower(model.graph, nodes, attributes, opset)
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

    def judge(self, attributes: Sequence[Any], constants: Sequence[tuple[Tensor, ...]] = ()) -> Judge:
        """Arithmetic only."""
        return DenseJudge(self.attend, attributes, constants)


FAMILY = RobertaPreLayerNormFamily()
