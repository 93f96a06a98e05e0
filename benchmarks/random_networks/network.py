"""Random networks: drawn as a list of steps, built, run, and written down for the reference."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import linear_steps, mixing_steps, pointwise_steps, shape_steps  # noqa: F401  (fill KINDS)
from .program import Program
from .steps import KINDS, Shape, Step

BATCH = 2
CLASSES = 3
LARGEST = 60  # elements of a value of one image
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
_FORKS = ("Split", "Fork")  # two values
_ALIASES = ("Move", "Split", "Dropout")  # may return views of what they read


@dataclass(frozen=True)
class Planned:
    """One step: its kind, the numbers of the values that it reads, options, seed of its parameters."""

    kind: str
    reads: tuple[int, ...]
    options: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Plan:
    """A network, and the input it is tried on."""

    inputs: tuple[Shape, ...]
    steps: tuple[Planned, ...]
    training: bool
    nonnegative: bool
    seed: int
    channels_last: bool = False
    differentiable: bool = False

    def without(self, place: int) -> Plan | None:
        """The plan with one step taken out: what it made is what it read; None: it makes several values."""
        if self.steps[place].kind in _FORKS:
            return None
        made = self.made()
        gone, instead = made[place][0], self.steps[place].reads[0]

        def renumbered(i: int) -> int:
            i = instead if i == gone else i
            return i - 1 if i > gone else i

        rest = [s for k, s in enumerate(self.steps) if k != place]
        return replace(self, steps=tuple(replace(s, reads=tuple(map(renumbered, s.reads))) for s in rest))

    def made(self) -> list[list[int]]:
        """The numbers of the values that each step makes."""
        found, count = [], len(self.inputs)
        for step in self.steps:
            n = 2 if step.kind in _FORKS else 1
            found.append(list(range(count, count + n)))
            count += n
        return found


class Network(nn.Module):
    """The plan as a model: its steps in order, then a dense layer on all values that no step reads.

    Raises:
        ValueError, RuntimeError: the steps do not fit together.
    """

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        generator = torch.Generator().manual_seed(plan.seed)
        xs = []
        for shape in plan.inputs:
            x = torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
            x = x.abs() if plan.nonnegative else x
            xs.append(
                x.contiguous(memory_format=_LAYOUTS[x.dim()]) if plan.channels_last and x.dim() in _LAYOUTS else x
            )
        self.xs = tuple(xs)
        read = [i for step in plan.steps for i in step.reads]
        total = len(plan.inputs) + sum(map(len, plan.made()))
        self.loose = [i for i in range(total) if i not in read]
        makers = {i: step for step, made in zip(plan.steps, plan.made(), strict=True) for i in made}
        values, self.steps = list(self.xs), nn.ModuleList()
        with torch.no_grad(), torch.random.fork_rng([]):
            torch.manual_seed(0)  # dropout draws what it will draw when the network runs
            for planned in plan.steps:
                x = planned.reads[0]
                options = planned.options
                if str(options.get("form", "")).startswith("in place") and (
                    x not in makers or makers[x].kind in _ALIASES or read.count(x) != 1
                ):
                    options = {**options, "form": {"Relu": "function", "Sum": "+", "Factor": "number"}[planned.kind]}
                shapes = {tuple(values[i].shape[1:]) for i in planned.reads}
                if len(shapes) > 1:
                    raise ValueError("does not fit")
                if planned.options.get("form") == "group" and not values[x].is_contiguous():
                    raise ValueError("PyTorch 2.13 crashes in the backward pass of a channels-last-3d group norm")
                if planned.kind == "BatchNorm" and _has_two_layouts(values[x]):
                    raise ValueError("PyTorch's own gradient is wrong here")
                if planned.kind == "BatchNorm" and plan.training and _is_constant(values[x]):
                    raise ValueError("batch norm leaves nothing but rounding")
                with torch.random.fork_rng([]):
                    step = KINDS[planned.kind](options, shapes.pop(), planned.seed, plan.training)
                step.train(plan.training)
                self.steps.append(step)
                buffers = [b.clone() for b in step.buffers()]
                out = step(*(values[i].clone() for i in planned.reads))
                for buffer, before in zip(step.buffers(), buffers, strict=True):
                    buffer.copy_(before)
                outs = [out] if isinstance(out, Tensor) else list(out)
                if len(outs) != (2 if planned.kind in _FORKS else 1):
                    raise ValueError("does not fit")
                values += outs
                made = values[-1]
                if (
                    not made.numel()
                    or made[0].numel() > 2 * LARGEST
                    or not bool(made.isfinite().all())
                    or made.dim() < 2
                ):
                    raise ValueError("does not fit")
            width = sum(values[i][0].numel() for i in self.loose)
        self.shapes = [tuple(v.shape[1:]) for v in values]
        self.head = nn.Linear(width, CLASSES, dtype=torch.float64)
        with torch.no_grad():
            for p in self.head.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        for x in self.xs:
            x.requires_grad_(plan.differentiable)
        self.train(plan.training)

    def differentiated(self) -> list[tuple[str, Tensor]]:
        """All that gradients are taken of, by name."""
        return [*((f"input {k}", x) for k, x in enumerate(self.xs) if x.requires_grad), *self.named_parameters()]

    def forward(self, *xs: Tensor) -> Tensor:
        values = list(xs)
        for planned, step in zip(self.plan.steps, self.steps, strict=True):
            out = step(*(values[i] for i in planned.reads))
            values += [out] if isinstance(out, Tensor) else list(out)
        parts = [values[i].flatten(1) if values[i].dim() > 2 else values[i] for i in self.loose]
        return self.head(torch.cat(parts, 1) if len(parts) > 1 else parts[0])

    def written(self, ref: Program) -> tuple[int, list[list[int]]]:
        """The number of the logits in the reference, and those of the values that each step made."""
        numbers, made = list(ref.inputs), []
        for k, (planned, step) in enumerate(zip(self.plan.steps, self.steps, strict=True)):
            assert isinstance(step, Step)
            ref.owner, ref.named = f"steps.{k}", step.options.get("form") not in ("module", "in place")
            out = step.mean(ref, *(numbers[i] for i in planned.reads))
            made.append([out] if isinstance(out, int) else list(out))
            numbers += made[-1]
        ref.owner, ref.named = "", False
        parts = [
            ref.vjp([numbers[i]], lambda v: v.flatten(1), "move") if ref.values[numbers[i]].dim() > 2 else numbers[i]
            for i in self.loose
        ]
        whole = parts[0] if len(parts) == 1 else ref.vjp(parts, lambda *v: torch.cat(v, 1), "move")
        ref.owner = "head"
        return ref.linear(whole, lambda v, w, b: F.linear(v, w, b), self.head.weight, self.head.bias, -1), made


def _is_constant(x: Tensor) -> bool:
    """Whether a channel has the same number everywhere in the batch."""
    return bool((x.transpose(0, 1).flatten(1).var(1, unbiased=False) < 1e-12).any())


def _has_two_layouts(x: Tensor) -> bool:
    """A permuted tensor that is channels-last because a size is 1: PyTorch 2.13's batch norm mixes strides up in its backward."""
    sizes_of_1 = 1 in x.shape[1:]
    return (
        x.dim() in _LAYOUTS
        and sizes_of_1
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=_LAYOUTS[x.dim()])
    )


def draw(rng: random.Random, kinds: Collection[str]) -> Network:
    """A network of up to ten steps of these kinds, of few elements."""
    dims = rng.choice([0, 1, 1, 2, 2, 2, 3])
    size = {0: 1, 1: 6, 2: 4, 3: 3}[dims]
    shape = (rng.randint(1, 3) if dims else rng.randint(3, 8), *(rng.randint(size - 1, size) for _ in range(dims)))
    plan = Plan(
        (shape,) * rng.choice([1, 1, 1, 2]),
        (),
        rng.random() < 0.4,
        rng.random() < 0.5,
        rng.randrange(2**31),
        rng.random() < 0.2,
        rng.random() < 0.2,
    )
    net = Network(plan)
    length, tries = rng.randint(2, 10), 0
    while len(plan.steps) < length and tries < 60:
        tries += 1
        last = len(net.shapes) - 1
        read = rng.choice([last, last, last, rng.randrange(len(net.shapes))])
        names = _following(rng, plan, kinds)
        for name in names:
            kind = KINDS[name]
            shape = net.shapes[read]
            options = kind.draw(rng, shape)
            reads: tuple[int, ...] = (read,)
            if kind.arity == 2:
                mates = [i for i, s in enumerate(net.shapes) if s == shape]
                reads = (read, rng.choice(mates)) if rng.random() < 0.5 else (rng.choice(mates), read)
            if options is None:
                break
            longer = replace(plan, steps=(*plan.steps, Planned(name, reads, options, rng.randrange(2**31))))
            try:
                net = Network(longer)
            except (ValueError, RuntimeError):
                break
            plan, read = longer, len(net.shapes) - 1
    return net


def _following(rng: random.Random, plan: Plan, kinds: Collection[str]) -> list[str]:
    """One kind, or the usual company of convolution, batch norm and ReLU."""
    if rng.random() < 0.3:
        usual = rng.choice(
            [
                ["Conv", "BatchNorm", "Relu"],
                ["Conv", "Relu"],
                ["Linear", "BatchNorm"],
                ["Linear", "Relu"],
                ["BatchNorm", "Relu"],
            ]
        )
        if set(usual) <= set(kinds):
            return usual
    names = sorted(kinds)
    return rng.choices(names, [KINDS[name].frequency for name in names])
