"""Lines of text into lines of token ids, as the C++ program mra-embed reads them.

python -m mra_export.embedding.token_ids BUNDLE < TEXTS
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mra_export.errors import InputError, MraExportError
from mra_export.optional import require_tokenizers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mra_export.bundle.manifest import Bundle

__all__ = ["main", "token_ids"]

_WINDOW = 1024
"""Lines that are tokenized in one call."""


def token_ids(
    bundle: Path, lines: BinaryIO, *, prompt: str | None = None, prompt_text: str | None = None
) -> Iterator[list[int]]:
    """The token ids of each line, special tokens included, cut to the bundle's `tokenizer.max_length`.

    Args:
        bundle: the directory.
        lines: UTF-8, one text a line; an empty line is an empty text.
        prompt: name of the prompt that is put before each text; None for the bundle's default.
        prompt_text: the prompt itself, "" for none; None for the one by name.

    Yields:
        Ids, 0 to `vocab_size` excluded, in the order of the lines.

    Raises:
        InputError: the bundle is none or has no tokenizer, or its vectors would not be those of the prompt; there is no such
            prompt; a line is not UTF-8; or the tokenizer gives token types, which the C++ client does not pass on.
        DependencyError: the package tokenizers is not installed.
    """
    from mra_export.bundle.manifest import read_bundle

    opened = read_bundle(bundle)
    if opened.tokenizer_file is None:
        raise InputError(
            f"{bundle} has no tokenizer.json. Put the checkpoint's beside its config.json and bundle it again."
        )
    before = opened.prompt(prompt, prompt_text)
    if before and not opened.include_prompt:
        raise InputError(
            f"{bundle} has include_prompt=false: the tokens of the prompt {before!r} must not count in the pooling, but they do "
            "where a model pools by itself. Use `mra-export embed`, or ask for no prompt with --prompt-text ''."
        )
    tokenizer = _open(opened.tokenizer_file, opened)
    numbered = enumerate(lines, 1)
    while window := list(itertools.islice(numbered, _WINDOW)):
        for encoding in tokenizer.encode_batch_fast([before + _decoded(*entry) for entry in window]):
            if any(encoding.type_ids):
                raise InputError(
                    "This tokenizer gives token types, which the C++ client does not take. Use `mra-export embed`."
                )
            yield encoding.ids


def _decoded(number: int, line: bytes) -> str:
    try:
        return line.removesuffix(b"\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"Line {number} is not UTF-8: {error}.") from error


def _open(file: Path, bundle: Bundle) -> Any:
    tokenizers = require_tokenizers("Run `pip install tokenizers`.")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{file} cannot be read: {error}.") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(bundle.tokenizer_max_length, direction=bundle.truncation_side)
    return tokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads standard input, writes standard output.

    Args:
        arguments: of the command line, default this process's.

    Returns:
        The exit code: 0 done, 2 bad input, 4 a package is missing.
    """
    parser = argparse.ArgumentParser(
        prog="python -m mra_export.embedding.token_ids",
        description="Lines of text on standard input into lines of token ids on standard output, for mra-embed.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="what `mra-export bundle` wrote")
    parser.add_argument(
        "--prompt", metavar="NAME", help="of the bundle's prompts, put before each text (default: its own)"
    )
    parser.add_argument("--prompt-text", metavar="TEXT", help="put before each text instead; '' for nothing")
    given = parser.parse_args(arguments)
    try:
        for ids in token_ids(given.bundle, sys.stdin.buffer, prompt=given.prompt, prompt_text=given.prompt_text):
            sys.stdout.write(" ".join(map(str, ids)) + "\n")
        sys.stdout.flush()
    except MraExportError as error:
        sys.stdout.flush()  # what stands before the bad line is whole
        print(f"token_ids: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader has ended, and says why itself
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
