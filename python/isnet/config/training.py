"""How to train: the settings of :func:`isnet.training.fit`, four groups of options, and what follows from them in each step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from isnet.config.groups import FilesConfig, LossConfig, OptimizerConfig, ScheduleConfig
from isnet.config.option import Group, default_of, near, options_of, to_json

ConfigT = TypeVar("ConfigT", bound="TrainConfig")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        train: The optimizer and its batches.
        schedule: Epochs, warm-up and learning rate.
        loss: The heatmap loss.
        files: Log and checkpoints.
    """

    train: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loss: LossConfig = LossConfig()
    files: FilesConfig = FilesConfig()

    @classmethod
    def of(cls: type[ConfigT], **options: Any) -> ConfigT:
        """The settings with these options, whatever their groups: ``TrainConfig.of(lr=1e-3, epochs=3)``.

        Raises:
            ValueError: an unknown option, or a value that does not fit.
        """
        return cls().replaced(**options)

    def replaced(self: ConfigT, **options: Any) -> ConfigT:
        """The settings with some options changed, whatever their groups.

        Raises:
            ValueError: an unknown option, or a value that does not fit.
        """
        changes: dict[str, dict[str, Any]] = {}
        groups = {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Group)
        }
        for name, value in options.items():
            where = next((key for key, group in groups.items() if name in options_of(type(group))), None)
            if where is None:
                known = [option for group in groups.values() for option in options_of(type(group))]
                raise ValueError(f"{name}: no such option{near(name, known)}")
            changes.setdefault(where, {})[name] = value
        new: dict[str, Any] = {key: dataclasses.replace(groups[key], **found) for key, found in changes.items()}  # type: ignore[type-var]
        return dataclasses.replace(self, **new)

    def rate_factor(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0, over ``lr``."""
        schedule = self.schedule
        ramp = schedule.lr_rampup * steps_per_epoch
        factor = min(1.0, (step + 1) / ramp) if ramp else 1.0
        after = step - schedule.warmup * steps_per_epoch
        if after < 0:
            return factor
        if schedule.warmup:
            factor *= schedule.lr_after_warmup
        if schedule.lr_schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * after / max(1, schedule.epochs * steps_per_epoch)))
        elif schedule.lr_schedule == "step":
            factor *= schedule.gamma ** sum(after >= epoch * steps_per_epoch for epoch in schedule.milestones)
        return factor

    def heatmap_share(self, step: int, steps_per_epoch: int) -> float:
        """P of a step, counted from 0; 0 during the warm-up."""
        loss, after = self.loss, step - self.schedule.warmup * steps_per_epoch
        if after < 0:
            return 0.0
        p = next((p for epoch, p in reversed(loss.p_schedule) if after >= epoch * steps_per_epoch), loss.p)
        ramp = loss.p_ramp * steps_per_epoch
        return p * min(1.0, (after + 1) / ramp) if ramp else p

    def replaces_background(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a step, counted from 0, sees other backgrounds than the images'."""
        return self.schedule.keep_replacing or step < self.schedule.warmup * steps_per_epoch

    def takes_heatmap(self, step: int, steps_per_epoch: int) -> bool:
        """Whether the heatmap loss counts in a step, counted from 0."""
        after = step - self.schedule.warmup * steps_per_epoch
        return after >= 0 and (after + 1) % self.loss.heatmap_every == 0

    def training_json(self) -> dict[str, Any]:
        """The four groups as JSON values."""
        return {field.name: to_json(getattr(self, field.name)) for field in dataclasses.fields(TrainConfig)}

    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this training is known by, as JSON values: where things lie is left out."""
        return self.training_json()

    def differences(self, saved: Mapping[str, Any], *, past_warmup: bool = True) -> list[str]:
        """What prevents a run with the settings ``saved`` from being continued with these, one text each.

        Options that change no weight may differ, and the number of epochs and what acts after the warm-up as far as the steps done do
        not depend on it. An option that a group of ``saved`` lacks counts as its default.

        Raises:
            ValueError: ``saved`` is an older version's.
        """
        found = []
        for key, ours in self.training_json().items():
            if not isinstance(saved.get(key), Mapping):
                raise ValueError(
                    "the settings are an older version's, which this one cannot continue; train in a new folder"
                )
            theirs, options = saved[key], options_of(type(getattr(self, key)))
            found += [f"{key}.{name}: {theirs[name]!r} there, not an option now" for name in theirs if name not in ours]
            for name, value in ours.items():
                free = options[name][0].resumable == "always"
                free |= not past_warmup and options[name][0].resumable == "after warm-up"
                if name == "epochs":  # the rates of a cosine depend on their number
                    free = not past_warmup or self.schedule.lr_schedule != "cosine"
                before = theirs[name] if name in theirs else to_json(default_of(type(getattr(self, key)), name))
                if not free and before != value:
                    found.append(f"{key}.{name}: {before!r} there, {value!r} now")
        return found
