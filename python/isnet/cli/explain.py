"""isnet explain."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from isnet._text import say
from isnet.cli.options import Data, Device, Masks, RunFolder, Trust, tell_device
from isnet.cli.predict import SOURCE_HELP, BatchSize, Overwrite, Workers, tell_predicted
from isnet.data.sources import Sources, read_sources
from isnet.explanation import heatmaps
from isnet.runs.data import require_tests, run_data
from isnet.runs.folder import Run, load_run
from isnet.runs.gallery import answer_text, label_text
from isnet.runs.other import on_data
from isnet.runs.pixels import Cases, images_config
from isnet.runs.predict import Pictures, draw, predict_sources
from isnet.runs.trained import class_index
from isnet.scoring.evaluation import background_share
from isnet.training.distributed import launched_world

app = typer.Typer()
_PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg")


@app.command()
def explain(
    run: RunFolder,
    image: Annotated[
        list[str] | None, typer.Argument(metavar="[IMAGE]...", help=SOURCE_HELP, show_default="a test image of the run")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture (.png, .pdf, .svg); of several images: folder of pictures and explanations.csv.",
            show_default="explanation.png or explanations",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Name of the class to explain.", show_default="the one with the highest logit")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Test set, or the only split of IMAGE.", show_default="the last")
    ] = None,
    index: Annotated[int, typer.Option(help="Which of the test set's images.", min=0)] = 0,
    data: Data = None,
    masks: Masks = None,
    batch_size: BatchSize = None,
    workers: Workers = 0,
    overwrite: Overwrite = False,
    trust: Trust = None,
    device: Device = "auto",
) -> None:
    """Draws images, their LRP heatmaps and, where they are known, their foreground masks.

    Several images: processes share the work (torchrun), and stopped work goes on with the same command.
    """
    with launched_world(device) as (world, place):
        trained = load_run(run, device=place, trust=trust or ())
        tell_device(place)
        classes = trained.config.data.classes
        explained = None if target is None else class_index(target, classes, "--target")
        if not image:
            if world.is_main:
                _explain_test(
                    on_data(trained, data, masks, None if data is None else split), split, index, explained, out
                )
            return
        if data is not None:
            raise ValueError("--data: the images are named already (IMAGE); leave one out")
        sources = read_sources(image, classes, multi_label=trained.config.data.multi_label, masks=masks)
        if split is not None:
            sources = _only(sources, split)
        if len(sources.records) == 1 and (out is None or (out.suffix and not out.is_dir())):
            if world.is_main:
                _explain_one(trained, sources, explained, out or Path("explanation.png"))
            return
        folder = out or Path("explanations")
        if folder.suffix.lower() in _PICTURES or folder.is_file():
            raise ValueError(f"--out: {len(sources.records)} images need a folder, got {folder}")
        table = folder / "explanations.csv"
        found = predict_sources(
            trained,
            sources,
            table,
            pictures=Pictures(folder, figures=True, target=explained),
            batch_size=batch_size,
            workers=workers,
            world=world,
            overwrite=overwrite,
        )
    tell_predicted(found, table, world, place)


def _only(sources: Sources, split: str) -> Sources:
    kept = tuple(record for record in sources.records if record.split == split)
    if not kept:
        known = ", ".join(sorted({record.split for record in sources.records} - {""})) or "none"
        raise ValueError(f"--split: expected one of the images' splits, {known}, got {split!r}")
    return Sources(kept, sources.unknown)


def _explain_one(run: Run, sources: Sources, target: int | None, out: Path) -> None:
    """The picture of a single file."""
    record = sources.records[0]
    image, mask, trouble = Cases(images_config(run.config), sources.records)[0]
    if image is None:
        raise ValueError(trouble)
    if trouble:
        say(f"Note: {trouble}", err=True)
    several = run.config.data.multi_label
    known = isinstance(record.label, tuple) or record.label >= 0
    label = torch.tensor(record.label) if known else torch.zeros(len(run.config.data.classes) if several else ())
    truth = f": {label_text(label, run.config.data.classes)}" if known else ""
    _draw(run, image, mask, label, target, f"{record.image.name or record.image.path.name}{truth}", out)


def _explain_test(run: Run, split: str | None, index: int, target: int | None, out: Path | None) -> None:
    """The picture of an image of a test set."""
    data, classes = run_data(run), run.config.data.classes
    require_tests(data, run.folder)
    split = list(data.tests)[-1] if split is None else split
    if split not in data.tests:
        raise ValueError(f"--split: expected one of {', '.join(data.tests)}, got {split}")
    dataset: Any = data.tests[split]
    if index >= len(dataset):
        raise ValueError(f"--index: the {split} test has images 0 to {len(dataset) - 1}, got {index}")
    image, label, mask = dataset[index]
    marks = getattr(dataset, "marks", None)
    told = f" with the mark of {classes[marks[index]]}" if marks is not None and marks[index] >= 0 else ""
    name = f"{split} test, image {index}: {label_text(label, classes)}{told}"
    _draw(run, image, mask, label, target, name, out or Path("explanation.png"))


def _draw(
    run: Run,
    image: torch.Tensor,
    mask: torch.Tensor | None,
    label: torch.Tensor,
    target: int | None,
    name: str,
    out: Path,
) -> None:
    if out.suffix.lower() not in _PICTURES:
        raise ValueError(f"--out: expected a picture ({', '.join(_PICTURES)}), got {out}")
    classes = run.config.data.classes
    logits, heatmap = heatmaps(
        run.model,
        image[None].to(next(run.model.parameters()).device),
        target=target,
        eps=run.config.network.eps,
        input_range=run.config.data.pixel_range,
    )
    shares = math.nan if mask is None else background_share(heatmap.cpu(), mask[None]).item()
    told = (
        "no mask or no relevance" if math.isnan(shares) else f"{100 * shares:.1f} % of the relevance outside the mask"
    )
    explained = int(logits.argmax()) if target is None else target
    said = f"; explained: {classes[explained]}" if target is not None or label.dim() else ""
    title = f"{run.config.title}, {name}, answered {answer_text(logits[0], label, classes)}{said}"
    draw(run, out, image, heatmap[0].cpu(), mask, title, out.suffix.lower()[1:])
    say(f"{title}; {told}. Picture: {out}")
