"""isnet data: looking at a set of images before training on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isnet.config import ImagesConfig
from isnet.data import audit, describe, review
from isnet.data.table import TRAIN, VALIDATION
from isnet.runs.data import image_set, load_table, progress_bar

app = typer.Typer(help="Images and masks.", no_args_is_help=True)


@app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Image folder, .csv/.tsv/.parquet manifest or .tar shards.")],
    masks: Annotated[Path | None, typer.Option(help="Folder of the masks.", show_default="DATA/masks")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Label column of a multi-label manifest; repeatable.")] = None,
    size: Annotated[int, typer.Option(help="Side for the network: a mask must survive it.", min=1)] = 224,
    segmenter: Annotated[str | None, typer.Option(help="package.module:callable that makes missing masks.")] = None,
) -> None:
    """Reads every image and mask; lists what cannot be used or learnt and ends with status 1 if there is anything.

    A mask may be missing where only tests see the image.
    """
    config = ImagesConfig(str(data), None if masks is None else str(masks), tuple(label or ()), segmenter=segmenter)
    config = dataclasses.replace(config, size=(size, size), channels=1)
    table = load_table(config)
    console = Console()
    summary = Table("split", "source", "images", *table.classes, title=str(data))
    for split, source, count, classes in describe(table):
        summary.add_row(split, source or "-", str(count), *(str(number) for number in classes.values()))
    console.print(summary)
    images = image_set(config, table, need_masks=(TRAIN, VALIDATION))
    problems = audit(images, progress_bar("reading images and masks", True))
    for problem in problems:
        console.print(f"[red]{problem.trouble}[/]: {escape(problem.text)}", soft_wrap=True, highlight=False)
    bad = len({problem.row for problem in problems})
    wrong, worth = review(table)
    for text in wrong:
        console.print(f"[red]set[/]: {escape(text)}", soft_wrap=True, highlight=False)
    unmasked = sum(
        table.records[row].split not in (TRAIN, VALIDATION) for row in set(range(len(images))) - set(images.masked)
    )
    if unmasked:
        worth.append(f"{unmasked} test images have no mask. What is told from masks is told of the other ones.")
    for text in worth:
        console.print(f"Note: {escape(text)}", soft_wrap=True, highlight=False)
    console.print(f"{len(table.records) - bad} of {len(table.records)} images can be used as they are.")
    if problems or wrong:
        raise typer.Exit(1)
