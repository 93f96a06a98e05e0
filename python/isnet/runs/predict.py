"""Asking a trained run about images: a table of answers, and pictures of what they rest on."""

from __future__ import annotations

import csv
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from isnet._files import atomic_path, write_text
from isnet.config import RunConfig
from isnet.data import Example, MaskedImages
from isnet.data.sources import UNKNOWN, Sources
from isnet.explanation import evaluation_mode, heatmaps
from isnet.runs.answers import answer_row, answered, columns, named, probabilities, to_csv
from isnet.runs.data import progress_bar
from isnet.runs.folder import Run
from isnet.runs.pixels import Cases, images_config
from isnet.runs.portions import Portions, fingerprint
from isnet.scoring.evaluation import background_share, masked_rows
from isnet.scoring.pictures import explanation_figure, save_heatmap
from isnet.training.distributed import World

_LONGEST_NAME = 80  # characters of an image's name in a picture's


class Predicted(NamedTuple):
    """What :func:`predict_sources` did.

    Attributes:
        images: All of the table.
        made: Of them, in this call, by all processes.
        failed: Number of rows with an error.
        first_error: The first of them.
        seconds: For those made.
    """

    images: int
    made: int
    failed: int
    first_error: str
    seconds: float


class Pictures(NamedTuple):
    """Pictures to draw of each image.

    Attributes:
        folder: Where they go.
        figures: With axes, title and mask; else image and heatmap alone, which is faster.
        target: The class that is explained; None: the answer.
    """

    folder: Path
    figures: bool = False
    target: int | None = None


def batch_of(config: RunConfig) -> int:
    """As many images at a time as in one part of a training step: more might not fit into memory."""
    return max(1, config.train.batch_size // config.train.accumulate)


@torch.no_grad()
def predict_sources(
    run: Run,
    sources: Sources,
    out: Path,
    *,
    pictures: Pictures | None = None,
    batch_size: int | None = None,
    workers: int = 0,
    world: World | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Predicted:
    """Writes the table of answers to some images (:func:`isnet.runs.answers.columns`), in their order.

    An image that cannot be read has a row, too, with what is wrong. Processes share the work; stopped work goes on where it stopped.

    Args:
        run: The trained run.
        sources: The images.
        out: The CSV file.
        pictures: Draw them, too.
        batch_size: Images at a time; None: as in training.
        workers: Processes that load images; 0: this one.
        world: The processes that share the work.
        overwrite: Replace the table, and begin stopped work again.
        progress: Show progress on the terminal.

    Raises:
        FileExistsError: the table is there.
        ValueError: the work was begun with other settings.
    """
    world = world or World()
    config, classes = images_config(run.config), run.config.data.classes
    cases, names = Cases(config, sources.records), columns(classes, pictures is not None)
    at_a_time = batch_size or batch_of(run.config)
    settings = {
        "images": fingerprint(f"{record.image}\0{record.mask}\0{record.label}" for record in sources.records),
        "network": fingerprint(part for key, value in run.model.state_dict().items() for part in (key, _bytes(value))),
        "preprocessing": fingerprint([repr(replace(config, path="", masks=None))]),
        "pictures": None if pictures is None else [str(pictures.folder), pictures.figures, pictures.target],
        "columns": names,
    }
    portions = Portions(out, len(sources.records), at_a_time, settings, world, overwrite=overwrite)

    def make(rows: range) -> str:
        part = torch.utils.data.Subset(cases, rows)
        loader = DataLoader(part, batch_size=at_a_time, num_workers=workers, collate_fn=list)
        found, first = list[dict[str, str]](), rows.start
        for batch in loader:
            found += _answers(run, batch, sources, first, pictures)
            first += len(batch)
        return to_csv(found, names, header=False)

    begun = time.perf_counter()
    with evaluation_mode(run.model):
        portions.run(make, progress_bar("images", progress and world.is_main))
    world.barrier()
    seconds = time.perf_counter() - begun
    portions.finish(to_csv([], names, header=True))
    failed, first_error = _errors(out)
    return Predicted(len(sources.records), len(sources.records) - portions.done_before, failed, first_error, seconds)


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]


def _errors(out: Path) -> tuple[int, str]:
    with out.open(newline="", encoding="utf-8") as file:
        found = [row["error"] for row in csv.DictReader(file) if row["error"]]
    return len(found), found[0] if found else ""


def _answers(
    run: Run,
    batch: Sequence[tuple[Tensor | None, Tensor | None, str]],
    sources: Sources,
    first: int,
    pictures: Pictures | None,
) -> list[dict[str, str]]:
    """The rows of a batch, whose first image has the number ``first``."""
    several, classes = run.config.data.multi_label, run.config.data.classes
    readable = [row for row, (image, _, _) in enumerate(batch) if image is not None]
    # Only an image with a mask needs a heatmap, unless it is to be drawn.
    mapped = [row for row in readable if pictures is not None or batch[row][1] is not None]
    target = None if pictures is None else pictures.target
    logits, maps = _asked(run, {row: cast(Tensor, batch[row][0]) for row in readable}, mapped, target)
    rows = []
    for row, (image, mask, error) in enumerate(batch):
        record, found = sources.records[first + row], logits.get(row)
        share = math.nan if mask is None or row not in maps else _share(maps[row], mask)
        name = ""
        if pictures is not None and image is not None and found is not None and bool(found.isfinite().all()):
            name = _picture_name(first + row, record.image.name or record.image.path.name)
            title = _title(Path(str(record.image)).name, found, record.label, run, target)
            draw(run, pictures.folder / name, image, maps[row], mask, title if pictures.figures else None)
        rows.append(
            answer_row(
                str(record.image),
                found,
                classes,
                multi_label=several,
                share=share,
                label=record.label,
                split=record.split,
                error=error,
                picture=name,
            )
        )
    return rows


def _asked(
    run: Run, images: Mapping[int, Tensor], mapped: Sequence[int], target: int | None
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Logits [K] of images by their rows, and heatmaps [C, H, W] of the rows ``mapped``."""
    device = next(run.model.parameters()).device
    logits, maps = dict[int, Tensor](), dict[int, Tensor]()
    plain = [row for row in images if row not in mapped]
    if plain:
        found = run.model(torch.stack([images[row] for row in plain]).to(device)).float().cpu()
        logits |= dict(zip(plain, found, strict=True))
    if mapped:  # one forward pass gives both
        found, relevance = heatmaps(
            run.model,
            torch.stack([images[row] for row in mapped]).to(device),
            target=target,
            eps=run.config.network.eps,
            input_range=run.config.data.pixel_range,
        )
        logits |= dict(zip(mapped, found.float().cpu(), strict=True))
        maps |= dict(zip(mapped, relevance.cpu(), strict=True))
    return logits, maps


def _share(heatmap: Tensor, mask: Tensor) -> float:
    return background_share(heatmap[None], mask[None]).item()


def _title(name: str, logits: Tensor, label: Any, run: Run, target: int | None) -> str:
    classes, several = run.config.data.classes, run.config.data.multi_label
    truth = "" if label == UNKNOWN else f": {named(label, classes)}"
    said = f"; explained: {classes[target]}" if target is not None else ""
    return f"{name}{truth}, answered {answered(probabilities(logits, several), classes, several)}{said}"


def _picture_name(number: int, name: str) -> str:
    """A file name that is unique, and safe whatever the image is called."""
    stem = re.sub(r"[^\w.-]+", "_", Path(name).stem, flags=re.ASCII).strip("._")[:_LONGEST_NAME]
    return f"{number:06d}-{stem or 'image'}.png"


def shown(run: Run, image: Tensor) -> Tensor:
    """An image as the network gets it, back in [0, 1]."""
    low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in run.config.data.pixel_range)
    return (image.cpu() - low) / (high - low)


def draw(
    run: Run, path: Path, image: Tensor, heatmap: Tensor, mask: Tensor | None, title: str | None, format: str = "png"
) -> None:
    """Draws an image as the network gets it [C, H, W] and its heatmap [C, H, W]; with a title, as a figure with axes and mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        if title is None:
            save_heatmap(temporary, shown(run, image), heatmap, format=format)
            return
        mask = torch.zeros_like(image[:1]) if mask is None else mask
        share = _share(heatmap, mask)
        figure = explanation_figure(
            shown(run, image), heatmap, mask, title=title, background_share=None if math.isnan(share) else share
        )
        figure.savefig(temporary, format=format, dpi=150)


def write_test_tables(run: Run, tests: Mapping[str, Dataset[Example]]) -> None:
    """Writes the table of answers to each test set into the run, as ``predictions-TEST.csv``."""
    for name, dataset in tests.items():
        safe = re.sub(r"[^\w.-]+", "_", name)
        mark = "" if safe == name else f"-{fingerprint([name])[:6]}"
        _write_test_table(run, run.folder / f"predictions-{safe}{mark}.csv", dataset, name)


@torch.no_grad()
def _write_test_table(run: Run, path: Path, dataset: Dataset[Example], split: str) -> None:
    several, classes = run.config.data.multi_label, run.config.data.classes
    names, masked = image_names(dataset), set(masked_rows(dataset))
    rows = list[dict[str, str]]()
    with evaluation_mode(run.model):
        for images, labels, masks in DataLoader(dataset, batch_size=batch_of(run.config)):
            first = len(rows)
            mapped = [row for row in range(len(images)) if first + row in masked]
            logits, maps = _asked(run, dict(enumerate(images)), mapped, None)
            for row, label in enumerate(labels):
                rows.append(
                    answer_row(
                        names[first + row],
                        logits[row],
                        classes,
                        multi_label=several,
                        share=_share(maps[row], masks[row]) if row in maps else math.nan,
                        label=[int(value) for value in label] if label.dim() else int(label),
                        split=split,
                    )
                )
    table = columns(classes)
    write_text(path, to_csv(rows, table, header=True))


def image_names(dataset: Any) -> list[str]:
    """What to call the images of a data set: by their files, or by their numbers."""
    if isinstance(dataset, MaskedImages):
        return [str(record.image) for record in dataset.table.records]
    return [str(number) for number in range(len(dataset))]
