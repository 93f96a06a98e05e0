"""The data sets of a run, built from its settings."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from rich.progress import track
from torch.utils.data import Dataset

from isnet.config import AUTO, STANDARD, ImagesConfig, RunConfig
from isnet.data import (
    Augmentation,
    DataError,
    Example,
    Finding,
    ImageTable,
    MaskedImages,
    Problem,
    apply_policy,
    examine,
    read_table,
    with_validation,
)
from isnet.data.checks import check as check_images
from isnet.data.table import TRAIN, VALIDATION
from isnet.factories import FactoryError, find_callable
from isnet.runs.folder import Run, require_data
from isnet.training.distributed import World, current_world


class RunData(NamedTuple):
    """The data that a run trains on and is scored on.

    Attributes:
        train: With augmentation.
        validation: Scored after each epoch, by name; the first chooses the best checkpoint.
        tests: Scored at the end, by name.
        dropped: What was wrong with each image that the mask policy ``"skip"`` left out.
        findings: What the checks of :func:`isnet.data.check` found, if they were asked for.
    """

    train: Dataset[Example]
    validation: Mapping[str, Dataset[Example]]
    tests: Mapping[str, Dataset[Example]]
    dropped: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def splits_with_masks(config: RunConfig) -> tuple[str, ...]:
    """The splits whose images must have masks.

    Training, for a warm-up, an ISNet, or a teacher that sees foregrounds, and validation, if its loss of heatmaps is monitored.
    """
    distill, schedule = config.distill, config.schedule
    supervised = config.is_isnet or (distill.teacher is not None and distill.view != "image")
    monitored = supervised and schedule.monitor in ("loss", "classification")
    wanted = {TRAIN: supervised or schedule.warmup > 0 or schedule.keep_replacing, VALIDATION: monitored}
    return tuple(split for split, needed in wanted.items() if needed)


@functools.singledispatch
def load_data(
    config: object,
    *,
    seed: int = 0,
    need_masks: Collection[str] = (TRAIN,),
    check: bool = False,
    progress: bool = True,
) -> RunData:
    """Builds the data sets of a run; other kinds of data than the user's images register their own function.

    Args:
        config: Which data.
        seed: Of augmentation and split.
        need_masks: Splits whose images must have masks (:func:`splits_with_masks`).
        check: Look at every image and mask now, so that none stops the training later. Processes that train together share the work: all of
            them must call this.
        progress: Show progress on the terminal.

    Raises:
        DataError: images or masks that cannot be used under the mask policy, or classes other than those of the run.
    """
    raise TypeError(f"config: expected the settings of a kind of data, got {type(config).__name__}")


def load_run_data(config: RunConfig, *, check: bool = False, progress: bool = True) -> RunData:
    """The data sets of a run; see :func:`load_data`."""
    return load_data(
        config.data, seed=config.train.seed, need_masks=splits_with_masks(config), check=check, progress=progress
    )


def run_data(run: Run, *, progress: bool = True) -> RunData:
    """The data sets of a trained run, as for its training.

    Raises:
        FileNotFoundError: the data are no longer where they were.
        DataError: see :func:`load_data`.
    """
    require_data(run.folder, run.config)
    return load_run_data(run.config, progress=progress)


@load_data.register(ImagesConfig)
def _load_images(
    config: ImagesConfig,
    *,
    seed: int = 0,
    need_masks: Collection[str] = (TRAIN,),
    check: bool = False,
    progress: bool = True,
) -> RunData:
    table = with_validation(load_table(config), config.validation, seed)
    problems: list[Problem] = []
    findings: list[Finding] = []
    if check or config.mask_policy != "error":
        images = image_set(config, table, need_masks=need_masks)
        show = progress_bar("checking images and masks", progress)
        world = current_world() if check else World()
        # Without a check "full" only needs to know which masks of scored images are unusable.
        rows = [i for i, r in enumerate(table.records) if check or config.mask_policy == "skip" or r.split != TRAIN]
        mine = rows[world.rank :: world.size]
        gathered = world.gather(examine(images, show, mine, None if world.size == 1 else 0))
        facts = sorted(itertools.chain(*gathered), key=lambda seen: seen.row)
        problems = [seen.problem for seen in facts if seen.problem is not None]
        findings = check_images(table, facts) if check else []
        table = apply_policy(table, problems, config.mask_policy)
    parts = {name: table.part(name) for name in table.splits}
    if not parts.get(TRAIN, table.part(TRAIN)).records:
        raise DataError(f"{config.path}: no training images; its splits are {', '.join(parts)}")
    train = image_set(config, parts.pop(TRAIN), need_masks=need_masks, augmented=True, seed=seed)
    sets = {name: image_set(config, part, need_masks=need_masks) for name, part in parts.items()}
    validation = {name: sets.pop(name) for name in (VALIDATION,) if name in sets}
    # Without a test set only the validation images can be scored.
    dropped = tuple(problem.text for problem in problems) if config.mask_policy == "skip" else ()
    return RunData(train, validation, sets or validation, dropped, tuple(findings))


def require_tests(data: RunData, folder: str | os.PathLike[str]) -> None:
    """Raises ValueError if the run in ``folder`` has nothing to be scored on."""
    if not data.tests:
        raise ValueError(
            f"{folder}: its data have neither a test nor a validation split, so that nothing can be scored or shown"
        )


def load_table(config: ImagesConfig) -> ImageTable:
    """The images of a configuration, whose class names, once noted, must stay the same.

    Raises:
        DataError: nothing usable, or other classes.
    """
    if not config.path:
        raise DataError("data: name the image folder, manifest or shards to train on (--data PATH)")
    table = read_table(config.path, config.masks, config.labels)
    if config.classes and (table.classes != config.classes or table.multi_label != config.multi_label):
        raise DataError(
            f"{config.path}: the run was made with the classes {config.classes}, now there are {table.classes}"
        )
    return table


def settled(config: RunConfig) -> RunConfig:
    """The settings with what the data decide: the names of the classes, and the variant, if it is left to them.

    Raises:
        DataError: nothing usable.
    """
    auto = config.network.variant == AUTO
    if auto and config.distill.teacher is not None:
        config, auto = config.replaced(variant=STANDARD), False
    if not isinstance(config.data, ImagesConfig):
        return config.replaced(variant=STANDARD) if auto else config
    config = dataclasses.replace(config, data=with_classes(config.data))
    if not auto:
        return config
    assert isinstance(config.data, ImagesConfig)
    masked = config.data.segmenter is not None or any(
        record.mask is not None for record in load_table(config.data).part(TRAIN).records
    )
    return config.replaced(variant="selective" if masked else STANDARD)


def with_classes(config: ImagesConfig) -> ImagesConfig:
    """The configuration with the class names that its data have."""
    table = load_table(config)
    return dataclasses.replace(config, classes=table.classes, multi_label=table.multi_label)


def image_set(
    config: ImagesConfig,
    table: ImageTable,
    *,
    need_masks: Collection[str] | None = None,
    augmented: bool = False,
    seed: int = 0,
) -> MaskedImages:
    """The data set of a table, or of a part of it."""
    mean, std = config.normalization
    return MaskedImages(
        table,
        config.size,
        channels=config.channels,
        mask_policy=config.mask_policy,
        need_masks=need_masks,
        foreground_values=config.foreground_values,
        void=config.void,
        resize_masks=config.resize_masks,
        segmenter=None if config.segmenter is None else _segmenter(config.segmenter),
        resize=config.resize,
        mean=mean,
        std=std,
        transform=Augmentation(**config.augment) if augmented and any(config.augment.values()) else None,
        seed=seed,
    )


def same_images(a: Dataset[Example], b: Dataset[Example]) -> bool:
    """Whether two test sets show the same images in the same order: by what each set says of its ``contents``."""
    return type(a) is type(b) and a.contents == b.contents  # type: ignore[attr-defined]


def _segmenter(name: str) -> Any:
    """What makes masks; a class is made without arguments.

    Raises:
        DataError: there is none of this name.
    """
    try:
        found = find_callable(name)
    except FactoryError as error:
        raise DataError(f"segmenter: {error}") from error
    try:
        made = found() if isinstance(found, type) else found
    except Exception as error:  # it is not ours: errors of every kind
        raise DataError(
            f"segmenter: {name} cannot be made without arguments ({type(error).__name__}: {error})"
        ) from error
    if not callable(made):
        raise DataError(f"segmenter: expected a callable, got {name}, of type {type(made).__name__}")
    return made


def progress_bar(text: str, shown: bool) -> Callable[[Iterable[int]], Iterable[int]]:
    """A bar around rows that are looked at one by one."""
    return lambda rows: track(list(rows), description=text, disable=not shown)
