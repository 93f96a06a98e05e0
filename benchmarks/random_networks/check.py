"""One random network under one composite, compared with the reference in every way that a heatmap is asked for."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import lrpkernels as lrp

from .network import CLASSES, Network, Plan, draw
from .reference import WEIGHTS_ONLY, Reference, RuleSpec

TOLERANCE = 1e-6  # of the largest value, and of the largest gradient


@dataclass(frozen=True)
class Rules:
    """A composite: a rule for everything, some for single steps, one for the first layer."""

    default: RuleSpec
    steps: tuple[tuple[str, RuleSpec], ...] = ()
    first: RuleSpec | None = None

    def of(self, owner: str) -> RuleSpec:
        return dict(self.steps).get(owner, self.default)

    def composite(self) -> lrp.Composite:
        layers: dict[Any, lrp.Rule] = {}
        for name, spec in self.steps:
            layers |= {name: made(spec), f"{name}.*": made(spec)}
        return lrp.Composite(layers, None if self.first is None else made(self.first), made(self.default))


@dataclass(frozen=True)
class Case:
    """A network, a composite, and which conventions the reference follows."""

    plan: Plan
    rules: Rules
    conventions: tuple[tuple[str, Any], ...] = ()


def made(spec: RuleSpec) -> lrp.Rule:
    """The product's rule."""
    name, eps, bias = spec.name, spec.eps, spec.bias
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


def draw_case(seed: int, kinds: Collection[str], conventions: tuple[tuple[str, Any], ...]) -> Case:
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

    chosen = [f"steps.{k}" for k in range(len(net.plan.steps)) if rng.random() < 0.25] if rng.random() < 0.5 else []
    first = None
    if rng.random() < 0.3:
        first = RuleSpec(rng.choice(["ZBox", "Flat", "WSquare", "ZPlus"]), 0.1, low=-1.0, high=2.0)
    return Case(net.plan, Rules(biased(rule()), tuple((name, biased(rule())) for name in chosen), first), conventions)


def failure(case: Case) -> str | None:
    """What is wrong with a case, in one line; None: nothing."""
    net = Network(case.plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error", lrp.FallbackWarning)
        try:
            return _compare(case, net)
        except lrp.InPlaceError:
            return None  # refused by name: a view of a recorded tensor that is changed in place
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _compare(case: Case, net: Network) -> str | None:
    rules, xs = case.rules, net.xs
    composite = rules.composite()
    plain = copy.deepcopy(net)
    torch.manual_seed(0)
    with torch.no_grad():
        expected_logits = plain(*(x.clone() for x in xs))

    # -- the reference -------------------------------------------------------------------------------------------------------------
    ref = Reference(xs, **dict(case.conventions))
    torch.manual_seed(0)
    logits, steps = net.written(ref)
    target = [0, 2]
    found = []
    for t in target:
        seed = torch.zeros_like(ref.values[logits])
        seed[:, t] = 1.0
        found.append(ref.relevance(logits, seed, rules.of, rules.first))
    reached = [all(p in f for f in found) for p in range(len(ref.values))]

    def expected(place: int) -> Tensor:
        zero = torch.zeros_like(ref.values[place])
        return torch.stack([f.get(place, zero) for f in found], 1)

    # A place between a layer and its batch norm has no relevance under a first-layer rule: the tape refuses it.
    at = {
        f"steps.{k}": places
        for k, places in enumerate(steps)
        if all(reached[p] for p in places) and places != list(ref.inputs)
    }

    # -- every way to ask ----------------------------------------------------------------------------------------------------------
    inputs = xs[0] if len(xs) == 1 else xs
    weights = [
        torch.randn(expected(p).shape, generator=torch.Generator().manual_seed(p), dtype=torch.float64)
        for p in ref.inputs
    ]

    def loss(maps: list[Tensor]) -> Tensor:
        return sum(((m * w).sum() + m.square().sum() for m, w in zip(maps, weights, strict=True)), torch.zeros(()))

    expected_maps = [expected(p) for p in ref.inputs]
    scale = 1e-4 * max(float(r.detach().abs().max()) for f in found for r in f.values() if r.numel())
    parameters = list(net.parameters())
    expected_grads = torch.autograd.grad(
        loss(expected_maps) + ref.values[logits].sin().sum(), parameters, allow_unused=True
    )
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "recompute": {"checkpoint": True},
        "static": {"static": lrp.StaticCalls()},
    }
    for way, options in ways.items():
        for turn in range(2 if way == "static" else 1):
            model = _again(net, plain)
            for p in model.parameters():
                p.grad = None
            torch.manual_seed(0)
            with lrp.record(model, inputs, composite=composite, at=list(at), **options) as tape:
                maps = tape.relevance(target, composite, at=list(at))
                if not torch.allclose(tape.output, expected_logits, rtol=1e-10, atol=1e-10):
                    return f"{way}: the logits are not the model's"
                got = _listed(maps["input"])
                (loss(got) + tape.output.sin().sum()).backward()
                for what, ours, theirs in [
                    *(("input", a, b) for a, b in zip(got, expected_maps, strict=True)),
                    *(
                        (place, a, expected(p))
                        for place, ps in at.items()
                        for a, p in zip(_listed(maps[place]), ps, strict=True)
                    ),
                ]:
                    wrong = _difference(ours, theirs, scale)
                    if wrong:
                        return f"{way}: R at {what}: {wrong}"
            wrong = _buffers(model, plain)
            if wrong:
                return f"{way} {turn}: {wrong}"
            top = max([float(g.abs().max()) for g in expected_grads if g is not None and g.numel()], default=1.0)
            for (name, p), grad in zip(model.named_parameters(), expected_grads, strict=True):
                wrong = _difference(
                    p.grad if p.grad is not None else torch.zeros_like(p),
                    torch.zeros_like(p) if grad is None else grad,
                    1e-3 * top,
                )
                if wrong:
                    return f"{way}: gradient of {name}: {wrong}"
    with torch.no_grad():
        model = _again(net, plain)
        torch.manual_seed(0)
        _, maps = lrp.LRP(model, composite)(inputs, "all", memory_budget=1)
        for a, b in zip(_listed(maps), expected_maps, strict=True):
            wrong = _difference(a[:, target], b, scale)
            if a.shape[1] != CLASSES or wrong:
                return f"no_grad, all targets: R at input: {wrong}"
    return None


def _again(net: Network, plain: Network) -> Network:
    """The network as it was before any pass."""
    for (_, buffer), (name, _) in zip(net.named_buffers(), plain.named_buffers(), strict=True):
        if "running_" in name:
            step = net.get_submodule(name.rsplit(".", 2)[0])
            buffer.copy_(step.before[0 if name.endswith("mean") else 1])  # type: ignore[operator, index]
    return net


def _buffers(model: nn.Module, plain: nn.Module) -> str | None:
    for (name, a), (_, b) in zip(model.named_buffers(), plain.named_buffers(), strict=True):
        if "num_batches" not in name and not torch.allclose(a, b, rtol=1e-10, atol=1e-12):
            return f"buffer {name} is not what one forward pass makes of it"
    return None


def _listed(maps: Any) -> list[Tensor]:
    return list(maps) if isinstance(maps, tuple) else [maps]


def _difference(ours: Tensor, theirs: Tensor, least: float) -> str | None:
    if ours.shape != theirs.shape:
        return f"shape {tuple(ours.shape)} for {tuple(theirs.shape)}"
    ours, theirs = ours.detach(), theirs.detach()
    if not ours.numel():
        return None
    largest = max(float(theirs.abs().max()), least, 1e-9)
    worst = float((ours - theirs).abs().max())
    return None if worst <= TOLERANCE * largest else f"differs by {worst / largest:.2g} of the largest value"


def shrunk(case: Case) -> Case:
    """A smaller case that fails as well: fewer steps, one rule, evaluation mode."""
    while True:
        for candidate in _smaller(case):
            try:
                Network(candidate.plan)
            except (ValueError, RuntimeError):
                continue
            if failure(candidate) is not None:
                case = candidate
                break
        else:
            return case


def _smaller(case: Case) -> Any:
    plan, rules = case.plan, case.rules
    for k in range(len(plan.steps) - 1, -1, -1):
        shorter = plan.without(k)
        if shorter is not None:
            kept = tuple(
                (f"steps.{n - (n > k)}", spec)
                for n, spec in ((int(o.split(".")[1]), s) for o, s in rules.steps)
                if n != k
            )
            yield replace(case, plan=shorter, rules=replace(rules, steps=kept))
    if len(plan.steps) > 1:
        made_by_last = plan.made()[-1]
        last = plan.steps[-1]
        yield replace(case, plan=replace(plan, steps=plan.steps[:-1])) if made_by_last and last else case
    if rules.steps:
        yield replace(case, rules=replace(rules, steps=()))
    for n in range(len(rules.steps)):
        yield replace(case, rules=replace(rules, steps=rules.steps[:n] + rules.steps[n + 1 :]))
    if rules.first is not None:
        yield replace(case, rules=replace(rules, first=None))
    if rules.default != RuleSpec("Epsilon"):
        yield replace(case, rules=replace(rules, default=RuleSpec("Epsilon")))
    if plan.training:
        yield replace(case, plan=replace(plan, training=False))
    if not plan.nonnegative:
        yield replace(case, plan=replace(plan, nonnegative=True))


__all__ = ["WEIGHTS_ONLY", "Case", "Rules", "draw_case", "failure", "shrunk"]
