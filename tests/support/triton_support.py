"""What the Triton tests share: a bundle with BERT's tokenizer, configurations read back, and the server's Python interface."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib.util
import inspect
import json
import re
import shutil
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_checkpoint

from mra_export.bundle.manifest import Bundle, Variant
from mra_export.checkpoint.load import load_checkpoint
from mra_export.export.exporter import export_onnx
from mra_export.pipeline.create_bundle import create_bundle
from mra_export.triton.repository import RepositoryWriter
from mra_export.triton.settings import TritonSettings

HIDDEN = 64
MAX_POSITIONS = 200  # no multiple of 32: the longest text is padded to the last position instead
TEXTS = [
    "A sentence.",
    "",
    "Grüße aus Jena! 你好 \U0001f600",
    "A longer text that goes on for some time, and then for some more. " * 4,
    "far too long " * 300,
]


def save_bert_tokenizer(folder: Path) -> Path:
    """A small tokenizer of BERT's kind, in the files that all-MiniLM-L6-v2 has; truncation and padding are there to be ignored."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = sorted({word for text in TEXTS for word in re.findall(r"[a-z]+", text.lower())} | {"another", "one"})
    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [
        *special,
        *letters,
        *(f"##{letter}" for letter in letters),
        *".,;!?你",
        *(w for w in words if w not in letters),
    ]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    tokens = {f"{name.strip('[]').lower()}_token": name for name in special}
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **tokens}))
    return folder


@functools.cache
def make_checkpoint(tokenizer: Path, root: Path) -> Path:
    """A small random encoder that takes the token ids of a tokenizer of BERT's kind."""
    directory = save_checkpoint(
        root / f"triton-checkpoint-{tokenizer.name}",
        vocab_size=len((tokenizer / "vocab.txt").read_text(encoding="utf-8").splitlines()),
        pad_token_id=0,
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        max_position_embeddings=MAX_POSITIONS,
    )
    copy_tokenizer(tokenizer, directory)
    return directory


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


@functools.cache
def make_bundle(tokenizer: Path, root: Path, *, pooled: bool) -> Bundle:
    """A bundle with a model repository that takes text, made once a process.

    Args:
        tokenizer: the directory of its files.
        root: pytest's directory.
        pooled: whether the model pools, else a step of the ensemble does.
    """
    output = root / f"triton-bundle-{tokenizer.name}-{'pooled' if pooled else 'bare'}"
    checkpoint = load_checkpoint(make_checkpoint(tokenizer, root))
    options = {"pooling": "mean", "normalize": True} if pooled else {"pooling": "none"}
    onnx = export_onnx(checkpoint, output.with_name(f"{output.name}-onnx"), **options).directory
    settings = TritonSettings(tokenizer=True, pooling=None if pooled else "mean", normalize=not pooled)
    return create_bundle(onnx, output, check=False, triton=RepositoryWriter(settings))


def read_config(folder: Path) -> Any:
    """The configuration of a model, by Triton's schema; an unknown field or a wrong type is an error."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    return text_format.Parse(
        (folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig(), allow_unknown_field=False
    )


def configs(repository: Path) -> dict[str, Any]:
    return {path.parent.name: read_config(path.parent) for path in sorted(repository.glob("*/config.pbtxt"))}


def open_session(bundle: Bundle) -> Any:
    """The bundle's ONNX file with its own library."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if bundle.library is not None:
        options.register_custom_ops_library(str(bundle.library))
    return onnxruntime.InferenceSession(str(bundle.model_file), options, providers=["CPUExecutionProvider"])


def vector(bundle: Bundle, session: Any, text: str, output: str = "sentence_embedding") -> np.ndarray:
    """The output for one text, without this package's and Triton's code: tokens, no padding, the session."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bundle.path)
    encoded = tokenizer(text, truncation=True, max_length=bundle.tokenizer_max_length, return_tensors="np")
    feed = {name: encoded[name].astype(np.int64) for name in (i.name for i in session.get_inputs())}
    return session.run([output], feed)[0]


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class FakeResponse:
    def __init__(self, output_tensors: list[FakeTensor] | None = None, error: Exception | None = None) -> None:
        self.tensors = {t.name(): t.as_numpy() for t in output_tensors or []}
        self.failure = error

    def has_error(self) -> bool:
        return self.failure is not None

    def error(self) -> Any:
        return self.failure


class FakeError(Exception):
    """As the server has it from 23.09 on: with codes."""

    INVALID_ARG = 3

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code

    def message(self) -> str:
        return str(self)


class OldError(Exception):
    """As older servers have it."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


@contextmanager
def python_model(folder: Path, encoder: Any = None, error: type[Exception] = FakeError) -> Iterator[Any]:
    """The model.py of a repository's folder as the python backend has it, with a stand-in for what the server gives it.

    Args:
        folder: of the model.
        encoder: called for what the model asks of another one: name, inputs, names of outputs -> arrays.
        error: the server's.

    Yields:
        A function: a list of requests (input -> array) to the list of responses.
    """

    class FakeRequest:
        def __init__(
            self, model_name: str, requested_output_names: list[str], inputs: list[FakeTensor], preferred_memory: str
        ) -> None:
            assert preferred_memory == "on the CPU"  # else the outputs of an engine stay on its GPU
            self.model_name, self.names, self.inputs = model_name, requested_output_names, inputs

        async def async_exec(self) -> FakeResponse:
            try:
                arrays = encoder(self.model_name, {t.name(): t.as_numpy() for t in self.inputs}, self.names)
            except FakeError as error:
                return FakeResponse(error=error)
            return FakeResponse([FakeTensor(n, a) for n, a in zip(self.names, arrays, strict=True)])

    utils: Any = types.ModuleType("triton_python_backend_utils")
    utils.Tensor = FakeTensor
    utils.InferenceRequest = FakeRequest
    utils.InferenceResponse = FakeResponse
    utils.TritonError = error
    utils.PreferredMemory = lambda memory: f"on the {memory}"
    utils.TRITONSERVER_MEMORY_CPU = "CPU"
    utils.get_input_tensor_by_name = lambda request, name: FakeTensor(name, request[name]) if name in request else None
    utils.get_output_tensor_by_name = lambda response, name: FakeTensor(name, response.tensors[name])
    names = ("triton_python_backend_utils", "token_ids", "pooling", "chain")
    assert not set(names) & set(sys.modules)
    sys.modules[names[0]] = utils
    sys.path.insert(0, str(folder / "1"))  # as the backend does
    write_no_bytecode, sys.dont_write_bytecode = (
        sys.dont_write_bytecode,
        True,
    )  # the folder is a bundle's, which lists its files
    try:
        spec = importlib.util.spec_from_file_location(f"model_of_{folder.name}", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        model.initialize({"model_config": json.dumps(as_the_server_has_it(read_config(folder)))})

        def execute(requests: list[dict[str, np.ndarray]]) -> list[FakeResponse]:
            answer = model.execute(requests)
            return asyncio.run(answer) if inspect.iscoroutine(answer) else answer

        yield execute
    finally:
        sys.dont_write_bytecode = write_no_bytecode
        sys.path.remove(str(folder / "1"))
        for name in names:
            sys.modules.pop(name, None)


def as_the_server_has_it(config: Any) -> dict[str, Any]:
    from google.protobuf import json_format

    return json_format.MessageToDict(config, preserving_proto_field_name=True)


def strings(*texts: str | bytes) -> np.ndarray:
    """Texts as the python backend has them: bytes in an object array [batch, 1]."""
    return np.array([[t if isinstance(t, bytes) else t.encode()] for t in texts], dtype=np.object_)


def engine(bundle: Bundle, name: str, folder: Path, **changes: Any) -> Variant:
    """A variant as a bundle has it for an engine; the file is none, which only a GPU could tell."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_bytes(f"engine {name}".encode())
    profile = {"min": [1, 1], "opt": [8, 128], "max": [16, MAX_POSITIONS]}
    settings: dict[str, Any] = {
        "backend": "tensorrt",
        "file": file,
        "precision": "fp16",
        "library": None,
        "backend_version": "10.14.1",
        "version_compatible": False,
        "compute_capability": "9.0",
        "hardware_compatible": False,
        "gpu": "a GPU",
        "manifest": file,
        "profiles": dict.fromkeys(bundle.inputs, profile),
    }
    return Variant(**{**settings, **changes})


def with_engines(bundle: Bundle, *engines: Variant) -> Bundle:
    return dataclasses.replace(bundle, variants=(bundle.variants[0], *engines))


def sizes(batch: tuple[int, int, int], seq_len: tuple[int, int, int]) -> dict[str, dict[str, list[int]]]:
    shape = {key: [batch[i], seq_len[i]] for i, key in enumerate(("min", "opt", "max"))}
    return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), shape)


def run_ensemble(
    repository: Path, name: str, text: str, encoder: Any, prompt_name: str | None = None
) -> dict[str, np.ndarray]:
    """Goes through the steps of an ensemble by its configuration alone, and checks that the tensors fit on the way."""
    from tritonclient.grpc import model_config_pb2 as pb

    found = configs(repository)
    config = found[name]
    kinds = {pb.TYPE_INT64: np.int64, pb.TYPE_FP32: np.float32, pb.TYPE_STRING: np.object_}
    pool_of = {"text": strings(text)}
    if prompt_name is not None:
        pool_of["prompt_name"] = strings(prompt_name)
    produced = {each.name: (each.data_type, tuple(each.dims)) for each in config.input}
    for step in config.ensemble_scheduling.step:
        model = found[step.model_name]
        assert model.max_batch_size >= config.max_batch_size
        assert set(step.input_map) == {each.name for each in model.input}, step.model_name
        assert set(step.output_map) <= {each.name for each in model.output}
        for each in model.input:
            assert produced[step.input_map[each.name]] == (each.data_type, tuple(each.dims)), each.name
        given = [each.name for each in model.input if step.input_map[each.name] in pool_of or not each.optional]
        inputs = {each: pool_of[step.input_map[each]] for each in given}
        if model.backend == "python":
            with python_model(repository / model.name) as execute:
                (response,) = execute([inputs])
            outputs = response.tensors
        else:
            names = [each.name for each in model.output]
            outputs = dict(zip(names, encoder.run(names, inputs), strict=True))
        for each in model.output:
            assert outputs[each.name].dtype == kinds[each.data_type]
            assert all(
                want in (-1, have) for want, have in zip(each.dims, outputs[each.name].shape[1:], strict=True)
            ), each.name
            if each.name in step.output_map:
                pool_of[step.output_map[each.name]] = outputs[each.name]
                produced[step.output_map[each.name]] = (each.data_type, tuple(each.dims))
    for each in config.output:
        assert produced[each.name] == (each.data_type, tuple(each.dims))
    return {each.name: pool_of[each.name] for each in config.output}
