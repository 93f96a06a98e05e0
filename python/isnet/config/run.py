"""All settings of a run, as one object: what ``config.json`` holds and ``config.yaml`` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from isnet.config.distill import DistillConfig
from isnet.config.groups import (
    AUTO,
    STANDARD,
    FilesConfig,
    ImagesConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from isnet.config.option import Group, made, near, options_of, to_json
from isnet.config.training import TrainConfig

GROUPS: Mapping[str, type[Group]] = {
    "data": ImagesConfig,
    "network": NetworkConfig,
    "distill": DistillConfig,
    "loss": LossConfig,
    "train": OptimizerConfig,
    "schedule": ScheduleConfig,
    "files": FilesConfig,
}
NOTES = ("name", "recipe")  # beside the groups: texts that no training depends on
FROM_RUN = "from_run"  # beside the groups in config.json: locations, relative to the run
# The kinds of data that a run may be on, by name in config.json: the user's images, and what experiments add.
DATA_KINDS: dict[str, type[Group]] = {"images": ImagesConfig}


class DataSettings(Protocol):
    """What a run asks of the settings of its data."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes or labels."""

    @property
    def multi_label(self) -> bool:
        """Whether each image has one decision per label."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""

    @property
    def pixel_range(self) -> tuple[Any, Any]:
        """Of the pixels as the network gets them, numbers or one per channel."""


class Condition(NamedTuple):
    """When an option has an effect, and how to say it."""

    met: Callable[[RunConfig], bool]
    text: str


CONDITIONS: Mapping[str, Condition] = {
    "isnet": Condition(
        lambda run: run.is_isnet or (run.network.variant == AUTO and run.distill.teacher is None),
        "an ISNet (--variant selective, say); a standard network has no heatmap loss",
    ),
    "pooled": Condition(
        lambda run: CONDITIONS["isnet"].met(run) and run.loss.share_goal is None,
        "an ISNet without a goal (--share-goal none)",
    ),
    "maps": Condition(
        lambda run: run.is_isnet or run.network.variant == AUTO or run.distill.teacher is not None,
        "heatmaps: an ISNet (--variant selective, say) or a teacher (--teacher RUN)",
    ),
    "teacher": Condition(lambda run: run.distill.teacher is not None, "a teacher (--teacher RUN)"),
    "matched maps": Condition(
        lambda run: run.distill.teacher is not None and run.distill.distill == "maps",
        "a teacher (--teacher RUN) whose maps are matched (--distill maps)",
    ),
    "measured": Condition(
        lambda run: (
            run.tuning_epochs > 0
            or (run.network.variant == AUTO and run.distill.teacher is None and run.loss.is_measured)
        ),
        "an ISNet whose C1 and C2 are measured (without --c1 and --c2)",
    ),
    "sgd": Condition(lambda run: run.train.optimizer == "sgd", "--optimizer sgd"),
    "step": Condition(lambda run: run.schedule.lr_schedule == "step", "--schedule step"),
    "warmup": Condition(lambda run: run.schedule.warmup > 0, "--warmup"),
    "logger": Condition(lambda run: bool(run.files.loggers), "a logger (--logger tensorboard, say)"),
    "replaced": Condition(
        lambda run: bool(run.schedule.warmup or run.schedule.keep_replacing), "--warmup or --keep-replacing"
    ),
}


@dataclass(frozen=True)
class RunConfig(TrainConfig):
    """All settings of a run.

    Attributes:
        train, schedule, loss, files: See :class:`TrainConfig`.
        data: The images.
        network: The classifier and the ISNet around it.
        distill: Its teacher, if any.
        name: What to call the run in tables; the variant by default.
        recipe: Name and version of the recipe that filled the options left out (:mod:`isnet.config.recipes`); empty: none did.
    """

    data: DataSettings = dataclasses.field(kw_only=True)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    name: str = ""
    recipe: str = ""

    def __post_init__(self) -> None:
        if self.schedule.monitor is not None and not getattr(self.data, "may_choose", True):
            raise ValueError(
                f"monitor: {kind_of(self.data)} has no validation images, and its tests must not choose: expected none, "
                f"got {self.schedule.monitor!r}"
            )

        if self.distill.teacher is None:
            return
        if self.network.variant not in (STANDARD, AUTO):
            source = f"--recipe {self.recipe.partition(' ')[0]}" if self.recipe else f"--variant {self.network.variant}"
            raise ValueError(
                f"teacher: a run has a teacher or a heatmap loss of its own; leave --teacher or {source} out"
            )
        if self.schedule.warmup:
            raise ValueError(
                f"warmup: a run with a teacher has no classification loss to warm up with: expected 0, got {self.schedule.warmup} "
                "(--keep-replacing replaces backgrounds throughout)"
            )

    @property
    def is_isnet(self) -> bool:
        """Whether the run has a heatmap loss; not before ``auto`` is settled (:func:`isnet.runs.settled`)."""
        return self.network.variant not in (STANDARD, AUTO)

    @property
    def kind(self) -> str:
        """The variant, or whose heatmaps, logits or features it learns."""
        distill = self.distill
        return self.network.variant if distill.teacher is None else f"{distill.distill} of {distill.teacher}"

    @property
    def title(self) -> str:
        """What to call the run."""
        if not self.name and self.distill.teacher is not None:
            return "distilled" if self.distill.distill == "maps" else f"distilled {self.distill.distill}"
        return self.name or (STANDARD if self.network.variant == AUTO else self.network.variant)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.data.classes

    @property
    def tuning_epochs(self) -> int:
        """Epochs of plain training from which C1 and C2 are measured first; 0: they are set, or there is no heatmap loss."""
        return self.loss.tune if self.is_isnet and self.loss.is_measured else 0

    def identity(self) -> dict[str, Any]:
        """All but the notes and where the data lie, as JSON values."""
        values = self.to_json()
        for note in NOTES:
            del values[note]
        values["data"] = {name: value for name, value in values["data"].items() if name not in self.locations}
        return values

    @property
    def locations(self) -> dict[str, str | None]:
        """The options of the data that say where they lie."""
        options = options_of(type(self.data))
        return {name: getattr(self.data, name) for name, (option, _) in options.items() if option.location}

    def moved(self, locations: Mapping[str, str | None]) -> RunConfig:
        """The settings with other values of :attr:`locations`."""
        return dataclasses.replace(self, data=dataclasses.replace(self.data, **locations))  # type: ignore[type-var]

    @property
    def named_code(self) -> dict[str, str]:
        """GROUP.OPTION -> the code that it names (:mod:`isnet.factories`)."""
        found = {}
        for key in GROUPS:
            group = getattr(self, key)
            for name, (option, _) in options_of(type(group)).items():
                if option.code and getattr(group, name) is not None:
                    found[f"{key}.{name}"] = getattr(group, name)
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_json` rebuilds the settings."""
        data = {"kind": kind_of(self.data), **to_json(self.data)}
        notes = {note: getattr(self, note) for note in NOTES}
        own = {"network": to_json(self.network), "distill": to_json(self.distill)}
        return {**notes, "data": data, **own, **self.training_json()}

    @classmethod
    def from_json(cls, values: Any) -> RunConfig:
        """Rebuilds the settings; groups and options that are left out have their defaults.

        Raises:
            ValueError: unknown or invalid settings.
        """
        require_groups(values)
        data = dict(values.get("data") or {})
        kind = data.pop("kind", "images")
        if not isinstance(kind, str) or kind not in DATA_KINDS:
            raise ValueError(f"data.kind: expected one of {', '.join(DATA_KINDS)}, got {kind!r}")
        parts = {key: made(group, values.get(key) or {}, key) for key, group in GROUPS.items() if key != "data"}
        notes = {note: "" if values.get(note) is None else values[note] for note in NOTES}
        for note, text in notes.items():
            if not isinstance(text, str | int | float) or isinstance(text, bool):
                raise ValueError(f"{note}: expected a text, got {text!r}")
        texts = {note: str(text) for note, text in notes.items()}
        return cls(**parts, data=made(DATA_KINDS[kind], data, "data"), **texts)  # type: ignore[arg-type]


def require_groups(values: Any) -> None:
    """Checks that the values of a file are groups of options; which options, :meth:`RunConfig.from_json` looks at.

    Raises:
        ValueError: they are not, or an older version's.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"expected groups of options ({', '.join(GROUPS)}), got {values!r}")
    if "heatmap" in values:
        raise ValueError("an older version's run, which this one cannot read; train in a new folder")
    for key, found in values.items():
        if key in (*NOTES, FROM_RUN):
            continue
        if key not in GROUPS:
            raise ValueError(f"{key}: no such group of options{near(str(key), GROUPS)}")
        if not isinstance(found, Mapping | None):
            raise ValueError(f"{key}: expected options with their values, got {found!r}")


def kind_of(data: Any) -> str:
    """The name of a kind of data."""
    return next(name for name, kind in DATA_KINDS.items() if isinstance(data, kind))


def flag(name: str) -> str:
    """An option's name on the command line."""
    for group in GROUPS.values():
        if name in options_of(group):
            names = options_of(group)[name][0].names
            return names[0].split("/")[0] if names else f"--{name.replace('_', '-')}"
    return f"--{name.replace('_', '-')}"


def require_use(config: RunConfig, given: Iterable[tuple[str, str]]) -> None:
    """Refuses options that have no effect with the others.

    Args:
        config: All settings.
        given: (group, option) of those to look at.

    Raises:
        ValueError: names them, and what they need.
    """
    idle: dict[str, list[str]] = {}
    for group, name in given:
        needs = options_of(GROUPS[group])[name][0].needs
        if needs == "pooled" and not CONDITIONS["isnet"].met(config):
            needs = "isnet"  # what is missing first
        if needs is not None and not CONDITIONS[needs].met(config):
            idle.setdefault(needs, []).append(flag(name))
    for needs, names in idle.items():
        raise ValueError(f"{', '.join(names)}: to be used with {CONDITIONS[needs].text}")


def changed(config: RunConfig) -> list[tuple[str, str]]:
    """(group, option) of those that differ from their defaults."""
    return [
        (key, name)
        for key, group in GROUPS.items()
        if isinstance(getattr(config, key), group)
        for name in options_of(group)
        if getattr(getattr(config, key), name) != getattr(_defaults(key), name)
    ]


def _defaults(key: str) -> Any:
    return ImagesConfig(path="?") if key == "data" else GROUPS[key]()
