"""What each ISNet variant explains: its targets and rules, one small class per variant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

import lrpkernels as lrp
from lrpkernels.functional import NEGATIVE, POSITIVE, Scaled, ratio, select_by_sign
from lrpkernels.rules.views import Layer, Maximum

Form = Literal["flex", "layerwise"]


@dataclass(frozen=True)
class Explained:
    """One relevance pass: a target as :class:`lrpkernels.LRP` takes it, and the composite that carries it."""

    target: Any
    composite: lrp.Composite | lrp.Rule


def _first(eps: float, input_range: tuple[Any, Any] | None) -> lrp.Rule | None:
    return None if input_range is None else lrp.ZBox(*input_range, eps=eps, detach_bias=True)


@dataclass(frozen=True)
class Variant(ABC):
    """Base of the variants.

    Args:
        eps: LRP stabilizer.
        input_range: (low, high) of the pixels for z^B at the input, or None.
        generator: source of the random choices, for variants that make any.
        form: where the epsilon rule has its stabilizers, "flex" or "layerwise".

    Raises:
        ValueError: an unknown form.
    """

    eps: float = 1e-2
    input_range: tuple[Any, Any] | None = (0.0, 1.0)
    generator: torch.Generator | None = None
    form: Form = "flex"

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise ValueError(f"form must be one of {', '.join(get_args(Form))}, got {self.form!r}")

    def epsilon(self) -> lrp.Rule:
        """Epsilon in the form of LRP-Flex or of LRP-Block, z^B at the input if its range is known."""
        first = _first(self.eps, self.input_range)
        if self.form == "layerwise":
            return lrp.EpsilonLayerwise(self.eps, first=first, detach_bias=True)
        return lrp.Epsilon(self.eps, first=first)

    def composites(self) -> list[lrp.Composite | lrp.Rule]:
        """The rules that :meth:`explained` will use, known before the forward pass, which keeps what they read."""
        return [self.epsilon()]

    @abstractmethod
    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        """The relevance passes of one batch; their maps are stacked along M. ``place``: see :func:`stochastic_target`."""


class Selective(Variant):
    """eta = log(p_c + e) - log(1 - p_c + e) of the class with the lowest logit, e = 1e-2: one map per image.

    Source: arXiv 2401.08409 (Selective ISNet); docs/method.md section 2.
    """

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(selective_score, self.epsilon())]


class Stochastic(Variant):
    """One logit per image: with probability 1/2 the highest, else one of the others, uniformly. One map per image.

    Source: arXiv 2401.08409 (Stochastic ISNet); docs/method.md section 2.
    """

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(stochastic_target(logits, self.generator, place), self.epsilon())]


class Original(Variant):
    """Every logit, one at a time: K maps per image. Source: Bassi et al. 2024 (ISNet)."""

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained("all", self.epsilon())]


@dataclass(frozen=True)
class PositiveEvidence(lrp.ZPlus):
    """z+ that starts from the positive evidence of the logits, y+ = a+ W+ + a- W- + b+, instead of from the logits y.

    Started from y, the classes' positive and negative logits would cancel in the sum, and with them the background that they rest on.
    It applies where a linear layer yields the logits; after any other last operation the map starts from y.

    Args:
        logits: the output of the layer where the pass starts.
        pools: stabilize max pooling, too, as LRP-Block does.
    """

    logits: Tensor | None = None
    pools: bool = False
    reads = lrp.ZPlus.reads

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        if layer.value is not self.logits:
            return super().linear(layer, g)
        a = layer.a
        evidence = layer.apply(a.clamp(min=0), POSITIVE, bias=True) + layer.apply(a.clamp(max=0), NEGATIVE)
        s = g.over(evidence, evidence, self.eps)
        return select_by_sign(a, layer.pull(s, POSITIVE), layer.pull(s, NEGATIVE))

    def max_pool(self, layer: Maximum, g: Tensor) -> Tensor:
        return layer.winner(ratio(g, layer.value, layer.value, epsilon=self.eps) if self.pools else g)


class Dual(Variant):
    """All logits together, once by z+ from their positive evidence, once by epsilon from their sum: two maps per image, z+ first.

    z^B at the input of each.

    Source: arXiv 2401.08409 (Dual ISNet); docs/method.md section 2.
    """

    def composites(self) -> list[lrp.Composite | lrp.Rule]:
        return [self._zplus(None), self.epsilon()]

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(logit_sum, self._zplus(logits)), Explained(logit_sum, self.epsilon())]

    def _zplus(self, logits: Tensor | None) -> lrp.Rule:
        first, pools = _first(self.eps, self.input_range), self.form == "layerwise"
        return PositiveEvidence(self.eps, first=first, logits=logits, pools=pools, detach_bias=True)


class GradientTimesInput(Variant):
    """eta as in Selective with e = 0, plain gradient times input: the ablation ISNet Softmax Grad*Input. One map per image."""

    def composites(self) -> list[lrp.Composite | lrp.Rule]:
        return [lrp.Gradient()]

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(lambda o: selective_score(o, 0.0), lrp.Gradient())]


VARIANTS: dict[str, type[Variant]] = {
    "selective": Selective,
    "stochastic": Stochastic,
    "original": Original,
    "dual": Dual,
    "gradient_times_input": GradientTimesInput,
}


def ISNetComposite(eps: float = 1e-2, low: Any = 0.0, high: Any = 1.0) -> lrp.Composite:
    """What ISNet trains through: epsilon in the form of LRP-Flex, z^B at the input. Source: arXiv 2401.08409."""
    return lrp.Composite(first=_first(eps, (low, high)), default=lrp.Epsilon(eps))


def ISNetDualComposite(eps: float = 1e-2, low: Any = 0.0, high: Any = 1.0) -> lrp.Composite:
    """z+ everywhere, z^B at the input: the rules of the Dual ISNet's z+ map, started from any target. Source: arXiv 2401.08409."""
    return lrp.Composite(first=_first(eps, (low, high)), default=lrp.ZPlus(eps, detach_bias=True))


def logit_sum(logits: Tensor) -> Tensor:
    """The sum of all logits of each image, [B]."""
    return logits.sum(1)


def selective_score(logits: Tensor, e: float = 1e-2) -> Tensor:
    """eta = log(p_c + e) - log(1 - p_c + e), p = softmax(logits), c the class with the lowest logit.

    Args:
        logits: [B, K]; half precision is computed in float32.
        e: stabilizer of both logarithms; 0 is the exact log-odds.

    Returns:
        [B], float32 or float64.

    Raises:
        ValueError: fewer than two classes, for which eta is constant.
    """
    if logits.shape[1] < 2:
        raise ValueError(
            f"the Selective ISNet weighs a class against others and needs at least 2, the model has {logits.shape[1]}; "
            'variant "original" explains a single logit'
        )
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    lowest = logits.argmin(1, keepdim=True)
    if e == 0:
        others = logits.masked_fill(torch.zeros_like(logits, dtype=torch.bool).scatter_(1, lowest, True), -torch.inf)
        return logits.gather(1, lowest)[:, 0] - others.logsumexp(1)
    p = logits.softmax(1).gather(1, lowest)[:, 0]
    return torch.log(p + e) - torch.log(1 - p + e)


def stochastic_target(
    logits: Tensor, generator: torch.Generator | None = None, place: tuple[int, int] | None = None
) -> Tensor:
    """One class per image: with probability 1/2 the highest logit's, else one of the others, uniformly.

    Args:
        logits: [B, K], K >= 2.
        generator: on the CPU; None: PyTorch's default one.
        place: (i, n): these images are those from i on of a batch of n, and all n are drawn; None: they are the batch.

    Returns:
        [B], int64, on the device of ``logits``.

    Raises:
        ValueError: fewer than two classes.
    """
    batch, classes = logits.shape
    if classes < 2:
        raise ValueError(
            f"the Stochastic ISNet draws among other classes and needs at least 2, the model has {classes}"
        )
    # Drawn on the CPU, so that a seed gives the same classes on every device.
    first, total = (0, batch) if place is None else place
    offset = torch.randint(1, classes, (total,), generator=generator)
    highest = torch.rand(total, generator=generator) < 0.5
    offset = torch.where(highest, torch.zeros_like(offset), offset)[first : first + batch].to(logits.device)
    return (logits.detach().argmax(1) + offset) % classes
