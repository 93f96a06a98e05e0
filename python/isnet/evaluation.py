"""Scores of a trained classifier: accuracy, and how much of its attention lies in the background."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

import lrpkernels as lrp

Example = tuple[Tensor, Tensor, Tensor]


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts ``model`` into evaluation mode and each of its modules back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset[Example], batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """(logits float [N, K], labels int64 [N]) of a whole data set, in evaluation mode, on the CPU."""
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


def heatmaps(
    model: nn.Module,
    images: Tensor,
    *,
    target: Any = None,
    eps: float = 1e-2,
    input_range: tuple[float, float] | None = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """Logits and LRP heatmaps of images, in evaluation mode and without gradients.

    Args:
        model: The classifier.
        images: [B, C, H, W].
        target: What is explained, as for :class:`lrpkernels.LRP`; None = the predicted class.
        eps: Stabiliser of the epsilon rule.
        input_range: Pixel range of the z^B rule at the input; None applies the epsilon rule there, too.

    Returns:
        logits [B, K] and heatmap [B, C, H, W] (or [B, T, C, H, W], for T targets).
    """
    first = None if input_range is None else lrp.ZBox(*input_range, eps=eps)
    with evaluation_mode(model), torch.no_grad():
        return lrp.LRP(model, composite=lrp.Epsilon(eps=eps, first=first))(images, target=target)


def background_share(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Share of absolute relevance outside the foreground, per image, in [0, 1].

    Args:
        heatmap: [B, C, H, W].
        mask: [B, 1, H, W], 1 = foreground.

    Returns:
        [B]; NaN for an image without any relevance.
    """
    magnitude = heatmap.abs()
    return (magnitude * (1 - mask.to(magnitude))).sum((1, 2, 3)) / magnitude.sum((1, 2, 3))


def background_attention(
    model: nn.Module,
    dataset: Dataset[Example],
    *,
    eps: float = 1e-2,
    input_range: tuple[float, float] | None = (0.0, 1.0),
    max_images: int | None = 500,
    batch_size: int = 100,
) -> float:
    """Mean of :func:`background_share` over the first ``max_images`` images, for the predicted class."""
    device = next(model.parameters()).device
    count = len(dataset)  # type: ignore[arg-type]
    chosen = Subset(dataset, range(count if max_images is None else min(max_images, count)))
    shares = []
    for images, _, masks in DataLoader(chosen, batch_size=batch_size):
        _, heatmap = heatmaps(model, images.to(device), eps=eps, input_range=input_range)
        shares.append(background_share(heatmap.cpu(), masks))
    return torch.cat(shares).nanmean().item()


def evaluate(
    model: nn.Module,
    datasets: Mapping[str, Dataset[Example]],
    *,
    eps: float = 1e-2,
    input_range: tuple[float, float] | None = (0.0, 1.0),
    attention_images: int | None = 500,
) -> dict[str, dict[str, float]]:
    """``{"accuracy": {name: [0, 1]}, "background_attention": {name: [0, 1]}}`` for each data set."""
    return {
        "accuracy": {name: accuracy(model, dataset) for name, dataset in datasets.items()},
        "background_attention": {
            name: background_attention(model, dataset, eps=eps, input_range=input_range, max_images=attention_images)
            for name, dataset in datasets.items()
        },
    }
