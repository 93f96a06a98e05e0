"""A case: a network and a composite."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import lrpkernels as lrp

from .formulas import RuleSpec
from .network import Plan, draw


@dataclass(frozen=True)
class Rules:
    """A composite: a rule for everything, some for single steps, one for the first layer, those of attention, products and norms."""

    default: RuleSpec
    steps: tuple[tuple[str, RuleSpec], ...] = ()
    first: RuleSpec | None = None
    operations: tuple[str, str, str] = ("AttnLRP",) * 3

    def of(self, owner: str) -> RuleSpec:
        return dict(self.steps).get(owner, self.default)

    def composite(self) -> lrp.Composite:
        layers: dict[Any, lrp.Rule] = {}
        for name, spec in self.steps:
            layers |= {name: made(spec), f"{name}.*": made(spec)}
        attention, product, norm = (None if name == "AttnLRP" else _OPERATIONS[name]() for name in self.operations)
        first = None if self.first is None else made(self.first)
        return lrp.Composite(layers, first, made(self.default), attention, product, norm)


@dataclass(frozen=True)
class Case:
    """A network and a composite."""

    plan: Plan
    rules: Rules


_OPERATIONS: dict[str, type[lrp.Rule]] = {
    "AttnLRP": lrp.AttnLRP,
    "CPLRP": lrp.CPLRP,
    "Uniform": lrp.Uniform,
    "Pass": lrp.Pass,
    "Gradient": lrp.Gradient,
}


def made(spec: RuleSpec) -> lrp.Rule:
    """The product's rule."""
    name, eps, bias = spec.name, spec.eps, spec.bias
    if name == "Pass":
        return lrp.Pass()
    if name == "AlphaBeta":
        return lrp.AlphaBeta(spec.alpha, spec.alpha - 1, eps, bias)
    if name == "Gamma":
        return lrp.Gamma(spec.gamma, eps, bias)
    if name == "ZBox":
        return lrp.ZBox(spec.low, spec.high, eps, bias)
    if name in ("Epsilon", "Flat", "Norm"):
        return {"Epsilon": lrp.Epsilon, "Flat": lrp.Flat, "Norm": lrp.Norm}[name](eps)
    kind: Any = {"EpsilonLayerwise": lrp.EpsilonLayerwise, "ZPlus": lrp.ZPlus, "WSquare": lrp.WSquare}[name]
    return kind(eps, bias=bias)


_CHOICES = (
    ("CPLRP", "Uniform", "Gradient"),
    ("CPLRP", "Uniform"),
    ("CPLRP", "Pass", "Gradient"),
)  # of attention, products, norms


def draw_case(seed: int, kinds: Collection[str]) -> Case:
    """A case by its seed."""
    rng = random.Random(seed)
    net = draw(rng, kinds)

    def rule() -> RuleSpec:
        return RuleSpec(
            rng.choice(["Epsilon", "Epsilon", "EpsilonLayerwise", "ZPlus", "AlphaBeta", "Gamma", "Norm"]),
            rng.choice([1e-2, 0.1]), rng.choice([1.0, 2.0]), rng.choice([0.25, 2.0]), True,
        )  # fmt: skip

    def biased(spec: RuleSpec) -> RuleSpec:
        return spec if spec.name == "Norm" else replace(spec, bias=rng.random() < 0.7)

    def of_step(name: str) -> RuleSpec:
        if rng.random() < 0.7:
            return biased(rule())
        norm = net.plan.steps[int(name.split(".")[1])].kind == "BatchNorm"  # as large as what it reads
        return RuleSpec(rng.choice(["ZBox", "Flat", "WSquare", *["Pass"] * norm]), 0.1, low=-1.0, high=2.0)

    chosen = [f"steps.{k}" for k in range(len(net.plan.steps)) if rng.random() < 0.25] if rng.random() < 0.5 else []
    first = None
    if rng.random() < 0.3:
        first = RuleSpec(rng.choice(["ZBox", "Flat", "WSquare", "ZPlus"]), 0.1, low=-1.0, high=2.0)
    operations = [rng.choice(names) if rng.random() < 0.4 else "AttnLRP" for names in _CHOICES]
    steps = tuple((name, of_step(name)) for name in chosen)
    return Case(net.plan, Rules(biased(rule()), steps, first, (operations[0], operations[1], operations[2])))
