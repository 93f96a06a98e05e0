"""Reading a meter (a clock, a count of bytes) around every operation of a forward pass and of a relevance pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, cast

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ._traffic import tensors
from .composite import Composite
from .fuse import Block
from .layers.base import Op
from .rules import Rule
from .tape import Value

Reading = Callable[[], float]


class MeteredFunctions(TorchFunctionMode):
    """Reads the meter around every function that the recorder runs, and notes the difference with its results."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        self.spent: dict[int, float] = {}
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.reading()
        out = func(*args, **(kwargs or {}))
        spent = self.reading() - start
        for tensor in tensors(out):
            if id(tensor) not in self.spent:  # otherwise it was there before: an argument, the base of a view
                self.spent[id(tensor)] = spent
                self._kept.append(tensor)  # so that no other tensor takes its id
        return out


class MeteredComposite(Composite):
    """A composite that reads the meter around every operation of the relevance pass."""

    def __init__(self, composite: Composite, made: dict[int, float], reading: Reading) -> None:
        values = {field.name: getattr(composite, field.name) for field in fields(composite)}
        super().__init__(**values)
        # The dataclass is frozen for its users.
        for name, value in (("seen", []), ("spent", []), ("made", made), ("reading", reading)):
            object.__setattr__(self, name, value)

    seen: list[tuple[Op, Rule]]
    spent: list[list[float]]
    made: dict[int, float]
    reading: Reading

    def chooser(self) -> Callable[[Op, str, bool], Rule]:
        return self.rule_for  # which has to see every operation

    def rule_for(self, op: Op, name: str, reads_input: bool) -> Rule:
        rule = super().rule_for(op, name, reads_input)
        self.seen.append((op, rule))
        spent = [sum(self.made.get(id(v.tensor), 0.0) for v in _made_by(op)), 0.0]
        self.spent.append(spent)
        if isinstance(op, Block):
            return cast(Rule, _MeteredRule(rule, spent, self.reading))
        for method in ("propagate", "propagate_relevance"):
            setattr(op, method, _metered(getattr(op, method), spent, self.reading))
        return rule


class _MeteredRule:
    """A rule whose way through a block is measured; all else is the rule's own."""

    def __init__(self, rule: Rule, spent: list[float], reading: Reading) -> None:
        self._rule = rule
        self.linear = _metered(rule.linear, spent, reading)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)


def _metered(function: Callable[..., Any], spent: list[float], reading: Reading) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        start = reading()
        out = function(*args)
        spent[1] += reading() - start
        return out

    return run


def _made_by(op: Op) -> Iterator[Value]:
    """Every value that the operation made, those inside a block included."""
    if isinstance(op, Block):
        for part in (op.map, op.norm, op.relu):
            if part is not None:
                yield from part.outputs
    else:
        yield from op.outputs
