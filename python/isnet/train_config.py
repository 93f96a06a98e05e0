"""How to train: the settings of :func:`isnet.training.fit`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from isnet.warmup import WARMUP_BACKGROUNDS, WarmupBackground

Precision = Literal["float32", "bfloat16", "float16"]
Schedule = Literal["constant", "cosine", "step"]
Monitor = Literal["loss", "classification", "accuracy"]
Balance = Literal["fixed", "auto"]

# Settings that act only after the warm-up, and may change before its end.
_AFTER_WARMUP = {
    *("keep_replacing", "lr_after_warmup", "schedule", "milestones", "gamma"),
    *("p", "p_ramp", "p_schedule", "heatmap_every"),
}
# Settings that may change when a run is resumed: none of them alters the weights.
_FREE = {"log_every", "save_every", "keep_last", "tensorboard", "workers", "patience"}
# Removed settings, and the value at which each has no effect.
REMOVED: Mapping[str, Any] = {"heatmap_fraction": 1.0}


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Epochs after the warm-up.
        warmup: Epochs before them in which the background is replaced and only the classification loss counts.
        warmup_background: Its replacement: ``"noise"``, white, ``"smooth"``, of several scales, or ``"swap"``, another image's background
            (:func:`isnet.warmup.replace_background`).
        keep_replacing: Replace the background after the warm-up, too (without one: throughout): augmentation in place of a guard.
        batch_size: Images per optimizer step, over all processes and parts; the last, smaller batch of an epoch is left
            out.
        accumulate: Parts into which each process cuts its share of a batch, one after the other, to save memory.
        optimizer: ``"sgd"`` or ``"adamw"``.
        lr: Learning rate.
        lr_rampup: Epochs at the very beginning over which the learning rate rises linearly from 0.
        lr_after_warmup: Factor on ``lr`` once the warm-up is over (if there was one).
        schedule: ``"constant"``; ``"cosine"`` towards 0 over the epochs after the warm-up; ``"step"``: times ``gamma`` at
            each of the ``milestones``.
        milestones: Epochs after the warm-up.
        gamma: Factor of the step schedule.
        momentum: Of SGD.
        weight_decay: Of either optimizer.
        p: P, the share of the heatmap loss: loss = (1 - P) classification + P heatmap.
        p_ramp: Epochs after the warm-up over which P rises linearly from 0.
        p_schedule: Pairs (epoch after the warm-up, P), in ascending order: P from that epoch on; ``p`` before the first.
        balance: ``"fixed"``: P as set here; ``"auto"``: from the running means of both losses (:class:`isnet.balance.Balance`), ``p``
            then only serves to compare epochs where ``monitor`` is ``"loss"``.
        heatmap_every: The heatmap loss is taken on every K-th step, weighted K.
        clip_norm: Largest norm of the gradient; None does not clip.
        precision: Of the forward pass: ``"bfloat16"`` and ``"float16"`` run it under autocast, the latter with loss scaling.
        ema: Decay of an exponential moving average of the weights, which is then scored and kept; None = none.
        monitor: Validation score that chooses the best checkpoint: ``"loss"`` (that of training), ``"classification"``
            (its first part) or ``"accuracy"``; None keeps the last.
        patience: Stop after this many epochs without a better score; None = never.
        sync_batch_norm: In several processes, each with a GPU, batch norm takes its statistics over all of them
            (``torch.nn.SyncBatchNorm``).
        channels_last: Keep model and images in channels-last memory format.
        deterministic: Use deterministic algorithms only; on a GPU, runs then repeat bit for bit.
        workers: Processes that load the images; 0 = this one.
        seed: Seed of every draw.
        log_every: Steps between two lines of the log.
        save_every: Steps between two checkpoints, beside the one after each epoch; None = only those.
        keep_last: Checkpoints of the last epochs to keep beside the newest.
        tensorboard: Write the log for TensorBoard as well.
    """

    epochs: int = 8
    warmup: int = 0
    warmup_background: WarmupBackground = "noise"
    keep_replacing: bool = False
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = 2e-3
    lr_rampup: float = 0.0
    lr_after_warmup: float = 0.3
    schedule: Schedule = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-2
    p: float = 0.7
    p_ramp: float = 0.0
    p_schedule: tuple[tuple[float, float], ...] = ()
    balance: Balance = "fixed"
    heatmap_every: int = 1
    clip_norm: float | None = 1.0
    precision: Precision = "float32"
    ema: float | None = None
    monitor: Monitor | None = None
    patience: int | None = None
    sync_batch_norm: bool = False
    channels_last: bool = False
    deterministic: bool = False
    workers: int = 0
    seed: int = 0
    log_every: int = 20
    save_every: int | None = None
    keep_last: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "p_schedule", tuple((epoch, p) for epoch, p in self.p_schedule))
        starts = [epoch for epoch, _ in self.p_schedule]
        ascending = all(a < b for a, b in itertools.pairwise(starts)) and all(start >= 0 for start in starts)
        checks = (
            ("epochs", self.epochs >= 0, ">= 0"),
            ("warmup", self.warmup >= 0, ">= 0"),
            ("warmup_background", self.warmup_background in WARMUP_BACKGROUNDS, " or ".join(WARMUP_BACKGROUNDS)),
            ("batch_size", self.batch_size >= 2, ">= 2"),
            ("accumulate", self.accumulate >= 1, ">= 1"),
            ("optimizer", self.optimizer in ("sgd", "adamw"), "sgd or adamw"),
            ("lr", self.lr > 0, "> 0"),
            ("lr_rampup", self.lr_rampup >= 0, ">= 0"),
            ("lr_after_warmup", self.lr_after_warmup > 0, "> 0"),
            ("schedule", self.schedule in get_args(Schedule), "constant, cosine or step"),
            ("milestones", all(epoch > 0 for epoch in self.milestones), "epochs > 0"),
            ("gamma", 0 < self.gamma <= 1, "in (0, 1]"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("p", 0 <= self.p <= 1, "in [0, 1]"),
            ("p_ramp", self.p_ramp >= 0, ">= 0"),
            (
                "p_schedule",
                ascending and all(0 <= p <= 1 for _, p in self.p_schedule),
                "(epoch, P) with ascending epochs >= 0 and P in [0, 1]",
            ),
            ("balance", self.balance in get_args(Balance), "fixed or auto"),
            ("heatmap_every", self.heatmap_every >= 1, ">= 1"),
            ("clip_norm", self.clip_norm is None or self.clip_norm > 0, "> 0 or None"),
            ("precision", self.precision in get_args(Precision), "float32, bfloat16 or float16"),
            ("ema", self.ema is None or 0 < self.ema < 1, "in (0, 1) or None"),
            ("monitor", self.monitor in (*get_args(Monitor), None), "loss, classification, accuracy or None"),
            ("patience", self.patience is None or self.patience >= 1, ">= 1 or None"),
            ("workers", self.workers >= 0, ">= 0"),
            ("seed", self.seed >= 0, ">= 0"),
            ("log_every", self.log_every >= 1, ">= 1"),
            ("save_every", self.save_every is None or self.save_every >= 1, ">= 1 or None"),
            ("keep_last", self.keep_last >= 0, ">= 0"),
        )
        for name, valid, expected in checks:
            if not valid:
                raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if self.balance == "auto" and (self.p_ramp or self.p_schedule):
            raise ValueError("balance: auto leaves no room for p_ramp or p_schedule")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience: needs monitor, the score that is to improve")

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0, over ``lr``."""
        ramp = self.lr_rampup * steps_per_epoch
        factor = min(1.0, (step + 1) / ramp) if ramp else 1.0
        after = step - self.warmup * steps_per_epoch
        if after < 0:
            return factor
        if self.warmup:
            factor *= self.lr_after_warmup
        if self.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * after / max(1, self.epochs * steps_per_epoch)))
        elif self.schedule == "step":
            factor *= self.gamma ** sum(after >= epoch * steps_per_epoch for epoch in self.milestones)
        return factor

    def heatmap_share(self, step: int, steps_per_epoch: int) -> float:
        """P of a step, counted from 0; 0 during the warm-up."""
        after = step - self.warmup * steps_per_epoch
        if after < 0:
            return 0.0
        p = next((p for epoch, p in reversed(self.p_schedule) if after >= epoch * steps_per_epoch), self.p)
        ramp = self.p_ramp * steps_per_epoch
        return p * min(1.0, (after + 1) / ramp) if ramp else p

    def replaces_background(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a step, counted from 0, sees other backgrounds than the images'."""
        return self.keep_replacing or step < self.warmup * steps_per_epoch

    def takes_heatmap(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the heatmap loss counts in a step, counted from 0."""
        after = step - self.warmup * steps_per_epoch
        return after >= 0 and (after + 1) % self.heatmap_every == 0

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    def differences(self, saved: Mapping[str, Any], *, past_warmup: bool = True) -> list[str]:
        """What prevents a run with the settings ``saved`` from being continued with these, one text each.

        Logging, checkpointing and loading may change, and the number of epochs and what acts after the warm-up (P, schedule, ...) as
        far as the steps done do not depend on it.
        A setting that ``saved`` lacks counts as its default, and one that no longer exists must have had no effect.
        """
        saved = without_removed(saved, REMOVED)
        free = _FREE if self.schedule == "cosine" and past_warmup else _FREE | {"epochs"}
        free = free if past_warmup else free | _AFTER_WARMUP
        before = {field.name: field.default for field in fields(self)} | dict(saved)
        ours = self.to_json()
        unknown = [f"{name}: {value!r} there, not a setting now" for name, value in saved.items() if name not in ours]
        return unknown + [
            f"{name}: {_plain(before.get(name))!r} there, {value!r} now"
            for name, value in ours.items()
            if name not in free and _plain(before.get(name)) != value
        ]


def without_removed(values: Mapping[str, Any], removed: Mapping[str, Any]) -> dict[str, Any]:
    """Saved settings without those of ``removed`` that have the value given there, at which they had no effect."""
    return {name: value for name, value in values.items() if name not in removed or value != removed[name]}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
