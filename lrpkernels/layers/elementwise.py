"""Functions of one value that a model writes out in several elementwise operations: found here, so that they mean the named function."""

from __future__ import annotations

import math

from ..graph import EVERYTHING, Node, Value
from .registry import Recorder


def common_source(*values: Value) -> Value | None:
    """The nearest value that all of these are elementwise functions of, one of them included; None: there is none."""
    nearest: Value | None = values[0]
    for other in values[1:]:
        if nearest is None:
            return None
        ancestors = {id(value) for value in _chain(nearest)}
        nearest = next((value for value in _chain(other) if id(value) in ancestors), None)
    return nearest


def _chain(value: Value) -> list[Value]:
    """The value, what it is an elementwise function of, and so on."""
    chain, step = [value], _source(value)
    while step is not None:
        chain.append(step)
        step = _source(step)
    return chain


def _source(value: Value) -> Value | None:
    node = value.producer
    if node is None or not node.is_elementwise:
        return None
    if node.source is None:  # found once for each operation
        fits = all(v.shape == value.shape for v in node.operands)
        node.source = (common_source(*node.operands) if fits else None,)
    return node.source[0]


def keep_for_products(value: Value) -> None:
    """Hold a value that a second elementwise operation reads: a product of both results may turn out to be a function of it."""
    if value.consumers:
        value.hold()


def argument(rec: Recorder, value: Value, number: float = 0.0) -> Value:
    """What a function of ``value + number`` is a function of: z where that is c g(z) + d, g an activation, c and d != 0 numbers.

    So exp(z) - 1, log(1 + exp(z)) and 1 / (1 + exp(-z)) are functions of their z: d is part of the function, and no bias that keeps a
    share. Else it is ``value`` itself, also where g ran in another module, whose relevance may be asked for.
    """
    at, shifted = value, number != 0
    while (node := at.producer) is not None and node.line is not None and node.operands[0].shape == at.shape:
        shifted |= node.line[1] != 0
        at = node.operands[0]
    if not shifted or node is None or node.kind != "activation" or node.module is not rec.modules[-1]:
        return value
    return node.inputs[0] if node.inputs[0].dtype == value.dtype else value


def value_range(value: Value) -> tuple[float, float]:
    """Between which numbers a value lies, as far as the operation that made it tells."""
    node = value.producer
    if node is None:
        return EVERYTHING
    if node.line is not None:
        return _on_line(node, value_range(node.operands[0]))
    return value_range(node.inputs[0]) if node.kind in ("reshape", "cast") else node.bounds


def _on_line(node: Node, bounds: tuple[float, float]) -> tuple[float, float]:
    assert node.line is not None
    factor, addend = node.line
    if factor == 0:
        return addend, addend
    low, high = sorted(factor * bound + addend for bound in bounds)
    return (low, high) if not math.isnan(low + high) or math.inf in (abs(low), abs(high)) else EVERYTHING


def is_gate(value: Value) -> bool:
    """Whether a value weighs another: between 0 and 1 by the operations that made it, maybe moved, scaled or shifted by a constant."""
    low, high = value_range(value)
    if low >= 0 and high <= 1:
        return True
    node = value.producer
    while node is not None:
        if node.bounds == (0.0, 1.0) or _is_hard_sigmoid(node):
            return True
        constant = node.line is not None or (node.kind == "add" and len(node.inputs) == 1)
        if not constant and node.kind not in ("reshape", "movement", "cast", "dropout", "scale"):
            return False
        node = node.operands[0].producer
    return False


def _is_hard_sigmoid(node: Node) -> bool:
    """min(max(x + 3, 0), 6), a hard sigmoid times 6."""
    source = node.operands[0].producer if node.bounds == (0.0, 6.0) else None
    return source is not None and (source.kind == "add" or source.line is not None) and len(source.operands) == 1


def made_by_activation(value: Value) -> bool:
    """Whether an activation function made this value, or data movement behind one."""
    op = value.producer
    while op is not None and len(op.inputs) == 1 and op.kind in ("reshape", "movement", "cast"):
        op = op.inputs[0].producer
    return op is not None and op.kind in ("activation", "relu")
