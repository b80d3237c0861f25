"""Options that several commands share."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mra_export.checkpoint.modules import POOLING_MODES
from mra_export.checkpoint.tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "POOLING_NAMES",
    "TASK_NAMES",
    "dtype_options",
    "force_option",
    "int8_options",
    "model_options",
    "options",
    "output_option",
    "output_options",
    "source_options",
]

TASK_NAMES = ("auto", *TASKS)
POOLING_NAMES = ("none", *POOLING_MODES)


def options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several option decorators as one, in the order in which help shows them."""
    return lambda function: functools.reduce(lambda f, option: option(f), reversed(options), function)


output_options = options(
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text."),
    click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error."),
    click.option("-q", "--quiet", is_flag=True, help="Show no progress."),
)


def _named_values(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, each, as a dictionary."""
    for text in given:
        if "=" not in text:
            raise click.BadParameter(f"{text!r} must be NAME=VALUE.")
    return dict(text.split("=", 1) for text in given)


model_options = options(
    click.option("--task", type=click.Choice(TASK_NAMES), default="auto", show_default=True, help="The model's head."),
    click.option(
        "--random-init",
        type=click.IntRange(0, 2**63 - 1),
        metavar="SEED",
        help="Random weights; MODEL needs only a config.json.",
    ),
    click.option(
        "--option",
        "family_options",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_named_values,
        help="A choice that the kind of model leaves open; `doctor` lists them. May be repeated.",
    ),
)
source_options = options(
    click.option("--opset", type=int, help="As for onnx; SOURCE is a checkpoint."),
    click.option(
        "--pooling", type=click.Choice(POOLING_NAMES), metavar="MODE", help="As for onnx; SOURCE is a checkpoint."
    ),
    click.option("--normalize/--no-normalize", default=None, help="As for onnx; SOURCE is a checkpoint."),
)
force_option = click.option("--force", is_flag=True, help="Replace an existing output.")


def output_option(what: str) -> Callable[[Any], Any]:
    """`-o`, with its help."""
    return click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help=what)


def dtype_options(default: str | None, shown: str) -> Callable[[Any], Any]:
    """`--dtype` with its short forms; the command gets `dtype`."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, dtype: str | None, fp16: bool, bf16: bool, **kwargs: Any) -> Any:
            asked = {name for name, on in ((dtype, dtype), ("fp16", fp16), ("bf16", bf16)) if on}
            if len(asked) > 1:
                raise click.UsageError(f"{' and '.join(sorted(map(str, asked)))} exclude each other; give one type.")
            return function(*args, dtype=asked.pop() if asked else default, **kwargs)

        return options(
            click.option(
                "--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help=f"Type of the weights.  [default: {shown}]"
            ),
            click.option("--fp16", is_flag=True, help="Short for --dtype fp16."),
            click.option("--bf16", is_flag=True, help="Short for --dtype bf16."),
        )(wrapper)

    return decorate


def int8_options(function: Any) -> Any:
    """`--int8` with what goes with it, below `dtype_options` if any; the command gets `int8`, an `Int8Request` or None."""

    @functools.wraps(function)
    def wrapper(*args: Any, int8: bool, int8_all: bool, calibrate: Path | None, **kwargs: Any) -> Any:
        request, dtype = None, kwargs.get("dtype")
        if int8 or int8_all:
            if dtype not in (None, "fp32"):
                raise click.UsageError(
                    f"--int8 and --{dtype} exclude each other; what is not int8 is float32. Give one of them."
                )
            from mra_export.embedding.input import read_texts
            from mra_export.export.int8 import Int8Request
            from mra_export.pipeline.quantize import check_request

            request = Int8Request(None if calibrate is None else tuple(read_texts(calibrate)), int8_all)
            check_request(request)
        elif calibrate is not None:
            raise click.UsageError("--calibrate is for --int8. Add that, or leave it out.")
        return function(*args, int8=request, **kwargs)

    return options(
        click.option("--int8", is_flag=True, help="Linear layers in int8, but the second one of each feed-forward."),
        click.option("--int8-all", is_flag=True, help="All linear layers in int8: faster, and three times the loss."),
        click.option(
            "--calibrate",
            type=click.Path(path_type=Path),
            metavar="TEXTS",
            help="Texts for --int8, as embed reads them.  [default: 64 built in]",
        ),
    )(wrapper)
