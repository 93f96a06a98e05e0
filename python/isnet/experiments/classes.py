"""Training time against the number of classes: the Original ISNet makes one heatmap per class, the Faster ISNets do not."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from rich.progress import track

from isnet._files import atomic_path, write_json
from isnet.architectures import build_architecture
from isnet.experiments.trainings import NARROW_RESNET
from isnet.loss import ISNetLoss
from isnet.model import ISNet

VARIANTS = ("original", "dual", "selective", "stochastic")


def measure(
    classes: Sequence[int] = (2, 10, 50, 200, 1000),
    *,
    variants: Sequence[str] = VARIANTS,
    batch: int = 4,
    size: int = 64,
    repeats: int = 5,
    most_heatmaps: int = 1000,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Times training steps of a narrow ResNet, each in turn with a plain one.

    Args:
        classes: Numbers of classes.
        variants: ISNet variants.
        batch, size: Of the images, 1 x size x size.
        repeats: Pairs of steps; the median of their ratios counts (processor time, one thread).
        most_heatmaps: The Original variant is left out beyond this many classes.
        progress: Show a progress bar.

    Returns:
        Rows ``{"variant", "classes", "seconds", "ratio"}``, ratio to the plain step with the same number of classes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    cases = [(v, c) for c in classes for v in variants if v != "original" or c <= most_heatmaps]
    try:
        for variant, count in track(cases, description="steps", disable=not progress):
            plain, step = _steps(variant, count, batch, size)
            pairs = []
            for index in range(repeats + 1):
                pair = _seconds(plain), _seconds(step)
                if index:
                    pairs.append(pair)
            ratio, seconds = median(b / a for a, b in pairs), median(b for _, b in pairs)
            rows.append({"variant": variant, "classes": count, "seconds": seconds, "ratio": ratio})
    finally:
        torch.set_num_threads(threads)
    return rows


def _steps(variant: str, classes: int, batch: int, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    torch.manual_seed(0)
    model = build_architecture(
        NARROW_RESNET.arch, NARROW_RESNET.arch_args, image_shape=(1, size, size), num_classes=classes
    )
    network = ISNet(model.train(), variant, generator=torch.Generator())
    criterion = ISNetLoss()
    images, labels = torch.rand(batch, 1, size, size), torch.arange(batch) % classes
    masks = torch.zeros(batch, 1, size, size)
    masks[..., size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1

    def plain() -> None:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    def step() -> None:
        model.zero_grad()
        criterion(network(images), labels, masks).total.backward()

    return plain, step


def _seconds(run: Callable[[], None]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def figure(rows: Sequence[dict[str, Any]]) -> Figure:
    """Step time in plain steps against the number of classes, both logarithmic."""
    found = Figure(figsize=(6, 3.8), layout="constrained")
    axes = found.subplots()
    for variant in dict.fromkeys(row["variant"] for row in rows):
        points = [(row["classes"], row["ratio"]) for row in rows if row["variant"] == variant]
        axes.plot(*zip(*points, strict=True), marker="o", label=variant)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("classes")
    axes.set_ylabel("training step / plain step")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios in Markdown, a row per variant."""
    counts = list(dict.fromkeys(row["classes"] for row in rows))
    lines = [
        f"| step / plain step | {' | '.join(f'{count} classes' for count in counts)} |",
        f"| --- |{' ---: |' * len(counts)}",
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        ratios = {row["classes"]: row["ratio"] for row in rows if row["variant"] == variant}
        cells = [f"{ratios[count]:.1f}" if count in ratios else "-" for count in counts]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes ``classes.json``, ``classes.md`` and ``classes.png``."""
    write_json(folder / "classes.json", rows)
    with atomic_path(folder / "classes.md") as temporary:
        temporary.write_text(table(rows))
    with atomic_path(folder / "classes.png") as temporary:
        figure(rows).savefig(temporary, format="png", dpi=150)
