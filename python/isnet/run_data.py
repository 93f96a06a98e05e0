"""The data sets of a run, built from its settings."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from rich.progress import track
from torch.utils.data import Dataset

from isnet.data import (
    Augmentation,
    DataError,
    ImageTable,
    MaskedImages,
    apply_policy,
    audit,
    biased_mnist_splits,
    load_mnist,
    read_table,
    with_validation,
)
from isnet.data.biased_mnist import Bias
from isnet.data.records import TRAIN, VALIDATION
from isnet.evaluation import Example
from isnet.run_config import DataConfig, ImagesConfig


class RunData(NamedTuple):
    """What a run trains on, and what it is scored on.

    Attributes:
        train: With augmentation.
        validation: Scored after each epoch, by name; the first chooses the best checkpoint.
        tests: Scored at the end, by name.
    """

    train: Dataset[Example]
    validation: Mapping[str, Dataset[Example]]
    tests: Mapping[str, Dataset[Example]]


def load_data(config: DataConfig | ImagesConfig, *, progress: bool = True, train_bias: Bias = "biased") -> RunData:
    """Builds the data sets; biased MNIST is fetched if needed, ``train_bias`` being that of its training images.

    Raises:
        DataError: images or masks that cannot be used under the mask policy, or classes other than those of the run.
    """
    if isinstance(config, DataConfig):
        values = dataclasses.asdict(config)
        splits = biased_mnist_splits(
            load_mnist(values.pop("folder"), progress=progress), train_bias=train_bias, **values
        )
        return RunData(splits.train, splits.tests, splits.tests)
    table = with_validation(load_table(config), config.validation, config.seed)
    if config.mask_policy == "skip":
        table = apply_policy(
            table, audit(image_set(config, table), _progress("checking images and masks", progress)), "skip"
        )
    parts = {name: table.part(name) for name in table.splits}
    if not parts.get(TRAIN, table.part(TRAIN)).records:
        raise DataError(f"{config.path}: no training images; its splits are {', '.join(parts)}")
    train = image_set(config, parts.pop(TRAIN), augmented=True)
    sets = {name: image_set(config, part) for name, part in parts.items()}
    validation = {name: sets.pop(name) for name in (VALIDATION,) if name in sets}
    # Without a test set the validation images are all there is to score.
    return RunData(train, validation, sets or validation)


def load_table(config: ImagesConfig) -> ImageTable:
    """The images of a configuration, whose class names, once noted, must stay the same.

    Raises:
        DataError: nothing usable, or other classes.
    """
    table = read_table(config.path, config.masks, config.labels)
    if config.classes and (table.classes != config.classes or table.multi_label != config.multi_label):
        raise DataError(
            f"{config.path}: the run was made with the classes {config.classes}, now there are {table.classes}"
        )
    return table


def with_classes(config: ImagesConfig) -> ImagesConfig:
    """The configuration with the class names that its data have."""
    table = load_table(config)
    return dataclasses.replace(config, classes=table.classes, multi_label=table.multi_label)


def image_set(config: ImagesConfig, table: ImageTable, *, augmented: bool = False) -> MaskedImages:
    """The data set of a table, or of a part of it."""
    strengths = {name: getattr(config, name) for name in ("flip", "rotate", "shift", "zoom", "contrast")}
    return MaskedImages(
        table,
        config.size,
        channels=config.channels,
        mask_policy=config.mask_policy,
        segmenter=None if config.segmenter is None else _load(config.segmenter),
        resize=config.resize,
        mean=config.mean,
        std=config.std,
        transform=Augmentation(**strengths) if augmented and any(strengths.values()) else None,
        seed=config.seed,
    )


def _load(name: str) -> Any:
    """``package.module:callable``; a class is made without arguments."""
    module, separator, attribute = name.partition(":")
    if not separator:
        raise DataError(f"segmenter: expected package.module:callable, got {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise DataError(f"segmenter: {name} cannot be imported ({error})") from error
    return found() if isinstance(found, type) else found


def _progress(text: str, shown: bool) -> Callable[[Iterable[int]], Iterable[int]]:
    return lambda rows: track(list(rows), description=text, disable=not shown)
