"""The group of commands, and errors to exit codes."""

from __future__ import annotations

import signal
import sys
import traceback

import click

from mra_export.cli.bench import bench_command
from mra_export.cli.build import build_command
from mra_export.cli.bundle import bundle_command
from mra_export.cli.check import check_command
from mra_export.cli.doctor import doctor_command
from mra_export.cli.embed import embed_command
from mra_export.cli.from_dense import from_dense_command
from mra_export.cli.onnx import onnx_command
from mra_export.cli.output import print_json
from mra_export.cli.trt import trt_command
from mra_export.errors import MraExportError
from mra_export.outputs import INTERRUPTED
from mra_export.quiet import quiet_onnxruntime
from mra_export.version import __version__

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
    from_dense_command, onnx_command, trt_command, check_command, bench_command, bundle_command, embed_command, build_command,
    doctor_command,
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
    INTERRUPTED.clear()
    quiet_onnxruntime()  # whatever imports it
    # A plain `kill` and a closed terminal get the same clean-up as Ctrl-C.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) is not signal.SIG_IGN:  # as under nohup
            signal.signal(name, _interrupt)
    try:
        code = cli.main(args=arguments, prog_name="mra-export", standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        code = 2
        if as_json:
            _print_error(arguments, error.format_message())
        else:
            error.show()
    except MraExportError as error:
        code = error.exit_code
        if verbose:
            traceback.print_exc()
        if as_json:
            _print_error(arguments, str(error))
        else:
            click.echo(f"Error: {error}", err=True)
    except (KeyboardInterrupt, click.Abort) as error:
        code = 1
        # A command that keeps what it did says so; click hides that behind its Abort.
        message = str(error) or str(error.__cause__ or "") or "Interrupted; no output was written."
        if as_json:
            _print_error(arguments, message)
        else:
            click.echo(message, err=True)
    except OSError as error:
        # Files that the commands write have messages of their own: what is left is standard output itself.
        code = 1
        sys.stderr.write(f"Error: {error.strerror or error}\n")
        sys.stdout = None  # Python would try to flush it again
    except Exception as error:
        if verbose:
            traceback.print_exc()
        code = 1
        text = f"{type(error).__name__}: {error}"
        message = f"This is a bug in mra-export. {text.splitlines()[0]} Run it again with -v for the traceback."
        if as_json:
            _print_error(arguments, message)
        else:
            click.echo(f"Error: {message}", err=True)
    sys.exit(code if isinstance(code, int) else 0)


def _is_given(arguments: list[str], *names: str) -> bool:
    """Whether a flag is given, whatever else is wrong with the arguments; not where it is the value of another option."""
    command = next((cli.commands[each] for each in arguments if each in cli.commands), cli)
    options = [each for each in command.params if isinstance(each, click.Option) and not each.is_flag]
    takes_value = {name for option in options for name in option.opts}
    before = ["", *arguments]
    return any(each in names and before[i] not in takes_value for i, each in enumerate(arguments))


class _Interrupted(KeyboardInterrupt):
    """Unlike its parent, CPython does not kill the process at its end for one that passed through `exec` and was handled."""


def _interrupt(*_: object) -> None:
    INTERRUPTED.set()
    raise _Interrupted


def _print_error(arguments: list[str], message: str) -> None:
    command = next((a for a in arguments if a in cli.commands), None)
    print_json(ok=False, command=command, outputs=[], error=message)
