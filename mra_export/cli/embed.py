"""`mra-export embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mra_export.cli.options import output_option, output_options
from mra_export.cli.output import print_result

__all__ = ["embed_command"]


@click.command("embed")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", metavar="INPUT", type=click.Path(path_type=Path))
@output_option("The .npy or .parquet file to write.")
@click.option("--column", "--text-column", default="text", show_default=True, metavar="NAME",
              help="Where the texts are in .jsonl and .parquet.")  # fmt: skip
@click.option("--id-column", "id_columns", multiple=True, metavar="NAME",
              help="A column of INPUT to keep in a .parquet output; may be repeated.")  # fmt: skip
@click.option(
    "--batch-tokens", type=int, metavar="N", help="Most tokens of a batch, padding included.  [default: 2048]"
)
@click.option("--threads", type=int, default=0, metavar="N",
              help="Of a session.  [default: ONNX Runtime's choice; 1 with ray]")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="This process, or workers of Ray Data.")  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Of ray.  [default: as there are processors for]")
@click.option("--force", is_flag=True, help="Replace an existing output; drop unfinished work of another command.")
@output_options
def embed_command(
    bundle: Path,
    source: Path,
    output: Path,
    column: str,
    id_columns: tuple[str, ...],
    batch_tokens: int | None,
    threads: int,
    engine: str,
    workers: int | None,
    force: bool,
    **shown: Any,
) -> None:
    """Embeds each text of INPUT, a .txt, .jsonl or .parquet file, with a bundle.

    Interrupted or killed, the same command goes on where it was. The bytes of the output do not depend on that, nor on
    threads, engine and workers.

    \b
    Example:
      mra-export embed ./minilm-bundle ./documents.jsonl -o ./vectors.npy
    """
    from mra_export.cli.console import rows_progress
    from mra_export.embedding.encoder import DEFAULT_BATCH_TOKENS
    from mra_export.embedding.run import embed

    with rows_progress(quiet=shown["quiet"]) as watcher:
        result = embed(
            bundle, source, output, column=column, id_columns=id_columns, engine=engine, workers=workers, threads=threads,
            batch_tokens=DEFAULT_BATCH_TOKENS if batch_tokens is None else batch_tokens, force=force, watcher=watcher,
        )  # fmt: skip
    cut = f", {result.truncated} of them cut to {result.max_length} tokens" if result.truncated else ""
    resumed = f" (and {result.resumed_rows} before)" if result.resumed_rows else ""
    print_result(
        "embed",
        f"{result.output}: {result.rows} rows of {result.hidden_size}{cut}\n  "
        f"{result.rows - result.resumed_rows} rows in {result.seconds:.1f} s{resumed}, {result.rows_per_second:,.0f} rows/s, "
        f"{result.padded_share:.0%} padding, {result.engine} ({result.workers} x {result.provider})",
        shown["as_json"],
        outputs=[str(result.output)],
        rows=result.rows,
        hidden_size=result.hidden_size,
        truncated=result.truncated,
        max_length=result.max_length,
        tokens=result.tokens,
        padded_share=result.padded_share,
        resumed_rows=result.resumed_rows,
        seconds=result.seconds,
        rows_per_second=result.rows_per_second,
        engine=result.engine,
        workers=result.workers,
        provider=result.provider,
    )
