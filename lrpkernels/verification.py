"""Is a model's recording complete, and what do its blocks do with relevance?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .engine.locate import Departure
from .engine.own_pass import unchanged
from .engine.sharding import is_sharded
from .engine.tape_pass import walked_back, walking
from .engine.target import Target, select_logits, start
from .engine.verified import on_few_images
from .functional import times
from .rules import Composite, Rule, as_composite
from .tape import Tape, checked, record, take


class Balance(NamedTuple):
    """What one operation does with relevance, summed over the batch.

    Attributes:
        module, operation, rule: as in :meth:`lrpkernels.LRP.explain`.
        arrived: sum of R at its outputs.
        handed_on: sum of R at its inputs; the rest stays with biases, stabilizers and whatever the rule gives nothing to.
        is_finite: whether all its values and relevances are.
    """

    module: str
    operation: str
    rule: str
    arrived: float
    handed_on: float
    is_finite: bool


@dataclass(frozen=True)
class Report:
    """What :func:`verify` has found.

    Attributes:
        departures: where the recording is not what the model does; the one nearest to the output is named.
        error: relative difference (norms) between the gradients of recording and model at the input.
        blocks: what each operation does with relevance, in the order they ran.
    """

    departures: tuple[Departure, ...]
    error: float
    blocks: tuple[Balance, ...]

    @property
    def ok(self) -> bool:
        """Whether the recording is complete and all its numbers are finite."""
        return not self.departures and not self.non_finite

    @property
    def non_finite(self) -> tuple[Balance, ...]:
        """The operations with a NaN or infinite value or relevance."""
        return tuple(block for block in self.blocks if not block.is_finite)

    def __repr__(self) -> str:
        state = "; ".join(map(str, self.departures)) or "complete"
        if self.non_finite:
            first = self.non_finite[0]
            state += f"; {len(self.non_finite)} not finite, the first {first.module} ({first.operation})"
        return f"Report(ok={self.ok}, error={self.error:.1e}, operations={len(self.blocks)}: {state})"


def verify(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    target: Target = None,
    *,
    composite: Composite | Rule | None = None,
    output: Callable[[Any], Tensor] | None = None,
    static: bool = False,
    **kwargs: Any,
) -> Report:
    """Check that a model's recording is complete, and see what each of its operations does with relevance.

    The gradients that the recorded operations have (:class:`lrpkernels.Gradient`) must equal autograd's on the model itself, at the input
    and, where they do not, at every value on the way, which tells the operation. Runs in the model's present mode and the caller's grad
    mode, on copies of a few images; buffers, generators and ``.grad`` stay what they were.

    Args:
        model, x, target, composite, output, kwargs: as for :class:`lrpkernels.LRP`.
        static: check the replay of calls that were noted on other images (:class:`lrpkernels.StaticCalls`).

    Returns:
        A report; ``.ok`` says whether heatmaps of this model can be trusted to be what the composite asks for.

    Raises:
        RelevanceError: the model cannot be recorded at all.
        TypeError, ValueError: as for :class:`lrpkernels.LRP`.

    Source: docs/verify.md.
    """
    inputs, names = checked(model, x, kwargs)
    if is_sharded(model):
        raise ValueError("model: fully_shard has sharded it, and its weights are not all there; verify it before that")
    found = on_few_images(model, inputs, kwargs, take, static, names)
    with unchanged(model, inputs[0].device), torch.no_grad(), record(model, x, check=False, **kwargs) as tape:
        logits = select_logits(tape.output, output)
        blocks = tuple(_balances(tape, logits, start(target, logits)[0], as_composite(composite)))
    return Report(found.departures, found.error, blocks)


def _balances(tape: Tape, logits: Tensor, seed: Tensor, composite: Composite) -> list[Balance]:
    value = tape.value_of(logits)
    arrivals = {id(value): seed}
    found = []
    with walking(tape):
        for node, rule, arrived, parts in walked_back(tape.plan(composite, [value]), arrivals):
            above = [times(g, v.tensor) for v, g in zip(node.outputs, arrived, strict=True) if g is not None]
            below = [part for part in parts if part is not None]
            if not (node.kind == "block" and rule.yields_relevance):
                pairs = zip(node.inputs, parts, strict=True)
                below = [times(part, v.tensor) for v, part in pairs if part is not None]
            sums = [float(sum(r.sum(dtype=torch.float64) for r in side)) for side in (above, below)]
            finite = all(bool(torch.isfinite(r).all()) for r in (*above, *below))
            path = tape.module_path(node.module or tape.model)
            found.append(Balance(path, node.label(), repr(rule), sums[0], sums[1], finite))
    return found[::-1]
