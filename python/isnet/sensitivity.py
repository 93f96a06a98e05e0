"""Bias sensitivity: what becomes of the answers when only the background changes."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet._seeds import stream_seed
from isnet.evaluation import Example, predict, right_answers
from isnet.warmup import replace_background

Change = Literal["removed", "swapped"]


class OtherBackground(Dataset[Example]):
    """The images of a set with another background, foreground untouched.

    Args:
        dataset: Items (image, label, mask), with an attribute ``labels``.
        change: ``"removed"``: noise outside the mask; ``"swapped"``: what an image of another class has outside its own mask, noise where
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
        self.labels = cast(Any, dataset).labels
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
        image, label, mask = self.dataset[index]
        if self.change == "removed":
            return self._noisy(image, mask, index), label, mask
        partner = int(self.partners[index])
        other, _, covered = self.dataset[partner]
        background = self._noisy(other, 1 - covered, partner)
        return torch.where(mask > 0, image, background), label, mask

    def _noisy(self, image: Tensor, kept: Tensor, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "background", index))
        return replace_background(image[None], kept[None], generator, *self.pixel_range)[0]


class Sensitivity(NamedTuple):
    """Shares in [0, 1]: right answers before and after, and answers that changed."""

    accuracy: float
    accuracy_after: float
    changed: float


def bias_sensitivity(
    model: nn.Module, dataset: Dataset[Example], pixel_range: tuple[Any, Any] = (0.0, 1.0), seed: int = 0
) -> dict[str, Sensitivity]:
    """How the answers on a set depend on its backgrounds; a network that looks at the foreground alone has ``changed`` near 0.

    Args:
        model: The classifier.
        dataset: As for :class:`OtherBackground`.
        pixel_range, seed: Likewise.

    Returns:
        ``{"removed": ..., "swapped": ...}``; without the latter if all images are of one class.
    """
    logits, labels = predict(model, dataset)
    found: dict[str, Sensitivity] = {}
    changes: tuple[Change, ...] = ("removed", "swapped") if len(labels.unique(dim=0)) > 1 else ("removed",)
    for change in changes:
        after, _ = predict(model, OtherBackground(dataset, change, pixel_range, seed))
        found[change] = Sensitivity(
            right_answers(logits, labels).double().mean().item(),
            right_answers(after, labels).double().mean().item(),
            _changed(logits, after, labels).double().mean().item(),
        )
    return found


def _changed(before: Tensor, after: Tensor, labels: Tensor) -> Tensor:
    return (before > 0) != (after > 0) if labels.dim() == 2 else before.argmax(1) != after.argmax(1)
