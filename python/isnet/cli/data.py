"""isnet data: looking at a set of images before training on it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from isnet._files import atomic_path, write_json
from isnet._text import say
from isnet.cli.findings import is_stdout, require_file, show, to_json, verdict
from isnet.config import ImagesConfig
from isnet.data import Problem, check, examine
from isnet.data.checks import unusable
from isnet.data.table import TRAIN, VALIDATION
from isnet.runs.data import image_set, load_table, progress_bar
from isnet.scoring.overlays import overlay_figure, overlays

app = typer.Typer(help="Images and masks.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Images and masks."""


@app.command("check")
def check_data(
    data: Annotated[Path, typer.Argument(help="Image folder, .csv/.tsv/.parquet manifest or .tar shards.")],
    masks: Annotated[Path | None, typer.Option(help="Folder of the masks.", show_default="DATA/masks")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label column of a multi-label manifest; repeatable.")] = None,
    size: Annotated[int, typer.Option(help="Side for the network: a mask must survive it.", min=1)] = 224,
    foreground_values: Annotated[
        list[str] | None, typer.Option(help="Number, range (128-255) or colour of the foreground; repeatable.")
    ] = None,
    void: Annotated[int | None, typer.Option(help="Number of the masks that stands for void.", min=0)] = None,
    resize_masks: Annotated[
        bool, typer.Option("--resize-masks", help="Bring masks to the size of their images.")
    ] = False,
    segmenter: Annotated[str | None, typer.Option(help="package.module:callable that makes missing masks.")] = None,
    preview: Annotated[Path | None, typer.Option(help="Picture of 16 images with their masks to write.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the whole check as JSON; - is the standard output.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that read.", show_default="2 for 200 images and more", min=0)
    ] = None,
) -> None:
    """Reads every image and mask; tells what is wrong, and ends with status 1 if there is an error.

    A mask may be missing where only tests see the image.
    """
    config = ImagesConfig(
        str(data),
        None if masks is None else str(masks),
        tuple(label or ()),
        size=(size, size),
        channels=3,
        foreground_values=tuple(foreground_values or ()),
        void=void,
        resize_masks=resize_masks,
        segmenter=segmenter,
    )
    quiet = is_stdout(json_file)
    # Now, and not after all images were read.
    if preview is not None:
        require_file(preview, "--preview", overlay_figure([]).canvas.get_supported_filetypes())
    if json_file is not None and not quiet:
        require_file(json_file, "--json")
    table = load_table(config)
    images = image_set(config, table, need_masks=(TRAIN, VALIDATION))
    begun = time.perf_counter()
    facts = examine(images, progress_bar("reading images and masks", not quiet), workers=workers)
    seconds = time.perf_counter() - begun
    problems: list[Problem] = [seen.problem for seen in facts if seen.problem is not None]
    findings = [*unusable(problems), *check(table, facts)]
    found = to_json(data, table, facts, findings, seconds)
    if quiet:
        say(json.dumps(found, indent=2, allow_nan=False))
    else:
        show(data, table, facts, findings, seconds)
    if json_file is not None and not quiet:
        write_json(json_file, found)
        say(f"JSON: {json_file}")
    if preview is not None:
        figure = overlay_figure(overlays(images, facts, findings))
        with atomic_path(preview) as temporary:
            figure.savefig(temporary, format=preview.suffix.removeprefix(".") or "png", dpi=150)
        if not quiet:
            say(f"Preview: {preview}")
    if verdict(findings) == "error":
        raise typer.Exit(1)
