"""Writes a bundle's model repository for Triton Inference Server: configurations, files, and the commands that serve it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.dtypes import DTYPES, onnx_type
from mra_export.engine.gpu import parse_version
from mra_export.engine.ranges import Range, check_ranges, parse_range, ranges_of
from mra_export.errors import InputError
from mra_export.native.libraries import LIBRARY_FILES
from mra_export.operators.mra2_attention.spec import BLOCK_SIZE
from mra_export.triton_config import (
    Encoder,
    Step,
    Tensor,
    encoder_config,
    ensemble_config,
    padded_width,
    pooling_config,
    schema,
    string_tensor,
    text_of,
    texts_config,
    tokenizer_config,
    warmups,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mra_export.bundle.manifest import Bundle, Variant

__all__ = [
    "MODEL_REPOSITORY",
    "Repository",
    "RepositoryWriter",
    "TritonSettings",
    "triton_settings",
    "write_model_repository",
]

MODEL_REPOSITORY = "triton"
"""Its folder in a bundle."""
VERSION = "1"
"""Of every model: the name of the folder that Triton serves."""
TAG = "26.06"
"""Release of NVIDIA's image in the commands; its ONNX Runtime is 1.27."""
TEXT_OUTPUTS = {"feature-extraction": "sentence_embedding", "text-classification": "logits"}
"""Task -> the output that an ensemble gives for a text."""
MAX_QUEUE_DELAY = 10_000_000
MAX_INSTANCES = 1024


@dataclass(frozen=True)
class TritonSettings:
    """How a model repository is to be.

    Attributes:
        tokenizer: whether it gets a step from text to token ids, and ensembles from text to the model's output.
        pooling: "cls" or "mean" in a step of its own, for a model that was exported without; None for none.
        normalize: whether that step scales vectors to length 1.
        device: "cpu" or "gpu", of the ONNX file; engines always run on GPUs.
        instances: of each model, for each GPU or on the CPU.
        queue_delay: microseconds that a request waits for others of its shape.
        batch: sizes to serve; None for 1:8:32, with an engine for its profile.
        seq_len: tokens to serve; None for all, 128 as the usual length; with an engine for its profile.
        name: with which the names of the models begin; None for the family, as in "mra".
        library: where the server finds libmra_onnxruntime.so; None for the one in the repository.
    """

    tokenizer: bool = False
    pooling: str | None = None
    normalize: bool = False
    device: str = "cpu"
    instances: int = 1
    queue_delay: int = 500
    batch: Range | None = None
    seq_len: Range | None = None
    name: str | None = None
    library: str | None = None


@dataclass(frozen=True)
class Repository:
    """What was written.

    Attributes:
        models: names, in order.
        notes: what a user has to know.
        backend_options: arguments of tritonserver that the models need.
        environment: variables that the server needs, as NAME=VALUE.
        gpu: whether a model runs on GPUs.
        python: whether a model runs in the python backend.
        tensorrt: version of the TensorRT that built the engines in it, None without one.
        request: the body of a request to the last model, as JSON.
    """

    models: tuple[str, ...]
    notes: tuple[str, ...]
    backend_options: tuple[str, ...]
    environment: tuple[str, ...]
    gpu: bool
    python: bool
    tensorrt: str | None
    request: str

    def arguments(self, repository: str) -> str:
        """The arguments of tritonserver; it has to be started with the repository as its working directory."""
        return " ".join((f"--model-repository={repository}", "--disable-auto-complete-config", *self.backend_options))

    def commands(self, directory: Path) -> dict[str, str]:
        """The commands that serve a repository at `directory`: "docker", "server", "ready" and "request"."""
        tag = TAG if self.tensorrt is None else "YY.MM"
        options = ["--gpus all"] * self.gpu + ["--shm-size 256m"] * self.python + [f"-e {e}" for e in self.environment]
        docker = [
            "docker run --rm -p 8000:8000 -p 8001:8001 -p 8002:8002",
            *options,
            f'-v "$(realpath {shlex.quote(str(directory))}):/models:ro" -w /models nvcr.io/nvidia/tritonserver:{tag}-py3',
            f"tritonserver {self.arguments('/models')}",
        ]
        return {
            "docker": " ".join(docker),
            "server": " ".join(
                [f"cd {shlex.quote(str(directory))} &&", *self.environment, f"tritonserver {self.arguments('.')}"]
            ),
            "ready": "curl -sf localhost:8000/v2/health/ready",
            "request": f"curl -s localhost:8000/v2/models/{self.models[-1]}/infer -d '{self.request}'",
        }

    def as_json(self, directory: Path) -> dict[str, Any]:
        """What `describe` says, for --json."""
        return {"models": list(self.models), "commands": self.commands(directory), "notes": self._notes()}

    def _notes(self) -> list[str]:
        matrix = "https://docs.nvidia.com/deeplearning/frameworks/support-matrix"
        image = f"YY.MM is the release whose TensorRT is {self.tensorrt}, by which the engines were built: {matrix}"
        return [*([image] if self.tensorrt else []), *self.notes]

    def describe(self, directory: Path) -> str:
        """The models, the commands and the notes, as lines."""
        lines = [f"{directory}: {', '.join(self.models)}", *(f"  {line}" for line in self.commands(directory).values())]
        return "\n".join(lines + [f"  note: {note}" for note in self._notes()])


@dataclass
class RepositoryWriter:
    """`write_model_repository` as `create_bundle` calls it; keeps what was written."""

    settings: TritonSettings
    repository: Repository | None = None

    def __call__(self, bundle: Bundle, target: Path) -> None:
        """Writes the repository of a bundle."""
        self.repository = write_model_repository(bundle, target, self.settings)


def triton_settings(
    enabled: bool, *, batch: str | None = None, seq_len: str | None = None, **options: Any
) -> TritonSettings | None:
    """The settings that options ask for, checked before anything is exported.

    Args:
        enabled: whether a repository is wanted.
        batch: MIN:OPT:MAX or None.
        seq_len: MIN:OPT:MAX or None.
        options: other attributes of `TritonSettings`; None and False stand for their defaults.

    Returns:
        The settings, or None where no repository is wanted.

    Raises:
        InputError: an option is wrong, or one was given without --triton.
        DependencyError: Triton's schema is not installed.
    """
    given = {key: value for key, value in options.items() if value is not None and value is not False}
    if not enabled:
        names = [f"--triton-{key}" for key in given]
        names += [name for name, value in (("--batch", batch), ("--seq-len", seq_len)) if value is not None]
        if names:
            raise InputError(f"{', '.join(names).replace('_', '-')} is for a model repository: add --triton.")
        return None
    settings = TritonSettings(
        batch=None if batch is None else parse_range(batch, "--batch"),
        seq_len=None if seq_len is None else parse_range(seq_len, "--seq-len"),
        **given,
    )
    if settings.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", settings.name):
        raise InputError(
            f"--triton-name={settings.name!r} must be letters, digits, '_', '.' or '-': Triton's models are folders."
        )
    for name, value, least, most in (
        ("--triton-instances", settings.instances, 1, MAX_INSTANCES),
        ("--triton-queue-delay", settings.queue_delay, 0, MAX_QUEUE_DELAY),
    ):
        if not least <= value <= most:
            raise InputError(f"{name}={value} must be between {least} and {most}.")
    if settings.normalize and settings.pooling is None:
        raise InputError("--triton-normalize scales a pooled vector: add --triton-pooling cls or mean.")
    if settings.pooling is not None and not settings.tokenizer:
        raise InputError("--triton-pooling is a step of an ensemble: add --triton-tokenizer.")
    if settings.batch is not None and settings.batch.min != 1:
        raise InputError(f"--batch={settings.batch}: Triton sends single requests too, so the least size must be 1.")
    schema()
    return settings


def write_model_repository(bundle: Bundle, target: Path, settings: TritonSettings | None = None) -> Repository:
    """Writes a model repository: each folder of it is a model, with its own copies of the bundle's files.

    Copies, and no links: a repository is served from where it was copied to, ONNX Runtime refuses external weights behind a
    symbolic link, and a hard link becomes a copy in every upload. No path in it is absolute; the same bundle gives the same bytes.

    Args:
        bundle: the bundle.
        target: the directory to write; it must not exist.
        settings: None for the defaults.

    Returns:
        What was written.

    Raises:
        InputError: a setting does not fit the model or an engine.
        DependencyError: Triton's schema is not installed.
    """
    settings = TritonSettings() if settings is None else settings
    settings = replace(settings, name=settings.name or bundle.family)
    encoders, notes = _encoders(bundle, settings)
    output = _text_output(bundle, settings) if settings.tokenizer else None
    if settings.tokenizer:
        _check_tokenizer(bundle, encoders, settings)
    target.mkdir(parents=True)
    names = []
    for encoder, files in encoders:
        config = encoder_config(encoder, instances=settings.instances, queue_delay=settings.queue_delay)
        names.append(_write_model(target, config, files, _warmup_data(encoder, bundle.vocab_size)))
    if output is not None:
        names = [*_write_tokenizer(bundle, target, settings, encoders), *names]
        for encoder, _ in encoders:
            names += _write_text_models(bundle, target, settings, encoder, output)
    engines = [variant for variant in bundle.variants if variant.backend == "tensorrt"]
    options, environment = _plugin_options(engines, encoders)
    return Repository(
        models=tuple(names),
        notes=tuple(notes),
        backend_options=options,
        environment=environment,
        gpu=any(encoder.gpu for encoder, _ in encoders),
        python=settings.tokenizer,
        tensorrt=_tensorrt(engines),
        request=_request(encoders[-1][0], settings),
    )


def _encoders(bundle: Bundle, settings: TritonSettings) -> tuple[list[tuple[Encoder, dict[str, Path]]], list[str]]:
    """The models with the files of their version's folder, the ONNX file first; and what was left out, and why."""
    notes: list[str] = []
    inputs, outputs = _tensors(bundle.model_file)
    found = [_onnx_encoder(bundle, settings, inputs, outputs)]
    engines = []
    for variant in bundle.variants[1:]:
        if variant.backend == "rtx":
            notes.append(
                f"{variant.file.name} is for TensorRT-RTX, which Triton's tensorrt backend does not load: it is not in the "
                "repository. Build an engine with --backend tensorrt on the GPU that serves."
            )
        else:
            engines.append(variant)
    # One that is version compatible runs in newer ones too.
    versions = sorted({str(engine.backend_version) for engine in engines if not engine.version_compatible})
    if len(versions) > 1:
        raise InputError(
            f"{', '.join(engine.file.name for engine in engines)} were built with different TensorRTs "
            f"({', '.join(versions)}), and a server has one. Build them with the same, or with --version-compatible."
        )
    groups = _groups(engines)
    for group in groups:
        precision = group[0].precision
        name = f"{settings.name}_trt_{precision}"
        if sum(other[0].precision == precision for other in groups) > 1:
            sizes = _profile(group[0], inputs)
            name += f"_{sizes['batch'].max}x{sizes['sequence'].max}"
        found.append(_engine_encoder(name, group, settings, inputs, outputs))
    names = [encoder.name for encoder, _ in found]
    if len(set(names)) < len(names):
        raise InputError(f"The engines give models of the same name: {', '.join(names)}. Leave one of the engines out.")
    return found, notes


def _tensors(model_file: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The inputs and outputs of the ONNX file, without the batch."""
    import onnx

    graph = onnx.load(str(model_file), load_external_data=False).graph
    types = {
        **{onnx_type(name): names.triton for name, names in DTYPES.items()},
        onnx.TensorProto.INT64: "TYPE_INT64",
        onnx.TensorProto.INT32: "TYPE_INT32",
    }

    def tensors(values: Any) -> tuple[Tensor, ...]:
        made = []
        for value in values:
            kind = value.type.tensor_type
            dims = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
            if kind.elem_type not in types or not dims or dims[0] != "batch":
                raise InputError(
                    f"{model_file}: {value.name} has the axes {dims}, of which Triton needs the first to be the batch, or a type "
                    "that Triton does not have. Export the checkpoint again with `mra-export onnx`."
                )
            made.append(
                Tensor(value.name, types[kind.elem_type], tuple(d if isinstance(d, int) else -1 for d in dims[1:]))
            )
        return tuple(made)

    return tensors(graph.input), tensors(graph.output)


def _onnx_encoder(
    bundle: Bundle, settings: TritonSettings, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]
) -> tuple[Encoder, dict[str, Path]]:
    from mra_export.export.onnx_model import read_onnx

    gpu = settings.device == "gpu"
    if bundle.dtype == "bf16" and not gpu:
        raise InputError(
            "ONNX Runtime has no bfloat16 kernels for CPUs, so Triton could not run the ONNX file there. Add --triton-device "
            "gpu, or bundle an fp32 or fp16 export."
        )
    if gpu and bundle.library is not None and b"CUDAExecutionProvider" not in bundle.library.read_bytes():
        raise InputError(
            f"--triton-device=gpu, but {bundle.library.name} was built without CUDA kernels: every attention layer would "
            "leave the GPU. Build it with `cmake -DMRA_CUDA=ON`, give an engine, or leave --triton-device out."
        )
    if settings.library is not None and bundle.library is None:
        raise InputError(
            f"--triton-library={settings.library}, but the bundle has no {LIBRARY_FILES['onnxruntime']}: its model runs the "
            "function body. Run `mra-export build` first, or leave the option out."
        )
    model = read_onnx(bundle.model_file)
    ranges = ranges_of(model, model.input_axes, settings.batch, settings.seq_len, None)
    check_ranges({"sequence": ranges["sequence"]}, bundle.max_seq_len)
    name = f"{settings.name}_onnx"
    weights, *data = model.files
    files = {"model.onnx": weights, **{path.name: path for path in data}}
    op_library = None
    if bundle.library is not None:
        op_library = settings.library
        if op_library is None:
            files[LIBRARY_FILES["onnxruntime"]] = bundle.library
            # ONNX Runtime gives this to dlopen: with a slash in it, it is looked for from the working directory.
            op_library = f"{name}/{VERSION}/{LIBRARY_FILES['onnxruntime']}"
    return Encoder(name, "onnxruntime", inputs, outputs, ranges, 1, gpu, {"": "model.onnx"}, op_library), files


def _groups(engines: Sequence[Variant]) -> list[list[Variant]]:
    """Engines that are one model: the same precision and sizes, for different GPUs, of which Triton takes the one that fits."""
    groups: dict[str, list[Variant]] = {}
    for engine in engines:
        groups.setdefault(json.dumps([engine.precision, engine.profiles], sort_keys=True), []).append(engine)
    for group in groups.values():
        seen: dict[tuple[str | None, bool | None], Variant] = {}
        for engine in group:
            # One that all newer GPUs may run is for those that have none of their own.
            key = (None, True) if engine.hardware_compatible else (engine.compute_capability, False)
            if key in seen:
                raise InputError(
                    f"{seen[key].file.name} and {engine.file.name} have the same precision and profile, and are for the same "
                    f"GPUs ({engine.compute_capability}): Triton could not choose. Leave one of them out."
                )
            seen[key] = engine
    return list(groups.values())


def _profile(engine: Variant, inputs: tuple[Tensor, ...]) -> dict[str, Range]:
    """The sizes that an engine takes, by axis."""
    assert engine.profiles is not None
    shapes = engine.profiles["input_ids"]
    axes = ("batch", "choices", "sequence") if len(inputs[0].dims) == 2 else ("batch", "sequence")
    if any(len(shapes[key]) != len(axes) for key in ("min", "opt", "max")):
        raise InputError(f"{engine.file}: its profile {shapes} is not one of {', '.join(axes)}. Build it again.")
    return {axis: Range(*(shapes[key][i] for key in ("min", "opt", "max"))) for i, axis in enumerate(axes)}


def _engine_encoder(
    name: str,
    group: list[Variant],
    settings: TritonSettings,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
) -> tuple[Encoder, dict[str, Path]]:
    first = group[0]
    profile = _profile(first, inputs)
    if profile["batch"].min > 1:
        raise InputError(
            f"{first.file.name} takes batches of {profile['batch']}, but Triton sends single requests too. Build it with "
            f"--batch 1:{profile['batch'].opt}:{profile['batch'].max}."
        )
    ranges = dict(profile)
    for axis, option, asked in (("batch", "--batch", settings.batch), ("sequence", "--seq-len", settings.seq_len)):
        if asked is None:
            continue
        limit = profile[axis]
        if asked.max > limit.max or asked.min < limit.min:
            raise InputError(
                f"{option}={asked} is outside the profile {limit} of {first.file.name}. Stay within it, or build the engine "
                f"with {option} {asked}."
            )
        ranges[axis] = asked
    default = next((engine for engine in group if engine.hardware_compatible), first)
    files, names = {}, {}
    for engine in group:
        capability = "" if engine is default else str(engine.compute_capability)
        file = f"model_{capability}.plan" if capability else "model.plan"
        files[file], names[capability] = engine.file, file
        if engine.library is not None:
            files[LIBRARY_FILES["tensorrt"]] = engine.library
    encoder = Encoder(name, "tensorrt", inputs, outputs, ranges, profile["sequence"].min, True, names, None)
    return encoder, files


def _text_output(bundle: Bundle, settings: TritonSettings) -> str:
    """The output of the ensembles; refuses what they cannot give."""
    if bundle.task not in TEXT_OUTPUTS:
        raise InputError(
            f"--triton-tokenizer is for {' and '.join(TEXT_OUTPUTS)}; this is {bundle.task}. Leave it out: clients send "
            "token ids."
        )
    if bundle.tokenizer_file is None:
        raise InputError(
            "--triton-tokenizer needs a tokenizer.json, which the bundle does not have. Put it beside the checkpoint, or "
            "leave the option out: clients send token ids."
        )
    output = TEXT_OUTPUTS[bundle.task]
    if settings.pooling is not None and output in bundle.outputs:
        raise InputError(f"--triton-pooling={settings.pooling}, but the model already gives {output}. Leave it out.")
    if output not in bundle.outputs and settings.pooling is None:
        raise InputError(
            f"The model gives {', '.join(bundle.outputs)} and no {output}. Export it with --pooling mean, which is faster, "
            "or add --triton-pooling mean."
        )
    return output


def _longest_text(bundle: Bundle, settings: TritonSettings) -> int:
    """Tokens at which texts are cut."""
    return min(bundle.tokenizer_max_length, settings.seq_len.max if settings.seq_len else bundle.tokenizer_max_length)


def _check_tokenizer(bundle: Bundle, encoders: list[tuple[Encoder, dict[str, Path]]], settings: TritonSettings) -> None:
    """Refuses engines that do not take every length that the tokenizer gives."""
    longest = _longest_text(bundle, settings)
    for encoder, _ in encoders:
        limit = encoder.ranges["sequence"]
        width = padded_width(longest, bundle.max_seq_len)
        if width > limit.max or encoder.least > min(BLOCK_SIZE, longest):
            raise InputError(
                f"{encoder.name} takes {encoder.least} to {limit.max} tokens, but texts come with {min(BLOCK_SIZE, longest)} to "
                f"{width}. Build the engine with --seq-len 1:{limit.opt}:{width}, or have texts cut with --seq-len "
                f"1:{limit.opt}:{limit.max}."
            )


def _write_model(target: Path, config: Any, files: Mapping[str, Path], warmup: Mapping[str, bytes]) -> str:
    folder = target / config.name
    (folder / VERSION).mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
    for name, source in files.items():
        shutil.copyfile(source, folder / VERSION / name)
    if warmup:
        (folder / "warmup").mkdir()
        for name, content in warmup.items():
            (folder / "warmup" / name).write_bytes(content)
    return str(config.name)


def _warmup_data(encoder: Encoder, vocab_size: int) -> dict[str, bytes]:
    """Token ids all over the vocabulary and a mask of ones, for the largest request of the warm-up; others use its beginning."""
    import math

    import numpy as np

    count = max(math.prod(run.shape) for run in warmups(encoder))
    ids = np.arange(1, count + 1, dtype=np.int64) * 2654435761 % vocab_size
    return {"input_ids": ids.astype("<i8").tobytes(), "attention_mask": np.ones(count, dtype="<i8").tobytes()}


def _write_tokenizer(
    bundle: Bundle, target: Path, settings: TritonSettings, encoders: list[tuple[Encoder, dict[str, Path]]]
) -> list[str]:
    """The step from text to token ids, and where it is asked for the one from token vectors to one vector."""
    assert bundle.tokenizer_file is not None
    config = tokenizer_config(
        f"{settings.name}_tokenizer",
        bundle.inputs,
        max_batch=max(encoder.ranges["batch"].max for encoder, _ in encoders),
        instances=settings.instances,
        settings=_tokenizer_settings(bundle, settings),
    )
    files = {**_model_code("tokenizer", "token_ids"), "tokenizer.json": bundle.tokenizer_file}
    names = [_write_model(target, config, files, {"text": string_tensor("A text of a few words.")})]
    if settings.pooling is not None:
        config = pooling_config(
            f"{settings.name}_pooling", encoders[0][0], mode=settings.pooling, normalize=settings.normalize,
            max_batch=max(encoder.ranges["batch"].max for encoder, _ in encoders), instances=settings.instances,
        )  # fmt: skip
        names.append(_write_model(target, config, _model_code("pooling", "pooling"), {}))
    return names


def _tokenizer_settings(bundle: Bundle, settings: TritonSettings) -> dict[str, str]:
    return {
        "max_length": str(_longest_text(bundle, settings)),
        "max_positions": str(bundle.max_seq_len),
        "pad_token_id": str(bundle.pad_token_id),
    }


def _model_code(step: str, *modules: str) -> dict[str, Path]:
    """The code of a step: file in the version's folder -> file of this package."""
    folder = Path(__file__).parent / "data" / "triton"
    return {"model.py": folder / f"{step}_model.py", **{f"{m}.py": folder / f"{m}.py" for m in modules}}


def _write_text_models(
    bundle: Bundle, target: Path, settings: TritonSettings, encoder: Encoder, output: str
) -> list[str]:
    """The two ways from text to the model's output: an ensemble for one, and a model that groups many by length."""
    inputs = {tensor.name: tensor.name for tensor in encoder.inputs}
    source = "last_hidden_state" if settings.pooling is not None else output
    steps = [
        Step(f"{settings.name}_tokenizer", {"text": "text"}, inputs),
        Step(encoder.name, inputs, {source: source}),
    ]
    given = next(tensor for tensor in encoder.outputs if tensor.name == source)
    own = {"encoder_output": source}
    if settings.pooling is not None:
        given = Tensor(output, "TYPE_FP32", given.dims[-1:])
        taken = {source: source, "attention_mask": "attention_mask"}
        steps.append(Step(f"{settings.name}_pooling", taken, {output: output}))
        own |= {"mode": settings.pooling, "normalize": str(int(settings.normalize))}
    config = ensemble_config(f"{encoder.name}_text", given, steps)
    name = _write_model(target, config, {}, {})
    # Triton wants a version's folder, and neither a bucket nor a bundle keeps an empty one.
    (target / name / VERSION / "README.txt").write_text("An ensemble has no file of its own.\n", encoding="utf-8")
    assert bundle.tokenizer_file is not None
    config = texts_config(
        f"{encoder.name}_texts", encoder, given, instances=settings.instances, queue_delay=settings.queue_delay,
        settings={**_tokenizer_settings(bundle, settings), **own},
    )  # fmt: skip
    files = {**_model_code("texts", "token_ids", "pooling"), "tokenizer.json": bundle.tokenizer_file}
    return [name, _write_model(target, config, files, {})]


def _plugin_options(
    engines: Sequence[Variant], encoders: Sequence[tuple[Encoder, Mapping[str, Path]]]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the tensorrt backend and its environment have to be told, so that engines find the operator."""
    library = LIBRARY_FILES["tensorrt"]
    holders = [encoder.name for encoder, files in encoders if library in files]
    options = [f"--backend-config=tensorrt,plugins={holders[0]}/{VERSION}/{library}"] if holders else []
    if any(engine.library is None or engine.version_compatible for engine in engines):
        # It lets TensorRT run what an engine brings along, its plugin and its own runtime.
        options.append("--backend-config=tensorrt,version-compatible=true")
    # The backend opens the library and does no more.
    return tuple(options), ("MRA_TENSORRT_REGISTER=1",) if holders else ()


def _tensorrt(engines: Sequence[Variant]) -> str | None:
    """The version that the server has to have: that of an engine which runs in no other, else the newest."""
    bound = [engine for engine in engines if not engine.version_compatible] or list(engines)
    return max((str(engine.backend_version) for engine in bound), key=parse_version, default=None)


def _request(encoder: Encoder, settings: TritonSettings) -> str:
    """A request to the last model that is written: a text to an ensemble, else token ids."""
    if settings.tokenizer:
        given = [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["A sentence to embed."]}]
        return json.dumps({"inputs": given})
    length = encoder.least if encoder.least > 4 else 4
    shape = [1, *(1 for _ in encoder.inputs[0].dims[1:]), length]
    values = {"input_ids": list(range(length)), "attention_mask": [1] * length}
    given = [
        {"name": t.name, "datatype": "INT64", "shape": shape, "data": values.get(t.name, [0] * length)}
        for t in encoder.inputs
    ]
    outputs = [{"name": encoder.outputs[-1].name}]
    return json.dumps({"inputs": given, "outputs": outputs})
