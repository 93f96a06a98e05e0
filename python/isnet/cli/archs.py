"""isnet archs."""

from __future__ import annotations

from typing import Annotated

import typer

from isnet._text import say
from isnet.architectures import catalogue, count_parameters

app = typer.Typer()


@app.command()
def archs(
    pattern: Annotated[str, typer.Argument(help="Part of a name, or one with * and ?, as 'resnet*'.")] = "*",
    parameters: Annotated[
        bool, typer.Option("--parameters", help="Count the parameters, for images 3x224x224 and two classes.")
    ] = False,
) -> None:
    """Lists what --arch can build with the installed packages; beside them, any callable of a module or of a file.py."""
    found, absent = catalogue(pattern)
    width = max(len(entry.name) for entry in found)
    for entry in found:
        count = count_parameters(entry.name) if parameters and not entry.needs else None
        counted = ("-" if count is None else f"{count:,}").rjust(14) if parameters else ""
        needs = f"  --arch-arg {', '.join(entry.needs)}" if entry.needs else ""
        say(f"{entry.name:{width}}{counted}  {entry.source}{needs}")
    for text in absent:
        say(f"Left out: {text}", err=True)
