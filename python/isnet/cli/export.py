"""isnet export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isnet._text import say
from isnet.cli.options import RunFolder, Trust
from isnet.export import FORMATS, export_run
from isnet.runs.folder import load_evaluation, load_run

app = typer.Typer()


def _check_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"--format: expected {', '.join(FORMATS)}, got {name!r}")
    return name


@app.command()
def export(
    run: RunFolder,
    format: Annotated[
        str,
        typer.Option(
            help=f"{', '.join(FORMATS)}.",
            callback=_check_format,
            autocompletion=lambda incomplete: [name for name in FORMATS if name.startswith(incomplete)],
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to make.", show_default="RUN/export/FORMAT")] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference of a logit from the run's.", min=0)] = 1e-4,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    trust: Trust = None,
) -> None:
    """Writes the trained network for use without isnet, with its preprocessing and a model card; checks that it answers as the run does."""
    trained = load_run(run, trust=trust or ())
    folder = out or run / "export" / format
    try:
        found = export_run(trained, FORMATS[format], folder, tolerance=tolerance, overwrite=overwrite)
    except ModuleNotFoundError as error:
        needed = FORMATS[format].extra
        raise ValueError(f"--format {format} needs {needed} ({error}): pip install {needed}") from error
    say(f"{folder}: largest difference of a logit {found.difference:.2g} on {found.images} (allowed: {tolerance:g})")
    if load_evaluation(run) is None:
        say("Note: the model card has no scores; isnet evaluate makes them")
