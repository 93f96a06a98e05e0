"""From the settings of a run to its network and its loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isnet.architectures import build_architecture, load_weights, read_weights, tell_left_out
from isnet.config import RunConfig
from isnet.distillation import Distilled
from isnet.factories import find_callable
from isnet.loss import ISNetLoss
from isnet.model import ISNet
from isnet.training.ranges import RANGES_NAME, load_ranges

_UNMEASURED = (1.0, 25.0)  # C1 and C2 where they are still to be measured: for checks, and to compare epochs


def best_device(name: str = "auto") -> str:
    """A device's name; for ``auto`` that of the GPU, if PyTorch finds a CUDA device, else ``cpu`` (LRP has kernels for these two).

    Raises:
        ValueError: no such device.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: expected one of the {torch.cuda.device_count()} CUDA devices that PyTorch finds, got {name}"
        )
    return name


def device_text(device: str) -> str:
    """A device as one says it."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def build_model(config: RunConfig, *, pretrained: bool = True, tell: Callable[[str], None] | None = None) -> nn.Module:
    """The classifier before training, initialised from the training seed.

    Args:
        config: Of the run.
        pretrained: Load the weights that it is to begin with, if any. False: for a model that gets a trained state afterwards; their
            file need not exist any more.
        tell: Gets a line on the parameters that such weights leave out.
    """
    count = len(config.data.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = build_architecture(
            config.network.arch,
            config.network.arch_args,
            image_shape=config.data.image_shape,
            num_classes=count,
            pretrained=pretrained,
            tell=tell,
        )
    if pretrained and config.network.weights is not None:
        path = config.network.weights
        tell_left_out(load_weights(model, read_weights(path), path, count), path, tell)
    return model


def build_isnet(config: RunConfig, model: nn.Module) -> ISNet:
    """The ISNet of a run around its classifier.

    Raises:
        ValueError: a standard run, or settings that do not fit the classifier.
    """
    if not config.is_isnet:
        raise ValueError("variant: a standard run has no heatmaps")
    network = config.network
    return ISNet(
        model,
        network.variant,
        eps=network.eps,
        input_range=config.data.pixel_range,
        layers=list(network.layers),
        generator=torch.Generator(),
        static=network.static,
        checkpoint=network.less_memory,
        form=network.form,
        supervise=network.supervise,
    )


def build_distilled(config: RunConfig, model: nn.Module, teacher: nn.Module) -> Distilled:
    """The student of a run around its classifier.

    Raises:
        ValueError: settings that do not fit both networks.
    """
    distill, network = config.distill, config.network
    return Distilled(
        model,
        teacher,
        view=distill.view if distill.view_code is None else find_callable(distill.view_code),
        eps=(distill.eps_low, distill.eps_high),
        layers=distill.layers,
        head=distill.head,
        start=distill.start,
        match=distill.distill,
        input_range=config.data.pixel_range,
        generator=torch.Generator(),
        static=network.static,
        checkpoint=network.less_memory,
    )


def build_network(
    config: RunConfig,
    device: str = "cpu",
    *,
    teacher: nn.Module | None = None,
    pretrained: bool = True,
    tell: Callable[[str], None] | None = None,
) -> nn.Module:
    """The network to train: the classifier (:func:`build_model`), an ISNet around it, or with a teacher a student."""
    model = build_model(config, pretrained=pretrained, tell=tell).to(device)
    if teacher is not None:
        return build_distilled(config, model, teacher.to(device))
    return build_isnet(config, model) if config.is_isnet else model


def used_ranges(config: RunConfig, folder: Path | None = None) -> dict[str, tuple[Any, Any]]:
    """C1 and C2 of a run's heatmap loss: as set, or as measured in its folder.

    Returns:
        Supervised layer, or ``""`` for all layers alike, -> (C1, C2), each a number or one per map. Empty if they are still to be measured.
    """
    loss = config.loss
    if not loss.is_measured:
        return {"": (loss.c1, loss.c2)}
    if folder is None or not (folder / RANGES_NAME).exists():
        return {}
    return {name: (found.c1, found.c2) for name, found in load_ranges(folder / RANGES_NAME).items()}


def build_criterion(config: RunConfig, folder: Path | None = None) -> ISNetLoss:
    """The heatmap loss of a run, with the ranges measured in its folder if there are any."""
    loss = config.loss
    ranges = used_ranges(config, folder) or {"": _UNMEASURED}
    c1, c2 = (
        ranges[""][end] if "" in ranges else {name: found[end] for name, found in ranges.items()} for end in (0, 1)
    )
    return ISNetLoss(
        p=loss.p,
        d=loss.d,
        e=loss.e,
        c1=c1,
        c2=c2,
        w_background=loss.w_background,
        w_foreground=loss.w_foreground,
        foreground=loss.foreground,
        layer_decay=loss.layer_decay,
        share_goal=loss.share_goal,
    )
