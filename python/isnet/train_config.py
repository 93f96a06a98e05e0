"""How to train: the settings of :func:`isnet.training.fit`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Epochs after the warm-up.
        warmup: Epochs before them in which the background is replaced by noise and only the classification loss counts.
        batch_size: Images per step; the last, smaller batch of an epoch is left out.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: Learning rate.
        lr_after_warmup: Factor on ``lr`` once the warm-up is over (if there was one).
        schedule: ``"constant"``, or ``"cosine"`` towards 0 over the epochs after the warm-up.
        momentum: Of SGD.
        weight_decay: Of either optimizer.
        p: P, the share of the heatmap loss: loss = (1 - P) classification + P heatmap.
        p_ramp: Epochs after the warm-up over which P rises linearly from 0.
        heatmap_every: The heatmap loss is taken on every K-th step, weighted K.
        clip_norm: Largest norm of the gradient; None does not clip.
        channels_last: Keep model and images in channels-last memory format.
        seed: Seed of every draw.
        log_every: Steps between two lines of the log.
        save_every: Steps between two checkpoints, beside the one after each epoch; None = only those.
    """

    epochs: int = 8
    warmup: int = 0
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 2e-3
    lr_after_warmup: float = 0.3
    schedule: Literal["constant", "cosine"] = "constant"
    momentum: float = 0.9
    weight_decay: float = 1e-2
    p: float = 0.7
    p_ramp: float = 0.0
    heatmap_every: int = 1
    clip_norm: float | None = 1.0
    channels_last: bool = False
    seed: int = 0
    log_every: int = 20
    save_every: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("epochs", self.epochs >= 0, ">= 0"),
            ("warmup", self.warmup >= 0, ">= 0"),
            ("batch_size", self.batch_size >= 2, ">= 2"),
            ("optimizer", self.optimizer in ("sgd", "adamw"), "sgd or adamw"),
            ("lr", self.lr > 0, "> 0"),
            ("lr_after_warmup", self.lr_after_warmup > 0, "> 0"),
            ("schedule", self.schedule in ("constant", "cosine"), "constant or cosine"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("p", 0 <= self.p <= 1, "in [0, 1]"),
            ("p_ramp", self.p_ramp >= 0, ">= 0"),
            ("heatmap_every", self.heatmap_every >= 1, ">= 1"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "> 0 or None"),
            ("seed", self.seed >= 0, ">= 0"),
            ("log_every", self.log_every >= 1, ">= 1"),
            ("save_every", self.save_every is None or self.save_every >= 1, ">= 1 or None"),
        )
        for name, valid, expected in checks:
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0."""
        after = step - self.warmup * steps_per_epoch
        if after < 0:
            return self.lr
        rate = self.lr * (self.lr_after_warmup if self.warmup else 1.0)
        if self.schedule == "cosine":
            rate *= 0.5 * (1 + math.cos(math.pi * after / max(1, self.epochs * steps_per_epoch)))
        return rate

    def heatmap_share(self, step: int, steps_per_epoch: int) -> float:
        """P of a step, counted from 0; 0 during the warm-up."""
        after = step - self.warmup * steps_per_epoch
        if after < 0:
            return 0.0
        ramp = self.p_ramp * steps_per_epoch
        return self.p * min(1.0, (after + 1) / ramp) if ramp else self.p

    def takes_heatmap(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the heatmap loss counts in a step, counted from 0."""
        after = step - self.warmup * steps_per_epoch
        return after >= 0 and (after + 1) % self.heatmap_every == 0

    def differences(self, saved: Mapping[str, Any], *, past_warmup: bool = True) -> list[str]:
        """What keeps a run with the settings ``saved`` from being continued with these, one text each.

        Logging and checkpointing may change, and the number of epochs as far as the steps done do not depend on it.
        """
        free = {"log_every", "save_every"}
        if self.schedule == "constant" or not past_warmup:
            free.add("epochs")
        return [
            f"{name}: {saved.get(name)!r} there, {value!r} now"
            for name, value in asdict(self).items()
            if name not in free and saved.get(name) != value
        ]
