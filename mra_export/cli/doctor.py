"""`mra-export doctor`."""

from __future__ import annotations

import sys
from typing import Any

import click

from mra_export.cli.options import output_options
from mra_export.cli.output import print_json

__all__ = ["doctor_command"]


@click.command("doctor")
@output_options
def doctor_command(**shown: Any) -> None:
    """Says what this machine has, what is missing, and the command that mends it.

    \b
    Example:
      mra-export doctor
    """
    from dataclasses import asdict

    from mra_export.cli.tables import print_diagnosis
    from mra_export.errors import DependencyError
    from mra_export.pipeline.doctor import diagnose

    diagnosis = diagnose()
    missing = [problem.text for problem in diagnosis.problems if problem.essential]
    if shown["as_json"]:
        error = {"error": " ".join(missing)} if missing else {}
        print_json(ok=not missing, command="doctor", outputs=[], **asdict(diagnosis), **error)
    else:
        print_diagnosis(diagnosis)
    if missing:
        sys.exit(DependencyError.exit_code)
