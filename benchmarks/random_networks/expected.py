"""What the reference says about a case."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import lrpkernels as lrp

from .case import Case
from .case import made as rule_of
from .network import Network
from .program import Primitive
from .reference import Reference


@dataclass
class Expected:
    """What the reference says.

    Attributes:
        logits: the model's output.
        maps: R at the inputs, [B, T, ...].
        at: R at the outputs of steps, by their names, and at the inputs of some.
        weights: of the loss on the maps.
        grads: of that loss, by inputs that require them and every parameter.
        conditions: on one step, for :meth:`lrpkernels.Tape.relevance`; None: there is none that conditions could name.
        conditioned: the maps under them, with and without what goes by that step.
        start: that step's relevance to start from, and the maps.
        scale: what values are compared with at least, where all are tiny.
    """

    logits: Tensor
    maps: list[Tensor]
    at: dict[Any, list[Tensor]]
    weights: list[Tensor]
    grads: list[Tensor | None]
    scale: float
    conditions: list[dict[Any, Any]] | None = None
    conditioned: dict[bool, list[Tensor]] = field(default_factory=dict)
    start: tuple[dict[Any, Tensor], list[Tensor]] | None = None

    def loss(self, maps: Sequence[Tensor], logits: Tensor) -> Tensor:
        """A number that depends on all maps and on the logits."""
        parts = [(m * w).sum() + m.square().sum() for m, w in zip(maps, self.weights, strict=True)]
        return torch.stack([*parts, logits.sin().sum()]).sum()


TARGETS = [0, 2]


def expectation(case: Case, net: Network, xs: Sequence[Tensor]) -> Expected:
    rules = case.rules
    ref = Reference(xs, *rules.operations)
    torch.manual_seed(0)
    logits, steps = net.written(ref)

    def stands_alone(node: Primitive, ahead: Primitive) -> bool:
        first = rules.first if ref.near().issuperset(ahead.inputs) else None
        named = node.named and node.owner in dict(rules.steps)
        return named and rule_of(rules.of(node.owner)) != rule_of(first or rules.of(ahead.owner))

    ref.stands_alone = stands_alone

    def passed(begin: int, seed: Tensor, masks: dict[int, Tensor] | None = None) -> Any:
        return ref.relevance(begin, seed, rules.of, rules.first, masks)

    seeds = []
    for t in TARGETS:
        seeds.append(torch.zeros_like(ref.values[logits]))
        seeds[-1][:, t] = 1.0
    found = [passed(logits, seed) for seed in seeds]

    def stacked(place: int, passes: Sequence[Any]) -> Tensor:
        zero = torch.zeros_like(ref.values[place])
        return torch.stack([f.get(place, zero) for f, _ in passes], 1)

    def maps(passes: Sequence[Any]) -> list[Tensor]:
        return [stacked(p, passes) for p in ref.inputs]

    # Between a layer and its batch norm a first-layer rule defines no relevance: the tape refuses these places.
    at: dict[Any, list[Tensor]] = {
        f"steps.{k}": [stacked(p, found) for p in places]
        for k, places in enumerate(steps)
        if all(p in found[0][0] for p in places) and places != list(ref.inputs)
    }
    numbers = [*ref.inputs, *(p for places in steps for p in places)]
    for k, planned in list(enumerate(case.plan.steps))[::2]:
        if all(numbers[i] in found[0][0] for i in planned.reads):
            at[lrp.input_of(f"steps.{k}")] = [stacked(numbers[i], found) for i in planned.reads]
    weights = [
        torch.randn(m.shape, generator=torch.Generator().manual_seed(k), dtype=m.dtype)
        for k, m in enumerate(maps(found))
    ]
    scale = 0.1 * max(float(r.detach().abs().max()) for f, _ in found for r in f.values() if r.numel())
    made = Expected(ref.values[logits], maps(found), at, weights, [], scale)
    loss = made.loss(made.maps, made.logits)
    made.grads = list(
        torch.autograd.grad(
            loss, [*(x for x in xs if x.requires_grad), *net.parameters()], allow_unused=True, retain_graph=True
        )
    )
    _with_conditions(made, ref, case, steps, found, passed, maps, (logits, seeds[0]))
    return made


def _with_conditions(
    made: Expected, ref: Reference, case: Case, steps: list[list[int]], found: Any, passed: Any, maps: Any, start: Any
) -> None:
    """Conditions on one step, and a start there: a second pass from that step's block, or a mask in the first."""
    rng = random.Random(case.plan.seed)
    places = [
        (f"steps.{k}", p[0])
        for k, p in enumerate(steps)
        if len(p) == 1 and p[0] not in ref.inputs and ref.end_of_block(p[0]) in found[0][1]
    ]
    if not places:
        return
    name, place = rng.choice(places)
    end = ref.end_of_block(place)
    value, g = ref.values[end], found[0][1][end]
    picked = [[rng.randrange(value.shape[1])], sorted({rng.randrange(value.shape[1]) for _ in range(3)})]
    masks = []
    for channels in picked:
        mask = torch.zeros(value.shape[1], dtype=value.dtype)
        mask[channels] = 1.0
        masks.append(mask.view(1, -1, *(1,) * (value.dim() - 2)))
    made.conditions = [{name: channels} for channels in picked]
    made.conditioned[True] = maps([passed(end, g * mask) for mask in masks])
    made.conditioned[False] = maps([passed(*start, {end: mask}) for mask in masks])
    if end == place:
        made.start = ({name: (g * value).detach()}, maps([passed(end, g * (value != 0))]))
