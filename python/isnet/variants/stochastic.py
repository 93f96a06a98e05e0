"""Stochastic: one random logit per image."""

from __future__ import annotations

import torch
from torch import Tensor

from isnet.variants.base import Explained, Variant


class Stochastic(Variant):
    """One logit per image: with probability 1/2 the highest, else one of the others, uniformly. One map per image.

    Source: arXiv 2401.08409 (Stochastic ISNet); docs/method.md section 2.
    """

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(stochastic_target(logits, self.generator, place), self.epsilon())]


def stochastic_target(
    logits: Tensor, generator: torch.Generator | None = None, place: tuple[int, int] | None = None
) -> Tensor:
    """One class per image: with probability 1/2 the highest logit's, else one of the others, uniformly.

    Args:
        logits: [B, K], K >= 2.
        generator: on the CPU; None: PyTorch's default one.
        place: (i, n): these images are those from i on of a batch of n, and all n are drawn; None: they are the batch.

    Returns:
        [B], int64, on the device of ``logits``.

    Raises:
        ValueError: fewer than two classes.
    """
    batch, classes = logits.shape
    if classes < 2:
        raise ValueError(
            f"the Stochastic ISNet draws among other classes and needs at least 2, the model has {classes}"
        )
    # Drawn on the CPU, so that a seed gives the same classes on every device.
    first, total = (0, batch) if place is None else place
    offset = torch.randint(1, classes, (total,), generator=generator)
    highest = torch.rand(total, generator=generator) < 0.5
    offset = torch.where(highest, torch.zeros_like(offset), offset)[first : first + batch].to(logits.device)
    return (logits.detach().argmax(1) + offset) % classes
