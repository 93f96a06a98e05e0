"""isnet demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isnet.experiments.demo import DemoConfig, run_demo

app = typer.Typer()


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, report, table and picture.")] = Path("runs/demo"),
    data_folder: Annotated[Path, typer.Option(help="Folder of the MNIST files.")] = Path("data/mnist"),
    resume: Annotated[bool, typer.Option(help="Continue an interrupted demonstration.")] = False,
) -> None:
    """Trains a standard network and two ISNets on biased MNIST and compares them; minutes on two cores.

    Ends with status 1 when the figures of the full MNIST fall short of what is to be shown.
    """
    result = run_demo(DemoConfig(folder=str(out), data_folder=str(data_folder)), resume=resume)
    if not all(claim.holds for claim in result.claims) and result.complete:
        raise typer.Exit(1)
