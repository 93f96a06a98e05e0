"""Parts of the training loop: what it logs of a step, how it stops at one that is not finite, its optimizer."""

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
from isnet.config import TrainConfig
from isnet.data import Example
from isnet.loss import LayerLoss
from isnet.model import ISNet, ISNetOutput
from isnet.training.checkpoints import CheckpointError
from isnet.training.distributed import World

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
SMALLEST_SCALE = 2.0**-10  # of the loss; float16 gradients that overflow even here do not result from scaling


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became infinite or not a number."""


class HeatmapObserver(Protocol):
    """Looks at the heatmaps of the last epoch; see :class:`isnet.training.ranges.RelevanceTotals`."""

    def observe(self, output: ISNetOutput) -> None:
        """Takes what the ISNet returned for one batch."""

    def state(self) -> dict[str, Any]:
        """JSON values kept in checkpoints."""

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continues from what one or more processes have seen."""


class StepLosses(NamedTuple):
    """The losses of a step, None where it took no heatmap, and the P that it used."""

    total: float
    classification: float
    heatmap: float | None
    grad_norm: float | None
    layers: dict[str, dict[str, float]]
    share: float


def require_trainable(
    config: TrainConfig, world: World, images: int, isnet: ISNet | None, device: torch.device
) -> None:
    """Checks before the first step what can be checked by then.

    Raises:
        ValueError: see :func:`isnet.training.fit`.
    """
    train, schedule = config.train, config.schedule
    shares = f"among {world.size} processes, each in {train.accumulate} parts"
    part, rest = divmod(train.batch_size, world.size * train.accumulate)
    if images < train.batch_size:
        raise ValueError(f"train_set: {images} images do not fill one batch of {train.batch_size}")
    if rest:
        raise ValueError(f"batch_size: {train.batch_size} images cannot be shared out evenly {shares}")
    if part < 2 and schedule.warmup_background == "swap" and (schedule.warmup or schedule.keep_replacing):
        raise ValueError(
            f"batch_size: backgrounds are swapped among two or more images, got {train.batch_size} {shares}"
        )
    if train.sync_batch_norm and world.size > 1 and device.type == "cpu":
        raise ValueError(
            "sync_batch_norm: PyTorch synchronises batch norm on GPUs only; leave it out on the CPU, or use a network with group norm"
        )
    if isnet is None:
        return
    if train.precision == "float16" and device.type == "cpu":
        raise ValueError("precision: relevance in float16 needs a GPU; use bfloat16 on the CPU")
    if isnet.is_static and train.sync_batch_norm and world.size > 1:
        raise ValueError(
            "sync_batch_norm: what processes tell each other cannot be repeated by static calls; leave one of them out"
        )


def synchronize_batch_norm(model: nn.Module) -> None:
    """Puts ``nn.SyncBatchNorm`` in place of every batch norm in ``model``, with the same parameters and buffers.

    Raises:
        ValueError: the model is itself a batch norm, or holds one of a class of its own, whose forward pass would be lost.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (type(module) not in _BATCH_NORMS or not name):
            raise ValueError(f"sync_batch_norm: cannot synchronise {name or 'the model'}, a {type(module).__name__}")
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def require_validation(config: TrainConfig, validation: Mapping[str, object]) -> None:
    """Checks that there is something to score after each epoch, if that is wanted.

    Raises:
        ValueError: otherwise.
    """
    if config.schedule.monitor is not None and not validation:
        raise ValueError("monitor: needs validation images: a validation split, --validation SHARE, or --best-by none")


def require_epochs(config: TrainConfig, step: int, images: int, path: Path) -> None:
    """Checks that a training has not gone further than it is to go.

    Args:
        config: How to train.
        step: Steps done.
        images: In the training set.
        path: The checkpoint of that step.

    Raises:
        CheckpointError: it has.
    """
    schedule, steps_per_epoch = config.schedule, max(1, images // config.train.batch_size)
    if step > (schedule.warmup + schedule.epochs) * steps_per_epoch:
        trained = -(-step // steps_per_epoch) - schedule.warmup
        raise CheckpointError(
            f"epochs: expected at least {trained}, which {path} has begun to train, got {schedule.epochs}"
        )


def layer_numbers(terms: LayerLoss) -> dict[str, float]:
    """The parts of a layer's heatmap loss, for the log."""
    return {
        "background": terms.background.item(),
        "foreground": terms.foreground.item(),
        "foreground_relevance": terms.foreground_relevance.item(),
    }


def mean_losses(losses: Sequence[StepLosses]) -> StepLosses:
    """The means over those that have a value; P of the last."""

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
        losses[-1].share,
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
    train = config.train
    if train.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=train.lr, momentum=train.momentum, weight_decay=train.weight_decay)
    return torch.optim.AdamW(parameters, lr=train.lr, weight_decay=train.weight_decay)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int, step: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate of each step from ``step`` on, counted from 0.

    The rate depends on the step alone, so that a run resumed at one may follow another schedule from there. It is a product of a ramp,
    which may end within a step or after the warm-up, and of what follows the warm-up: SequentialLR would drop the first factor there.
    """
    for group in optimizer.param_groups:
        group["initial_lr"] = config.train.lr
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: config.rate_factor(at, steps_per_epoch), last_epoch=step - 1
    )
