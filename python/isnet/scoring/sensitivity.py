"""Bias sensitivity: how the answers change when only the background changes."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from isnet._seeds import stream_seed
from isnet.data import Example
from isnet.data.backgrounds import replace_background
from isnet.explanation import heatmaps
from isnet.scoring.evaluation import background_share, masked_rows, predict, right_answers, spread_rows

Change = Literal["removed", "swapped"]


class OtherBackground(Dataset[Example]):
    """The images of a set with another background, foreground untouched; those without a mask are left out.

    Args:
        dataset: Items (image, label, mask), with an attribute ``labels``, and one ``masked`` if some have no mask.
        change: ``"removed"``: noise outside the mask; ``"swapped"``: the region outside the mask of an image of another class, noise where
            that one has foreground.
        pixel_range: Range of the noise, numbers or one per channel.
        seed: Of noise and partners.

    Raises:
        ValueError: an unknown change, or all images of one class for ``"swapped"``.
    """

    def __init__(
        self, dataset: Dataset[Example], change: Change, pixel_range: tuple[Any, Any] = (0.0, 1.0), seed: int = 0
    ) -> None:
        if change not in ("removed", "swapped"):
            raise ValueError(f"change: expected removed or swapped, got {change!r}")
        self.dataset, self.change, self.pixel_range, self.seed = dataset, change, pixel_range, seed
        self.rows = masked_rows(dataset)
        self.labels = cast(Any, dataset).labels[self.rows]
        self.partners = torch.zeros(0, dtype=torch.int64)
        if change == "swapped":
            generator = torch.Generator().manual_seed(stream_seed(seed, "partners"))
            self.partners = torch.stack([self._partner(label, generator) for label in self.labels])

    def _partner(self, label: Tensor, generator: torch.Generator) -> Tensor:
        same = (self.labels == label).all(1) if self.labels.dim() == 2 else self.labels == label
        others = (~same).nonzero()[:, 0]
        if not len(others):
            raise ValueError("swapped: all images are of one class")
        return others[torch.randint(len(others), (), generator=generator)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """(image with the other background, label, mask)."""
        image, label, mask = self.dataset[self.rows[index]]
        if self.change == "removed":
            return self._noisy(image, mask, self.rows[index]), label, mask
        partner = self.rows[int(self.partners[index])]
        other, _, covered = self.dataset[partner]
        background = self._noisy(other, 1 - covered, partner)
        return torch.where(mask > 0, image, background), label, mask

    def _noisy(self, image: Tensor, kept: Tensor, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "background", index))
        return replace_background(image[None], kept[None], generator, *self.pixel_range)[0]


class BlindSpot(NamedTuple):
    """How much decisions depend on the background, compared with what the heatmaps show of it; all means in [0, 1].

    Attributes:
        changed: Share of the images whose answer changes.
        distance: Total variation distance between the class probabilities before and after, 1/2 sum |p - p'|; for several labels per
            image the mean of |p - p'|.
        background: Share of absolute relevance outside the mask, for the predicted class, mean of before and after. An image without any
            relevance counts as 0, since its decision can still change (:func:`~isnet.scoring.evaluation.background_attention` skips it).
        score: Mean of distance x (1 - background) over the images. Near 0: the decision does not depend on the background, or the heatmap
            says that it does. Near 1: it does, and the heatmap is clean.
    """

    changed: float
    distance: float
    background: float
    score: float


def blind_spot(
    model: nn.Module,
    before: Dataset[Example],
    after: Dataset[Example],
    *,
    eps: float = 1e-2,
    input_range: tuple[Any, Any] | None = (0.0, 1.0),
    max_images: int | None = 500,
    batch_size: int = 100,
) -> BlindSpot:
    """Exposes a background that acts without showing in heatmaps: by switching units off, to which epsilon-LRP gives no relevance.

    Args:
        model: The classifier.
        before, after: The same images with two backgrounds, such as the right mark and another class's. Masks are those of ``before``.
        eps: Stabiliser of the heatmaps' epsilon rule.
        input_range: Pixel range for z^B at the input, or None.
        max_images: Look at only this many, spread over the set (:func:`isnet.scoring.evaluation.spread_rows`); None: at all.
        batch_size: Images at a time.

    Raises:
        ValueError: sets of different sizes.

    Source: ours; docs/isnet.md, "What a clean heatmap does not show".
    """
    count, other = (len(cast(Sized, dataset)) for dataset in (before, after))
    if count != other:
        raise ValueError(f"before, after: expected the same images, got {count} and {other}")
    rows = spread_rows(range(count), max_images)
    device = next(model.parameters()).device
    parts: list[Tensor] = []
    for (images, labels, masks), (changed, _, _) in zip(
        *(DataLoader(Subset(dataset, rows), batch_size=batch_size) for dataset in (before, after)), strict=True
    ):
        found = [heatmaps(model, x.to(device), eps=eps, input_range=input_range) for x in (images, changed)]
        first, second = (logits.float().cpu() for logits, _ in found)
        distance = _distance(first, second, several=labels.dim() == 2)
        seen = torch.stack([background_share(heatmap.cpu(), masks) for _, heatmap in found]).nanmean(0).nan_to_num()
        moved = changed_answers(first, second, labels)
        parts.append(torch.stack([moved, distance.double(), seen.double(), (distance * (1 - seen)).double()]))
    return BlindSpot(*torch.cat(parts, 1).mean(1).tolist())


def _distance(before: Tensor, after: Tensor, *, several: bool) -> Tensor:
    """[N], in [0, 1], of logits [N, K]."""
    if several:
        return (before.sigmoid() - after.sigmoid()).abs().mean(1)
    return (before.softmax(1) - after.softmax(1)).abs().sum(1) / 2


class Sensitivity(NamedTuple):
    """Shares in [0, 1]: right answers before and after, and answers that changed."""

    accuracy: float
    accuracy_after: float
    changed: float


def possible_changes(dataset: Dataset[Example]) -> tuple[Change, ...]:
    """The changes that a set allows: none if no image has a mask, and backgrounds cannot be swapped among images of one class."""
    rows = masked_rows(dataset)
    if not rows:
        return ()
    return ("removed", "swapped") if len(cast(Any, dataset).labels[rows].unique(dim=0)) > 1 else ("removed",)


def answers_with_other_backgrounds(
    model: nn.Module,
    dataset: Dataset[Example],
    pixel_range: tuple[Any, Any] = (0.0, 1.0),
    seed: int = 0,
    *,
    batch_size: int = 500,
) -> dict[Change, Tensor]:
    """Logits [masked images, K] for each change of the background.

    Args:
        model: The classifier.
        dataset: As for :class:`OtherBackground`; images without a mask are left out (:func:`isnet.scoring.evaluation.masked_rows`).
        pixel_range, seed: Likewise.
        batch_size: Images at a time.

    Returns:
        ``{"removed": ..., "swapped": ...}``; without the latter if all images are of one class, empty if none has a mask.
    """
    return {
        change: predict(model, OtherBackground(dataset, change, pixel_range, seed), batch_size)[0]
        for change in possible_changes(dataset)
    }


def changed_answers(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    """Share of the decisions on an image that changed: 0 or 1, or, for several labels, a share of the labels.

    Args:
        before, after: Logits [N, K].
        labels: [N], or 0/1 [N, K], whose kind decides.

    Returns:
        float64 [N].
    """
    moved = (before > 0) != (after > 0) if labels.dim() == 2 else before.argmax(1) != after.argmax(1)
    return moved.double().reshape(len(before), -1).mean(1)


def bias_sensitivity(
    model: nn.Module,
    dataset: Dataset[Example],
    pixel_range: tuple[Any, Any] = (0.0, 1.0),
    seed: int = 0,
    *,
    batch_size: int = 500,
    answers: tuple[Tensor, Tensor] | None = None,
    after: Mapping[Change, Tensor] | None = None,
) -> dict[Change, Sensitivity]:
    """How the answers on a set depend on its backgrounds; a network that looks at the foreground alone has ``changed`` near 0.

    Args:
        model, dataset, pixel_range, seed, batch_size: As for :func:`answers_with_other_backgrounds`.
        answers: What :func:`isnet.scoring.evaluation.predict` returned for the whole set, if known.
        after: What :func:`answers_with_other_backgrounds` returned, if known.

    Returns:
        By change; without ``"swapped"`` if all images are of one class, empty if none has a mask.
    """
    rows = masked_rows(dataset)
    if not rows:
        return {}
    logits, labels = (values[rows] for values in answers or predict(model, dataset, batch_size))
    if after is None:
        after = answers_with_other_backgrounds(model, dataset, pixel_range, seed, batch_size=batch_size)
    return {
        change: Sensitivity(
            right_answers(logits, labels).double().mean().item(),
            right_answers(found, labels).double().mean().item(),
            changed_answers(logits, found, labels).mean().item(),
        )
        for change, found in after.items()
    }
