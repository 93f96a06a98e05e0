"""The gradients that a recording has, by its own operations, and when they are those of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import RelevanceError, UnsupportedOperationError
from ..functional import Scaled
from ..graph import Node, Value
from ..rules import Composite, Gradient, Rule
from .own_pass import Inputs, explainable, seed


class Taken(Protocol):
    """A recorded pass, as :class:`lrpkernels.tape.Tape` is one."""

    output: Any

    @property
    def nodes(self) -> list[Node]: ...
    @property
    def input_values(self) -> tuple[Value, ...]: ...
    def value_of(self, tensor: Tensor) -> Value: ...
    def plan(
        self, composite: Composite | Rule | None = None, keep: Sequence[Value] = ()
    ) -> list[tuple[Node, Rule]]: ...
    def module_path(self, module: nn.Module) -> str: ...
    def clear(self) -> None: ...


Take = Callable[[Inputs], Taken]  # records the model on these inputs
Arrivals = dict[int, Tensor]
Step = tuple[Node, Rule, list["Tensor | None"], Sequence["Tensor | None"]]


def starts_of(tape: Taken) -> dict[int, tuple[Value, Tensor]]:
    """Place among the :func:`explainable` outputs -> its value and seed, for those that are recorded."""
    found = {}
    for index, output in enumerate(explainable(tape.output)):
        try:
            found[index] = tape.value_of(output), seed(index, output)
        except RelevanceError:  # it depends on no input, or else relevance() refuses to explain it
            continue
    return found


def gradients_of(
    tape: Taken, starts: Sequence[tuple[Value, Tensor]], refused: list[RelevanceError] | None = None
) -> list[Tensor | None]:
    """The recording's gradients at its inputs, all operations walked as a relevance pass walks them.

    ``refused`` takes the errors of operations without a gradient, which hand on nothing.
    """
    arrivals: Arrivals = {}
    for value, start in starts:
        add(arrivals, value, start)
    with walking(tape):
        for _ in walked_back(tape.plan(Gradient(), [value for value, _ in starts]), arrivals, refused):
            pass
    return [arrivals.get(id(value)) for value in tape.input_values]


@contextmanager
def walking(tape: Taken) -> Iterator[None]:
    """As a relevance pass runs, without a graph."""
    with torch.no_grad(), torch.autocast(tape.input_values[0].tensor.device.type, enabled=False):
        yield


def walked_back(
    planned: Sequence[tuple[Node, Rule]], arrivals: Arrivals, refused: list[RelevanceError] | None = None
) -> Iterator[Step]:
    """The planned operations backwards: each with its rule, what arrived at its outputs and what it hands on.

    An operation that has no gradient hands on nothing. What a first-layer rule yields is not handed on.

    Args:
        planned: :meth:`Taken.plan`.
        arrivals: multipliers by id of their value, filled on the way; in the end those of the inputs are left.
        refused: takes the errors of operations that hand on nothing.
    """
    for node, rule in reversed(planned):
        arrived = [arrivals.pop(id(value), None) for value in node.outputs]
        if all(g is None for g in arrived):
            continue
        parts = handed_on(node, rule, arrived, refused)
        if node.kind != "block" or not rule.yields_relevance:
            for value, part in zip(node.inputs, parts, strict=True):
                add(arrivals, value, part)
        yield node, rule, arrived, parts


def handed_on(
    node: Node, rule: Rule, arrived: Sequence[Tensor | None], refused: list[RelevanceError] | None = None
) -> Sequence[Tensor | None]:
    """What an operation hands on."""
    try:
        return node.through([Scaled(g) for g in arrived if g is not None] if node.kind == "block" else arrived, rule)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of autograd, which cannot run it again, or ours
        if not isinstance(error, RelevanceError):
            place = getattr(node, "path", type(node.module).__name__)
            reason = str(error).partition("\n")[0].partition(". ")[0]
            error = UnsupportedOperationError(f"{place}: {node.label()} cannot be differentiated by itself ({reason})")
        if refused is not None:
            refused.append(error)
        return (None,) * len(node.inputs)


def add(arrivals: Arrivals, value: Value, part: Tensor | None) -> None:
    """One more contribution at a value."""
    if part is not None:
        part = part if part.dtype == value.dtype else part.to(value.dtype)
        arrivals[id(value)] = arrivals[id(value)] + part if id(value) in arrivals else part


# -- when two gradients are the same ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """Relative norms of differences that are rounding, for one precision.

    Attributes:
        sure: of a whole pass, without looking closer.
        step: of one operation, given the same multipliers.
        floor: of one operation whose result cancels, in units of what it is made of.
        whole: of a whole pass whose every step is right.
    """

    sure: float
    step: float
    floor: float
    whole: float


_TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-7, 1e-11, 1e-6),
    torch.float32: Tolerance(1e-4, 2e-3, 1e-5, 3e-3),
    torch.float16: Tolerance(0.0, 2e-2, 1e-3, 0.3),
    torch.bfloat16: Tolerance(0.0, 5e-2, 1e-2, 0.5),
}
_PRECISIONS = [*_TOLERANCES]


def tolerance(tape: Taken) -> Tolerance:
    """That of the least precise value of a recording."""
    found = {value.dtype for node in tape.nodes for value in (*node.inputs, *node.outputs)}
    known = [dtype for dtype in found if dtype in _TOLERANCES]
    return _TOLERANCES[max(known, key=_PRECISIONS.index, default=torch.bfloat16)]


def difference(found: Tensor | None, expected: Tensor | None) -> tuple[float, float]:
    """||found - expected|| and ||expected||, None for zeros; where ``expected`` is not finite anything goes."""
    if expected is None:
        return (0.0 if found is None else size(found)), 0.0
    if found is not None and found.shape != expected.shape:
        return float("inf"), size(expected)
    expected = _wide(expected)
    known = torch.isfinite(expected)
    expected = expected.where(known, 0)
    other = torch.zeros_like(expected) if found is None else _wide(found).where(known, 0)
    error = float((other - expected).norm())
    return (error if error == error else float("inf")), float(expected.norm())


def size(tensor: Tensor | None) -> float:
    """||tensor||, 0 for None, infinite for one that is not finite."""
    norm = 0.0 if tensor is None else float(_wide(tensor).norm())
    return norm if norm == norm else float("inf")


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()
