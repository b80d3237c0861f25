"""Token vectors to one vector: what follows the encoder, as sentence-transformers' files say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mra_export.checkpoint.json_files import parse_json
from mra_export.checkpoint.layout import MODULES_FILE, module_kind
from mra_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ACTIVATIONS",
    "POOLING_FLAGS",
    "POOLING_MODES",
    "Dense",
    "LayerNorm",
    "Module",
    "Normalize",
    "Pooling",
    "Truncate",
    "as_pooling",
    "as_stated",
    "from_pooling",
    "module_from",
    "override_normalize",
    "read_modules",
    "width_of",
]

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""In the order in which several of them are concatenated where a configuration has one flag for each."""
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The same as flags in a module's config.json."""
ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")
"""Of a dense layer: classes of torch.nn, without arguments."""
_OF_SENTENCES = "sentence_embedding"


@dataclass(frozen=True)
class Pooling:
    """The vectors of a text's tokens become one.

    Attributes:
        modes: of `POOLING_MODES`, at least one; several are concatenated in this order.
        include_prompt: whether the tokens of a prompt count.
    """

    modes: tuple[str, ...]
    include_prompt: bool = True


@dataclass(frozen=True)
class Dense:
    """A linear layer and its activation.

    Attributes:
        folder: in the checkpoint, with the weights `linear.weight` [out_features, in_features], `linear.bias` [out_features].
        in_features: numbers that come in.
        out_features: numbers that go out.
        bias: whether there is one.
        activation: of `ACTIVATIONS`.
        residual: whether the input is added to the output; `residual.weight` [out_features, in_features] brings it to the
            width where that changes.
    """

    folder: str
    in_features: int
    out_features: int
    bias: bool = True
    activation: str = "Tanh"
    residual: bool = False


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalization over the vector, epsilon 1e-5.

    Attributes:
        folder: in the checkpoint, with the weights `norm.weight` and `norm.bias` [dimension].
        dimension: numbers of the vector.
    """

    folder: str
    dimension: int


@dataclass(frozen=True)
class Normalize:
    """The vector is scaled to length 1; one of length below 1e-12 is divided by that."""


@dataclass(frozen=True)
class Truncate:
    """The first numbers of the vector stay; it is not scaled again.

    Attributes:
        dimension: how many, if there are so many.
    """

    dimension: int


Module = Pooling | Dense | LayerNorm | Normalize | Truncate
_KINDS: dict[str, type[Module]] = {kind.__name__: kind for kind in (Pooling, Dense, LayerNorm, Normalize, Truncate)}


def module_from(stated: dict[str, Any]) -> Module:
    """A module from `{"kind": class, **attributes}`, as the manifest of a bundle has it."""
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()
    }
    kind: Any = _KINDS[values.pop("kind")]
    module: Module = kind(**values)
    return module


def as_stated(module: Module) -> dict[str, Any]:
    """The inverse of `module_from`."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(module).items()}
    return {"kind": type(module).__name__, **plain}


def as_pooling(modules: Iterable[Module]) -> dict[str, Any]:
    """Modules as the manifest of an engine has them: mode and normalize where that says it all, else each of them."""
    chain = list(modules)
    modes = chain[0].modes if chain and isinstance(chain[0], Pooling) else ()
    if chain[1:] in ([], [Normalize()]) and modes in (("mean",), ("cls",)) and chain[0] == Pooling(modes):
        return {"mode": modes[0], "normalize": len(chain) == 2}
    return {"modules": [as_stated(module) for module in chain]}


def from_pooling(stated: dict[str, Any]) -> tuple[Module, ...]:
    """The inverse of `as_pooling`."""
    if "modules" in stated:
        return tuple(module_from(each) for each in stated["modules"])
    return (Pooling((stated["mode"],)), *([Normalize()] if stated["normalize"] else []))


def width_of(modules: Iterable[Module], hidden_size: int) -> int:
    """Numbers of the vector that comes out.

    Raises:
        InputError: a layer does not fit what comes in.
    """
    width = hidden_size
    for module in modules:
        if isinstance(module, Pooling):
            width *= len(module.modes)
        elif isinstance(module, Dense | LayerNorm):
            takes = module.in_features if isinstance(module, Dense) else module.dimension
            if takes != width:
                raise InputError(
                    f"{module.folder}/config.json takes vectors of {takes} numbers, but {width} come in. Mend it, or choose the "
                    "pooling that it was trained with."
                )
            width = module.out_features if isinstance(module, Dense) else width
        elif isinstance(module, Truncate):
            width = min(width, module.dimension)
    return width


def override_normalize(modules: tuple[Module, ...], normalize: bool | None) -> tuple[Module, ...]:
    """The modules with or without a `Normalize` at their end, as `--normalize` and `--no-normalize` have it.

    Args:
        modules: without a `Truncate`.
        normalize: None for the modules as they are.

    Raises:
        InputError: there is no vector to scale.
    """
    if normalize and not modules:
        raise InputError(
            f"--normalize scales a sentence embedding: it needs --pooling, one of {', '.join(POOLING_MODES)}."
        )
    if normalize is None or (normalize and modules[-1] == Normalize()):
        return modules
    if normalize:
        return (*modules, Normalize())
    while modules and modules[-1] == Normalize():
        modules = modules[:-1]
    return modules


def read_modules(directory: Path, *, pooling: str | None = None) -> tuple[tuple[Module, ...], list[str]]:
    """What follows the encoder of a checkpoint.

    Args:
        directory: with `modules.json`.
        pooling: of `POOLING_MODES`, in place of the modes that are found; what follows stays.

    Returns:
        The modules in their order, without those that do nothing; empty where there is no such file and no `pooling`, or
        where the encoder is all that it lists. And notes: keys that nobody knows, one sentence each.

    Raises:
        InputError: a file cannot be read; a module or a setting of one is not known, or is in a place where it means nothing.
    """
    if pooling not in (None, *POOLING_MODES):
        raise InputError(f"pooling={pooling!r} must be one of none, {', '.join(POOLING_MODES)}.")
    path = directory / MODULES_FILE
    modules: list[Module] = []
    notes: list[str] = []
    for index, entry in enumerate(_listing(path)):
        kind, folder = _kind_of(path, entry), _folder_of(path, entry)
        _note_unknown(path, {key: None for key in entry if key not in _ENTRY_KEYS}, notes)
        if kind == "Transformer":
            if index:
                raise InputError(
                    f"{path} has the Transformer at place {index}; only the first module can be one. Mend it."
                )
            continue
        if not index:
            raise InputError(f"{path} begins with {kind}; the first module has to be a Transformer. Mend it.")
        config = directory / folder / "config.json"
        settings = _read(config) if config.is_file() or kind == "Pooling" else {}
        if not isinstance(settings, dict):
            raise InputError(f"{config} must hold a JSON object. Mend or remove it.")
        if kind == "Pooling" and pooling is not None:
            settings = {**settings, "pooling_mode": pooling}
        found = _READERS[kind](folder, config, dict(settings), notes)
        if found is None:
            continue
        if isinstance(found, Pooling) != (not modules):
            what = "is there twice" if isinstance(found, Pooling) else "comes before Pooling"
            raise InputError(
                f"{path}: {kind} {what}, so it is not clear what the vector of a text is. Mend the order of modules."
            )
        modules.append(found)
    if pooling is not None and not modules:
        modules.append(Pooling((pooling,)))
    return tuple(modules), notes


_ENTRY_KEYS = ("idx", "name", "path", "type", "kwargs")


def _listing(path: Path) -> list[dict[str, Any]]:
    """The entries of `modules.json`, none where there is no such file."""
    listing = _read(path) if path.is_file() else []
    if not isinstance(listing, list) or not all(isinstance(each, dict) for each in listing):
        raise InputError(f"{path} must hold a list of objects. Mend or remove it.")
    return listing


def _read(path: Path) -> Any:
    try:
        return parse_json(path)
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}. Mend or remove it.") from error


def _kind_of(path: Path, entry: dict[str, Any]) -> str:
    """The class of a module, of sentence-transformers' own ones."""
    stated = entry.get("type")
    kind = module_kind(str(stated))
    if kind != "Transformer" and kind not in _READERS:
        raise InputError(
            f"{path} asks for the module {stated}, which the export does not offer; "
            f"it offers Transformer, {', '.join(_READERS)} of sentence-transformers. Export the bare encoder with --pooling none."
        )
    return kind


def _folder_of(path: Path, entry: dict[str, Any]) -> str:
    folder = str(entry.get("path") or "")
    if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
        raise InputError(f"{path} names the folder {folder!r}, which is outside the checkpoint. Mend it.")
    return folder


def _pooling(folder: str, config: Path, settings: dict[str, Any], notes: list[str]) -> Pooling:
    flags = [mode for key, mode in POOLING_FLAGS.items() if settings.pop(key, False)]
    stated = settings.pop("pooling_mode", flags or "mean")
    modes = tuple(stated) if isinstance(stated, list) else (stated,)
    if not modes or any(mode not in POOLING_MODES for mode in modes):
        raise InputError(
            f"{config} asks for pooling_mode={stated!r}; the export offers {', '.join(POOLING_MODES)}. "
            "Choose one with --pooling."
        )
    include = settings.pop("include_prompt", True)
    if not isinstance(include, bool):
        raise InputError(f"{config}: include_prompt={include!r} must be true or false. Mend it.")
    for key in ("word_embedding_dimension", "embedding_dimension"):
        settings.pop(key, None)
    _note_unknown(config, settings, notes)
    return Pooling(modes, include)


def _dense(folder: str, config: Path, settings: dict[str, Any], notes: list[str]) -> Dense:
    sizes = [settings.pop(name, None) for name in ("in_features", "out_features")]
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise InputError(f"{config}: in_features={sizes[0]!r} and out_features={sizes[1]!r} must be sizes. Mend it.")
    stated = settings.pop("activation_function", "torch.nn.modules.activation.Tanh")
    package, _, activation = str(stated).rpartition(".")
    if package.split(".")[0] != "torch" or activation not in ACTIVATIONS:
        raise InputError(
            f"{config} asks for activation_function={stated!r}; the export offers torch.nn's {', '.join(ACTIVATIONS)}. "
            "Export the bare encoder with --pooling none."
        )
    flags = [settings.pop("bias", True), settings.pop("use_residual", False)]
    if not all(isinstance(flag, bool) for flag in flags):
        raise InputError(f"{config}: bias={flags[0]!r} and use_residual={flags[1]!r} must be true or false. Mend it.")
    _check_names(config, settings)
    _note_unknown(config, settings, notes)
    return Dense(folder, int(sizes[0]), int(sizes[1]), flags[0], activation, flags[1])


def _layer_norm(folder: str, config: Path, settings: dict[str, Any], notes: list[str]) -> LayerNorm:
    dimension = settings.pop("dimension", None)
    if not isinstance(dimension, int) or isinstance(dimension, bool) or dimension < 1:
        raise InputError(f"{config}: dimension={dimension!r} must be a size. Mend it.")
    _note_unknown(config, settings, notes)
    return LayerNorm(folder, dimension)


def _normalize(folder: str, config: Path, settings: dict[str, Any], notes: list[str]) -> Normalize:
    _check_names(config, settings)
    _note_unknown(config, settings, notes)
    return Normalize()


def _dropout(folder: str, config: Path, settings: dict[str, Any], notes: list[str]) -> Module | None:
    settings.pop("dropout", None)  # it does nothing outside training
    _note_unknown(config, settings, notes)
    return None


_READERS: dict[str, Callable[[str, Path, dict[str, Any], list[str]], Module | None]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": _dropout,
}


def _check_names(config: Path, settings: dict[str, Any]) -> None:
    """Refuses a module that reads or writes anything else than the vector of the text."""
    for key in ("module_input_name", "module_output_name"):
        if (name := settings.pop(key, None)) not in (None, _OF_SENTENCES):
            raise InputError(
                f"{config}: {key}={name!r} is not offered, only {_OF_SENTENCES}. Export with --pooling none."
            )


def _note_unknown(config: Path, settings: dict[str, Any], notes: list[str]) -> None:
    if settings:
        notes.append(f"{config} has {', '.join(sorted(settings))}, which is not known here and changes nothing.")
