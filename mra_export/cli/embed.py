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
@click.argument("sources", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@output_option("The .npy or .parquet file to write.")
@click.option("--column", "--text-column", default="text", show_default=True, metavar="NAME",
              help="Where the texts are, in all but .txt; doc.text is text within doc.")  # fmt: skip
@click.option("--id-column", "id_columns", multiple=True, metavar="NAME",
              help="A column of INPUT to keep in a .parquet output; may be repeated.")  # fmt: skip
@click.option("--null", type=click.Choice(["error", "skip", "empty"]), default="error", show_default=True,
              help="A row without a text is an error, left out, or an empty text.")  # fmt: skip
@click.option("--input-format", type=click.Choice(["txt", "jsonl", "json", "csv", "tsv", "parquet"]), metavar="FORMAT",
              help="Of INPUT: txt, jsonl, json, csv, tsv or parquet.  [default: as its name says; needed for -]")  # fmt: skip
@click.option("--delimiter", metavar="CHARACTER", help="Of csv and tsv.  [default: comma, tab]")
@click.option("--chunk", type=int, metavar="TOKENS",
              help="Cut long texts into chunks of so many tokens at most, one vector each; else what is too long is cut "
                   "off.")  # fmt: skip
@click.option(
    "--overlap", type=int, default=0, show_default=True, metavar="TOKENS", help="Of a chunk with the one before."
)
@click.option("--output-type", type=click.Choice(["float32", "float16", "int8"]), default="float32", metavar="TYPE",
              help="Of the vectors' numbers: float32, float16 or int8.  [default: float32]")  # fmt: skip
@click.option("--prompt", metavar="NAME",
              help="Of the bundle's prompts, put before each text.  [default: the bundle's, if it has one]")  # fmt: skip
@click.option("--prompt-text", metavar="TEXT", help="What is put before each text instead; '' for nothing.")
@click.option("--dimensions", type=int, metavar="N",
              help="Cut each vector to its first N numbers; one of length 1 is scaled to it again.")  # fmt: skip
@click.option(
    "--batch-tokens", type=int, metavar="N", help="Most tokens of a batch, padding included.  [default: 2048]"
)
@click.option("--threads", type=int, default=0, metavar="N",
              help="Of a model.  [default: the runtime's choice; 1 with ray]")  # fmt: skip
@click.option("--runtime", type=click.Choice(["onnxruntime", "openvino"]), default="onnxruntime", show_default=True,
              help="What runs the model: the bundle's ONNX file, or its file for OpenVINO.")  # fmt: skip
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="This process, or workers of Ray Data.")  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Of ray.  [default: as there are processors for]")
@click.option("--force", is_flag=True, help="Replace an existing output; drop unfinished work of another command.")
@output_options
def embed_command(
    bundle: Path,
    sources: tuple[Path, ...],
    output: Path,
    column: str,
    id_columns: tuple[str, ...],
    null: str,
    input_format: str | None,
    delimiter: str | None,
    chunk: int | None,
    overlap: int,
    output_type: str,
    prompt: str | None,
    prompt_text: str | None,
    dimensions: int | None,
    batch_tokens: int | None,
    threads: int,
    runtime: str,
    engine: str,
    workers: int | None,
    force: bool,
    **shown: Any,
) -> None:
    """Embeds each text of INPUT with a bundle.

    INPUT is one or more files, a pattern in quotes, a folder, or - for standard input: .txt, .jsonl, .json, .csv, .tsv or
    .parquet, all but .parquet also packed as .gz, .zst, .bz2 or .xz.

    Interrupted or killed, the same command goes on where it was. The bytes of the output do not depend on that, nor on
    threads, engine and workers.

    \b
    Examples:
      mra-export embed ./minilm-bundle ./documents.jsonl -o ./vectors.npy
      mra-export embed ./minilm-bundle './year=*/*.parquet' --column doc.text --id-column year -o ./vectors.parquet
      zcat ./lines.gz | mra-export embed ./minilm-bundle - --input-format txt -o ./vectors.npy
    """
    from mra_export.cli.console import rows_progress
    from mra_export.embedding.encoder import DEFAULT_BATCH_TOKENS
    from mra_export.embedding.run import embed

    with rows_progress(quiet=shown["quiet"]) as watcher:
        result = embed(
            bundle, sources, output, column=column, id_columns=id_columns, null=null, input_format=input_format,
            delimiter=delimiter, chunk=chunk, overlap=overlap, output_type=output_type, prompt=prompt, prompt_text=prompt_text,
            dimensions=dimensions, engine=engine, workers=workers, threads=threads, runtime=runtime,
            batch_tokens=DEFAULT_BATCH_TOKENS if batch_tokens is None else batch_tokens, force=force,
            watcher=watcher,
        )  # fmt: skip
    name = "" if result.prompt_name is None else f" ({result.prompt_name!r})"
    prompted = f", with the prompt {result.prompt!r}{name} before each" if result.prompt else ""
    cut = f", {result.truncated} of them cut to {result.max_length} tokens" if result.truncated else ""
    if result.null_rows:
        cut += f"; {result.null_rows} of {result.input_rows} rows have no text" + (
            ", left out" if null == "skip" else ", taken as empty"
        )
    beside = "".join(f"\n  {path} says what its rows are" for path in result.outputs[1:])
    resumed = f" (and {result.resumed_rows} before)" if result.resumed_rows else ""
    print_result(
        "embed",
        f"{result.output}: {result.rows} rows of {result.dimension}{prompted}{cut}\n  "
        f"{result.rows - result.resumed_rows} rows in {result.seconds:.1f} s{resumed}, {result.rows_per_second:,.0f} rows/s, "
        f"{result.padded_share:.0%} padding, {result.engine} ({result.workers} x {result.provider} {result.precision})"
        + beside,
        shown["as_json"],
        outputs=[str(path) for path in result.outputs],
        files=result.files,
        input_rows=result.input_rows,
        null_rows=result.null_rows,
        rows=result.rows,
        dimension=result.dimension,
        hidden_size=result.dimension,  # the key's old name
        prompt=result.prompt,
        prompt_name=result.prompt_name,
        output_type=result.output_type,
        truncated=result.truncated,
        max_length=result.max_length,
        tokens=result.tokens,
        padded_share=result.padded_share,
        resumed_rows=result.resumed_rows,
        seconds=result.seconds,
        rows_per_second=result.rows_per_second,
        engine=result.engine,
        workers=result.workers,
        runtime=result.runtime,
        precision=result.precision,
        provider=result.provider,
    )
