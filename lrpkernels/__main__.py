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


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Runs every kernel of this machine (CPU, and CUDA where there is a GPU) against float64; fails if one is wrong."""
    from rich.console import Console

    from lrpkernels.doctor import diagnose, table

    console = Console(stderr=True)
    with console.status("checking") as status:
        found = diagnose(progress=status.update)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
    else:
        Console().print(table(found))
        for check in found.checks:
            if check.failure is not None:
                typer.echo(f"{check.device} {check.kernel} {check.dtype}: {check.failure}")
        typer.echo(found.cuda)
        typer.echo("All kernels that ran are right." if found.passed else "Some kernels are WRONG; do not use them.")
    if not found.passed:
        raise typer.Exit(1)


def main() -> None:
    """Runs the command line."""
    app(prog_name="lrpkernels")


if __name__ == "__main__":
    main()
