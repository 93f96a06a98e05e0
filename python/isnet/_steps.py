"""Parts of the training loop: what it notes of a step, how it stops at one that is not finite, its optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from isnet._files import atomic_path
from isnet.evaluation import Example
from isnet.loss import LayerLoss
from isnet.model import ISNetOutput
from isnet.train_config import TrainConfig

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SMALLEST_SCALE = 2.0**-10  # of the loss; float16 gradients that overflow even here are no accident of scaling


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became infinite or not a number."""


class HeatmapObserver(Protocol):
    """Looks at the heatmaps of the last epoch; see :class:`isnet.ranges.RelevanceTotals`."""

    def observe(self, output: ISNetOutput) -> None:
        """Takes what the ISNet returned for one batch."""

    def state(self) -> dict[str, Any]:
        """JSON values kept in checkpoints."""

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Takes up what one or more processes have seen."""


class StepLosses(NamedTuple):
    """The losses of a step; None where it took no heatmap, or did not clip."""

    total: float
    classification: float
    heatmap: float | None
    grad_norm: float | None
    layers: dict[str, dict[str, float]]


def layer_numbers(terms: LayerLoss) -> dict[str, float]:
    """The parts of a layer's heatmap loss, for the log."""
    return {
        "background": terms.background.item(),
        "foreground": terms.foreground.item(),
        "foreground_relevance": terms.foreground_relevance.item(),
    }


def mean_losses(losses: Sequence[StepLosses]) -> StepLosses:
    """The means over those that have a value."""

    def mean(values: Iterable[float | None]) -> float | None:
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else None

    supervised = [step.layers for step in losses if step.layers]
    layers = {
        name: {part: float(np.mean([step[name][part] for step in supervised])) for part in parts}
        for name, parts in (supervised[0] if supervised else {}).items()
    }
    return StepLosses(
        float(np.mean([step.total for step in losses])),
        float(np.mean([step.classification for step in losses])),
        mean(step.heatmap for step in losses),
        mean(step.grad_norm for step in losses),
        layers,
    )


def non_finite(step: int, what: str, value: float, part: Example, path: Path | None) -> NonFiniteLossError:
    """The error of a step, counted from 0, after saving the images it came from to ``path``."""
    where = ""
    if path is not None:
        batch = dict(zip(("images", "labels", "masks"), part, strict=True))
        with atomic_path(path) as temporary:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in batch.items()}, temporary)
        where = f" The batch is in {path}."
    return NonFiniteLossError(
        f"step {step + 1}: the {what} is {value}.{where} Lower the learning rate or P, raise eps or "
        "clip_norm's effect, or start from a warm-up; the last checkpoint is from before this step."
    )


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic algorithms only, if wanted, until the end."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted or before)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of the parameters that learn."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
