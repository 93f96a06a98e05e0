"""Scores taken after each epoch, by which a checkpoint is chosen and training may be stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from isnet.config.groups import Monitor
from isnet.data import Example
from isnet.explanation import evaluation_mode
from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet
from isnet.scoring.evaluation import predict, right_answers
from isnet.scoring.scores.auc import macro_auc
from isnet.training.distributed import World

_SEED = 5  # of the Stochastic variant's choices, the same in each epoch


def scores(
    model: nn.Module, datasets: Mapping[str, Dataset[Example]], world: World, *, batch_size: int = 64
) -> dict[str, dict[str, float]]:
    """Accuracy and AUC on each data set, in [0, 1]; each process scores its part of the images, this many at a time.

    Returns:
        ``{"accuracy": {name: ...}, "auc": {name: ...}}``; the AUC (:func:`isnet.scoring.scores.auc.macro_auc`) without sets that have
        no class with and without images.
    """
    found: dict[str, dict[str, float]] = {"accuracy": {}, "auc": {}}
    for name, dataset in datasets.items():
        part = _part(dataset, world)
        answers = predict(model, part, batch_size) if len(cast(Sized, part)) else None
        parts = [answer for answer in world.gather(answers) if answer is not None]
        logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        right = right_answers(logits, labels)
        found["accuracy"][name] = int(right.sum()) / right.numel()
        probabilities = logits.sigmoid() if labels.dim() == 2 else logits.softmax(1)
        finite = bool(logits.isfinite().all())
        auc = macro_auc(probabilities.double().numpy(), labels.numpy()) if finite else math.nan
        if not math.isnan(auc):
            found["auc"][name] = auc
    return found


@torch.no_grad()
def losses(
    model: nn.Module,
    dataset: Dataset[Example],
    world: World,
    *,
    isnet: ISNet | None = None,
    criterion: ISNetLoss | None = None,
    classification_loss: Callable[[Tensor, Tensor], Tensor] = classification_loss,
    p: float = 0.0,
    batch_size: int = 64,
) -> dict[str, float]:
    """The loss terms of training on a data set, in evaluation mode.

    Args:
        model: The classifier to score.
        dataset: Its images.
        world: The processes that share the work.
        isnet: The ISNet in training, whose variant and rules are applied to ``model``; None: no heatmap loss.
        criterion: Its loss.
        classification_loss: (logits, labels) -> scalar, as in training.
        p: Share of the heatmap loss in the total.
        batch_size: Images at a time, in all processes together.

    Returns:
        ``{"loss", "classification", "heatmap"}``; heatmap is 0 without ``isnet``.
    """
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    device = next(model.parameters()).device
    network = None if isnet is None or criterion is None else _explained(model, isnet)
    with evaluation_mode(model):
        for place, example in _parts(dataset, world, batch_size):
            images, labels, masks = (value.to(device) for value in example)
            heatmap: Tensor | float = 0.0
            if network is None or criterion is None:
                logits = model(images)
            else:
                output = network(images, place=place)
                logits, heatmap = output.logits, criterion(output, labels, masks).heatmap
            classification = classification_loss(logits, labels)
            sums += len(images) * torch.tensor([float(classification), float(heatmap)], dtype=torch.float64)
            count += len(images)
    parts = world.gather((sums.tolist(), count))
    images_count = sum(part[1] for part in parts)
    classification, heatmap = (sum(part[0][i] for part in parts) / images_count for i in range(2))
    return {"loss": (1 - p) * classification + p * heatmap, "classification": classification, "heatmap": heatmap}


class Watch:
    """Remembers the best score and how long ago it was reached.

    Args:
        monitor: The score; an accuracy should rise, a loss should fall.
        patience: Epochs without a better score after which to stop; None = never.
    """

    def __init__(self, monitor: Monitor, patience: int | None) -> None:
        self.monitor, self.patience = monitor, patience
        self.best: float | None = None
        self.epochs_since = 0

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.epochs_since >= self.patience

    def see(self, score: float) -> bool:
        """Takes the score of an epoch and returns whether it is the best so far."""
        sign = 1 if self.monitor == "accuracy" else -1
        better = self.best is None or sign * score > sign * self.best
        self.best = score if better else self.best
        self.epochs_since = 0 if better else self.epochs_since + 1
        return better

    def state(self) -> dict[str, Any]:
        """JSON values for :meth:`restore`."""
        return {"best": self.best, "epochs_since": self.epochs_since}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state."""
        self.best, self.epochs_since = state["best"], state["epochs_since"]


def _part(dataset: Dataset[Example], world: World) -> Dataset[Example]:
    count = len(cast(Sized, dataset))
    return dataset if world.size == 1 else Subset(dataset, range(world.rank, count, world.size))


def _parts(dataset: Dataset[Example], world: World, batch_size: int) -> Iterator[tuple[tuple[int, int], Example]]:
    """This process's part of each batch, and (its position in the batch, the size of the batch)."""
    count = len(cast(Sized, dataset))
    places, rows = [], []
    for start in range(0, count, batch_size):
        size = min(batch_size, count - start)
        first, last = (rank * size // world.size for rank in (world.rank, world.rank + 1))
        if first < last:
            places.append((first, size))
            rows.append(list(range(start + first, start + last)))
    return zip(places, DataLoader(dataset, batch_sampler=rows), strict=True)


def _explained(model: nn.Module, isnet: ISNet) -> ISNet:
    """``isnet``'s variant around ``model``: in training mode, for its heatmaps, while ``model`` keeps its own mode."""
    draws = torch.Generator().manual_seed(_SEED)
    network = ISNet(model, isnet.variant, isnet.eps, isnet.input_range, isnet.layers, draws, form=isnet.form)
    network.training = True
    return network
