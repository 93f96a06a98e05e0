"""What a run would do, without doing it: images, steps, parameters, memory."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sized
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import default_collate

from isnet.config import RunConfig
from isnet.data import Example
from isnet.distillation import Distilled, MatchingLoss
from isnet.loss import classification_loss
from isnet.model import ISNet
from isnet.runs.build import build_criterion, build_network
from isnet.runs.data import RunData
from isnet.runs.teacher import load_teacher
from isnet.training.distributed import World
from isnet.training.steps import AUTOCAST, require_trainable, require_validation

_PROBED = 4  # images in the step that is measured, at most


class Plan(NamedTuple):
    """What a run would do.

    Attributes:
        images: Their number by split.
        classes: Names.
        steps_per_epoch: Optimizer steps.
        steps: Of the whole training.
        tuning_steps: Before, to measure C1 and C2.
        parameters: Numbers that are trained.
        memory: Bytes of tensors that one process holds at the peak of a step: weights, optimizer and averages, and what a forward and
            backward pass allocates, measured on the CPU on a few images and scaled to a part of a batch. The memory of the libraries, and
            what the system's allocator keeps of freed tensors, come on top: on a CPU the process may need twice as much.
    """

    images: dict[str, int]
    classes: tuple[str, ...]
    steps_per_epoch: int
    steps: int
    tuning_steps: int
    parameters: int
    memory: int


def plan_run(
    config: RunConfig,
    data: RunData,
    *,
    world: World | None = None,
    device: str = "cpu",
    pretrained: bool = True,
    trust: Collection[str] = (),
) -> Plan:
    """The plan of a run on its data; a forward and backward pass of a few images, on the CPU, and no file.

    Raises:
        ValueError: what :func:`isnet.runs.train_run` would refuse.
    """
    world = world or World()
    network = checked_network(config, data, world, device, pretrained=pretrained, trust=trust)
    count = len(cast(Sized, data.train))
    per_epoch = count // config.train.batch_size
    schedule = config.schedule
    student = network.student if isinstance(network, Distilled) else network
    every, weights = (sum(p.numel() * p.element_size() for p in net.parameters()) for net in (network, student))
    copies = 1 + {"sgd": int(config.train.momentum > 0), "adamw": 2}[config.train.optimizer]
    part = config.train.batch_size // (world.size * config.train.accumulate)
    more = max(2, min(part, _PROBED))
    examples = [data.train[index % count] for index in range(more)]
    step = _step_bytes(config, network, default_collate(examples))
    if part > more:  # a line through two sizes: gradients do not grow with the images
        rest = step - _step_bytes(config, network, default_collate(examples[: more // 2]))
        step += rest * (part - more) // (more - more // 2)
    return Plan(
        {"train": count, **{name: len(cast(Sized, part)) for name, part in {**data.validation, **data.tests}.items()}},
        config.data.classes,
        per_epoch,
        (schedule.warmup + schedule.epochs) * per_epoch,
        config.tuning_epochs * per_epoch,
        sum(p.numel() for p in network.parameters() if p.requires_grad),
        weights * (copies + (config.train.ema is not None)) + every - weights + step,
    )


def checked_network(
    config: RunConfig,
    data: RunData,
    world: World,
    device: str,
    *,
    pretrained: bool = True,
    trust: Collection[str] = (),
) -> nn.Module:
    """The untrained network on the CPU, if a run with these settings can be trained on these data; see :func:`build_model`.

    ``trust``: code of the user's that a teacher's settings may name.

    Raises:
        ValueError: it cannot.
    """
    require_validation(config, data.validation)
    network = build_network(config, teacher=load_teacher(config, trust), pretrained=pretrained)
    isnet = network if isinstance(network, ISNet) else None
    require_trainable(config, world, len(cast(Sized, data.train)), isnet, torch.device(device))
    if config.is_isnet:
        build_criterion(config)
    return network


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they live.

    Attributes:
        most: At a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._sizes:
                storage = tensor.untyped_storage()
                self._sizes[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(storage, self._sizes.pop, storage.data_ptr(), None)
        self.most = max(self.most, sum(self._sizes.values()))
        return found


def _step_bytes(config: RunConfig, network: nn.Module, batch: Example) -> int:
    """Most bytes of tensors that a forward and backward pass of these images has at a time, gradients included."""
    images, labels, masks = batch
    dtype = AUTOCAST.get(config.train.precision)
    network.train().zero_grad()
    with torch.random.fork_rng(devices=[]), _Live() as live:
        with torch.autocast("cpu", torch.bfloat16 if dtype is not None else None, enabled=dtype is not None):
            output: Any = network(images, masks) if isinstance(network, Distilled) else network(images)
            if isinstance(network, Distilled):
                loss = MatchingLoss()(output).total
            elif config.is_isnet:
                loss = build_criterion(config)(output, labels, masks).total
            else:
                loss = classification_loss(output, labels)
        del output
        loss.backward()
    network.zero_grad()
    return live.most


def plan_text(plan: Plan, config: RunConfig, device: str, world: World | None = None) -> str:
    """The plan as lines."""
    world, train = world or World(), config.train
    images = ", ".join(f"{count} {name}" for name, count in plan.images.items())
    shape = "x".join(str(side) for side in config.data.image_shape)
    tuning = f", and {plan.tuning_steps} before to measure C1 and C2" if plan.tuning_steps else ""
    processes = f" in each of {world.size} processes" if world.size > 1 else ""
    return "\n".join(
        [
            f"device:  {device}{processes}",
            f"images:  {images}; {shape}; classes {', '.join(plan.classes)}",
            f"network: {config.network.arch}, {plan.parameters:,} parameters; {config.kind}",
            f"steps:   {plan.steps} of {train.batch_size} images ({plan.steps_per_epoch} an epoch){tuning}",
            f"memory:  about {plan.memory / 2**20:,.0f} MiB of tensors{processes}; count with twice as much on a CPU",
        ]
    )
