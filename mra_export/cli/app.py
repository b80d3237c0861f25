"""The group of commands, and errors to exit codes."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import traceback
from typing import TYPE_CHECKING

import click

from mra_export.cli.bench import bench_command
from mra_export.cli.build import build_command
from mra_export.cli.bundle import bundle_command
from mra_export.cli.check import check_command
from mra_export.cli.doctor import doctor_command
from mra_export.cli.embed import embed_command
from mra_export.cli.fidelity import fidelity_command
from mra_export.cli.from_dense import from_dense_command
from mra_export.cli.heal import heal_command
from mra_export.cli.onnx import onnx_command
from mra_export.cli.openvino import openvino_command
from mra_export.cli.output import print_json
from mra_export.cli.trt import trt_command
from mra_export.errors import DependencyError, InputError, MraExportError, is_out_of_memory
from mra_export.outputs import INTERRUPTED
from mra_export.quiet import quiet_onnxruntime
from mra_export.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cli", "main"]


class Group(click.Group):
    """Lists the commands in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, as declared."""
        return list(self.commands)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="mra-export")
def cli() -> None:
    """Puts MRA encoders into production: ONNX files and engines that are proven to be the PyTorch model.

    \b
    Example, from a dense model to a checked ONNX directory:
      mra-export from-dense ./all-MiniLM-L6-v2 -o ./minilm-mra
      mra-export onnx ./minilm-mra -o ./minilm-onnx
    """


for _command in (
    from_dense_command, onnx_command, trt_command, openvino_command, check_command, bench_command, bundle_command,
    fidelity_command, heal_command, embed_command, build_command, doctor_command,
):  # fmt: skip
    cli.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line and ends the process with the exit code of `errors`.

    Args:
        arguments: instead of `sys.argv[1:]`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    as_json = _is_given(arguments, "--json")
    verbose = _is_given(arguments, "-v", "--verbose")
    quiet_onnxruntime()  # whatever imports it
    with _signals():
        try:
            code = cli.main(args=arguments, prog_name="mra-export", standalone_mode=False)
        except click.exceptions.Exit as exit_:
            code = exit_.exit_code
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and _is_of_stdout(error):
                sys.stderr.write(f"Error: {error.strerror or error}\n")
                sys.stdout = None  # Python would try to flush it again
                sys.exit(1)
            code, message = _judged(error)
            if verbose and code not in _INTERRUPTIONS and not isinstance(error, click.ClickException):
                traceback.print_exc()
            if as_json:
                _print_error(arguments, message)
            elif isinstance(error, click.ClickException):
                error.show()
            else:
                click.echo(message if code in _INTERRUPTIONS else f"Error: {message}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _judged(error: BaseException) -> tuple[int, str]:
    """The exit code of what ended a command, and the message."""
    cause = error.__cause__ if isinstance(error, click.Abort) and error.__cause__ is not None else error
    # Code in between, as of torch's exporter, may have made another error of the interruption.
    if _received or isinstance(cause, (KeyboardInterrupt, click.Abort)):
        # A command that keeps what it did says so; click hides that behind its Abort.
        kept = str(cause) if isinstance(cause, KeyboardInterrupt) else ""
        number = _received[0] if _received else signal.SIGINT
        return 128 + number, kept or "Interrupted; no output was written."
    if isinstance(cause, click.ClickException):
        return cause.exit_code, cause.format_message()
    if isinstance(cause, MraExportError):
        return cause.exit_code, str(cause)
    if is_out_of_memory(cause):
        text = "There is not enough memory for this. Give smaller sizes or batches, or run it on a machine with more."
        return DependencyError.exit_code, text
    if isinstance(cause, OSError):
        return InputError.exit_code, _file_message(cause)
    text = f"{type(cause).__name__}: {cause}"
    return 1, f"This is a bug in mra-export. {text.splitlines()[0]} Run it again with -v for the traceback."


def _file_message(error: OSError) -> str:
    """What the system says of a file, and what to do; files that the commands write have messages of their own."""
    advice = {
        errno.ENOSPC: " Free some space, or set TMPDIR to a larger folder.",
        errno.EDQUOT: " Free some space, or set TMPDIR to a larger folder.",
        errno.EACCES: " Check its permissions.",
        errno.EPERM: " Check its permissions.",
        errno.EROFS: " Choose another place, or set TMPDIR to one.",
        errno.ENOENT: " It was removed meanwhile, or is a link to nowhere.",
    }.get(error.errno or 0, "")
    name = f"{error.filename}: " if error.filename is not None else ""
    return f"{name}{(error.strerror or str(error)).rstrip('.')}.{advice}"


def _is_of_stdout(error: OSError) -> bool:
    """Whether standard output could not be written to: the error comes from who prints, or what was printed still waits."""
    frames = list(traceback.walk_tb(error.__traceback__))
    if (
        error.filename is None
        and frames
        and frames[-1][0].f_globals.get("__name__", "").split(".")[0] in ("click", "rich")
    ):
        return True
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        return True
    return False


def _is_given(arguments: list[str], *names: str) -> bool:
    """Whether a flag is given, whatever else is wrong with the arguments; not where it is the value of another option."""
    command = next((cli.commands[each] for each in arguments if each in cli.commands), cli)
    options = [each for each in command.params if isinstance(each, click.Option) and not each.is_flag]
    takes_value = {name for option in options for name in option.opts}
    before = ["", *arguments]
    return any(each in names and before[i] not in takes_value for i, each in enumerate(arguments))


class _Interrupted(KeyboardInterrupt):
    """Unlike its parent, CPython does not kill the process at its end for one that passed through `exec` and was handled."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_INTERRUPTIONS = tuple(128 + number for number in _SIGNALS)
"""The exit codes of interrupted commands, as shells have them: 130, 143 and 129."""
_received: list[int] = []
"""The signals that came, first one first."""


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """A plain `kill` and a closed terminal get the same clean-up as Ctrl-C; after the block all is as it was before."""
    INTERRUPTED.clear()
    _received.clear()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = [number for number, handler in before.items() if handler is not signal.SIG_IGN]  # as it is under nohup
    for number in taken:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number] or signal.SIG_DFL)
        INTERRUPTED.clear()


def _interrupt(number: int, _: object) -> None:
    INTERRUPTED.set()
    _received.append(number)
    raise _Interrupted


def _print_error(arguments: list[str], message: str) -> None:
    command = next((a for a in arguments if a in cli.commands), None)
    print_json(ok=False, command=command, outputs=[], error=message)
