"""What the commands need to know of a kind of model: `Family` and what it gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    import onnx_ir
    from onnx import FunctionProto, ModelProto, NodeProto
    from torch import Tensor

    from mra_export.operators.judge import Judge
    from mra_export.trace import Array, Inputs

__all__ = [
    "ENCODER_TASKS",
    "Attributes",
    "Family",
    "OnnxLayer",
    "Option",
    "TransformersSetup",
    "noted_options",
    "read_options",
]

ENCODER_TASKS = (
    "feature-extraction",
    "fill-mask",
    "text-classification",
    "multiple-choice",
    "token-classification",
    "question-answering",
)
"""The heads that transformers gives to every encoder."""


class Attributes(Protocol):
    """The attributes of an attention node: a frozen dataclass of numbers."""

    def as_dict(self) -> dict[str, Any]:
        """Attribute name -> value."""


@dataclass(frozen=True)
class Option:
    """A choice that a family leaves to the user, given as `--option NAME=VALUE`.

    Attributes:
        default: its value where none is given; its type is that of the option.
        help: a line for people.
        check: raises `InputError` for a value that cannot be had.
    """

    default: int | float | str
    help: str
    check: Callable[[Any], None] = lambda _: None


@dataclass(frozen=True)
class OnnxLayer:
    """One attention layer of an exported file, by the names of its values.

    Attributes:
        name: of the layer in the file, as in "layer.0.Mra2Attention".
        query: float [batch, seq_len, hidden_size].
        key: as query.
        value: as query.
        context: as query.
        attributes: of the attention.
        node: the custom node (`onnx.NodeProto`), None where the attention is made of standard operators.
    """

    name: str
    query: str
    key: str
    value: str
    context: str
    attributes: Any
    node: Any


def _no_arguments(_: Inputs, __: int) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class TransformersSetup:
    """How transformers' unmodified model is made to compute what it was trained to.

    The defaults are for a model that needs nothing of it.

    Attributes:
        kernels: a context in which the model has the kernels that it needs; yields their name, "" for none.
        probe: called once inside `kernels` with the model; raises `DependencyError` if its attention does nothing.
        one_by_one: whether examples are run one after the other, for a model that mixes up the examples of a batch.
        filled_length: the length to which one example is filled with padding, for a length; only with `one_by_one`.
        arguments: further arguments of the model, for one example's inputs and its length; only with `one_by_one`.
        mended: a context in which the model's mask is right, for the model and the mask [rows, seq_len].
        unmended: what to tell of the difference that the model's own mask makes at tokens (largest relative error of an output
            over the rows of the first case with padding); None where it is not worth a word.
    """

    kernels: Callable[[], AbstractContextManager[str]] = field(default=lambda: nullcontext(""))
    probe: Callable[[Any], None] = field(default=lambda _: None)
    one_by_one: bool = False
    filled_length: Callable[[int], int] = field(default=lambda length: length)
    arguments: Callable[[Inputs, int], dict[str, Any]] = _no_arguments
    mended: Callable[[Any, Array], AbstractContextManager[None]] = field(default=lambda _model, _mask: nullcontext())
    unmended: Callable[[float], str] | None = None


class Family(ABC):
    """What the commands need to know of a kind of model.

    How the parts meet. `export` puts one node `operator` in the place of each attention module (`replace_attention`), with
    `attributes` and the inputs query, key, value, attention_mask (int32, 0 = padding) and whatever constants the family adds,
    and adds `functions` to the file, or has `lower` write standard operators in the nodes' place. `check` runs the same
    PyTorch model with `attend`, the specification, in the place of each attention, and has `judge` say whether the candidate's
    attention is right. `trt` counts one plugin layer for each node if there is a `plugin`, and none otherwise.

    An operator with further constant inputs (hash projections, the weights of a convolution) works like this:

    * `prepare` gives every attention module of the loaded model its constants, as parameters or non-persistent buffers, made
      from the family's options (a seed). Copies of the model then carry them, in the type of the export.
    * `replace_attention` calls `compute(layer, query, key, value, *constants)` with the constants of that layer. In the export
      they become initializers, and inputs of the node after attention_mask in the same order; `attend` gets them after value.
      `constants` gives those of all layers; in a file `mra_export.export.onnx_model.layer_constants` finds them.
      `attributes` has numbers.
    * The options are noted in the file, and a file is only compared with a checkpoint that was loaded with the same ones.

    Everything that an operator needs the mask for belongs into the operator: the replaced module does not see it.
    """

    model_type: str
    """`model_type` in `config.json`."""
    title: str
    """Its name for people."""
    tasks: tuple[str, ...] = ENCODER_TASKS
    """Names of the heads it has, of `mra_export.checkpoint.tasks.TASKS`."""
    operator: tuple[str, str]
    """Domain and type of the node that stands for the attention until `lower`, and in the file if that leaves it."""
    operator_version: int = 1
    """Version of the operator's domain."""
    operator_inputs: Sequence[str] = ()
    """Of a node that stays in the file: the inputs that it may have, in order, of which attributes leave some out without gaps."""
    operator_integers: Collection[str] = ("attention_mask",)
    """Those of `operator_inputs` that are int32; the others have the type of query."""
    operator_attributes: Mapping[str, type] = {}
    """Of a node that stays in the file: name -> int or float, in the order of the native code's params."""
    plugin: str | None = None
    """Name of the TensorRT plugin that computes the node; None if TensorRT's own layers do."""
    is_linear_in_values: bool = False
    """Whether the attention's output is a linear function of the values, number by number."""
    second_feed_forward: str | None = None
    """Of a layer the module of its second feed-forward product, below `layer.N`; None where the linear layers are not known."""
    min_opset: int = 17
    default_opset: int = 20
    options: Mapping[str, Option] = {}
    """Choices left to the user: name -> option."""

    # Configuration.

    @abstractmethod
    def validate(self, config: Any) -> None:
        """Raises `InputError` if the configuration is outside what the operator computes."""

    def check_task(self, config: Any, task: str) -> None:
        """Raises `InputError` if the model has no head of that name."""
        if task not in self.tasks:
            raise InputError(f"{self.title} has no head for {task}. Choose one of: auto, {', '.join(self.tasks)}.")

    @abstractmethod
    def attributes(self, config: Any) -> Attributes:
        """The attributes that every attention node of the model has; `layer_attributes` is for whoever runs or compares them."""

    def layer_attributes(self, config: Any) -> list[Any]:
        """The attributes of each attention node, first layer first; the same for all unless a family has them layer by layer."""
        return [self.attributes(config)] * config.num_hidden_layers

    @abstractmethod
    def attributes_from(self, values: Mapping[str, Any]) -> Attributes:
        """The attributes from what a node or a manifest says.

        Raises:
            KeyError: one is missing.
        """

    def constant_shapes(self, attributes: Any, head_dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes of the constant inputs of a node, in order, by their names in `operator_inputs`."""
        return {}

    def max_seq_len(self, config: Any) -> int:
        """The longest sequence in tokens; `config` may have nothing but what `config.json` says."""
        return int(config.max_position_embeddings)

    length_step: int = 32
    """Texts whose lengths round up to the same multiple may share a batch. Of an operator that computes with blocks of tokens, the
    size of a block; elsewhere it only bounds the padding."""
    first_position: int = 2
    """Row of the first token in the table of positions, for files that do not say how long their sequences may be."""

    # PyTorch.

    def prepare(self, model: Any, options: Mapping[str, Any]) -> None:  # noqa: B027  (most families need nothing)
        """Called once with a loaded model: gives attention modules their constants, sets what transformers leaves open."""

    @abstractmethod
    def attention_modules(self, model: Any) -> list[tuple[str, Any]]:
        """Name and module of every self-attention, first layer first; each has the projections query, key and value."""

    @abstractmethod
    def replace_attention(self, model: Any, compute: Callable[..., Tensor]) -> None:
        """Puts in the place of every self-attention its projections followed by `compute(layer, query, key, value, *constants)`.

        `query`, `key` and `value` are [batch, seq_len, hidden_size]; so is what `compute` returns.
        """

    def constants(self, model: Any) -> list[tuple[Tensor, ...]]:
        """What `replace_attention` adds to query, key and value, for each layer."""
        return [() for _ in self.attention_modules(model)]

    @abstractmethod
    def attend(self, attributes: Any, tensors: Sequence[Tensor], mask: Tensor, choice: Any = None) -> Tensor:
        """The operator by its specification, in plain torch.

        Args:
            attributes: the node's.
            tensors: query, key, value, each [batch, seq_len, hidden_size], and the layer's constants.
            mask: [batch, seq_len], 0 = padding.
            choice: a discrete choice that the operator is to take instead of its own, as `Judge.operator` returns it.

        Returns:
            context, [batch, seq_len, hidden_size].
        """

    def transformers_setup(self, config: Any, device: str, kernel_sources: Path | None) -> TransformersSetup:
        """How transformers' unmodified model is made to run.

        Args:
            config: the transformers configuration.
            device: "cpu" or a torch CUDA device.
            kernel_sources: a directory that the user names with --kernel-sources, or None.
        """
        if kernel_sources is not None:
            raise InputError(
                f"--kernel-sources is for models whose attention needs CUDA sources; {self.title} needs none. Leave it out."
            )
        return TransformersSetup()

    # ONNX.

    def functions(self, opset: int) -> list[FunctionProto]:
        """The function bodies that let a stock runtime run the exported file."""
        return []

    def lower(self, model: onnx_ir.Model, nodes: list[onnx_ir.Node], attributes: Any, opset: int) -> None:  # noqa: B027
        """Replaces the exported nodes by what the file shall hold; by default they stay."""

    def layers(self, model: ModelProto) -> list[OnnxLayer]:
        """The attention layers of an exported file, first layer first; none if it is not of this family.

        Raises:
            InputError: a node lacks an attribute.
        """
        import onnx

        found = []
        for node in model.graph.node:
            if (node.domain, node.op_type) != self.operator:
                continue
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            try:
                attributes = self.attributes_from(values)
            except KeyError as error:
                raise InputError(f"a {node.op_type} node has no attribute {error}. Export it again.") from error
            query, key, value = list(node.input)[:3]
            found.append(OnnxLayer(node.name, query, key, value, node.output[0], attributes, node))
        return found

    def dense_node(self, node: NodeProto) -> NodeProto:
        """Softmax attention in the place of a node of the operator, with ONNX Runtime's own operator; for `bench`."""
        import onnx

        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        query, key, value, mask = list(node.input)[:4]
        scale = {"scale": values["scale"]} if "scale" in values else {}  # by default 1 / sqrt(head_dim)
        return onnx.helper.make_node(
            "MultiHeadAttention",
            [query, key, value, "", mask],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            num_heads=values["num_heads"],
            **scale,
        )

    def operator_model(
        self, attributes: Any, hidden_size: int, dtype: str, opset: int, functions: Sequence[Any]
    ) -> ModelProto | None:
        """An ONNX model of one node, for `Runner.run_operator`; None where `judge` never asks for it.

        Its inputs are called query, key, value and attention_mask, its output context.
        """
        return None

    # Comparison.

    def judge(self, attributes: Sequence[Any], constants: Sequence[tuple[Tensor, ...]] = ()) -> Judge:
        """Says whether a candidate's attention is right, and tells choice from arithmetic where there is a choice.

        Args:
            attributes: of each attention layer, from `layer_attributes` or a file.
            constants: of each attention layer, from `constants` or `mra_export.export.onnx_model.layer_constants`.
        """
        from mra_export.operators.judge import Judge

        return Judge(self.attend, attributes, constants)

    def blocks_per_row(self, attributes: Any, seq_len: int) -> tuple[float, int] | None:
        """On how many blocks of keys a block of queries is computed at a length, and how many there are; None where on all."""
        return None

    def makes_no_choice(self, attributes: Any, seq_len: int) -> bool:
        """Whether rounding cannot change what the attention computes with, so that outputs may be compared alone."""
        return True


def read_options(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a family, with defaults for those that are not given.

    Args:
        family: the family.
        given: name -> value, as text or in the option's type.

    Raises:
        InputError: the family has no such option, or the value is none for it.
    """
    unknown = sorted(set(given) - set(family.options))
    if unknown:
        known = "; ".join(f"{name} ({option.help})" for name, option in family.options.items()) or "none"
        raise InputError(f"{family.title} has no option {', '.join(unknown)}. Its options: {known}.")
    values = {name: option.default for name, option in family.options.items()}
    for name, text in given.items():
        kind = type(family.options[name].default)
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise InputError(f"option {name}={text!r} must be of type {kind.__name__}.") from error
        family.options[name].check(values[name])
    return values


def noted_options(family: Family, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The options with which a model was exported, of what the exporter noted in its file."""
    noted = {name: metadata[f"option.{name}"] for name in family.options if f"option.{name}" in metadata}
    return read_options(family, noted)
