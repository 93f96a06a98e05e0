"""MNIST in colours that give the class away: a bias in the foreground, which no mask can take away."""

from __future__ import annotations

import colorsys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isnet.config import DATA_KINDS
from isnet.config.option import Group, option
from isnet.experiments.held_images import HeldImages
from isnet.experiments.mnist_files import load_mnist
from isnet.runs.data import RunData, load_data

Colours = Literal["own", "shifted", "random", "grey", "any"]
HUES = torch.tensor([colorsys.hsv_to_rgb(digit / 10, 1, 1) for digit in range(10)])


class ColouredMNIST(HeldImages):
    """Coloured digits on black; masks show where there is ink.

    Args:
        images: Digits, uint8 [N, 28, 28], 0 = background.
        labels: Their classes, integers [N] in [0, 10).
        colours: ``"own"``: the class's, one of ten saturated hues; ``"shifted"``: the next class's; ``"random"``: one of the ten, drawn
            uniformly; ``"grey"``: none; ``"any"``: drawn uniformly from all colours, then as bright as possible.
        seed: Of the draws.

    Attributes:
        images: float32 [N, 3, 28, 28] in [0, 1].
        labels: int64 [N].
        masks: float32 [N, 1, 28, 28].

    Raises:
        ValueError: unknown colours.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.integer], colours: Colours, seed: int = 0
    ) -> None:
        if colours not in get_args(Colours):
            raise ValueError(f"colours: expected one of {', '.join(get_args(Colours))}, got {colours!r}")
        ink = torch.as_tensor(np.array(images)).float()[:, None] / 255
        self.labels = torch.as_tensor(np.array(labels)).long()
        self.masks = (ink > 0).float()
        self.images = ink * _colours(self.labels, colours, torch.Generator().manual_seed(seed))[:, :, None, None]


def _colours(labels: Tensor, colours: Colours, generator: torch.Generator) -> Tensor:
    """[N, 3], the largest of each 1."""
    if colours == "grey":
        return torch.ones(len(labels), 3)
    if colours == "any":
        found = torch.rand(len(labels), 3, generator=generator)
        return found / found.amax(1, keepdim=True)
    if colours == "random":
        return HUES[torch.randint(len(HUES), labels.shape, generator=generator)]
    return HUES[(labels + (colours == "shifted")) % len(HUES)]


@dataclass(frozen=True)
class ColouredConfig(Group):
    """Coloured MNIST; see :class:`ColouredMNIST`."""

    folder: str = option("data/mnist", "Folder of the MNIST files.", location=True)
    train_size: int | None = option(None, "Training digits; all if left out.", ge=1)
    test_size: int | None = option(None, "Test digits; all if left out.", ge=1)
    validation: float = option(0.1, "Share of the training digits to choose a checkpoint by.", ge=0, lt=1)
    colours: Colours = option("own", "Of the training and validation digits.")

    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    multi_label: ClassVar[bool] = False
    image_shape: ClassVar[tuple[int, int, int]] = (3, 28, 28)
    pixel_range: ClassVar[tuple[Any, Any]] = (0.0, 1.0)
    introduction: ClassVar[str] = (
        "The colour of each training digit tells its class. Accuracy is measured on the same test digits in their class's colours (iid), "
        "in random ones, in the next class's (shifted), and in grey. A network that looks at the shape alone scores the same on all four."
    )


DATA_KINDS["coloured MNIST"] = ColouredConfig
TESTS: dict[str, Colours] = {"iid": "own", "random": "random", "shifted": "shifted", "grey": "grey"}


@load_data.register(ColouredConfig)
def load_coloured(
    config: ColouredConfig,
    *,
    seed: int = 0,
    need_masks: Collection[str] = (),
    check: bool = False,
    progress: bool = True,
) -> RunData:
    """The data sets, fetched if needed, as in :func:`isnet.runs.load_data`. Validation digits have the bias of the training digits."""
    mnist = load_mnist(config.folder, progress=progress)

    def drawn(labels: npt.NDArray[np.uint8], size: int | None, stream: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng([seed, stream]).permutation(len(labels))[:size]

    rows = drawn(mnist.train_labels, config.train_size, 0)
    held_out = round(config.validation * len(rows))
    sets = [
        ColouredMNIST(mnist.train_images[part], mnist.train_labels[part], config.colours, seed)
        for part in (rows[held_out:], rows[:held_out])
    ]
    chosen = np.sort(drawn(mnist.test_labels, config.test_size, 1))
    tests = {
        name: ColouredMNIST(mnist.test_images[chosen], mnist.test_labels[chosen], colours, seed)
        for name, colours in TESTS.items()
    }
    return RunData(sets[0], {"validation": sets[1]} if held_out else {}, tests)
