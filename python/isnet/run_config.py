"""The settings of a run: data, network, heatmap loss and training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from isnet.data import pixel_range
from isnet.data.biased_mnist import Mark, MaskKind
from isnet.data.masked_images import MaskPolicy, Resize
from isnet.loss import Foreground
from isnet.train_config import REMOVED, TrainConfig, without_removed
from isnet.variants import Form, Selective

# As isnet.train_config.REMOVED, of the heatmap loss.
_REMOVED_HEATMAP: Mapping[str, Any] = {"leak": 0.0}

Variant = Literal["standard", "selective", "stochastic", "original", "dual", "gradient_times_input"]

# A residual network narrow enough for a CPU: 40 x 40 images become 20 x 20 in the first convolution.
NARROW_RESNET = "monai:ResNet"
NARROW_RESNET_ARGUMENTS: dict[str, Any] = {
    "block": "basic",
    "layers": [1, 1, 1, 1],
    "block_inplanes": [16, 32, 64, 64],
    "conv1_t_size": 3,
    "conv1_t_stride": 2,
    "no_max_pool": True,
}


@dataclass(frozen=True)
class DataConfig:
    """Settings of biased MNIST; see :class:`isnet.data.BiasedMNIST`."""

    folder: str = "data/mnist"
    train_size: int | None = None
    test_size: int | None = None
    mark: Mark = "place"
    mask: MaskKind = "box"
    imprecise: int = 0
    ink: float = 1.0
    canvas: int = 40
    shift: int = 2
    noise: float = 0.1
    channels: int = 1
    seed: int = 0

    classes: ClassVar[tuple[str, ...]] = tuple("0123456789")
    multi_label: ClassVar[bool] = False
    pixel_range: ClassVar[tuple[Any, Any]] = (0.0, 1.0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.channels, self.canvas, self.canvas


@dataclass(frozen=True)
class ImagesConfig:
    """The user's own images; see :func:`isnet.data.read_table` and :class:`isnet.data.MaskedImages`.

    Attributes:
        path: Folder, manifest or shards.
        masks: Folder of the masks of an image folder.
        labels: Label columns of a multi-label manifest.
        classes: Names of the classes or labels, noted when the run is made, so that a changed folder cannot shift them.
        multi_label: Whether there is one decision per label.
        size: (height, width) of the images for the network.
        channels: 1 or 3.
        mask_policy: The effect of an unusable mask.
        segmenter: ``package.module:callable`` that makes missing masks.
        resize: ``"stretch"`` or ``"pad"``.
        mean, std: Normalisation per channel.
        validation: Share of the training images to validate with, if the set has no validation split.
        flip, rotate, shift, zoom, contrast: Of :class:`isnet.data.Augmentation`.
        seed: Of augmentation and split.
    """

    path: str
    masks: str | None = None
    labels: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    multi_label: bool = False
    size: tuple[int, int] = (224, 224)
    channels: int = 3
    mask_policy: MaskPolicy = "error"
    segmenter: str | None = None
    resize: Resize = "stretch"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    validation: float = 0.15
    flip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.0
    seed: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        return self.channels, *self.size

    @property
    def pixel_range(self) -> tuple[Any, Any]:
        """The range of the pixels as the network gets them."""
        return pixel_range(self.mean, self.std)


@dataclass(frozen=True)
class HeatmapConfig:
    """The ISNet and its loss; see :class:`isnet.ISNet` and :class:`isnet.ISNetLoss`."""

    eps: float = 1e-2
    form: Form = "flex"
    input_range: tuple[Any, Any] | None = (0.0, 1.0)
    layers: tuple[str, ...] = ()
    d: float = 0.9
    e: float = 1.0
    c1: float = 1.0
    c2: float = 25.0
    w_background: float = 1.0
    w_foreground: float = 1.0
    foreground: Foreground = "hybrid"
    layer_decay: float = 0.8
    static: bool = False
    checkpoint: bool = False

    def __post_init__(self) -> None:
        Selective(self.eps, self.input_range, form=self.form).epsilon()  # checks them


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        variant: ``"standard"`` (no heatmap loss) or an ISNet variant.
        arch: Architecture name, as for :func:`isnet.architectures.build_architecture`.
        arch_arguments: Its keyword arguments.
        data, heatmap, train: The settings of the parts.
        tune: Epochs of plain training from which c1 and c2 are measured first (:func:`isnet.ranges.tune`); 0: as set in ``heatmap``.
        name: What to call the run in tables; the variant by default.
    """

    variant: Variant = "standard"
    arch: str = NARROW_RESNET
    arch_arguments: dict[str, Any] = field(default_factory=lambda: dict(NARROW_RESNET_ARGUMENTS))
    data: DataConfig | ImagesConfig = DataConfig()
    heatmap: HeatmapConfig = HeatmapConfig()
    train: TrainConfig = field(default_factory=TrainConfig)
    name: str = ""
    tune: int = 0

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, got {self.variant!r}")
        if self.train.monitor is not None and isinstance(self.data, DataConfig):
            raise ValueError(
                f"monitor: biased MNIST has no validation images, and its tests must not choose: expected none, got {self.train.monitor!r}"
            )
        if self.tune < 0:
            raise ValueError(f"tune: expected a number of epochs >= 0, got {self.tune}")

    @property
    def title(self) -> str:
        """What to call the run."""
        return self.name or self.variant

    def to_json(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_json` rebuilds the settings."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Rebuilds the settings.

        Raises:
            ValueError: unknown or invalid settings.
        """
        parts: dict[str, Any] = {key: _with_tuples(value) for key, value in values.items() if key != "arch_arguments"}
        if "arch_arguments" in values:
            parts["arch_arguments"] = dict(values["arch_arguments"])
        try:
            data = parts.pop("data", {})
            return cls(
                data=ImagesConfig(**data) if "path" in data else DataConfig(**data),
                heatmap=HeatmapConfig(**without_removed(parts.pop("heatmap", {}), _REMOVED_HEATMAP)),
                train=TrainConfig(**without_removed(parts.pop("train", {}), REMOVED)),
                **parts,
            )
        except TypeError as error:
            raise ValueError(f"settings do not fit this version of isnet: {error}") from error


def _with_tuples(value: Any) -> Any:
    """JSON has lists where the settings have tuples."""
    if isinstance(value, list):
        return tuple(_with_tuples(part) for part in value)
    return {key: _with_tuples(part) for key, part in value.items()} if isinstance(value, dict) else value
