"""OpenVINO's own files (IR) of exported models: written with what they are, and opened at the precision that they are meant for."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.families._base import Family, noted_options
from mra_export.families._registry import families
from mra_export.native.processor import read_processor
from mra_export.openvino.core import PRECISIONS, compile_model, first_error, open_core, operator_library, release
from mra_export.openvino.weights import to_bfloat16, to_int8
from mra_export.outputs import file_sha256
from mra_export.schema import SHA256, TEXT, WORD, Text, check_texts, check_value, choice
from mra_export.version import __version__

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from mra_export.export.onnx_model import OnnxModel

__all__ = ["ARITHMETIC", "FORMAT", "IR_FILE", "IrModel", "open_ir", "read_ir", "write_ir"]

IR_FILE = Path("openvino") / "openvino_model.xml"
"""Its place in a directory for sentence-transformers and optimum-intel."""
FORMAT = 1
"""Of what `write_ir` notes."""
ARITHMETIC = {"fp32": "fp32", "bf16": "bf16", "int8": "bf16", "int8-weights": "bf16"}
"""Precision of a file -> the coarsest arithmetic that is meant for what is no product of integers, of `PRECISIONS`."""

_SECTION = "mra_export"
_METADATA = "framework"
"""Where OpenVINO puts what an ONNX file notes."""
_NUMBER = Text("a number", r"[0-9]{1,18}")
_FIELDS = {
    "format": choice(str(FORMAT)),
    "version": WORD,
    "openvino": WORD,
    "precision": choice(*ARITHMETIC),
    "inference_precision_hint": choice(*PRECISIONS.values()),
    "portable": choice("true", "false"),
    "inputs": WORD,
    "outputs": WORD,
    "attributes": TEXT,
    "onnx_sha256": SHA256,
    "bin_sha256": SHA256,
    "bin_bytes": _NUMBER,
}
_FACTS = {"family": WORD, "max_seq_len": _NUMBER, "vocab_size": _NUMBER}
"""Of what an ONNX file notes, what is asked of it here."""
_PLACEHOLDER = "0" * 64


@dataclass(frozen=True)
class IrModel:
    """A file that `write_ir` wrote, by what it says of itself.

    Attributes:
        path: the .xml file.
        precision: of `ARITHMETIC`.
        portable: whether stock OpenVINO runs it, without our library.
        release: of the OpenVINO that wrote it, as in "2026.4.1".
        version: of mra-export.
        onnx_sha256: of the ONNX file that it was made from.
        bin_sha256: of the weights beside it.
        family: what is particular to its kind of model.
        attributes: of each attention layer.
        inputs: names.
        outputs: names.
        input_axes: of each input, a number or "?" for each.
        metadata: what the ONNX file noted.
    """

    path: Path
    precision: str
    portable: bool
    release: str
    version: str
    onnx_sha256: str
    bin_sha256: str
    family: Family
    attributes: list[Any] = field(repr=False)
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_axes: dict[str, list[int | str]]
    metadata: dict[str, str] = field(repr=False)

    @property
    def dtype(self) -> str:
        """The coarsest arithmetic that it is meant for, fp32 or bf16, as `compile_model` takes it."""
        return ARITHMETIC[self.precision]

    @property
    def fastest_dtype(self) -> str:
        """The arithmetic to serve it with here: bf16 only where the processor is faster at it."""
        return "bf16" if self.dtype == "bf16" and read_processor().is_bfloat16_fast else "fp32"

    @property
    def attention_dtype(self) -> str:
        """The type by whose limits an attention layer is judged: with other than fp32 the native operator may round too."""
        return "fp32" if self.precision == "fp32" else "bf16"

    @property
    def task(self) -> str | None:
        """As the exporter noted it."""
        return self.metadata.get("task")

    @property
    def position_limit(self) -> int:
        """The longest sequence that the model takes, in tokens."""
        return int(self.metadata["max_seq_len"])

    @property
    def vocabulary(self) -> int:
        """How many ids it takes."""
        return int(self.metadata["vocab_size"])

    @property
    def options(self) -> dict[str, Any]:
        """The family's options with which the model was exported."""
        return noted_options(self.family, self.metadata)

    @property
    def files(self) -> tuple[Path, Path]:
        """The graph and the weights."""
        return self.path, self.path.with_suffix(".bin")

    @property
    def directory(self) -> Path:
        """The directory with the configuration: that of the file, or for `IR_FILE` the one above it."""
        folder = self.path.parent
        return folder.parent if folder.name == IR_FILE.parent.name else folder

    def check_weights(self) -> None:
        """Refuses weights that are not those that were written.

        Raises:
            InputError: they were changed, or cannot be read.
        """
        weights = self.files[1]
        try:
            found = file_sha256(weights)
        except OSError as error:
            raise InputError(f"{weights} cannot be read: {error.strerror or error}.") from error
        if found != self.bin_sha256:
            raise InputError(f"{weights} was changed: its SHA-256 is not that in {self.path.name}. Copy it again.")


def write_ir(
    model: OnnxModel, target: Path, *, precision: str = "fp32", portable: bool = False, library: Path | None = None
) -> IrModel:
    """Writes an exported file as OpenVINO's IR; the same input gives the same bytes.

    Args:
        model: fp32, or with precision "int8" the file that `mra_export.export.int8.quantize` wrote.
        target: the .xml file to write; the weights go beside it, as .bin.
        precision: of `ARITHMETIC`. "bf16" stores weights as bfloat16, "int8-weights" those of the encoder's linear layers as int8.
        portable: whether the operators' function bodies are put in their place, so that stock OpenVINO runs the file.
        library: the extension library; None to have it found where one is needed.

    Returns:
        What was written.

    Raises:
        InputError: the file is not of that precision and cannot be had in it, or OpenVINO cannot read it.
        DependencyError: OpenVINO or the library is missing, or the library is for another release.
    """
    if model.dtype != "fp32":
        raise InputError(
            f"{model.path} is {model.dtype}, and a file for OpenVINO is made of fp32. Export the checkpoint with --dtype fp32."
        )
    if (precision == "int8") != (model.precision == "int8"):
        raise InputError(
            f"{model.path} is {model.precision}, and {precision} is asked for. Give the float32 export, or the checkpoint."
        )
    portable = portable or not model.nodes
    core = open_core(None if portable else operator_library(library))
    program = _read(core, model, inline=portable)
    if precision == "bf16":
        to_bfloat16(program)
    elif precision == "int8-weights":
        to_int8(program)
    if precision != "fp32":
        _allow_bfloat16(program)
    _name_by_place(program)
    noted = {
        "format": str(FORMAT),
        "version": __version__,
        "openvino": release(),
        "precision": precision,
        "inference_precision_hint": PRECISIONS[ARITHMETIC[precision]],
        "portable": "true" if portable else "false",
        "inputs": ",".join(model.inputs),
        "outputs": ",".join(model.outputs),
        "attributes": json.dumps([each.as_dict() for each in model.attributes]),
        "onnx_sha256": file_sha256(*model.files),
        "bin_sha256": _PLACEHOLDER,  # the weights are written with the graph
        "bin_bytes": "0",
    }
    _save(program, target, noted)
    return read_ir(target)


def _read(core: Any, model: OnnxModel, *, inline: bool) -> Any:
    """The file as `openvino.Model`."""
    from mra_export.export.onnx_model import beside_weights

    try:
        if not inline or not model.functions:
            return core.read_model(str(model.path))
        import onnx.inliner

        with beside_weights(model, onnx.inliner.inline_local_functions(model.proto)) as path:
            return core.read_model(str(path))  # weights beside it are mapped, and stay when their name goes away
    except RuntimeError as error:
        if inline and model.nodes:
            raise InputError(
                f"OpenVINO {release()} has no operators for what {model.family.title} computes, so that {model.path} cannot be "
                f"had for it without our library: leave --portable out. It says: {first_error(error)}"
            ) from error
        raise InputError(f"OpenVINO {release()} cannot read {model.path}: {first_error(error)}") from error


def _allow_bfloat16(program: Any) -> None:
    """Lets the attention round what it multiplies, where the processor is faster at it: the rest of the file is no finer."""
    for node in program.get_ordered_ops():
        if "accuracy" in node.get_attributes():
            node.set_attribute("accuracy", "bf16")


def _name_by_place(program: Any) -> None:
    """Names nodes without a name of their own by type and place: OpenVINO numbers them by what this process did before."""
    nodes = program.get_ordered_ops()
    taken = {node.get_friendly_name() for node in nodes if node.get_friendly_name() != node.get_name()}
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.get_friendly_name() != node.get_name():
            continue
        kind = node.get_type_name()
        while (name := f"{kind}.{counts[kind]}") in taken:
            counts[kind] += 1
        counts[kind] += 1
        node.set_friendly_name(name)


def _save(program: Any, target: Path, noted: dict[str, str]) -> None:
    from openvino import save_model

    for name, value in noted.items():
        program.set_rt_info(value, [_SECTION, name])
    save_model(program, str(target), compress_to_fp16=False)
    weights = target.with_suffix(".bin")
    text = target.read_text(encoding="utf-8")
    for name, value in (("bin_sha256", file_sha256(weights)), ("bin_bytes", str(weights.stat().st_size))):
        text = text.replace(f'<{name} value="{noted[name]}" />', f'<{name} value="{value}" />')
    target.write_text(text, encoding="utf-8")


def read_ir(path: Path) -> IrModel:
    """Reads what a file says of itself; OpenVINO is not needed for it.

    Args:
        path: the .xml file.

    Raises:
        InputError: it cannot be read, was not written by this tool, or its weights are missing or cut off.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    root = _parse(path)
    noted, metadata = (
        {each.tag: each.get("value", "") for each in root.iterfind(f"rt_info/{section}/*")}
        for section in (_SECTION, _METADATA)
    )
    if not noted:
        raise InputError(f"{path} was not written by this tool. Write it with `mra-export openvino SOURCE -o DIR`.")

    def refuse(text: str) -> InputError:
        made = noted.get("version", "another version")
        return InputError(f"{path}{text}. It was written by mra-export {made}, this is {__version__}: write it again.")

    check_texts(noted, _SECTION, refuse)
    check_value(noted, _FIELDS, _SECTION, refuse)
    check_value({name: metadata.get(name) for name in _FACTS}, _FACTS, _METADATA, refuse)
    family = families().get(metadata.get("family", ""))
    if family is None:
        raise refuse(f": the family {metadata.get('family')!r} is not known")
    try:
        attributes = [family.attributes_from(each) for each in json.loads(noted["attributes"])]
    except (ValueError, KeyError, TypeError) as error:
        raise refuse(f" has attributes that are not the operator's: {error}") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise InputError(f"{path} needs {weights.name} beside it, which is not there. Keep the directory together.")
    if (size := weights.stat().st_size) != int(noted["bin_bytes"]):
        raise InputError(
            f"{weights} has {size} bytes, but {path.name} was written with {noted['bin_bytes']}. Copy it again."
        )
    return IrModel(
        path=path,
        precision=noted["precision"],
        portable=noted["portable"] == "true",
        release=noted["openvino"],
        version=noted["version"],
        onnx_sha256=noted["onnx_sha256"],
        bin_sha256=noted["bin_sha256"],
        family=family,
        attributes=attributes,
        inputs=tuple(noted["inputs"].split(",")),
        outputs=tuple(noted["outputs"].split(",")),
        input_axes={
            layer.get("name", ""): [int(axis) if axis.isdigit() else axis for axis in data.get("shape", "").split(",")]
            for layer in root.iterfind("layers/layer[@type='Parameter']")
            for data in layer.iterfind("data")
        },
        metadata=metadata,
    )


def _parse(path: Path) -> Element:
    from xml.etree import ElementTree

    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable file of OpenVINO: {error}.") from error


def open_ir(ir: IrModel, *, library: Path | None = None, threads: int = 0, streams: int = 1) -> Any:
    """Compiles a file for the CPU, with the fastest arithmetic that it is meant for.

    Args:
        ir: the file.
        library: the extension library; None to have it found where one is needed.
        threads: as for `compile_model`.
        streams: as for `compile_model`.

    Raises:
        InputError: OpenVINO cannot read or compile it.
        DependencyError: OpenVINO or the library is missing, or the library is for another release.
    """
    core = open_core(None if ir.portable else operator_library(library), threads=threads)
    return compile_model(core, read_program(core, ir), ir.fastest_dtype, threads=threads, streams=streams)


def read_program(core: Any, ir: IrModel) -> Any:
    """A file as `openvino.Model`.

    Raises:
        InputError: this OpenVINO cannot read it.
    """
    try:
        return core.read_model(str(ir.path))
    except RuntimeError as error:
        other = (
            ""
            if ir.release == release()
            else f" It was written by OpenVINO {ir.release}: install that, or write it again."
        )
        raise InputError(f"OpenVINO {release()} cannot read {ir.path}: {first_error(error)}{other}") from error
