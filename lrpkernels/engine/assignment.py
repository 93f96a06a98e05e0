"""Which rule each operation of a recording follows, and what a composite asks for that the model does not have."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..errors import UnsupportedOperationError
from ..graph import Node, Value
from ..rules import Composite, Rule
from .fusion import Fuse, kept_apart
from .recorder import Recording

Planned = list[tuple[Node, Rule]]


def assign(recording: Recording, fuse: Fuse, composite: Composite, keep: Sequence[Value] = ()) -> Planned:
    """The operations in order, layers merged into blocks, each with its rule.

    Args:
        recording: a finished one.
        fuse: its nodes as blocks, given the values across which nothing merges.
        composite: which layer follows which rule.
        keep: values across which nothing merges, beside those that the composite takes apart.

    Raises:
        ValueError: a name or glob of the composite that no layer has.
        UnsupportedOperationError: the composite's ``first`` does not reach a first layer.
    """
    names: dict[int, str] = {}
    apart = [*keep]
    if composite.reads_names():  # walking over all modules costs as much as a small layer
        names = {id(module): name or "(model)" for name, module in recording.model.named_modules()}
        _check_names(composite, recording.model, {names.get(id(node.module), "") for node in recording.nodes})
        apart += kept_apart(recording.nodes, composite, names)
    choose, first = composite.chooser(), composite.first
    planned = []
    for node in fuse(recording.nodes, apart):
        reads_input = first is not None and any(value.behind_input for value in node.inputs)
        if first is not None and node.kind == "block" and node.input.unlayered and not reads_input:
            raise UnsupportedOperationError(_out_of_reach(recording, node, first))
        planned.append((node, choose(node, names.get(id(node.module), ""), reads_input)))
    return planned


def _check_names(composite: Composite, model: nn.Module, ran: set[str]) -> None:
    """Every name and glob must be that of a module that ran operations, a module without any inside, or beside "name.*" stand for it."""
    selectors = [selector for selector in composite.layers if isinstance(selector, str)]
    idle = [s for s in selectors if s not in ran and not any(fnmatchcase(name, s) for name in ran)]
    if not idle:
        return
    modules = {name or "(model)": module for name, module in model.named_modules()}
    for selector in idle:
        partner = selector.removesuffix(".*") if selector.endswith(".*") else f"{selector}.*"
        if partner in selectors and partner not in idle:
            continue
        found = [name for name in modules if name == selector or fnmatchcase(name, selector)]
        if not found:
            near = difflib.get_close_matches(selector, list(modules), n=3, cutoff=0.3)
            raise ValueError(
                f"composite: the model has no module {selector!r}, so its rule {composite.layers[selector]!r} would not be used; near "
                f"matches: {', '.join(near) or 'none'}"
            )
        inside = [name for name in ran if any(name.startswith(f"{container}.") for container in found)]
        if inside:
            raise ValueError(
                f"composite: {selector!r} names a module that only calls others, so its rule {composite.layers[selector]!r} would not be "
                f"used; name what is inside: {selector + '.*'!r}"
            )


def _out_of_reach(recording: Recording, block: Node, first: Rule) -> str:
    value, between = block.input, "a sum or product of branches"
    while value.producer is not None and value.producer.inputs:
        if not value.producer.sees_through:
            between = value.producer.label()
            break
        value = value.producer.input
    where = recording.module_path(block.module or recording.model)
    return (
        f"{where}: first={first!r} does not reach this layer, the first one: {between} stands between the model's input and it; leave "
        f"`first` out, or choose the layer's rule by its name, Composite({{{where!r}: ...}})"
    )
