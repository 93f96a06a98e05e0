"""Scores taken after each epoch, by which a checkpoint is chosen and training may be stopped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from operator import itemgetter
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from isnet.config.groups import Monitor
from isnet.data import Example
from isnet.distillation import Distilled, MatchingLoss
from isnet.explanation import evaluation_mode
from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet
from isnet.scoring.cautions import cautions
from isnet.scoring.evaluation import background_shares, masked_rows, predict, prior_loss, right_answers, spread_rows
from isnet.scoring.intervals import as_json, classification_scores
from isnet.training.distributed import World

_ATTENTION_IMAGES = 200
_SEED = 5  # of the Stochastic variant's choices, the same in each epoch


def epoch_scores(
    model: nn.Module,
    datasets: Mapping[str, Dataset[Example]],
    world: World,
    *,
    monitor: Monitor | None,
    isnet: ISNet | None = None,
    distilled: Distilled | None = None,
    criterion: ISNetLoss | None = None,
    classification_loss: Callable[[Tensor, Tensor], Tensor] = classification_loss,
    input_range: tuple[Any, Any] | None = (0.0, 1.0),
    p: float = 0.0,
    batch_size: int = 64,
) -> dict[str, Any]:
    """What the log says of an epoch: scores of every data set, and of the first what a checkpoint may be chosen by.

    Args:
        model: The classifier to score.
        datasets: By name; each process scores its part of the images, this many at a time.
        world: The processes that share the work.
        monitor: The rule that chooses; None: none does.
        isnet, distilled, criterion, classification_loss, p, batch_size: As for :func:`losses`.
        input_range: Pixel range for z^B in the heatmaps of the background share.

    Returns:
        ``{"accuracy", "balanced_accuracy", "auc": {name: [0, 1]}, "warnings": [{"kind", "text"}] (of the first set)}``, None for a score
        that is not defined. With a monitor also ``"validation"``: these scores of the first set beside ``"classification"`` and ``"prior"``
        (the loss, and that of answering with the shares of the classes) and what the monitor needs: ``"loss"`` and ``"heatmap"``, or
        ``"background"``.
    """
    found: dict[str, Any] = {"accuracy": {}, "balanced_accuracy": {}, "auc": {}, "warnings": []}
    answers = {name: _answers(model, dataset, world, batch_size) for name, dataset in datasets.items()}
    for name, (logits, labels) in answers.items():
        found["accuracy"][name] = right_answers(logits, labels).double().mean().item()
        finite = bool(torch.isfinite(logits).all())
        known = as_json(classification_scores(logits, labels, resamples=0)) if finite else {}
        for key in ("balanced_accuracy", "auc"):
            found[key][name] = known[key]["value"] if finite else None
    if not datasets:
        return found
    name, dataset = next(iter(datasets.items()))
    logits, labels = answers[name]
    names = class_names(dataset, logits.shape[1])
    if bool(torch.isfinite(logits).all()):
        found["warnings"] = [caution._asdict() for caution in cautions(logits, labels, names)]
    else:
        found["warnings"] = [{"kind": "undefined", "text": "some answers are not finite: nothing can be scored"}]
    if monitor is None:
        return found
    rule = RULES[monitor]
    scores: dict[str, Any] = {key: found[key][name] for key in ("accuracy", "balanced_accuracy", "auc")}
    if rule.heatmap_loss:
        scores |= losses(
            model,
            dataset,
            world,
            isnet=isnet,
            distilled=distilled,
            criterion=criterion,
            classification_loss=classification_loss,
            p=p,
            batch_size=batch_size,
        )
    else:
        scores["classification"] = float(classification_loss(logits, labels))
    # A student that is chosen by its matching loss is chosen without labels.
    by_labels = distilled is None or monitor != "loss"
    scores["prior"] = prior_loss(logits, labels, classification_loss) if by_labels else 0.0
    if rule.background:
        eps = {} if isnet is None else {"eps": isnet.eps}
        rows = spread_rows(masked_rows(dataset), _ATTENTION_IMAGES)[world.rank :: world.size]
        shares = background_shares(model, dataset, rows, input_range=input_range, batch_size=batch_size, **eps)
        looked_at = [share for part in world.gather(shares.tolist()) for share in part if not math.isnan(share)]
        scores["background"] = sum(looked_at) / len(looked_at) if looked_at else None
    return {**found, "validation": scores}


def class_names(dataset: Dataset[Example], count: int) -> Sequence[str]:
    """The names of a set's classes or labels, from its table; numbers, if it has none."""
    names = getattr(getattr(dataset, "table", None), "classes", ())
    return names if len(names) == count else [str(number) for number in range(count)]


def _answers(model: nn.Module, dataset: Dataset[Example], world: World, batch_size: int) -> tuple[Tensor, Tensor]:
    """Logits and labels of all images, in every process."""
    part = _part(dataset, world)
    ours = predict(model, part, batch_size) if len(cast(Sized, part)) else None
    parts = [answers for answers in world.gather(ours) if answers is not None]
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


@torch.no_grad()
def losses(
    model: nn.Module,
    dataset: Dataset[Example],
    world: World,
    *,
    isnet: ISNet | None = None,
    distilled: Distilled | None = None,
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
        distilled: The student in training, whose teacher is put beside ``model``: the loss is then the matching loss alone.
        criterion: Its loss.
        classification_loss: (logits, labels) -> scalar, as in training.
        p: Share of the heatmap loss in the total.
        batch_size: Images at a time, in all processes together.

    Returns:
        ``{"loss", "classification", "heatmap"}``; heatmap is the matching loss with ``distilled``, 0 with neither.
    """
    sums, count = torch.zeros(2, dtype=torch.float64), 0
    device = next(model.parameters()).device
    network = None if isnet is None or criterion is None else _explained(model, isnet)
    student = None if distilled is None else distilled.around(model, torch.Generator().manual_seed(_SEED))
    matching = MatchingLoss()
    with evaluation_mode(model):
        for place, example in _parts(dataset, world, batch_size):
            images, labels, masks = (value.to(device) for value in example)
            heatmap: Tensor | float = 0.0
            if student is not None:
                shown = student(images, masks, place=place)
                logits, heatmap = shown.logits, matching(shown).total
            elif network is None or criterion is None:
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
    p = p if distilled is None else 1.0
    return {"loss": (1 - p) * classification + p * heatmap, "classification": classification, "heatmap": heatmap}


class Rule(NamedTuple):
    """What makes an epoch better than another.

    Attributes:
        value: From the scores of :func:`epoch_scores`; None where it is not defined.
        rises: Whether a larger one is better.
        heatmap_loss: Whether it needs the heatmap loss of the validation images.
        background: Whether it needs their share of relevance in the background.
    """

    value: Callable[[Mapping[str, Any]], float | None]
    rises: bool = True
    heatmap_loss: bool = False
    background: bool = False


def _balanced(scores: Mapping[str, Any]) -> float | None:
    """Balanced accuracy times the share of relevance inside the masks; where no image has a mask, the balanced accuracy."""
    accuracy = scores["balanced_accuracy"]
    return None if accuracy is None else accuracy * (1 - (scores["background"] or 0.0))


RULES: Mapping[Monitor, Rule] = {
    "loss": Rule(itemgetter("loss"), rises=False, heatmap_loss=True),
    "classification": Rule(itemgetter("classification"), rises=False, heatmap_loss=True),
    "accuracy": Rule(itemgetter("accuracy")),
    "auc": Rule(itemgetter("auc")),
    "balanced": Rule(_balanced, background=True),
}


def worth(monitor: Monitor, scores: Mapping[str, Any]) -> float | None:
    """What a rule says of an epoch, None if it must not be kept.

    An epoch must not be kept if its classification loss on the validation images is not below that of answering with the shares of their
    classes: a small heatmap loss, or a clean background, is worth nothing if the network does not know the classes. (Where the validation
    images are of one class that loss is 0, and says nothing.) Nor may one whose score is not defined or not finite.

    Args:
        monitor: The rule.
        scores: ``"validation"`` of :func:`epoch_scores`.
    """
    value, classification, prior = RULES[monitor].value(scores), scores["classification"], scores["prior"]
    if value is None or not math.isfinite(value) or not math.isfinite(classification):
        return None
    return None if 0 < prior <= classification else value


class Watch:
    """Remembers the best score and how long ago it was reached.

    Args:
        monitor: The rule.
        patience: Epochs without a better score after which to stop, counted from the first that may be kept; None = never.
    """

    def __init__(self, monitor: Monitor, patience: int | None) -> None:
        self.monitor, self.patience = monitor, patience
        self.best: float | None = None
        self.epochs_since = 0

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.epochs_since >= self.patience

    def see(self, score: float | None) -> bool:
        """Takes the score of an epoch, None: it must not be kept (:func:`worth`), and returns whether it is the best so far."""
        sign = 1 if RULES[self.monitor].rises else -1
        better = score is not None and (self.best is None or sign * score > sign * self.best)
        self.best = score if better else self.best
        # Patience is for what was reached: it begins with the first epoch that may be kept.
        self.epochs_since = 0 if better or self.best is None else self.epochs_since + 1
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
    network = ISNet(
        model,
        isnet.variant,
        isnet.eps,
        isnet.input_range,
        isnet.layers,
        draws,
        form=isnet.form,
        supervise=isnet.supervise,
    )
    network.training = True
    return network
