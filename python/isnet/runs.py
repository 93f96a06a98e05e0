"""Training runs as folders: settings, log, checkpoint and scores, each in its own file.

``config.json`` (the settings), ``log.jsonl``, ``last.safetensors`` (model and optimizer), ``evaluation.json``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import nn

from isnet._files import write_json
from isnet.architectures import build_architecture
from isnet.checkpoints import CheckpointError, load_checkpoint, load_model_state
from isnet.data import BiasedMNISTSplits, biased_mnist_splits, load_mnist
from isnet.data.biased_mnist import Mark, MaskKind
from isnet.evaluation import evaluate
from isnet.loss import Foreground, ISNetLoss
from isnet.model import ISNet
from isnet.train_config import TrainConfig
from isnet.training import CHECKPOINT_NAME, fit

CONFIG_NAME = "config.json"
EVALUATION_NAME = "evaluation.json"
NUM_CLASSES = 10

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
    """Which biased MNIST; see :class:`isnet.data.BiasedMNIST`."""

    folder: str = "data/mnist"
    train_size: int | None = None
    test_size: int | None = None
    mark: Mark = "place"
    mask: MaskKind = "box"
    canvas: int = 40
    shift: int = 2
    noise: float = 0.1
    channels: int = 1
    seed: int = 0


@dataclass(frozen=True)
class HeatmapConfig:
    """The ISNet and its loss; see :class:`isnet.ISNet` and :class:`isnet.ISNetLoss`."""

    eps: float = 1e-2
    input_range: tuple[float, float] | None = (0.0, 1.0)
    layers: tuple[str, ...] = ()
    d: float = 0.9
    e: float = 1.0
    c1: float = 1.0
    c2: float = 25.0
    w_background: float = 1.0
    w_foreground: float = 1.0
    foreground: Foreground = "hybrid"
    layer_decay: float = 0.8


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        variant: ``"standard"`` (no heatmap loss) or an ISNet variant.
        arch: Architecture name, as for :func:`isnet.architectures.build_architecture`.
        arch_arguments: Its keyword arguments.
        data, heatmap, train: The settings of the parts.
        name: What to call the run in tables; the variant by default.
    """

    variant: Variant = "standard"
    arch: str = NARROW_RESNET
    arch_arguments: dict[str, Any] = field(default_factory=lambda: dict(NARROW_RESNET_ARGUMENTS))
    data: DataConfig = DataConfig()
    heatmap: HeatmapConfig = HeatmapConfig()
    train: TrainConfig = field(default_factory=TrainConfig)
    name: str = ""

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant: expected one of {', '.join(get_args(Variant))}, got {self.variant!r}")

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
        parts = dict(values)
        try:
            heatmap: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in parts.pop("heatmap", {}).items()
            }
            return cls(
                data=DataConfig(**parts.pop("data", {})),
                heatmap=HeatmapConfig(**heatmap),
                train=TrainConfig(**parts.pop("train", {})),
                **parts,
            )
        except TypeError as error:
            raise ValueError(f"settings do not fit this version of isnet: {error}") from error


class Run(NamedTuple):
    """A trained run, loaded from its folder."""

    folder: Path
    config: RunConfig
    model: nn.Module


def load_data(config: DataConfig, *, progress: bool = True) -> BiasedMNISTSplits:
    """The training set and the three test sets; fetches MNIST if needed."""
    values = dataclasses.asdict(config)
    mnist = load_mnist(values.pop("folder"), progress=progress)
    return biased_mnist_splits(mnist, **values)


def build_model(config: RunConfig) -> nn.Module:
    """The untrained classifier, initialised from the training seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return build_architecture(
            config.arch,
            config.arch_arguments,
            image_shape=(config.data.channels, config.data.canvas, config.data.canvas),
            num_classes=NUM_CLASSES,
        )


def build_network(config: RunConfig, model: nn.Module) -> tuple[nn.Module, ISNetLoss | None]:
    """What :func:`isnet.training.fit` trains: ``model`` itself, or an ISNet around it with its loss."""
    if config.variant == "standard":
        return model, None
    heatmap = config.heatmap
    network = ISNet(
        model,
        config.variant,
        eps=heatmap.eps,
        input_range=heatmap.input_range,
        layers=list(heatmap.layers),
        generator=torch.Generator(),
    )
    criterion = ISNetLoss(
        p=config.train.p,
        d=heatmap.d,
        e=heatmap.e,
        c1=heatmap.c1,
        c2=heatmap.c2,
        w_background=heatmap.w_background,
        w_foreground=heatmap.w_foreground,
        foreground=heatmap.foreground,
        layer_decay=heatmap.layer_decay,
    )
    return network, criterion


def train_run(
    folder: str | os.PathLike[str],
    config: RunConfig,
    *,
    data: BiasedMNISTSplits | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a run in ``folder`` and keeps settings, log and checkpoint there.

    Args:
        folder: Made if needed. Without ``resume`` it must not hold a run.
        config: The settings. A resumed run takes its own; these must equal them but for the number of epochs.
        data: The data sets, if already built.
        device: Where to train.
        resume: Continue from the last checkpoint.
        progress: Show progress on the terminal.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is off.
        ValueError: ``resume`` with other settings.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    if path.exists():
        if not resume:
            raise FileExistsError(f"{folder} holds a run: resume it, or choose another folder")
        _require_same_run(load_config(folder), config, path)
    write_json(path, config.to_json())
    data = data or load_data(config.data, progress=progress)
    model = build_model(config).to(device)
    network, criterion = build_network(config, model)
    fit(
        network,
        data.train,
        config.train,
        criterion=criterion,
        input_range=config.heatmap.input_range or (0.0, 1.0),
        validation=data.tests,
        run_dir=folder,
        resume=resume,
        title=config.title,
        progress=progress,
    )
    return Run(folder, config, model.eval())


def load_config(folder: str | os.PathLike[str]) -> RunConfig:
    """The settings of the run in ``folder``.

    Raises:
        FileNotFoundError: ``folder`` holds no run.
        ValueError: its settings cannot be read.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {CONFIG_NAME}")
    try:
        return RunConfig.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_run(folder: str | os.PathLike[str], *, device: str = "cpu") -> Run:
    """The trained classifier in ``folder``, in evaluation mode.

    Raises:
        FileNotFoundError: no run, or none that has reached its first checkpoint.
        CheckpointError: the checkpoint does not fit the settings.
    """
    folder = Path(folder)
    config = load_config(folder)
    path = folder / CHECKPOINT_NAME
    model = build_model(config)
    load_model_state(model, load_checkpoint(path), path)
    return Run(folder, config, model.to(device).eval())


def evaluate_run(run: Run, data: BiasedMNISTSplits | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Scores a run on the three test sets and writes them into its folder."""
    data = data or load_data(run.config.data, progress=progress)
    heatmap = run.config.heatmap
    scores = evaluate(run.model, data.tests, eps=heatmap.eps, input_range=heatmap.input_range)
    write_json(run.folder / EVALUATION_NAME, scores)
    return scores


def load_evaluation(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The scores that :func:`evaluate_run` wrote, or None."""
    path = Path(folder) / EVALUATION_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def _require_same_run(found: RunConfig, asked: RunConfig, path: Path) -> None:
    """Raises CheckpointError unless ``asked`` continues the run that was ``found``."""
    ours, theirs = asked.to_json(), found.to_json()
    differences = asked.train.differences(theirs["train"])
    differences += [
        f"{key}: {theirs[key]} there, {ours[key]} now"
        for key in ours
        if key not in ("train", "name") and ours[key] != theirs[key]
    ]
    if differences:
        raise CheckpointError(f"{path} is a run with other settings ({'; '.join(differences)})")
