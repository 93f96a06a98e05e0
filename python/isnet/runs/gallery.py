"""What networks look at: test images with their heatmaps."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from isnet.data import Example
from isnet.explanation import heatmaps
from isnet.runs.folder import Run
from isnet.runs.tables import titled
from isnet.scoring.evaluation import background_share, right_answers
from isnet.scoring.pictures import gallery_figure, tile_png


class Look(NamedTuple):
    """What one network says of an image and where it looks.

    Attributes:
        network: Its title.
        heatmap: [C, H, W].
        right: Whether the answer is (every label of it).
        answer: In words.
        background: Share of relevance outside the mask, NaN without.
    """

    network: str
    heatmap: Tensor
    right: bool
    answer: str
    background: float

    @property
    def caption(self) -> str:
        """Short."""
        share = "-" if math.isnan(self.background) else f"{100 * self.background:.0f} %"
        return f"{'✓' if self.right else '✗'} says {self.answer}, bg {share}"

    @property
    def finding(self) -> str:
        """For those who do not see the heatmap."""
        share = (
            "no mask to compare with"
            if math.isnan(self.background)
            else f"{100 * self.background:.0f} % of it outside the mask"
        )
        return (
            f"Relevance of {self.network}, which answers {self.answer}, {'right' if self.right else 'wrong'}: {share}"
        )


class Shown(NamedTuple):
    """A test image and what each network says of it.

    Attributes:
        image: [C, H, W] in [0, 1].
        mask: [1, H, W].
        caption: Its class or labels, and its mark, if it has one.
        looks: One for each network.
    """

    image: Tensor
    mask: Tensor
    caption: str
    looks: list[Look]


def one_per_class(labels: Tensor, count: int) -> list[int]:
    """Indices of ``count`` images: the first of each class, then the second of each, and so on.

    Args:
        labels: [N] classes, or [N, K] 0/1; each combination then counts as a class.
        count: How many, at most N.
    """
    classes = labels if labels.dim() == 1 else labels.unique(dim=0, return_inverse=True)[1]
    seen: dict[int, int] = {}
    turns = []
    for index, label in enumerate(classes.tolist()):
        turns.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(turns)[:count]]


def shown_images(runs: Sequence[Run], dataset: Dataset[Example], count: int = 8) -> list[Shown]:
    """One image per class with the heatmaps of the predicted class, or of the label with the highest logit, of each run."""
    rows = one_per_class(cast(Any, dataset).labels, count)
    images, labels, masks = (torch.stack(parts) for parts in zip(*(dataset[row] for row in rows), strict=True))
    classes = runs[0].config.data.classes
    looks: list[list[Look]] = [[] for _ in rows]
    for title, run in titled(runs).items():
        device, config = next(run.model.parameters()).device, run.config
        logits, found = heatmaps(
            run.model, images.to(device), eps=config.network.eps, input_range=config.data.pixel_range
        )
        logits, found = logits.cpu(), found.cpu()
        right = right_answers(logits, labels).reshape(len(labels), -1).all(1).tolist()
        shares = background_share(found, masks).tolist()
        for place, label in enumerate(labels):
            answer = answer_text(logits[place], label, classes)
            looks[place].append(Look(title, found[place], right[place], answer, shares[place]))
    marks = getattr(dataset, "marks", None)
    told = [""] * len(rows)
    if marks is not None:
        told = [", no mark" if mark < 0 else f", mark of {mark}" for mark in marks[rows].tolist()]
    low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in runs[0].config.data.pixel_range)
    return [
        Shown((images[n] - low) / (high - low), masks[n], label_text(labels[n], classes) + told[n], looks[n])
        for n in range(len(rows))
    ]


def gallery(runs: Sequence[Run], dataset: Dataset[Example], count: int = 8) -> Figure:
    """The images of :func:`shown_images` as one picture, a row for each run."""
    shown = shown_images(runs, dataset, count)
    names = list(titled(runs))
    return gallery_figure(
        torch.stack([one.image for one in shown]),
        torch.stack([one.mask for one in shown]),
        {name: torch.stack([one.looks[n].heatmap for one in shown]) for n, name in enumerate(names)},
        {name: [one.looks[n].caption for one in shown] for n, name in enumerate(names)},
        image_captions=[one.caption for one in shown],
    )


def picture_uri(picture: Tensor, mask: Tensor, *, relevance: bool) -> str:
    """A tile for a page; see :func:`isnet.scoring.pictures.tile_png`."""
    return "data:image/png;base64," + base64.b64encode(tile_png(picture, mask, relevance=relevance)).decode()


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """The name of a class, or the names of the labels that an image has."""
    if label.dim() == 0:
        return classes[int(label)]
    return ", ".join(name for name, value in zip(classes, label.tolist(), strict=True) if value) or "none"


def answer_text(logits: Tensor, label: Tensor, classes: Sequence[str]) -> str:
    """The answer to an image, as :func:`label_text`: the class with the highest logit, or the labels with logits above 0.

    Args:
        logits: [K].
        label: What is true, a class [] or 0/1 numbers [K], whose kind the answer has.
        classes: Their names.
    """
    return label_text((logits > 0).long() if label.dim() else logits.argmax(), classes)
