"""isnet experiment: what the figures of the documentation come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from isnet._text import say
from isnet.experiments import classes as classes_experiment
from isnet.experiments import mnist as mnist_experiment
from isnet.experiments import xray as xray_experiment

app = typer.Typer(help="Experiments that a single command repeats.", no_args_is_help=True)

_WARMUP_BACKGROUND = typer.Option(
    help="Noise of the warm-up and of the rival trained on it: noise (white) or smooth.",
    show_default="mnist: noise, xray: smooth",
)


def _seeds_and_background(seeds: int | None, warmup_background: str | None) -> dict[str, Any]:
    changes: dict[str, Any] = {} if seeds is None else {"seeds": tuple(range(seeds))}
    return changes if warmup_background is None else {**changes, "warmup_background": warmup_background}


def _methods(method: list[str] | None) -> dict[str, Any]:
    return {} if not method else {"methods": () if method == ["all"] else tuple(method)}


@app.command()
def mnist(
    preset: Annotated[
        str, typer.Option(help="quick (ten minutes a seed on two cores) or full (all digits, three seeds: hours).")
    ] = "quick",
    out: Annotated[
        Path | None, typer.Option(help="Folder of cells and tables.", show_default="runs/mnist or runs/mnist-quick")
    ] = None,
    data_folder: Annotated[Path, typer.Option(help="Folder of the MNIST files.")] = Path("data/mnist"),
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only this method, or all; repeatable.", show_default="all; quick: twelve of them"),
    ] = None,
    mark: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this mark: place, texture, photo; repeatable.", show_default="all; quick: place, photo"
        ),
    ] = None,
    warmup_background: Annotated[str | None, _WARMUP_BACKGROUND] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, 0 and up.", min=1, show_default="3; quick: 1")
    ] = None,
    processes: Annotated[int, typer.Option(help="Trainings at a time.", min=1)] = 2,
) -> None:
    """Every method on biased MNIST, several kinds of mark; goes on where it was interrupted."""
    changes: dict[str, Any] = {"data_folder": str(data_folder), **_methods(method)}
    if mark:
        changes["marks"] = tuple(mark)
    if out is not None:
        changes["folder"] = str(out)
    changes |= _seeds_and_background(seeds, warmup_background)
    config = mnist_experiment.preset(preset, **changes)
    say(mnist_experiment.table(mnist_experiment.run_experiment(config, processes=processes)))
    say(f"Cells and tables: {config.folder}")


@app.command()
def classes(
    out: Annotated[Path, typer.Option(help="Folder of figure and table.")] = Path("runs/classes"),
    count: Annotated[
        list[int] | None, typer.Option(help="Number of classes; repeatable.", min=2, show_default="2 10 50 200 1000")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Pairs of steps.", min=1)] = 5,
) -> None:
    """Training time against the number of classes."""
    rows = classes_experiment.measure(count or (2, 10, 50, 200, 1000), repeats=repeats)
    classes_experiment.write(out, rows)
    say(classes_experiment.table(rows))
    say(f"Figure and table: {out}")


@app.command()
def xray(
    preset: Annotated[
        str, typer.Option(help="quick (a quarter of an hour a seed on two cores) or full (many hours).")
    ] = "quick",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Your own image folder, manifest or shards.", show_default="the rendered, semi-synthetic set"
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder to render into.", show_default="data/xray or data/xray-quick")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the network's images.", min=8, show_default="224; quick: 64")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and tables.", show_default="runs/xray or runs/xray-quick")
    ] = None,
    ct_folder: Annotated[Path, typer.Option(help="Folder of the chest CTs.")] = Path("data/chest-ct"),
    held_out: Annotated[
        list[str] | None, typer.Option(help="Patient that only tests see; repeatable.", show_default="totalsegmentator")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Only this method, or all; repeatable.", show_default="all")
    ] = None,
    warmup_background: Annotated[str | None, _WARMUP_BACKGROUND] = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of seeds, of rendering and training.", min=1, show_default="3; quick: 1"),
    ] = None,
    processes: Annotated[int, typer.Option(help="Trainings at a time.", min=1)] = 2,
) -> None:
    """Chest radiographs out of distribution: rendered from four CTs (semi-synthetic), or your own; goes on where it stopped."""
    changes: dict[str, Any] = {"ct_folder": str(ct_folder), **_methods(method)}
    for name, value in (("data", data), ("images", images), ("folder", out)):
        if value is not None:
            changes[name] = str(value)
    changes |= _seeds_and_background(seeds, warmup_background)
    if size is not None:
        changes["size"] = size
    if held_out:
        changes["held_out"] = tuple(held_out)
    config = xray_experiment.preset(preset, **changes)
    say(xray_experiment.table(xray_experiment.run_experiment(config, processes=processes)))
    say(f"Runs and tables: {config.folder}")
