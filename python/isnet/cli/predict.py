"""isnet predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isnet._text import say
from isnet.cli.options import Device, Masks, RunFolder, Trust, tell_device
from isnet.data.sources import read_sources
from isnet.runs.build import device_text
from isnet.runs.folder import load_run
from isnet.runs.predict import Pictures, Predicted, predict_sources
from isnet.training.distributed import World, launched_world

app = typer.Typer()

SOURCE_HELP = "Files, 'patterns*.png', folders, manifests, .tar shards."
BatchSize = Annotated[int | None, typer.Option(help="Images at a time.", min=1, show_default="as in training")]
Workers = Annotated[int, typer.Option(help="Processes that load images; 0 = this one.", min=0)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output, and begin stopped work again.")]


@app.command()
def predict(
    run: RunFolder,
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCE_HELP)],
    out: Annotated[Path, typer.Option(help="Table to write.")] = Path("predictions.csv"),
    heatmaps: Annotated[Path | None, typer.Option(help="Folder for pictures: image and heatmap.")] = None,
    masks: Masks = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    overwrite: Overwrite = False,
    trust: Trust = None,
    device: Device = "auto",
) -> None:
    """Answers images: a table with answer, probabilities and, where a mask is known, relevance in the background.

    Several processes share the work (torchrun), and stopped work goes on with the same command. Status 1: the column error says of which
    images something is wrong.
    """
    with launched_world(device) as (world, place):
        trained = load_run(run, device=place, trust=trust or ())
        tell_device(place)
        data = trained.config.data
        sources = read_sources(source, data.classes, multi_label=data.multi_label, masks=masks)
        pictures = None if heatmaps is None else Pictures(heatmaps)
        found = predict_sources(
            trained,
            sources,
            out,
            pictures=pictures,
            batch_size=batch_size,
            workers=workers,
            world=world,
            overwrite=overwrite,
        )
    if world.is_main and sources.unknown:
        say(f"Note: no classes of the run, so without labels: {', '.join(sources.unknown)}")
    tell_predicted(found, out, world, place)


def tell_predicted(found: Predicted, out: Path, world: World, device: str) -> None:
    """What was done, how fast, and what went wrong; ends with status 1 if anything did."""
    if not world.is_main:
        return
    processes = f" in {world.size} processes" if world.size > 1 else ""
    before = found.images - found.made
    speed = f", {found.made / found.seconds:.1f} images per second" if found.made else ""
    kept = f"; {before} were there" if before else ""
    say(f"{out}: {found.images} images{kept}{speed} on {device_text(device)}{processes}")
    if found.failed:
        say(f"{found.failed} images have an error (column error); the first: {found.first_error}", err=True)
        raise typer.Exit(1)
