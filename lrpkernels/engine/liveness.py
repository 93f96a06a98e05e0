"""Which forward values the rules of a relevance pass read, found while the model runs: only those are kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

from torch import nn

from ..graph import Node
from ..layers import can_merge
from ..layers.activation import Relu
from ..layers.batch_norm import BatchNorm
from ..layers.linear import LinearNode
from ..rules import Composite, Rule
from ..rules.base import reads_of
from .fusion import separates
from .places import ModuleCall, Place, modules_at


class Liveness:
    """Holds those values of a pass being recorded that some rule, or a request for a hidden layer, will need.

    Any other value lives as long as the model (or autograd) keeps it, as it would without a recording.

    Args:
        model: the one that is recorded.
        composites: the rules that each layer will follow; several for several relevance passes.
        at: places whose relevance will be requested.
    """

    def __init__(self, model: nn.Module, composites: Sequence[Composite], at: Sequence[str | Place]) -> None:
        self._composites = composites
        self._choosers = [composite.chooser() for composite in composites]
        named = any(composite.reads_names() for composite in composites)
        # Without selectors the answer is one of two: for the layers that read the model's input, and for all others.
        chosen = any(composite.layers for composite in composites)
        self._everywhere = None if chosen else _read_by(composite.default for composite in composites)
        self._at_input = _read_by(composite.first or composite.default for composite in composites)
        self._names = {id(m): name or "(model)" for name, m in model.named_modules()} if named else {}
        self._hidden = {(id(module), place.reads) for place, module in modules_at(model, at)} if at else set()
        # A value -> the linear layer that made it, maybe with a batch norm merged into it, and what the rules of both read.
        self._roots: dict[int, tuple[LinearNode, frozenset[str]]] = {}
        self._merged: set[int] = set()  # values inside a block, read only if they have a second consumer

    def note(self, node: Node) -> None:
        """Hold what the operation just recorded will read; let go of what lies inside its block."""
        for value in node.inputs:
            if value.consumers > 1 and id(value) in self._merged:
                self._merged.discard(id(value))
                value.hold()
        kind = type(node)
        merges = kind is BatchNorm or kind is Relu
        root, wanted = self._root_behind(node) if merges else _NOTHING
        if root is not None and self._names and any(separates(c, node, root, self._names) for c in self._composites):
            root = None  # for that composite; it may merge for others, so what they read is held as well
        if root is not None:
            self._merged.add(id(node.inputs[0]))
            if kind is BatchNorm and "statistics" in wanted & cast(BatchNorm, node).reads_inputs:
                node.inputs[0].hold()
            if _reads(root.reads_outputs, wanted) and not (kind is Relu and "preactivation" in wanted):
                node.inputs[0].let_go()
        if root is None or kind is BatchNorm:
            # Also those of a merged batch norm: if its input turns out to have a second consumer, it is a block of its own after all.
            wanted |= self._reads(node)
        if root is None and _reads(node.reads_inputs, wanted):
            for value in node.inputs:
                value.hold()
        if _reads(node.reads_outputs, wanted):
            for value in node.outputs:
                value.hold()
        if node.is_linear:
            self._roots[id(node.outputs[0])] = (root or cast(LinearNode, node), wanted)

    def module_left(self, module: nn.Module, call: ModuleCall) -> None:
        """A module has returned: what was asked for stays."""
        if self._hidden:
            for reads, values in ((True, call.inputs), (False, call.outputs)):
                if (id(module), reads) in self._hidden:
                    for value in values:
                        value.hold()

    def _root_behind(self, node: Node) -> tuple[LinearNode | None, frozenset[str]]:
        """The linear layer with which a batch norm or ReLU will be one block (see lrpkernels.engine.fusion), and what is read of it."""
        value = node.inputs[0]
        if value.consumers > 1:
            return _NOTHING
        root, wanted = self._roots.get(id(value), _NOTHING)
        if root is not None and type(node) is BatchNorm:
            single = value.producer is root and type(root) is not BatchNorm
            return (root, wanted) if single and can_merge(root, node) else _NOTHING
        return root, wanted

    def _reads(self, node: Node) -> frozenset[str]:
        """What the rules of this operation read, over all composites."""
        at_input = node.is_linear and node.inputs[0].behind_input
        if self._everywhere is not None:
            return self._at_input if at_input else self._everywhere
        name = self._names.get(id(node.module), "")
        return _read_by(
            composite.first if at_input and composite.first is not None else choose(node, name, False)
            for composite, choose in zip(self._composites, self._choosers, strict=True)
        )


def _read_by(rules: Iterable[Rule]) -> frozenset[str]:
    return frozenset[str]().union(*map(reads_of, rules))


_NOTHING: tuple[LinearNode | None, frozenset[str]] = None, frozenset()


def _reads(which: bool | frozenset[str], wanted: frozenset[str]) -> bool:
    return which if isinstance(which, bool) else bool(which & wanted)


class Kept:
    """Keeps of a replayed pass what was kept of the recorded one; stands for :class:`Liveness`."""

    def __init__(self, kept: Iterable[bool]) -> None:
        self._kept = iter(kept)

    def note(self, node: Node) -> None:
        for value in node.outputs:
            if next(self._kept):
                value.hold()

    def module_left(self, module: nn.Module, call: ModuleCall) -> None: ...
