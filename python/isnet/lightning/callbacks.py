"""Warm-up, and measuring C1 and C2, as callbacks of a Lightning trainer."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from isnet.config import TrainConfig
from isnet.data.backgrounds import WARMUP_BACKGROUNDS, WarmupBackground
from isnet.lightning.module import ISNetModule, tell_epoch
from isnet.training.ranges import tune

_PRECISIONS = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}


class WarmUp(Callback):
    """Epochs before, with the background replaced and the classification loss alone, as ``isnet train --warmup``.

    Args:
        epochs: Their number, part of the trainer's ``max_epochs``.
        background: What replaces it: ``"noise"``, ``"smooth"`` or ``"swap"`` (:func:`isnet.data.backgrounds.replace_background`).
        lr_factor: Factor on the learning rate after them.

    Raises:
        ValueError: a setting out of range.
    """

    def __init__(self, epochs: int, background: WarmupBackground = "noise", lr_factor: float = 0.3) -> None:
        if epochs < 1 or background not in WARMUP_BACKGROUNDS or lr_factor <= 0:
            raise ValueError(
                f"expected epochs >= 1, background {' or '.join(WARMUP_BACKGROUNDS)} and lr_factor > 0, "
                f"got {epochs}, {background!r} and {lr_factor}"
            )
        self.epochs, self.background, self.lr_factor = epochs, background, lr_factor
        self._steps: int | None = None  # of the optimizer in the warm-up, once it is over

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begins or ends the warm-up."""
        module, warm = _isnet(pl_module), trainer.current_epoch < self.epochs
        module.replaced_background = self.background if warm else None
        if not warm and self._steps is None:
            self._steps = trainer.global_step
            for optimizer in trainer.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] *= self.lr_factor
                    group["initial_lr"] = group.get("initial_lr", group["lr"] / self.lr_factor) * self.lr_factor
            for schedule in trainer.lr_scheduler_configs:  # they begin from rates of their own
                rates = getattr(schedule.scheduler, "base_lrs", [])
                rates[:] = [rate * self.lr_factor for rate in rates]
        module.warmup_steps = self._steps or 0

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leaves the module as it was."""
        _isnet(pl_module).replaced_background = None

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]


class MeasureRanges(Callback):
    """Measures C1 and C2 before the first epoch with a heatmap loss, as ``isnet train`` does: see :func:`isnet.training.tune`.

    A copy of the network is trained by AdamW, without heatmap loss, on the training set of the trainer, by all its processes.

    Args:
        epochs: Of plain training, >= 1; the heatmaps of the last one count.

    Raises:
        ValueError: epochs < 1.
    """

    def __init__(self, epochs: int = 2) -> None:
        if epochs < 1:
            raise ValueError(f"epochs: expected >= 1, got {epochs}")
        self.epochs = epochs

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Measures, unless the warm-up is not over, or the module has its ranges.

        Raises:
            ValueError: C1 and C2 are set, the training data have no length, or no range can be determined.
        """
        module = _isnet(pl_module)
        before = [callback for callback in trainer.callbacks if isinstance(callback, WarmUp)]  # type: ignore[attr-defined]
        if module.ranges or any(trainer.current_epoch < callback.epochs for callback in before):
            return
        if {"c1", "c2"} & module.loss_options.keys():
            raise ValueError("MeasureRanges: loss has c1 and c2, so that there is nothing to measure; leave them out")
        loader: Any = trainer.train_dataloader
        size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        if size is None or not isinstance(getattr(loader, "dataset", None), Sized):
            raise ValueError("MeasureRanges: expected one DataLoader with a batch size, and a data set with a length")
        parts = trainer.accumulate_grad_batches
        config = TrainConfig.of(
            batch_size=size * parts * trainer.world_size,
            accumulate=parts,
            lr=module.lr * (before[0].lr_factor if before else 1.0),
            weight_decay=module.weight_decay,
            clip_norm=trainer.gradient_clip_val or None,
            precision=_PRECISIONS.get(str(trainer.precision), "float32"),
            seed=torch.initial_seed() % 2**32 if module.seed is None else module.seed,
            monitor=None,
        )
        module.use_ranges(tune(module.network, loader.dataset, config, epochs=self.epochs, progress=False))
        tell_epoch(loader.dataset, trainer.current_epoch)


def _isnet(module: lightning.LightningModule) -> ISNetModule:
    if not isinstance(module, ISNetModule):
        raise TypeError(f"expected an isnet.lightning.ISNetModule, got {type(module).__name__}")
    return module
