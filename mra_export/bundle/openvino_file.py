"""OpenVINO's file in a bundle: found where `mra-export openvino` wrote it, and held against the bundle's ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mra_export.errors import InputError
from mra_export.native.libraries import built_for
from mra_export.openvino.ir import IR_FILE, read_ir
from mra_export.outputs import file_sha256

if TYPE_CHECKING:
    from mra_export.export.onnx_model import OnnxModel
    from mra_export.openvino.ir import IrModel

__all__ = ["find_ir", "match_ir", "release_for"]

_FACTS = ("family", "task", "vocab_size", "max_seq_len", "pad_token_id", "length_step")
"""Of what the exporter notes: what a caller relies on. The rest may differ where the types do."""
_ONCE = "Export once with `mra-export onnx`, and give that directory to `openvino` and to `bundle`."


def find_ir(path: Path) -> IrModel:
    """The file that a path names, read.

    Args:
        path: the .xml file, or the directory that `mra-export openvino` wrote.

    Raises:
        InputError: there is none, it was not written by this tool, or its weights are not those that were written.
    """
    file = path if path.suffix == ".xml" else path / IR_FILE
    if not file.is_file():
        raise InputError(f"{file} does not exist. Give the directory that `mra-export openvino` wrote.")
    found = read_ir(file)
    found.check_weights()
    return found


def match_ir(found: IrModel, model: OnnxModel) -> None:
    """Refuses a file of another model than the ONNX file's.

    Where both are to be float32, the one must have been made from the other. Files of other types were made from other files:
    there inputs, outputs, attention and what the exporter noted are compared, and the numbers by `mra-export check`.

    Args:
        found: the file for OpenVINO.
        model: the ONNX file.

    Raises:
        InputError: it is another model's.
    """

    def refuse(what: str, one: Any, other: Any) -> None:
        raise InputError(
            f"{found.path} has {what}={one}, and {model.path} has {other}: they are not the same model. {_ONCE}"
        )

    for name in _FACTS:
        if (stated := found.metadata.get(name)) != (noted := model.metadata.get(name)):
            refuse(name, stated, noted)
    if sorted(found.inputs) != sorted(model.inputs):
        refuse("inputs", list(found.inputs), list(model.inputs))
    if not set(model.outputs) <= set(found.outputs):
        refuse("outputs", list(found.outputs), list(model.outputs))
    if found.attributes != model.attributes:
        raise InputError(f"{found.path}: its attention's attributes are not those of {model.path}. {_ONCE}")
    is_int8 = found.precision == "int8"
    if model.precision == ("int8" if is_int8 else "fp32") and found.onnx_sha256 != file_sha256(*model.files):
        raise InputError(
            f"{found.path} was made from another ONNX file than {model.path}: the SHA-256 differs. {_ONCE}"
        )


def release_for(found: IrModel, library: Path | None) -> str:
    """The release of OpenVINO that a file needs: that of its library, or the one that wrote it.

    Args:
        found: the file.
        library: the extension library, None where there is none.

    Raises:
        InputError: it needs a library, and there is none, or another one.
    """
    if found.portable:
        return found.release
    built = None if library is None else built_for(library)
    if built is None:
        raise InputError(
            f"{found.path} needs the operators, and {library or 'no library'} has none for OpenVINO. Run `mra-export build "
            "openvino`, or write the file with --portable."
        )
    return built
