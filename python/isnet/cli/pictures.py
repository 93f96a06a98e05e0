"""isnet report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isnet._text import say
from isnet.cli.options import Data, Device, Masks, Split, Trust, load_on, tell_device
from isnet.runs.report import write_report

app = typer.Typer()


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs, in the table's order.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "ISNet",
    data: Data = None,
    masks: Masks = None,
    split: Split = None,
    trust: Trust = None,
    device: Device = "auto",
) -> None:
    """Writes one self-contained HTML page: accuracies, heatmap gallery and training curves."""
    loaded = [load_on(folder, device, trust, data, masks, split) for folder in run]
    tell_device(device)
    write_report(out, loaded, title=title)
    say(f"Report: {out}")
