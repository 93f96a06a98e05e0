"""Any rule that is written as runs of a layer with changed inputs and parameters, carried out by the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...functional import WHOLE, Scaled, over_value, times
from ...rules import Rule
from ...rules.views import Average, Layer, Sum
from .hooks import modified


@dataclass(frozen=True, eq=False)
class HookRule(Rule):
    """What a ``BasicHook`` (ours or zennit's) says, for layers with weights, sums and averages.

    Args:
        hook: its modifiers, ``gradient_mapper`` and ``reducer`` are read; the hook itself keeps nothing.
    """

    hook: Any
    yields_relevance = True
    reads = frozenset({"input", "output", "summands", "sum", "pool"})

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        r = g.relevance(layer.value)

        def run(change: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
            def weight(w: Tensor) -> Tensor:
                return modified(change, w, "weight")

            def forward(a: Tensor) -> Tensor:
                z, b = layer.apply(a, weight), layer.bias(lambda b: modified(change, b, "bias"))
                return z if b is None else z + b

            return forward, lambda s: layer.pull(Scaled(s), weight)

        return self._carried(layer.a, r, [run(change) for change in self.hook.param_modifiers])

    def average_pool(self, layer: Average, g: Tensor) -> Tensor:
        runs = [(layer.apply, layer.pull)] * len(self.hook.param_modifiers)
        return over_value(self._carried(layer.a, times(g, layer.value), runs), layer.a)

    def add(self, layer: Sum, g: Tensor) -> tuple[Tensor, ...]:
        terms = torch.stack(layer.terms, dim=-1)

        def back(s: Tensor) -> Tensor:
            return s.unsqueeze(-1).expand(*s.shape, terms.shape[-1])

        runs = [(lambda a: a.sum(-1), back)] * len(self.hook.param_modifiers)
        found = over_value(self._carried(terms, times(g, layer.value), runs), terms)
        return layer.back(*found.unbind(-1))

    def _carried(self, a: Tensor, r: Tensor, runs: list[Any]) -> Tensor:
        """R at the input, from R at the output, (T*B, ...), of T targets of one batch."""
        hook, targets = self.hook, r.shape[0] // max(a.shape[0], 1)
        inputs, outputs, backs = [], [], []
        for (forward, back), change, finish in zip(runs, hook.input_modifiers, hook.output_modifiers, strict=True):
            x = change(a)
            z, through = torch.func.vjp(finish, forward(x))[:2]
            inputs.append(_repeated(x, targets))
            outputs.append(_repeated(z, targets))
            backs.append((back, through))
        s = hook.gradient_mapper(r, outputs)
        s = (s,) if isinstance(s, Tensor) else s
        pulled = [back(_each(through, part, targets)) for (back, through), part in zip(backs, s, strict=True)]
        return hook.reducer(inputs, pulled)


def _repeated(tensor: Tensor, targets: int) -> Tensor:
    return tensor if targets == 1 else tensor.repeat(targets, *(1,) * (tensor.dim() - 1))


def _each(through: Callable[[Tensor], Any], s: Tensor, targets: int) -> Tensor:
    """The transposed output modifier, for each target."""
    if targets == 1:
        return through(s)[0]
    return torch.cat([through(part)[0] for part in s.chunk(targets)])


@dataclass(frozen=True)
class Unruled(Rule):
    """Of a layer without a rule: R_in = W^T R_out, the layer's gradient, which is what zennit does with relevance there."""

    yields_relevance = True
    reads = frozenset({"input", "output"})

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.pull(Scaled(g.relevance(layer.value)), WHOLE)
