"""The relevance pass: the recording walked backwards once, one differentiable relevance operation per block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..functional import Scaled, over_value, times
from ..graph import Arrived, Multipliers, Node, Value
from ..layers import Block
from ..rules import Rule
from .assignment import Planned
from .conditions import Mask, feeds

Seeds = list[tuple[Value, Tensor]]
Through = Callable[[Node, Arrived, Rule], Multipliers]


class _Contributions:
    """What has arrived at each value so far: multipliers G, and relevance R behind a first-layer rule."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = {}
        self._values: dict[int, Value] = {}

    def add(self, value: Value, part: Tensor) -> None:
        if part.dtype != value.dtype and value.dtype.is_floating_point:
            part = part.to(value.dtype)
        parts = self._parts.get(id(value))
        if parts is None:
            self._parts[id(value)], self._values[id(value)] = [part], value
        else:
            parts.append(part)

    def pop(self, value: Value) -> Tensor | None:
        parts = self._parts.pop(id(value), None) if self._parts else None
        return None if parts is None else _sum(parts)

    def drop(self, listed: Sequence[bool]) -> None:
        """Let go of all that has arrived so far of the targets that are listed."""
        if all(listed):
            self._parts.clear()
            return
        for key, parts in self._parts.items():
            for i, part in enumerate(parts):
                parts[i] = _dropped(part, self._values[key], listed)

    def pop_scaled(self, value: Value) -> Scaled | None:
        """The contributions as at most two summands: blocks add the second in their own elementwise pass."""
        parts = self._parts.pop(id(value), None)
        if parts is None:
            return None
        if len(parts) == 1:
            return Scaled(parts[0])
        parts = alike(parts)
        return Scaled(_sum(parts[:-1]), parts[-1])


def _dropped(part: Tensor, value: Value, listed: Sequence[bool]) -> Tensor:
    """What has arrived at a value, with zeros for the targets that are listed."""
    if not part.numel():
        return part
    others = torch.tensor([not drop for drop in listed], device=part.device).view(-1, *(1,) * part.dim())
    rows = part.unflatten(0, (-1, value.shape[0] if value.shape else 1))  # one for each target, or one for all
    return torch.where(others, rows, torch.zeros_like(rows)).flatten(0, 1)


def alike(parts: list[Tensor]) -> list[Tensor]:
    """Multipliers of one value, of all targets where one of them is: those that the targets still share are repeated."""
    rows = parts[0].shape[0]
    if all(part.shape[0] == rows for part in parts):
        return parts
    most = max(part.shape[0] for part in parts)
    return [p if p.shape[0] == most else p.repeat(most // p.shape[0], *(1,) * (p.dim() - 1)) for p in parts]


def _sum(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    parts = alike(parts)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class Walk:
    """One walk over the planned operations, from the logits to the inputs.

    Args:
        planned: the fused operations in order, each with its rule; consumed on the way.
        wanted: values whose relevance is requested.
        through: :func:`propagate`, or a form of it that saves less.
        masks: what conditions keep of the multiplier at some values, by the value's id.
        exclude_parallel: of a target with a condition, drop what passes by the value that the condition names.
        times_values: False: what is found are the multipliers G, in place of R = a * G.
        to_input: False: nothing is handed on that leads to none of the wanted values, nor to those that conditions name.
    """

    def __init__(
        self,
        planned: Planned,
        wanted: Sequence[Value],
        through: Through,
        masks: Mapping[int, Mask] | None = None,
        exclude_parallel: bool = True,
        times_values: bool = True,
        to_input: bool = True,
    ) -> None:
        self._planned, self._through, self._times_values = planned, through, times_values
        self._masks, self._exclude_parallel = masks or {}, exclude_parallel
        self._wanted = {id(v): v for v in wanted}
        # What stands beside the values that conditions name, found while all operations are there.
        self._beside: dict[int, list[Value]] = {}
        if exclude_parallel:
            self._beside = {key: [v for v in wanted if not feeds(mask.value, v)] for key, mask in self._masks.items()}
        self._on_the_way = None if to_input else _leading_to(planned, {*self._wanted, *self._masks})
        self._multipliers, self._relevances = _Contributions(), _Contributions()
        self.found: dict[int, Tensor | None] = {id(v): None for v in wanted}

    def run(self, seeds: Seeds, inputs: Sequence[Value], release: bool) -> dict[int, Tensor | None]:
        """Relevance at the inputs and the wanted values, by id of the value (None: nothing arrived).

        Args:
            seeds: the multipliers to start from.
            inputs: of the model.
            release: let go of every operation, and of the forward values that it made, behind the walk.
        """
        self._stops = {*self._wanted, *self._masks}  # values inside a block count only if they are among these
        for value, seed in seeds:
            self._multipliers.add(value, seed)
            self._stops.add(id(value))
        node: Node | None = None
        try:
            while self._planned:
                node, rule = self._planned.pop()
                if isinstance(node, Block):
                    self._through_block(node, rule)
                else:
                    self._through_node(node, rule)
                if release:
                    node.release()
        finally:
            if release and node is not None:  # what an exception has left
                for left in (node, *(planned for planned, _ in self._planned)):
                    left.release()
        for v in sorted(inputs, key=lambda v: id(v) not in self._masks):  # what conditions name drops the others'
            if self._on_the_way is None or id(v) in self._on_the_way:
                self.found[id(v)] = self._at_value(v, *self._take(v))
        return self.found

    def _leads_on(self, node: Node) -> bool:
        """Whether relevance behind an operation is still wanted at its inputs, or ahead of them."""
        return self._on_the_way is None or any(id(v) in self._on_the_way for v in node.inputs)

    def _through_node(self, node: Node, rule: Rule) -> None:
        arrived = [self._take(v) for v in node.outputs]
        if not self._leads_on(node):
            return
        multipliers, relevances = [g for g, _ in arrived], [r for _, r in arrived]
        if any(g is not None for g in multipliers):
            multipliers = _for_all_targets(multipliers)
            _hand_on(
                node,
                self._through(node, multipliers, rule),
                self._relevances if _yields(node, rule) else self._multipliers,
            )
        if any(r is not None for r in relevances):
            self._relevance_through(node, _for_all_targets(relevances), rule)

    def _relevance_through(self, node: Node, behind: Arrived, rule: Rule) -> None:
        """What a rule that yields relevance has left at the outputs: R follows the data, or is a multiplier again from here on."""
        parts = node.propagate_relevance(behind, rule)
        if parts is not None:
            _hand_on(node, parts, self._relevances)
            return
        pairs = zip(behind, node.outputs, strict=True)
        multipliers = [None if r is None else over_value(r, value.tensor) for r, value in pairs]
        _hand_on(node, self._through(node, multipliers, rule), self._multipliers)

    def _through_block(self, block: Block, rule: Rule) -> None:
        behind = self._relevances if rule.yields_relevance else self._multipliers
        if block.makes_any(self._stops):
            parts = self._inside(block, rule)
            for part, scaled in parts if self._leads_on(block) else ():
                _hand_on(part, self._through(part, (scaled,), rule), behind)
            return
        if not self._leads_on(block):
            return
        relevance = self._relevances.pop(block.output)
        if relevance is not None:
            part, scaled = block.behind_relu(relevance)
            _hand_on(part, self._through(part, (scaled,), rule), behind)
        arrived = self._multipliers.pop_scaled(block.output)
        if arrived is not None:
            _hand_on(block, self._through(block, (arrived,), rule), behind)

    def _inside(self, block: Block, rule: Rule) -> list[tuple[Block, Scaled]]:
        """What starts inside a block or at its output, as the part of the block that it passes; the wanted relevance is noted.

        The block itself stays whole. Relevance inside it is what the operations behind that value, as a block of their own under the
        same rule, hand on to it: through a ReLU alone, or through a batch norm alone.
        """
        parts: list[tuple[Block, Scaled]] = []
        for value in reversed(block.made()):
            g, r = self._multipliers.pop(value), self._relevances.pop(value)
            if g is not None:
                parts.append((block.until(value), Scaled(g)))
            if r is not None:
                parts.append(block.until(value).behind_relu(r))
            mask = self._masks.get(id(value))
            if (
                mask is not None
            ):  # batch norm and ReLU keep places and channels: a mask ahead of them is one behind them
                self._passes(mask, bool(parts))
                parts = [(part, s._replace(multiplier=mask.apply(s.multiplier))) for part, s in parts]
            if id(value) in self._wanted and parts:
                self.found[id(value)] = _sum([self._at(value, part, s, rule) for part, s in parts])
        return parts

    def _at(self, value: Value, part: Block, s: Scaled, rule: Rule) -> Tensor:
        """What is found at a value inside a block, given the multiplier, or R itself, at the end of the part that is passed."""
        if s.carrier is not None and value not in part.made()[:-1]:  # a ReLU leaves R unchanged
            return s.multiplier
        beyond = part.beyond(value)
        if beyond is None:
            return self._at_value(value, s.multiplier, None)  # type: ignore[return-value]
        (found,) = self._through(beyond, (s if beyond.kind == "block" else s.multiplier,), rule)
        assert found is not None
        yields = beyond.kind == "block" and rule.yields_relevance
        return found if yields else self._at_value(value, found, None)  # type: ignore[return-value]

    def _take(self, value: Value) -> tuple[Tensor | None, Tensor | None]:
        """All multipliers and all relevance that arrived at ``value``; their sum is noted if it is requested."""
        g, r = self._multipliers.pop(value), self._relevances.pop(value)
        mask = self._masks.get(id(value)) if self._masks else None
        if mask is not None:
            self._passes(mask, g is not None or r is not None)
            g, r = (part if part is None else mask.apply(part) for part in (g, r))
        if id(value) in self._wanted:
            self.found[id(value)] = self._at_value(value, g, r)
        return g, r

    def _at_value(self, value: Value, multiplier: Tensor | None, relevance: Tensor | None) -> Tensor | None:
        """R = a * G (+ R that a rule yielded)."""
        if multiplier is None or not self._times_values:
            return relevance if multiplier is None else multiplier
        a = value.tensor
        product = times(multiplier, a if a.is_floating_point() else a.to(multiplier.dtype))
        return product if relevance is None else _sum([relevance, product])

    def _passes(self, mask: Mask, arrived: bool) -> None:
        """Relevance passes a value that conditions name; of those conditions, all else is dropped if asked for.

        Raises:
            ValueError: none arrives.
        """
        if not arrived:
            raise ValueError(
                f"conditions: no relevance reaches {mask.place!r}; it must stand between the input and what the pass starts from"
            )
        if self._exclude_parallel:
            self._multipliers.drop(mask.listed)
            self._relevances.drop(mask.listed)
            for seen in self._beside[id(mask.value)]:
                part = self.found[id(seen)]
                if part is not None:
                    self.found[id(seen)] = _dropped(part, seen, mask.listed)


def _leading_to(planned: Planned, ends: set[int]) -> set[int]:
    """The values, by id, that relevance passes on its way to ``ends``: these, and whatever was made from them."""
    found = set(ends)
    for node, _ in planned:
        made = node.made() if isinstance(node, Block) else node.outputs
        if any(id(value) in found for value in (*node.inputs, *made)):
            found.update(id(value) for value in made)
    return found


def _for_all_targets(parts: list[Tensor | None]) -> list[Tensor | None]:
    """Multipliers at the outputs of one operation, of all targets where one of them is."""
    if len(parts) < 2:
        return parts
    found = iter(alike([part for part in parts if part is not None]))
    return [None if part is None else next(found) for part in parts]


def propagate(node: Node, multipliers: Arrived, rule: Rule) -> Multipliers:
    """:meth:`Node.through` as it is."""
    return node.through(multipliers, rule)


def _yields(node: Node, rule: Rule) -> bool:
    """Whether an operation hands R itself on, by what it is or by a rule of its kind."""
    return node.yields_relevance or (rule.yields_relevance and node.family in rule.families and not node.is_statistic)


def _hand_on(node: Node, parts: Sequence[Tensor | None], contributions: _Contributions) -> None:
    for value, part in zip(node.inputs, parts, strict=True):
        if part is not None:
            contributions.add(value, part)
