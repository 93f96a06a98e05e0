"""A trained classifier's answers, and how much of its attention lies in the background."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from isnet.data import Example
from isnet.explanation import evaluation_mode, heatmaps
from isnet.loss import classification_loss

_SMALLEST_SHARE = 1e-6  # of a class, so that one without images has a logarithm


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset[Example], batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Answers to a whole data set, in evaluation mode, on the CPU.

    Returns:
        logits float32 [N, K] and labels, int64 [N], or float32 [N, K] of 0 and 1 (several labels per image).
    """
    device = next(model.parameters()).device
    with evaluation_mode(model):
        batches = [
            (model(images.to(device)).float().cpu(), labels)
            for images, labels, _ in DataLoader(dataset, batch_size=batch_size)
        ]
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(labels)


def right_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the answers are right.

    Args:
        logits: [N, K].
        labels: Classes [N], or 0/1 numbers [N, K] (multi-label: one decision per label, at logit 0).

    Returns:
        Bool [N] or [N, K].
    """
    return (logits > 0) == (labels > 0) if labels.dim() == 2 else logits.argmax(1) == labels


def accuracy(model: nn.Module, dataset: Dataset[Example], batch_size: int = 500) -> float:
    """Share of right answers in [0, 1]: highest logit = label, or, for several labels per image, sign of logit = label."""
    return right_answers(*predict(model, dataset, batch_size)).double().mean().item()


def prior_loss(logits: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor] = classification_loss) -> float:
    """The loss of answering every image alike, with the shares of the classes or labels among these images.

    A network with a larger loss knows less than someone who has not seen the images. For :func:`isnet.loss.classification_loss` it is the
    entropy of the shares; 0 where all images have the same labels.

    Args:
        logits: [N, K]; only their number counts.
        labels: Classes [N], or 0/1 numbers [N, K].
        loss: (logits, labels) -> scalar.
    """
    if labels.dim() == 2:
        constant = torch.special.logit(labels.double().mean(0), eps=_SMALLEST_SHARE)
    else:
        shares = torch.bincount(labels.long(), minlength=logits.shape[1]).double() / len(labels)
        constant = shares.clamp(min=_SMALLEST_SHARE).log()
    if len(labels.unique(dim=0)) == 1:
        return 0.0
    return float(loss(constant.to(logits).expand(len(labels), -1), labels))


def background_share(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Share of absolute relevance outside the foreground, per image, in [0, 1].

    Args:
        heatmap: [B, C, H, W].
        mask: [B, 1, H, W], 1 = foreground; with no foreground, or with nothing else: an image that has no mask.

    Returns:
        [B]; NaN for an image without mask or without any relevance.
    """
    magnitude, mask = heatmap.abs(), mask.to(heatmap)
    shares = (magnitude * (1 - mask)).sum((1, 2, 3)) / magnitude.sum((1, 2, 3))
    return shares.masked_fill((mask == mask[:, :, :1, :1]).flatten(1).all(1), math.nan)


def masked_rows(dataset: Dataset[Example]) -> list[int]:
    """Indices of the images that have a mask: what the set has as ``masked``, or all."""
    return list(getattr(dataset, "masked", range(len(cast(Sized, dataset)))))


def spread_rows(rows: Sequence[int], count: int | None) -> list[int]:
    """At most ``count`` of the rows (None: all), one from each of that many equal stretches, drawn with a seed of its own.

    A set sorted by class gives some of every class, and so does one whose classes alternate.
    """
    if count is None or len(rows) <= count:
        return list(rows)
    bounds = [len(rows) * stretch // count for stretch in range(count + 1)]
    generator = torch.Generator().manual_seed(0)
    chances = torch.rand(count, generator=generator).tolist()
    return [rows[a + int(chance * (b - a))] for a, b, chance in zip(bounds, bounds[1:], chances, strict=False)]


def background_shares(
    model: nn.Module,
    dataset: Dataset[Example],
    rows: Sequence[int],
    *,
    eps: float = 1e-2,
    input_range: tuple[Any, Any] | None = (0.0, 1.0),
    batch_size: int = 100,
) -> Tensor:
    """:func:`background_share` of the heatmaps of the predicted class, image by image.

    Args:
        model: The classifier.
        dataset: The images.
        rows: Those to look at, with masks (:func:`masked_rows`).
        eps, input_range: As for :func:`heatmaps`.
        batch_size: Images at a time.

    Returns:
        [rows], in [0, 1]; NaN for an image without relevance.
    """
    device = next(model.parameters()).device
    shares = [torch.zeros(0)]
    for images, _, masks in DataLoader(Subset(dataset, rows), batch_size=batch_size):
        _, heatmap = heatmaps(model, images.to(device), eps=eps, input_range=input_range)
        shares.append(background_share(heatmap.cpu(), masks))
    return torch.cat(shares)


def background_attention(
    model: nn.Module, dataset: Dataset[Example], *, max_images: int | None = 500, **options: Any
) -> float:
    """Mean of :func:`background_shares`.

    Args:
        model: The classifier.
        dataset: The images, of which those with masks count.
        max_images: Look at this many of them, spread over the set (:func:`spread_rows`); None: at all.
        options: As for :func:`background_shares`.

    Returns:
        In [0, 1]; NaN if no image has a mask, or none has relevance.
    """
    rows = spread_rows(masked_rows(dataset), max_images)
    return background_shares(model, dataset, rows, **options).nanmean().item()
