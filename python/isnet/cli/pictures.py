"""isnet explain, isnet report."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from isnet._files import atomic_path
from isnet.cli.options import Device, RunFolder
from isnet.explanation import heatmaps
from isnet.runs.data import require_tests, run_data
from isnet.runs.folder import load_run
from isnet.runs.report import answer_text, label_text, write_report
from isnet.scoring.evaluation import background_share
from isnet.scoring.pictures import explanation_figure

app = typer.Typer()


@app.command()
def explain(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("explanation.png"),
    split: Annotated[str | None, typer.Option(help="Test set.", show_default="the last")] = None,
    index: Annotated[int, typer.Option(help="Which of its images.", min=0)] = 0,
    target: Annotated[
        int | None,
        typer.Option(
            help="Class to explain.", show_default="the predicted class, or the label with the highest logit", min=0
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Draws a test image, its LRP heatmap and its foreground mask."""
    trained = load_run(run, device=device)
    data, classes = run_data(trained), trained.config.data.classes
    require_tests(data, run)
    tests = data.tests
    split = list(tests)[-1] if split is None else split
    if split not in tests:
        raise ValueError(f"--split: expected one of {', '.join(tests)}, got {split}")
    dataset: Any = tests[split]
    if index >= len(dataset):
        raise ValueError(f"--index: the {split} test has images 0 to {len(dataset) - 1}, got {index}")
    if target is not None and target >= len(classes):
        raise ValueError(f"--target: expected a class from 0 to {len(classes) - 1}, got {target}")
    image, label, mask = dataset[index]
    logits, heatmap = heatmaps(
        trained.model,
        image[None].to(device),
        target=target,
        eps=trained.config.network.eps,
        input_range=trained.config.data.pixel_range,
    )
    share = background_share(heatmap.cpu(), mask[None]).item()
    told_share = (
        "no mask or no relevance" if math.isnan(share) else f"{100 * share:.1f} % of the relevance outside the mask"
    )
    marks = getattr(dataset, "marks", None)
    told = f" with the mark of {classes[marks[index]]}" if marks is not None and marks[index] >= 0 else ""
    explained = int(logits.argmax()) if target is None else target
    said = f"; explained: {classes[explained]}" if target is not None or label.dim() else ""
    title = (
        f"{trained.config.title}, {split} test, image {index}: {label_text(label, classes)}{told}, "
        f"answered {answer_text(logits[0], label, classes)}{said}"
    )
    low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in trained.config.data.pixel_range)
    figure = explanation_figure(
        (image - low) / (high - low),
        heatmap[0].cpu(),
        mask,
        title=title,
        background_share=None if math.isnan(share) else share,
    )
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix.removeprefix(".") or "png", dpi=150)
    typer.echo(f"{title}; {told_share}. Picture: {out}")


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs, in the table's order.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "ISNet",
) -> None:
    """Writes one self-contained HTML page: accuracies, heatmap gallery and training curves."""
    write_report(out, [load_run(folder) for folder in run], title=title)
    typer.echo(f"Report: {out}")
