"""Triton's model configurations, built with Triton's own protobuf schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mra_export.optional import require

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mra_export.engine.ranges import Range

__all__ = [
    "TEXTS",
    "Encoder",
    "Step",
    "Tensor",
    "Warmup",
    "encoder_config",
    "ensemble_config",
    "padded_width",
    "pooling_config",
    "schema",
    "string_tensor",
    "text_of",
    "texts_config",
    "tokenizer_config",
    "warmups",
]

VERSION = "1"
"""Of every model: the name of the folder that Triton serves."""


@dataclass(frozen=True)
class Tensor:
    """An input or output as Triton has it.

    Attributes:
        name: of it.
        data_type: Triton's, as in "TYPE_INT64".
        dims: without the batch; -1 where it varies.
        optional: whether a request may leave an input out.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True)
class Encoder:
    """One model that runs the network.

    Attributes:
        name: in the repository.
        backend: Triton's, "onnxruntime" or "tensorrt".
        inputs: without the batch.
        outputs: without the batch.
        ranges: "batch", "sequence" and with multiple choice "choices" -> the sizes to serve.
        length_step: of the model's family, tokens of a block.
        least: of a sequence, in tokens; an engine's profile may not go down to 1.
        gpu: whether it runs on GPUs.
        files: compute capability -> file in the version's folder; "" -> the file for GPUs without one of their own.
        op_library: as the server finds the operator's library, None without one.
    """

    name: str
    backend: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ranges: Mapping[str, Range]
    length_step: int
    least: int
    gpu: bool
    files: Mapping[str, str]
    op_library: str | None


@dataclass(frozen=True)
class Warmup:
    """A batch to run before the model counts as ready.

    Attributes:
        batch: rows.
        shape: of an input, without the batch.
    """

    batch: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """A model in an ensemble.

    Attributes:
        model: its name.
        inputs: input of the model -> tensor of the ensemble.
        outputs: output of the model -> tensor of the ensemble.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


TEXTS = (Tensor("text", "TYPE_STRING", (1,)), Tensor("prompt_name", "TYPE_STRING", (1,), optional=True))
WINDOW = 8
"""Largest batches of the encoder whose texts are grouped at once: the more, the fuller the batches of each length."""


def schema() -> Any:
    """Triton's `model_config_pb2`.

    Raises:
        DependencyError: it is not installed.
    """
    return require(
        "tritonclient.grpc.model_config_pb2",
        "Triton's model configuration schema is missing ({error}). Run `pip install 'mra-export[triton]'`, or "
        "`pip install 'tritonclient[grpc]'`.",
    )


def text_of(config: Any) -> str:
    """A configuration in protobuf's text format: the content of a config.pbtxt; the same message gives the same text."""
    from google.protobuf import text_format

    return text_format.MessageToString(config, as_utf8=True)


def padded_width(length: int, step: int, limit: int) -> int:
    """Tokens to which a text of `length` tokens is padded: the end of its last block, or the model's last position."""
    return min(-(-length // step) * step, limit)


def warmups(encoder: Encoder) -> list[Warmup]:
    """What to run once at the start: the lengths that will come, alone and in a batch of the usual size.

    On a GPU the largest batch too: memory that is too small shows at the start, and not under load.
    """
    batch, seq_len = encoder.ranges["batch"], encoder.ranges["sequence"]
    choices = (encoder.ranges["choices"].opt,) if "choices" in encoder.ranges else ()
    lengths = {n: padded_width(n, encoder.length_step, seq_len.max) for n in (seq_len.min, seq_len.opt, seq_len.max)}
    runs = [(1, length) for length in lengths.values()] + [(batch.opt, lengths[seq_len.opt])]
    if encoder.gpu:
        runs.append((batch.max, seq_len.max))
    return [Warmup(rows, (*choices, length)) for rows, length in dict.fromkeys(runs)]


def encoder_config(encoder: Encoder, *, instances: int, queue_delay: int) -> Any:
    """The configuration of an ONNX file or of engines.

    Args:
        encoder: the model.
        instances: that run at the same time, on each GPU or on the CPU.
        queue_delay: microseconds that a request waits for others of its shape.

    Returns:
        `ModelConfig`.
    """
    pb = schema()
    config = _new(encoder.name, encoder.ranges["batch"].max, encoder.inputs, encoder.outputs)
    config.backend = encoder.backend
    config.platform = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}[encoder.backend]
    _add_instances(config, instances, gpu=encoder.gpu)
    config.default_model_filename = encoder.files[""]
    for capability, name in encoder.files.items():
        if capability:
            config.cc_model_filenames[capability] = name
    _add_batching(config, queue_delay, preferred=(encoder.ranges["batch"].opt, encoder.ranges["batch"].max))
    if encoder.backend == "onnxruntime":
        # Plans of memory are kept for each shape that comes; with lengths and batches that vary they only grow.
        config.parameters["enable_mem_pattern"].string_value = "0"
        if encoder.op_library is not None:
            config.model_operations.op_library_filename.append(encoder.op_library)
    else:
        config.instance_group[0].profile.append("0")
    for run in warmups(encoder):
        warmup = config.model_warmup.add(
            name=f"batch {run.batch}, {' x '.join(map(str, run.shape))} tokens", batch_size=run.batch, count=1
        )
        for tensor in encoder.inputs:
            value = warmup.inputs[tensor.name]
            value.data_type = pb.DataType.Value(tensor.data_type)
            value.dims.extend(run.shape)
            if tensor.name in ("input_ids", "attention_mask"):  # zeros would be all padding, and random bytes no tokens
                value.input_data_file = tensor.name
            else:
                value.zero_data = True
    return config


def tokenizer_config(
    name: str, outputs: Sequence[str], *, max_batch: int, instances: int, settings: Mapping[str, str]
) -> Any:
    """The configuration of the step from text to token ids.

    Args:
        name: of the model.
        outputs: the encoder's inputs.
        max_batch: texts in one call of the tokenizer.
        instances: processes.
        settings: "block_size", "min_length", "max_length", "pad_token_id", "truncation_side"; and as JSON "prompt",
            what is put before a text that names none, and "prompts", those that can be named.

    Returns:
        `ModelConfig`.
    """
    ids = [Tensor(each, "TYPE_INT64", (-1,)) for each in outputs]
    config = _python_model(name, max_batch, TEXTS, ids, instances, settings)
    _add_batching(config, 0, preferred=())
    warmup = config.model_warmup.add(name="a text", batch_size=1, count=1)
    warmup.inputs["text"].data_type = schema().DataType.TYPE_STRING
    warmup.inputs["text"].dims.append(1)
    warmup.inputs["text"].input_data_file = "text"
    return config


def texts_config(
    name: str, encoder: Encoder, output: Tensor, *, instances: int, queue_delay: int, settings: Mapping[str, str]
) -> Any:
    """The configuration of the way from many texts to `output`, which groups them by length.

    Args:
        name: of the model.
        encoder: that it calls.
        output: of it.
        instances: processes.
        queue_delay: microseconds that a request waits for others.
        settings: those of `tokenizer_config`, "encoder_output", and with a pooling of its own "modules".

    Returns:
        `ModelConfig`.
    """
    batch = encoder.ranges["batch"].max
    settings = {
        **settings,
        "encoder": encoder.name,
        "encoder_batch": str(batch),
        "encoder_inputs": ",".join(tensor.name for tensor in encoder.inputs),
    }
    config = _python_model(name, WINDOW * batch, TEXTS, [output], instances, settings)
    _add_batching(config, queue_delay, preferred=())
    return config


def pooling_config(name: str, encoder: Encoder, *, modules: str, max_batch: int, instances: int) -> Any:
    """The configuration of the step from token vectors to one vector a text.

    Args:
        name: of the model.
        encoder: whose output `last_hidden_state` it takes.
        modules: as a bundle's manifest has them, as JSON.
        max_batch: texts in a request.
        instances: processes.

    Returns:
        `ModelConfig`.
    """
    states = next(tensor for tensor in encoder.outputs if tensor.name == "last_hidden_state")
    mask = next(tensor for tensor in encoder.inputs if tensor.name == "attention_mask")
    vector = Tensor("sentence_embedding", "TYPE_FP32", states.dims[-1:])
    return _python_model(name, max_batch, [states, mask], [vector], instances, {"modules": modules})


def ensemble_config(name: str, output: Tensor, steps: Sequence[Step]) -> Any:
    """The configuration of the way from a text to `output`, one text a request.

    Texts of one request would be padded to the longest, and the number of blocks is part of what the encoder computes: one
    text a request keeps each vector independent of its neighbours. The steps batch requests of the same length.

    Args:
        name: of the ensemble.
        output: of the last step, and of the ensemble.
        steps: in order.

    Returns:
        `ModelConfig`.
    """
    config = _new(name, 1, TEXTS, [output])
    config.platform = "ensemble"
    for step in steps:
        added = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        added.input_map.update(step.inputs)
        added.output_map.update(step.outputs)
    return config


def string_tensor(text: str) -> bytes:
    """One string as Triton has strings in memory: its length in bytes, four of them, then the bytes."""
    content = text.encode()
    return len(content).to_bytes(4, "little") + content


def _new(name: str, max_batch: int, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Any:
    pb = schema()
    config = pb.ModelConfig(name=name, max_batch_size=max_batch)
    for tensors, field in ((inputs, config.input), (outputs, config.output)):
        for tensor in tensors:
            added = field.add(name=tensor.name, data_type=pb.DataType.Value(tensor.data_type), dims=tensor.dims)
            if tensor.optional:
                added.optional = True
    config.version_policy.latest.num_versions = 1
    config.response_cache.enable = False
    return config


def _python_model(
    name: str,
    max_batch: int,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    instances: int,
    settings: Mapping[str, str],
) -> Any:
    config = _new(name, max_batch, inputs, outputs)
    config.backend = "python"
    config.default_model_filename = "model.py"
    _add_instances(config, instances, gpu=False)
    for key, value in settings.items():
        config.parameters[key].string_value = value
    return config


def _add_instances(config: Any, count: int, *, gpu: bool) -> None:
    kind = schema().ModelInstanceGroup.KIND_GPU if gpu else schema().ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=count)


def _add_batching(config: Any, queue_delay: int, preferred: Sequence[int]) -> None:
    """Lets requests of equal shape run together; a batch of a preferred size does not wait."""
    if config.max_batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = queue_delay
        config.dynamic_batching.preferred_batch_size.extend(sorted({size for size in preferred if size > 1}))
