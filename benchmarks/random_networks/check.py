"""One random network under one composite, compared with the reference in every way that a heatmap is asked for."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import lrpkernels as lrp

from .case import Case
from .expected import TARGETS, Expected, expectation
from .network import Network

# Refused by name: a rule for the first layer behind what is not seen through; static calls of a model that writes to a part.
REFUSED = ("does not reach this layer", "or by a change of a part of it")
TOLERANCE = 1e-9  # of the largest value, and of the largest gradient


def failure(case: Case) -> str | None:
    """What is wrong with a case, in one line; None: nothing."""
    net = Network(case.plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error", lrp.FallbackWarning)
        warnings.filterwarnings("ignore", "Using padding='same'")
        if any(step.options.get("form") == "fft" for step in case.plan.steps):  # complex numbers follow their gradient
            warnings.filterwarnings("ignore", "lrpkernels has no rule for (fft|real)", lrp.FallbackWarning)
        try:
            wrong = _compare(case, net)
        except lrp.InPlaceError:
            return None  # refused by name: a view of a recorded tensor that is changed in place
        except lrp.UnsupportedOperationError as error:
            if not any(refused in str(error) for refused in REFUSED):
                return f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None
        except ValueError as error:
            if "would not be used" not in str(error):
                return f"ValueError: {error}".splitlines()[0][:200]
            return None  # refused by name: a rule for a step that does nothing
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return None if wrong and "differs by" in wrong and _is_ill_conditioned(case, net) else wrong


def _is_ill_conditioned(case: Case, net: Network) -> bool:
    """Whether rounding alone could do that: inputs that differ in the 13th digit change the reference beyond the tolerance."""
    plain = expectation(case, net, net.xs)
    generator = torch.Generator().manual_seed(1)
    nudged = [x.detach() * (1 + 1e-13 * torch.randn(x.shape, generator=generator, dtype=x.dtype)) for x in net.xs]
    nudged = [y.requires_grad_(x.requires_grad) for x, y in zip(net.xs, nudged, strict=True)]
    other = expectation(case, net, nudged)
    pairs = list(zip(plain.maps, other.maps, strict=True))
    pairs += [(a, b) for k in plain.at for a, b in zip(plain.at[k], other.at[k], strict=True)]
    top = _top(plain.grads)
    return any(_difference(a, b, plain.scale, 0.1) for a, b in pairs) or any(
        a is not None and b is not None and _difference(a, b, top, 0.1)
        for a, b in zip(plain.grads, other.grads, strict=True)
    )


def _compare(case: Case, net: Network) -> str | None:
    composite = case.rules.composite()
    plain = copy.deepcopy(net)
    torch.manual_seed(0)
    with torch.no_grad():
        logits = plain(*(x.clone() for x in net.xs))
    expected = expectation(case, net, net.xs)
    inputs = net.xs[0] if len(net.xs) == 1 else net.xs
    # A model that writes by `out=` cannot be differentiated by autograd, with which verification compares.
    is_checked = all(step.kind != "Write" or step.options["form"] != "out" for step in case.plan.steps)
    ways: dict[str, dict[str, Any]] = {
        "plain": {"check": is_checked},
        "recompute": {"checkpoint": True, "check": False},
        "static": {"static": lrp.StaticCalls(), "check": False},
    }
    for way, options in [*ways.items(), ("static again", ways["static"])]:
        _again(net, plain)
        for _, tensor in net.differentiated():
            tensor.grad = None
        torch.manual_seed(0)
        with lrp.record(net, inputs, composite=composite, at=list(expected.at), **options) as tape:
            maps = tape.relevance(TARGETS, composite, at=list(expected.at))
            if not torch.allclose(tape.output, logits, rtol=1e-10, atol=1e-10):
                return f"{way}: the logits are not the model's"
            expected.loss(_listed(maps["input"]), tape.output).backward()
            for place, theirs in (("input", expected.maps), *expected.at.items()):
                for a, b in zip(_listed(maps[place]), theirs, strict=True):
                    wrong = _difference(a, b, expected.scale)
                    if wrong:
                        return f"{way}: R at {place}: {wrong}"
        wrong = _buffers(net, plain) or _gradients(net, expected.grads)
        if wrong:
            return f"{way}: {wrong}"
    with torch.no_grad():
        return _without_gradients(_again(net, plain), inputs, composite, expected)


def _without_gradients(net: Network, inputs: Any, composite: lrp.Composite, expected: Expected) -> str | None:
    """All targets in turn, conditions, and a start inside."""
    torch.manual_seed(0)
    with lrp.record(net, inputs, check=False) as tape:
        asked: list[tuple[str, dict[str, Any], list[Tensor]]] = [
            ("all", {"target": "all", "memory_budget": 1}, expected.maps)
        ]
        if expected.conditions is not None:
            for exclude, theirs in expected.conditioned.items():
                options = {"target": TARGETS[0], "conditions": expected.conditions, "exclude_parallel": exclude}
                asked.append((f"{expected.conditions}, exclude_parallel={exclude}", options, theirs))
        if expected.start is not None:
            start, theirs = expected.start
            asked.append((f"start at {list(start)}", {"start": {k: r.unsqueeze(1) for k, r in start.items()}}, theirs))
        for what, options, theirs in asked:
            found = _listed(tape.relevance(composite=composite, **options))
            for a, b in zip(found, theirs, strict=True):
                wrong = _difference(a[:, TARGETS] if what == "all" else a, b, expected.scale)
                if wrong:
                    return f"without gradients, {what}: R at input: {wrong}"
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


def _gradients(net: Network, expected: Sequence[Tensor | None]) -> str | None:
    for (name, p), grad in zip(net.differentiated(), expected, strict=True):
        ours, theirs = (torch.zeros_like(p) if g is None else g for g in (p.grad, grad))
        wrong = _difference(ours, theirs, _top(expected))
        if wrong:
            return f"gradient of {name}: {wrong}"
    return None


def _top(grads: Sequence[Tensor | None]) -> float:
    return 0.1 * max([float(g.abs().max()) for g in grads if g is not None and g.numel()], default=1.0)


def _listed(maps: Any) -> list[Tensor]:
    return list(maps) if isinstance(maps, tuple) else [maps]


def _difference(ours: Tensor, theirs: Tensor, least: float, part: float = 1.0) -> str | None:
    if ours.shape != theirs.shape:
        return f"shape {tuple(ours.shape)} for {tuple(theirs.shape)}"
    ours, theirs = ours.detach(), theirs.detach()
    if not ours.numel():
        return None
    largest = max(float(theirs.abs().max()), least, 1e-9)
    worst = float((ours - theirs).abs().max())
    return None if worst <= part * TOLERANCE * largest else f"differs by {worst / largest:.2g} of the largest value"
