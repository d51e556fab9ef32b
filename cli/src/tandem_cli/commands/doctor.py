"""`tandem doctor`: what is missing on this machine, and how to mend it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tandem_cli.commands.up import DEFAULT_GRPC_PORT, DEFAULT_HTTP_PORT
from tandem_cli.doctor import Finding, Level, run_checks

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.MISSING: "bold red"}


def doctor(
    model: Annotated[
        str | None, typer.Option(help="Also check this directory, or the hub that this id comes from.")
    ] = None,
) -> None:
    """Check what Tandem needs: each line is ok, warn or missing, with what mends it.

    Ends with exit code 1 if something essential is missing.
    """
    console = Console(soft_wrap=True)
    findings: list[Finding] = []
    for finding in run_checks(model, (DEFAULT_HTTP_PORT, DEFAULT_GRPC_PORT)):
        findings.append(finding)
        line = Text.assemble(
            (f"{finding.level:8}", _STYLES[finding.level]), f"{finding.subject:18}", finding.found
        )
        if finding.fix:
            line.append(f"\n{'':26}to mend: {finding.fix}", "dim")
        console.print(line)
    if any(finding.level is Level.MISSING for finding in findings):
        raise typer.Exit(1)
