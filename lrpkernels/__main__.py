"""Command line: ``lrpkernels`` or ``python -m lrpkernels``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from lrpkernels.config import __version__, show_config

T = TypeVar("T")
app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lrpkernels {__version__}")
        raise typer.Exit


_Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit.")]


@app.callback(invoke_without_command=True)
def default(context: typer.Context, version: _Version = False) -> None:
    """Layer-wise relevance propagation kernels for PyTorch. Without a command: the configuration of this installation.

    Exit status: 0 done, 1 failed (or a kernel is wrong), 2 wrong use.
    """
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

    from lrpkernels.tools.doctor import diagnose, table

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


_Json = Annotated[bool, typer.Option("--json", help="For machines.")]
_Input = Annotated[str, typer.Option("--input", help="Sizes of a random input in [0, 1], batch first.")]
_Device = Annotated[str, typer.Option(help="cpu or cuda.")]
_Threads = Annotated[int, typer.Option(min=1, help="On the CPU.")]
_Wall = Annotated[bool, typer.Option(help="Wall-clock instead of processor time.")]
_TWO = ("epsilon", "EpsilonPlus")
_MODEL = "package.module:factory, or the name of a network of the benchmarks, torchvision or timm, where installed."


@app.command()
def bench(
    model: Annotated[str, typer.Option(help=_MODEL)],
    shape: _Input = "1x3x112x112",
    composite: Annotated[list[str] | None, typer.Option(help="Of a heatmap; may be repeated. Default: two.")] = None,
    repeats: Annotated[int, typer.Option(min=3, help="Alternating runs of which the medians count.")] = 7,
    device: _Device = "cpu",
    threads: _Threads = 1,
    wall: _Wall = False,
    static: Annotated[bool, typer.Option(help="As LRP(static=True): the model always makes the same calls.")] = False,
    as_json: _Json = False,
) -> None:
    """What heatmaps and training through them cost on a model, beside forward pass and gradient."""
    from lrpkernels.tools import bench as benchmark

    network, x = _prepared(model, shape, device, threads)
    options: dict[str, Any] = {"repeats": repeats, "wall": wall, "static": static}
    rows = _told(lambda: benchmark.bench(network, x, composites=composite or _TWO, **options))
    _show([row.as_dict() for row in rows], benchmark.table(rows), as_json)


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    shape: _Input = "1x3x112x112",
    composite: Annotated[str, typer.Option(help="Of the heatmap.")] = "epsilon",
    repeats: Annotated[int, typer.Option(min=1, help="Runs of which the medians count.")] = 5,
    device: _Device = "cpu",
    threads: _Threads = 1,
    wall: _Wall = False,
    as_json: _Json = False,
) -> None:
    """Time and bytes of a heatmap, block by block, beside their floors."""
    from lrpkernels.tools import profile as profiler
    from lrpkernels.tools.bench import COMPOSITES

    if composite not in COMPOSITES:
        raise typer.BadParameter(f"composite must be one of {', '.join(COMPOSITES)}, got {composite!r}")
    network, x = _prepared(model, shape, device, threads)
    found = _told(lambda: profiler.profile(network.eval(), x, COMPOSITES[composite][1](), repeats=repeats, wall=wall))
    _show(found.as_dict(), profiler.table(found), as_json)
    if not as_json:
        forward, relevance = found.overhead
        typer.echo(
            f"forward pass {1e3 * found.forward:.2f} ms, relevance pass {1e3 * found.relevance:.2f} ms; outside the blocks "
            f"{forward:.0f} and {relevance:.0f} us per block, the reading of the clock included"
        )


def _prepared(model: str, shape: str, device: str, threads: int) -> tuple[Any, Any]:
    """The model and a random input; invalid texts become errors of the command line."""
    import torch

    from lrpkernels.tools.bench import load_model, parse_shape
    from lrpkernels.tools.timing import steady_allocator

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise typer.BadParameter(f"device: {device!r}, but torch {torch.__version__} finds no GPU; use cpu")
    torch.set_num_threads(threads)
    steady_allocator()
    torch.manual_seed(0)
    sizes = _told(lambda: parse_shape(shape))
    return _told(lambda: load_model(model)).to(device), torch.rand(sizes, device=device)


def _told(run: Callable[[], T]) -> T:
    """The result of ``run``; errors about arguments and models become one line."""
    from lrpkernels.errors import RelevanceError

    try:
        return run()
    except (ValueError, RelevanceError) as error:
        raise typer.BadParameter(str(error)) from error


def _show(found: Any, table: Any, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    console.width = max(console.width, 180)  # a truncated table is useless
    console.print(table)


def main() -> None:
    """Runs the command line; an error, of the user's model too, is one line and status 1."""
    try:
        app(prog_name="lrpkernels")
    except Exception as error:
        text = " ".join(str(error).split())
        typer.echo(f"lrpkernels: {type(error).__name__}: {text}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
