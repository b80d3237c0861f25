"""Writes a bundle's model repository for Triton Inference Server: configurations, files, and the commands that serve it."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.bundle import chain
from mra_export.checkpoint.modules import Module, Normalize, Pooling, as_stated
from mra_export.engine.gpu import parse_version
from mra_export.errors import InputError
from mra_export.native.libraries import LIBRARY_FILES
from mra_export.triton.configs import (
    TEXTS,
    VERSION,
    Encoder,
    Step,
    Tensor,
    encoder_config,
    ensemble_config,
    pooling_config,
    string_tensor,
    text_of,
    texts_config,
    tokenizer_config,
    warmups,
)
from mra_export.triton.encoders import encoders_of
from mra_export.triton.settings import TritonSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mra_export.bundle.manifest import Bundle, Variant

__all__ = ["MODEL_REPOSITORY", "Repository", "RepositoryWriter", "write_model_repository"]

MODEL_REPOSITORY = "triton"
"""Its folder in a bundle."""
TAG = "26.06"
"""Release of NVIDIA's image in the commands; its ONNX Runtime is 1.27."""
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY=1"
"""The ONNX Runtime in the server reports to Microsoft otherwise, from 1.29 on."""
_CHAIN = {"chain.py": Path(chain.__file__)}
TEXT_OUTPUTS = {"feature-extraction": "sentence_embedding", "text-classification": "logits"}
"""Task -> the output that an ensemble gives for a text."""


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
    encoders, notes = encoders_of(bundle, settings)
    output = _text_output(bundle, settings) if settings.tokenizer else None
    if settings.tokenizer:
        _check_tokenizer(bundle, encoders, settings)
        notes += _check_prompts(bundle)
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
    environment = (TELEMETRY_OFF, *environment)
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


def _check_prompts(bundle: Bundle) -> list[str]:
    """Refuses a default prompt that must not count in a pooling which counts it; a note where a prompt can only be left out."""
    if bundle.include_prompt or not any(bundle.prompts.values()):
        return []
    why = "include_prompt=false: the tokens of a prompt must not count in the pooling, but the model counts them."
    if bundle.prompt():
        raise InputError(
            f"--triton-tokenizer: the bundle puts the prompt {bundle.default_prompt!r} before each text, and has {why} Leave the "
            "option out, or use `mra-export embed`."
        )
    return [f"The bundle has {why} So the models of texts take no prompt_name; `mra-export embed` does."]


def _modules(settings: TritonSettings) -> str:
    """The modules of a pooling step, as JSON."""
    modules: list[Module] = [Pooling((str(settings.pooling),)), *([Normalize()] if settings.normalize else [])]
    return json.dumps([as_stated(module) for module in modules])


def _longest_text(bundle: Bundle, settings: TritonSettings) -> int:
    """Tokens at which texts are cut."""
    return min(bundle.tokenizer_max_length, settings.seq_len.max if settings.seq_len else bundle.tokenizer_max_length)


def _check_tokenizer(bundle: Bundle, encoders: list[tuple[Encoder, dict[str, Path]]], settings: TritonSettings) -> None:
    """Refuses engines that do not take every length that the tokenizer gives."""
    longest = _longest_text(bundle, settings)
    # A text may be padded to the end of its first block: it has as many blocks then.
    least = min(bundle.length_step, longest)
    for encoder, _ in encoders:
        limit = encoder.ranges["sequence"]
        if longest > limit.max or encoder.least > least:
            raise InputError(
                f"{encoder.name} takes {encoder.least} to {limit.max} tokens, but texts come with {least} to "
                f"{longest}. Build the engine with --seq-len 1:{limit.opt}:{longest}, or have texts cut with --seq-len "
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
        settings=_tokenizer_settings(bundle, settings, [encoder for encoder, _ in encoders]),
    )
    files = {**_model_code("tokenizer", "token_ids"), "tokenizer.json": bundle.tokenizer_file}
    names = [_write_model(target, config, files, {"text": string_tensor("A text of a few words.")})]
    if settings.pooling is not None:
        config = pooling_config(
            f"{settings.name}_pooling", encoders[0][0], modules=_modules(settings),
            max_batch=max(encoder.ranges["batch"].max for encoder, _ in encoders), instances=settings.instances,
        )  # fmt: skip
        names.append(_write_model(target, config, {**_model_code("pooling", "pooling"), **_CHAIN}, {}))
    return names


def _tokenizer_settings(bundle: Bundle, settings: TritonSettings, encoders: Sequence[Encoder]) -> dict[str, str]:
    prompts = {name: prompt for name, prompt in bundle.prompts.items() if bundle.include_prompt or not prompt}
    return {
        "min_length": str(max(encoder.least for encoder in encoders)),
        "block_size": str(bundle.length_step),
        "max_length": str(_longest_text(bundle, settings)),
        "pad_token_id": str(bundle.pad_token_id),
        "truncation_side": bundle.truncation_side,
        "prompt": json.dumps(bundle.prompt(), ensure_ascii=False),
        "prompts": json.dumps(prompts, ensure_ascii=False, sort_keys=True),
    }


def _model_code(step: str, *modules: str) -> dict[str, Path]:
    """The code of a step: file in the version's folder -> file of this package."""
    folder = Path(__file__).parent / "server"
    return {"model.py": folder / f"{step}_model.py", **{f"{m}.py": folder / f"{m}.py" for m in modules}}


def _write_text_models(
    bundle: Bundle, target: Path, settings: TritonSettings, encoder: Encoder, output: str
) -> list[str]:
    """The two ways from text to the model's output: an ensemble for one, and a model that groups many by length."""
    inputs = {tensor.name: tensor.name for tensor in encoder.inputs}
    source = "last_hidden_state" if settings.pooling is not None else output
    given_to = {tensor.name: tensor.name for tensor in TEXTS}
    steps = [
        Step(f"{settings.name}_tokenizer", given_to, inputs),
        Step(encoder.name, inputs, {source: source}),
    ]
    given = next(tensor for tensor in encoder.outputs if tensor.name == source)
    own = {"encoder_output": source}
    if settings.pooling is not None:
        given = Tensor(output, "TYPE_FP32", given.dims[-1:])
        taken = {source: source, "attention_mask": "attention_mask"}
        steps.append(Step(f"{settings.name}_pooling", taken, {output: output}))
        own["modules"] = _modules(settings)
    config = ensemble_config(f"{encoder.name}_text", given, steps)
    name = _write_model(target, config, {}, {})
    # Triton wants a version's folder, and neither a bucket nor a bundle keeps an empty one.
    (target / name / VERSION / "README.txt").write_text("An ensemble has no file of its own.\n", encoding="utf-8")
    assert bundle.tokenizer_file is not None
    config = texts_config(
        f"{encoder.name}_texts", encoder, given, instances=settings.instances, queue_delay=settings.queue_delay,
        settings={**_tokenizer_settings(bundle, settings, [encoder]), **own},
    )  # fmt: skip
    files = {**_model_code("texts", "token_ids", "pooling"), **_CHAIN, "tokenizer.json": bundle.tokenizer_file}
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
