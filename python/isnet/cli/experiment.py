"""isnet experiment: what the figures of the documentation come from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from isnet._text import say
from isnet.experiments import classes as classes_experiment
from isnet.experiments import coloured as coloured_experiment
from isnet.experiments import mask_errors_grid
from isnet.experiments import mnist as mnist_experiment
from isnet.experiments import natural as natural_experiment
from isnet.experiments import xray as xray_experiment
from isnet.experiments.chest_ct import CT_SOURCES
from isnet.experiments.grid import Experiment, run_grid

app = typer.Typer(help="Experiments that a single command repeats.", no_args_is_help=True)

Methods = Annotated[list[str] | None, typer.Option(help="Only this method, or all; repeatable.")]
Background = Annotated[
    str | None,
    typer.Option(
        help="Noise of the warm-up and of the rival trained on it: noise (white) or smooth.",
        show_default="mnist: noise, xray: smooth",
    ),
]
Warmup = Annotated[int | None, typer.Option(help="Epochs of the warm-up.", min=1, show_default="the preset's")]
Epochs = Annotated[int | None, typer.Option(help="Epochs after it.", min=1, show_default="the preset's")]
Seeds = Annotated[int | None, typer.Option(help="Number of seeds, 0 and up.", min=1, show_default="3; quick: 1")]
Seed = Annotated[list[int] | None, typer.Option(help="This seed instead; repeatable.", min=0)]
Processes = Annotated[int, typer.Option(help="Trainings at a time.", min=1)]
Hours = Annotated[
    float | None,
    typer.Option(
        help="Begin no training once so many hours have passed; the same command goes on.",
        min=0,
        show_default="no limit",
    ),
]


def _changes(
    out: Path | None,
    method: list[str] | None,
    seeds: int | None,
    seed: list[int] | None,
    *,
    warmup_background: str | None = None,
    warmup: int | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """What the options that grids share change in a preset."""
    if seeds is not None and seed:
        raise ValueError("--seed, --seeds: give the number of seeds or the seeds themselves, not both")
    given: dict[str, Any] = {
        "folder": out and str(out),
        "methods": method and (() if method == ["all"] else tuple(method)),
        "warmup_background": warmup_background,
        "warmup": warmup,
        "epochs": epochs,
        "seeds": tuple(seed) if seed else seeds and tuple(range(seeds)),
    }
    return {name: value for name, value in given.items() if value is not None}


def _run(experiment: Experiment, processes: int, hours: float | None) -> None:
    """Runs a grid and shows its table."""
    results, left = run_grid(experiment, processes=processes, hours=hours)
    if results:
        say(experiment.table(results))
    say(f"Cells, runs and tables: {experiment.folder}")
    if left:
        say(f"{left} of {left + len(results)} cells are left: the same command goes on.")


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
        typer.Option(help="Only this method, or all; repeatable.", show_default="all; quick: thirteen of them"),
    ] = None,
    mark: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this mark: place, texture, photo; repeatable.", show_default="all; quick: place, photo"
        ),
    ] = None,
    warmup_background: Background = None,
    warmup: Warmup = None,
    epochs: Epochs = None,
    seeds: Seeds = None,
    seed: Seed = None,
    processes: Processes = 2,
    hours: Hours = None,
) -> None:
    """Every method on biased MNIST, several kinds of mark; goes on where it was interrupted."""
    changes = {
        "data_folder": str(data_folder),
        **_changes(out, method, seeds, seed, warmup_background=warmup_background, warmup=warmup, epochs=epochs),
    }
    if mark:
        changes["marks"] = tuple(mark)
    _run(mnist_experiment.preset(preset, **changes), processes, hours)


@app.command()
def coloured(
    preset: Annotated[str, typer.Option(help="quick (minutes a seed) or full (all digits, three seeds).")] = "quick",
    out: Annotated[
        Path | None, typer.Option(help="Folder of cells and tables.", show_default="runs/coloured[-quick]")
    ] = None,
    data_folder: Annotated[Path, typer.Option(help="Folder of the MNIST files.")] = Path("data/mnist"),
    method: Annotated[
        list[str] | None,
        typer.Option(help="Only this method, or all; repeatable.", show_default="all; quick: five of them"),
    ] = None,
    seeds: Seeds = None,
    seed: Seed = None,
    processes: Processes = 2,
    hours: Hours = None,
) -> None:
    """Digits whose colour tells the class: students of a teacher that knows no colours; goes on where it was interrupted."""
    changes = {"data_folder": str(data_folder), **_changes(out, method, seeds, seed)}
    _run(coloured_experiment.preset(preset, **changes), processes, hours)


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
        Path | None, typer.Option(help="Folder of cells and tables.", show_default="runs/xray or runs/xray-quick")
    ] = None,
    ct_folder: Annotated[Path, typer.Option(help="Folder of the chest CTs.")] = Path("data/chest-ct"),
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Patient that only tests see, or all: each in turn; repeatable.", show_default="totalsegmentator"
        ),
    ] = None,
    method: Methods = None,
    warmup_background: Background = None,
    warmup: Warmup = None,
    epochs: Epochs = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Number of seeds, of rendering and training.", min=1, show_default="3; quick: 1"),
    ] = None,
    seed: Seed = None,
    processes: Processes = 2,
    hours: Hours = None,
) -> None:
    """Chest radiographs out of distribution: rendered from four CTs (semi-synthetic), or your own; goes on where it stopped."""
    changes = _changes(out, method, seeds, seed, warmup_background=warmup_background, warmup=warmup, epochs=epochs)
    if data is not None:
        changes["own_data"] = str(data)
    if size is not None:
        changes["size"] = size
    if held_out:
        changes["held_out"] = tuple(CT_SOURCES) if held_out == ["all"] else tuple(held_out)
    config = xray_experiment.preset(preset, **changes)
    place = config.rendering.images if images is None else str(images)
    rendering = dataclasses.replace(config.rendering, images=place, ct_folder=str(ct_folder))
    _run(dataclasses.replace(config, rendering=rendering), processes, hours)


@app.command()
def natural(
    preset: Annotated[str, typer.Option(help="quick (an hour of processor time a seed) or full (a day).")] = "quick",
    images: Annotated[
        Path | None, typer.Option(help="Folder to render into.", show_default="data/natural or data/natural-quick")
    ] = None,
    objects: Annotated[Path, typer.Option(help="Folder of the objects.")] = Path("data/fashion-mnist"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of cells and tables.", show_default="runs/natural or runs/natural-quick")
    ] = None,
    correlation: Annotated[
        list[str] | None,
        typer.Option(help="Only this correlation of place and class: 50 %, 95 %, 100 %; repeatable."),
    ] = None,
    method: Methods = None,
    seeds: Seeds = None,
    seed: Seed = None,
    processes: Processes = 2,
    hours: Hours = None,
) -> None:
    """Objects in front of photographs whose place tells the class, as Waterbirds; goes on where it was interrupted."""
    changes = _changes(out, method, seeds, seed)
    if correlation:
        changes["correlations"] = tuple(correlation)
    config = natural_experiment.preset(preset, **changes)
    place = config.rendering.images if images is None else str(images)
    rendering = dataclasses.replace(config.rendering, images=place, objects=str(objects))
    _run(dataclasses.replace(config, rendering=rendering), processes, hours)


@app.command()
def masks(
    on: Annotated[
        Literal["digits", "radiographs"], typer.Option(help="Digits before photographs, or rendered radiographs.")
    ] = "digits",
    error: Annotated[
        list[str] | None, typer.Option(help="Only this error of the training masks; repeatable.", show_default="all")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of cells and tables.", show_default="runs/masks or runs/xray-masks")
    ] = None,
    data_folder: Annotated[Path, typer.Option(help="Folder of the MNIST files.")] = Path("data/mnist"),
    ct_folder: Annotated[Path, typer.Option(help="Folder of the chest CTs.")] = Path("data/chest-ct"),
    method: Methods = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds, 0 and up.", min=1, show_default="seed 0 alone")
    ] = None,
    seed: Seed = None,
    processes: Processes = 2,
    hours: Hours = None,
) -> None:
    """Training with wrong masks, at the size of the quick presets; goes on where it was interrupted."""
    changes = _changes(out, method, seeds, seed)
    if error:
        changes["errors"] = tuple(error)
    if on == "digits":
        _run(mask_errors_grid.digits(data_folder=str(data_folder), **changes), processes, hours)
        return
    config = mask_errors_grid.radiographs(**changes)
    rendering = dataclasses.replace(config.rendering, ct_folder=str(ct_folder))
    _run(dataclasses.replace(config, rendering=rendering), processes, hours)
