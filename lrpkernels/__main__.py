"""Command line: ``lrpkernels`` or ``python -m lrpkernels``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lrpkernels.config import show_config

app = typer.Typer(help="Layer-wise relevance propagation kernels for PyTorch.", add_completion=False)


@app.callback(invoke_without_command=True)
def default(context: typer.Context) -> None:
    """Without a command: the configuration of this installation."""
    if context.invoked_subcommand is None:
        config(as_json=False)


@app.command()
def config(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Versions, compiler, CUDA kernels and threads of this installation."""
    found = show_config()
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else str(found))


def main() -> None:
    """Runs the command line."""
    app(prog_name="lrpkernels")


if __name__ == "__main__":
    main()
