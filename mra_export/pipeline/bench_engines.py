"""The engines that `bench` times side by side: a model in each runtime and precision, as it is and with dense attention."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mra_export.dtypes import MASKED
from mra_export.errors import InputError, MraExportError
from mra_export.openvino.core import (
    PRECISIONS,
    compile_model,
    first_error,
    open_core,
    operator_library,
    release,
    require_openvino,
)
from mra_export.optional import require_onnxruntime
from mra_export.runners.session import open_session, runtime_errors, session_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from mra_export.export.onnx_model import OnnxModel
    from mra_export.trace import Array, Inputs

__all__ = ["DENSE", "Bound", "Engine", "bound_run", "dense_twin", "open_engines", "session_engine", "usable_runtimes"]

DENSE = "dense attention"


@dataclass(frozen=True)
class Bound:
    """An engine with its inputs.

    Attributes:
        run: runs it; neither inputs nor outputs are copied.
        outputs: what the last run computed, by name.
    """

    run: Callable[[], Any]
    outputs: Callable[[], dict[str, Array]]


@dataclass(frozen=True)
class Engine:
    """One way of running a model.

    Attributes:
        backend: its name for people.
        runtime: onnxruntime, openvino.
        precision: of the file's linear layers and, after a plus, of the runtime's arithmetic where that is another than fp32. The
            native attention has the accuracy bf16 in all but fp32.
        attention: `DENSE`, or the family's title.
        bind: gives it inputs by name.
    """

    backend: str
    runtime: str
    precision: str
    attention: str
    bind: Callable[[Inputs], Bound]


def usable_runtimes(asked: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    """The runtimes to time: those asked for, or all that are installed.

    Args:
        asked: names; empty for all.
        notes: takes a sentence on each that is not installed.
    """
    if asked:
        return tuple(dict.fromkeys(asked))
    if importlib.util.find_spec("openvino") is not None:
        return "onnxruntime", "openvino"
    notes.append("OpenVINO is not installed, so it is left out. Install it with `pip install 'mra-export[openvino]'`.")
    return ("onnxruntime",)


def open_engines(
    files: Mapping[str, OnnxModel],
    *,
    dense: bool,
    runtimes: Sequence[str],
    library: Path | None = None,
    threads: int = 0,
    function_body: bool = True,
    strict: bool = True,
    notes: list[str] | None = None,
) -> list[Engine]:
    """Loads a model into each runtime that is asked for.

    Args:
        files: precision of the linear layers, as in `Engine.precision` -> the file.
        dense: whether softmax attention is put in the place of the files' own.
        runtimes: onnxruntime, openvino.
        library: the ONNX Runtime library; None to run the function body only.
        threads: of each engine, 0 for the runtime's choice.
        function_body: whether ONNX Runtime runs the function body where it has the native operator.
        strict: whether what OpenVINO cannot do here is an error; else it is left out.
        notes: takes a sentence on each thing that is left out.

    Raises:
        InputError: a runtime refuses a file.
        DependencyError: a runtime or a library is missing, or is too old or for another release.
    """
    title = DENSE if dense else next(iter(files.values())).family.title
    opened: list[Engine] = []
    left_out: list[str] = []
    if "onnxruntime" in runtimes:
        for precision, model in files.items():
            source = dense_twin(model) if dense and model.nodes else str(model.path)
            ways = {"": None} if dense else {", function body": None, ", native operator": library}
            if library is None:
                ways.pop(", native operator", None)
            elif not function_body:
                ways.pop(", function body", None)
            for way, operators in ways.items():
                name = f"{title}{way}" if precision == "fp32" else f"{title}{way}, {precision}"
                opened.append(
                    session_engine(name, precision, title, source, operators, threads=threads, shown=str(model.path))
                )
    if "openvino" in runtimes:
        try:
            core = open_core(None if dense else operator_library(), threads=threads)
            has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
            if not has_bf16:
                left_out.append(
                    "bf16 is left out: this processor has no instructions for it, and OpenVINO would run fp32."
                )
            for precision, model in files.items():
                source = dense_twin(model, for_openvino=True) if dense and model.nodes else str(model.path)
                opened += _in_openvino(core, source, precision, title, PRECISIONS if has_bf16 else ("fp32",), threads)
        except MraExportError as error:
            if strict:
                raise
            left_out.append(f"OpenVINO is left out for {title}. {error}")
    if notes is not None:
        notes += [note for note in left_out if note not in notes]
    return opened


def session_engine(
    backend: str,
    precision: str,
    attention: str,
    source: str | bytes,
    library: Path | None = None,
    *,
    threads: int = 0,
    shown: str = "",
) -> Engine:
    """A model in ONNX Runtime, whose threads wait without using a processor, so that processor time is what was computed.

    Args:
        backend: as `Engine` has it.
        precision: as `Engine` has it.
        attention: as `Engine` has it.
        source: a path, or a serialized model.
        library: the native operators; None for the function bodies.
        threads: 0 for ONNX Runtime's choice.
        shown: how messages call the model; its path by default.
    """
    entries = {"session.intra_op.allow_spinning": "0"}
    if library is not None:
        entries["mra.accuracy"] = _accuracy(precision)
    session = open_session(source, session_options(library, threads=threads, entries=entries), shown=shown)

    def bind(feed: Inputs) -> Bound:
        with runtime_errors(shown):
            binding = _bind(session, feed)

        def run() -> None:
            with runtime_errors(shown):
                session.run_with_iobinding(binding)

        names = [info.name for info in session.get_outputs()]
        return Bound(run, lambda: dict(zip(names, binding.copy_outputs_to_cpu(), strict=True)))

    return Engine(backend, "onnxruntime", precision, attention, bind)


def _accuracy(precision: str) -> str:
    """That of the native attention, which is no finer than what is around it."""
    return "fp32" if precision == "fp32" else "bf16"


def _in_openvino(
    core: Any, source: str | bytes, precision: str, title: str, arithmetics: Iterable[str], threads: int
) -> list[Engine]:
    try:
        model = core.read_model(source)
    except RuntimeError as error:
        raise InputError(f"OpenVINO {release()} cannot read it: {first_error(error)}") from error
    opened = []
    for arithmetic in arithmetics:
        shown = precision if arithmetic == "fp32" else f"{precision}+{arithmetic}".removeprefix("fp32+")
        for node in model.get_ops():
            if "accuracy" in node.get_attributes():
                node.set_attribute("accuracy", _accuracy(shown))
        compiled = compile_model(core, model, arithmetic, threads=threads)
        opened.append(Engine(f"{title}, OpenVINO {shown}", "openvino", shown, title, _request_binder(compiled)))
    return opened


def _request_binder(compiled: Any) -> Callable[[Inputs], Bound]:
    def bind(feed: Inputs) -> Bound:
        request = compiled.create_infer_request()
        for value in compiled.inputs:
            name = next(name for name in value.names if name in feed)
            request.set_tensor(name, require_openvino().Tensor(feed[name], shared_memory=True))

        def outputs() -> dict[str, Array]:
            # What OpenVINO has merged has several names.
            return {name: request.get_tensor(value).data.copy() for value in compiled.outputs for name in value.names}

        return Bound(lambda: request.infer(share_outputs=True), outputs)

    return bind


def dense_twin(model: OnnxModel, *, for_openvino: bool = False) -> bytes:
    """The same model with dense attention: each attention node becomes ONNX Runtime's MultiHeadAttention.

    The interface is the same, the mask included (1 = token), and so are the weights.

    Args:
        model: an exported file, of type fp32.
        for_openvino: whether the mask is something to add, [batch, 1, 1, seq_len]: OpenVINO reads this operator, 4 to 6 % slower
            with one to choose by. ONNX Runtime's does not broadcast it.

    Returns:
        A serialized model without external data.
    """
    import onnx

    twin = onnx.ModelProto()
    twin.CopyFrom(model.proto)
    onnx.load_external_data_for_model(twin, str(model.path.parent))
    dense = []
    for node in twin.graph.node:
        if (node.domain, node.op_type) == model.family.operator:
            node.CopyFrom(model.family.dense_node(node))
            dense.append(node)
    if for_openvino:
        _add_masks(twin.graph, dense)
    del twin.functions[:]
    twin.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    return twin.SerializeToString()


def _add_masks(graph: Any, dense: Sequence[Any]) -> None:
    """Gives nodes of MultiHeadAttention what is added to the logits in the place of the mask that they share."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {"rows": np.array([1, 2]), "kept": np.zeros((), np.float32), "masked": np.float32(MASKED["fp32"])}
    graph.initializer.extend(numpy_helper.from_array(np.asarray(v), f"dense_{name}") for name, v in constants.items())
    (mask,) = {node.input[4] for node in dense}
    made = [
        helper.make_node("Cast", [mask], ["dense_keep"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["dense_keep", "dense_rows"], ["dense_keep_4d"]),
        helper.make_node("Where", ["dense_keep_4d", "dense_kept", "dense_masked"], ["dense_bias"]),
    ]
    for node in dense:
        node.input[4:] = ["", "dense_bias"]
    first = next(place for place, node in enumerate(graph.node) if node.op_type == "MultiHeadAttention")
    for place, node in enumerate(made, first):
        graph.node.insert(place, node)


def bound_run(session: Any, feed: Inputs) -> Callable[[], Any]:
    """A call that runs a session of ONNX Runtime with its inputs and outputs bound, so that no copy is timed."""
    binding = _bind(session, feed)
    return lambda: session.run_with_iobinding(binding)


def _bind(session: Any, feed: Inputs) -> Any:
    onnxruntime = require_onnxruntime()
    binding = session.io_binding()
    for info in session.get_inputs():
        binding.bind_ortvalue_input(info.name, onnxruntime.OrtValue.ortvalue_from_numpy(feed[info.name]))
    for info in session.get_outputs():
        binding.bind_output(info.name, "cpu")
    return binding
