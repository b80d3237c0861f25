"""A model in OpenVINO's own format (IR): found in a directory, what it says of itself, and whether it is an ONNX file's model."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError

if TYPE_CHECKING:
    from mra_export.export.onnx_model import OnnxModel

__all__ = ["IR_FILE", "IR_PRECISIONS", "OpenVinoFile", "find_ir", "match_ir", "read_ir"]

IR_FILE = Path("openvino") / "openvino_model.xml"
"""In a directory that `mra-export openvino` wrote, and in a bundle."""
IR_PRECISIONS = ("fp32", "bf16", "int8", "int8-weights")
_FACTS = ("family", "task", "vocab_size", "max_seq_len", "pad_token_id", "length_step")
"""What the exporter notes in an ONNX file, and OpenVINO keeps."""
_ONCE = (
    "Write both from the same export: `mra-export openvino EXPORT -o DIR`, `mra-export bundle EXPORT --openvino DIR`."
)


@dataclass(frozen=True)
class OpenVinoFile:
    """An .xml file, read once; its weights were not looked at.

    Attributes:
        path: the .xml file.
        precision: that it was made for, one of `IR_PRECISIONS`.
        release: of the OpenVINO that wrote it, as in "2026.4.1".
        facts: what the exporter noted in the ONNX file that it was made of.
        inputs: names.
        outputs: names.
        operators: the attributes of each of its native operators, in order; without any it needs no library.
    """

    path: Path
    precision: str
    release: str
    facts: dict[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: tuple[dict[str, str], ...]

    @property
    def weights(self) -> Path:
        """The file beside it."""
        return self.path.with_suffix(".bin")


def find_ir(path: Path) -> Path:
    """The .xml file that a path names.

    Args:
        path: the file, its folder, or the directory that `mra-export openvino` wrote.

    Raises:
        InputError: there is none, or no .bin file beside it.
    """
    places = [path] if path.suffix == ".xml" else [path / IR_FILE, path / IR_FILE.name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"{path} holds no {IR_FILE}. Give the directory that `mra-export openvino` wrote.")
    if not found.with_suffix(".bin").is_file():
        raise InputError(f"{found} has no {found.with_suffix('.bin').name} beside it. Keep the two files together.")
    return found


def read_ir(path: Path, domain: str) -> OpenVinoFile:
    """Reads what an .xml file says of itself; OpenVINO need not be there.

    Args:
        path: the file.
        domain: of the native operators.

    Raises:
        InputError: it is none that `mra-export openvino` wrote.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{path} is not a file of OpenVINO: {error}.") from error
    stated = _value(root, "rt_info/mra_export/precision")
    if root.tag != "net" or stated not in IR_PRECISIONS:
        raise InputError(
            f"{path} does not say what precision it is for (rt_info mra_export precision={stated}, one of "
            f"{', '.join(IR_PRECISIONS)}). Write it with `mra-export openvino`."
        )
    written = next(
        (each.get("value", "") for each in root.iterfind("rt_info/info") if each.get("name") == _RUNTIME), ""
    )
    layers = root.findall("layers/layer")
    return OpenVinoFile(
        path=path,
        precision=str(stated),
        release=written.partition("-")[0],
        facts={name: value for name in _FACTS if (value := _value(root, f"rt_info/framework/{name}")) is not None},
        inputs=tuple(layer.get("name", "") for layer in layers if layer.get("type") == "Parameter"),
        outputs=tuple(
            name
            for layer in layers
            if layer.get("type") == "Result"
            for name in layer.get("output_names", "").split(",")
        ),
        operators=tuple(
            dict(data.attrib if (data := layer.find("data")) is not None else {})
            for layer in layers
            if layer.get("version") == domain
        ),
    )


def match_ir(found: OpenVinoFile, model: OnnxModel) -> None:
    """Refuses a file that is not a model of the ONNX file: other inputs, outputs, facts or attention.

    Weights are not compared: int8 has others.
    """

    def refuse(what: str, one: Any, other: Any) -> None:
        raise InputError(
            f"{found.path} has {what}={one}, {model.path} has {other}: they are not the same model. {_ONCE}"
        )

    if sorted(found.inputs) != sorted(model.inputs):
        refuse("inputs", list(found.inputs), list(model.inputs))
    if not set(model.outputs) <= set(found.outputs):
        refuse("outputs", list(found.outputs), list(model.outputs))
    for name, value in found.facts.items():
        if value != (noted := model.metadata.get(name, value)):
            refuse(name, value, noted)
    if not found.operators:  # the function body, in operators of OpenVINO
        return
    if len(found.operators) != len(model.nodes):
        refuse("attention nodes", len(found.operators), len(model.nodes))
    for stated, attributes in zip(found.operators, model.attributes, strict=True):
        for name, value in attributes.as_dict().items():
            if name in stated and not _same_number(stated[name], value):
                refuse(name, stated[name], value)


_RUNTIME = "OpenVINO Runtime"


def _value(root: ElementTree.Element, path: str) -> str | None:
    node = root.find(path)
    return None if node is None else node.get("value")


def _same_number(text: str, value: Any) -> bool:
    try:
        return math.isclose(float(text), float(value), rel_tol=1e-6)
    except ValueError:
        return False
