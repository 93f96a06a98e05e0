"""Biased MNIST as the data of a run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from isnet.config import DATA_KINDS, RunConfig, ScheduleConfig
from isnet.config.option import Group, option, to_json
from isnet.experiments.biased_mnist import Bias, Mark, MaskKind, biased_mnist_splits
from isnet.experiments.mnist_files import load_mnist
from isnet.experiments.trainings import NARROW_RESNET
from isnet.runs.data import RunData, load_data


@dataclass(frozen=True)
class DigitsConfig(Group):
    """Biased MNIST; see :class:`isnet.experiments.biased_mnist.BiasedMNIST`."""

    folder: str = option("data/mnist", "Folder of the MNIST files.", location=True)
    train_size: int | None = option(None, "Training digits; all if left out.", ge=1)
    test_size: int | None = option(None, "Test digits; all if left out.", ge=1)
    mark: Mark = option("place", "Background mark; photo needs scikit-image.")
    mask: MaskKind = option("box", "Foreground mask.")
    imprecise: int = option(0, "Pixels by which masks may be grown and moved, drawn for each.", ge=0)
    ink: float = option(1.0, "Opacity of the digits' strokes.", gt=0, le=1)
    canvas: int = option(40, "Side of the images.")
    shift: int = option(2, "Largest displacement of the digit.", ge=0)
    noise: float = option(0.1, "Amplitude of the noise on the canvas.", ge=0, le=1)
    channels: int = option(1, "Colour channels.", ge=1)

    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    multi_label: ClassVar[bool] = False
    pixel_range: ClassVar[tuple[Any, Any]] = (0.0, 1.0)
    may_choose: ClassVar[bool] = False  # the validation images are the tests, which must not choose a checkpoint
    introduction: ClassVar[str] = (
        "Every training image carries a mark in its background that tells the class. Accuracy is measured on the same test images "
        "three times: with the right mark (biased), without a mark (unbiased), and with the mark of another class (deceiving). A network "
        "that looks at the digit alone scores the same on all three."
    )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.channels, self.canvas, self.canvas


_C1, _C2 = 1.0, 25.0  # the ends of the natural range

DATA_KINDS["biased MNIST"] = DigitsConfig


@load_data.register(DigitsConfig)
def load_digits(
    config: DigitsConfig,
    *,
    seed: int = 0,
    need_masks: Collection[str] = (),
    check: bool = False,
    progress: bool = True,
    train_bias: Bias = "biased",
) -> RunData:
    """The data sets, fetched if needed; ``train_bias`` is that of the training images, the rest as in :func:`isnet.runs.load_data`."""
    values = to_json(config)
    digits = load_mnist(values.pop("folder"), progress=progress)
    splits = biased_mnist_splits(digits, train_bias=train_bias, seed=seed, **values)
    return RunData(splits.train, splits.tests, splits.tests)


def digits_run(data: DigitsConfig, name: str = "", **options: Any) -> RunConfig:
    """A run on biased MNIST: a narrow network, whose natural range of relevance is known, and no choice of a checkpoint.

    Args:
        data: The digits.
        name: Of the run, in tables.
        options: Any that differ (:meth:`isnet.config.TrainConfig.replaced`).
    """
    base = RunConfig(data=data, network=NARROW_RESNET, schedule=ScheduleConfig(monitor=None), name=name)
    return base.replaced(**{"batch_size": 64, "lr": 2e-3, "c1": _C1, "c2": _C2, **options})
