"""The reference: a network written down as primitives with dense matrices, and relevance through them by the formulas of docs/rules.md.

Nothing here comes from the engine. Every map is a matrix that the primitive's own function makes of unit vectors; values are live, so that
autograd gives the gradient of a loss on the relevance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .formulas import LAYERWISE, WEIGHTS_ONLY, YIELDING, RuleSpec, relu_factor, stabilized, through_linear
from .program import Primitive, Program


class Reference(Program):
    """Relevance through a program.

    Args:
        inputs: of the network.
        attention, product, norm: names of the rules of these operations.
    """

    def __init__(self, inputs: Sequence[Tensor], attention: str, product: str, norm: str) -> None:
        super().__init__(inputs)
        self.attention, self.products, self.norms = attention, product, norm
        # Whether a batch norm or ReLU is a layer of its own, and does not merge into the layer ahead.
        self.stands_alone: Callable[[Primitive, Primitive], bool] = lambda node, ahead: False

    def relevance(
        self,
        begin: int,
        seed: Tensor,
        rule_of: Callable[[str], RuleSpec],
        first: RuleSpec | None,
        masks: dict[int, Tensor] | None = None,
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """R at every value that it reaches, by number, and the multipliers where they are all of it.

        Args:
            begin, seed: where it starts, with which multiplier.
            rule_of: the rule of a step's primitives, by its name.
            first: that of the layers that read the input.
            masks: factors of the multiplier at the ends of blocks.
        """
        near = self.near()
        blocks, inside = self._blocks(self._consumers())
        g: dict[int, Tensor] = {begin: seed}
        r: dict[int, Tensor] = {}
        found: dict[int, Tensor] = {}

        def give(to: dict[int, Tensor], place: int, part: Tensor) -> None:
            to[place] = part if place not in to else to[place] + part

        for node in reversed(self.nodes):
            if id(node) in inside:
                continue
            whole = blocks.get(id(node), [node])
            rule = rule_of(whole[0].owner)
            for place in node.outputs:
                if masks and place in masks and place in g:
                    g[place] = g[place] * masks[place]
                for kind, source in (("g", g), ("r", r)):
                    if place in source:
                        part = source[place] * self.values[place] if kind == "g" else source[place]
                        give(found, place, part)
            if not any(p in g or p in r for p in node.outputs):
                continue
            if whole[0].kind in ("linear", "batch_norm"):
                chosen = first if first is not None and near.issuperset(whole[0].inputs) else rule
                yields = chosen.name in YIELDING
                for source in (g, r):
                    gained = source.get(node.outputs[0])
                    if gained is None:
                        continue
                    for k in range(
                        len(whole) - 1, 0, -1
                    ):  # values inside the block, from the operations behind them alone
                        place, is_relu = whole[k - 1].outputs[0], whole[k].kind == "relu"
                        if is_relu or chosen.name not in WEIGHTS_ONLY:
                            part = self._through(whole[k:], gained, chosen, source is r)
                            is_found = (source is r) if is_relu else yields
                            give(found, place, part if is_found else self.values[place] * part)
                    give(r if yields else g, whole[0].inputs[0], self._through(whole, gained, chosen, source is r))
                continue
            for source in (g, r):
                arrived = [source.get(p) for p in node.outputs]
                if any(a is not None for a in arrived):
                    parts, to = self._behind(node, arrived, rule, source is r, near)
                    for place, part in zip(node.inputs, parts, strict=True):
                        if part is not None:
                            give(r if to == "r" else g, place, part)
        for place in self.inputs:
            for kind, source in (("g", g), ("r", r)):
                if place in source:
                    give(found, place, source[place] * self.values[place] if kind == "g" else source[place])
        return found, {place: part for place, part in g.items() if place not in r}

    def end_of_block(self, place: int) -> int:
        """The output of the block that a value is inside of; the value itself if it is in none."""
        blocks, _ = self._blocks(self._consumers())
        for whole in blocks.values():
            if any(place in node.outputs for node in whole):
                return whole[-1].outputs[0]
        return place

    def _consumers(self) -> list[int]:
        counts = [0] * len(self.values)
        for node in self.nodes:
            for i in node.inputs:
                counts[i] += 1
        return counts

    def _blocks(self, consumers: list[int]) -> tuple[dict[int, list[Primitive]], set[int]]:
        """Linear layers with the batch norm and the ReLU that alone read them, by the last primitive; and those inside."""
        reader = {node.inputs[0]: node for node in self.nodes if node.kind in ("batch_norm", "relu")}
        blocks: dict[int, list[Primitive]] = {}
        inside: set[int] = set()
        taken: set[int] = set()
        for node in self.nodes:
            if node.kind not in ("linear", "batch_norm") or id(node) in taken:
                continue
            whole = [node]
            for kind in ("batch_norm", "relu"):
                out = whole[-1].outputs[0]
                behind = reader.get(out) if consumers[out] == 1 else None
                if behind is None or behind.kind != kind or (kind == "batch_norm" and node.kind == "batch_norm"):
                    continue
                if (kind == "batch_norm" and node.data["channel"] != 1) or self.stands_alone(behind, node):
                    continue
                whole.append(behind)
            blocks[id(whole[-1])] = whole
            taken |= {id(n) for n in whole}
            inside |= {id(n) for n in whole[:-1]}
        return blocks, inside

    def _through(self, whole: list[Primitive], g: Tensor, rule: RuleSpec, is_relevance: bool) -> Tensor:
        """Through a linear layer, a batch norm or both, and the ReLU behind, which leaves relevance itself unchanged."""
        if whole[0].kind == "relu":
            u = self.values[whole[0].outputs[0]]
            return g if is_relevance else g * relu_factor(u, rule)
        if is_relevance and whole[-1].kind == "relu":
            whole = whole[:-1]
        a, out = self.values[whole[0].inputs[0]], self.values[whole[-1].outputs[0]]
        u = out if whole[-1].kind == "relu" else None
        W, b, pattern = self._matrix(whole)
        rows = len(a)
        marks = self.data(whole[0].inputs[0]) if rule.name in WEIGHTS_ONLY else torch.ones_like(a)
        result = through_linear(
            rule, a.reshape(rows, -1), W, b, pattern, out.reshape(rows, -1), None if u is None else u.reshape(rows, -1),
            g.reshape(rows, -1), marks.reshape(rows, -1), is_relevance,
        )  # fmt: skip
        return result.view_as(a)

    def _matrix(self, whole: list[Primitive]) -> tuple[Tensor, Tensor | None, Tensor]:
        """The merged map as a dense matrix [N, M], its bias [M], and which inputs each output sees."""
        node, a = whole[0], self.values[whole[0].inputs[0]]
        n = a[0].numel()
        units = torch.eye(n, dtype=a.dtype).view(n, *a.shape[1:])
        shape = self.values[node.outputs[0]].shape[1:]
        b: Tensor | None = None
        if node.kind == "linear":
            function, weight, bias = node.function, node.data["weight"], node.data["bias"]
            assert function is not None
            W = function(units, weight, None).reshape(n, -1)
            pattern = function(units, torch.ones_like(weight), None).reshape(n, -1)
            if bias is not None:
                b = function(torch.zeros_like(units[:1]), weight.detach(), bias).reshape(-1)
        else:
            W = pattern = torch.eye(n, dtype=a.dtype)
        norms = [x for x in whole if x.kind == "batch_norm"]
        for norm in norms:
            k, c = (_spread(norm.data[name], shape) for name in ("k", "c"))
            W = W * k
            b = c if b is None else b * k + c
        return W, b, pattern

    def _behind(
        self, node: Primitive, arrived: list[Any], rule: RuleSpec, is_relevance: bool, near: set[int]
    ) -> tuple[Sequence[Tensor | None], str]:
        """What an operation hands on, and whether that is "g" or "r": relevance itself follows the data, and is R / output elsewhere."""
        values, kind, passes = (
            [self.values[i] for i in node.inputs],
            node.kind,
            node.kind == "norm" and self.norms == "Pass",
        )
        if not is_relevance:
            if passes:
                return [arrived[0] * self.values[node.outputs[0]]], "r"
            return self._simple(node, arrived, rule), "g"
        if kind in ("scale", "drawn", "relu", "activation") or (kind == "add" and len(values) == 1) or passes:
            return [_sum_to(arrived[0], values[0].shape)], "r"
        if kind in ("move", "winner", "resampling"):
            return self._vjp(node, values, arrived), "r"
        if kind == "average" and near.issuperset(node.inputs):  # by the weights alone
            assert node.function is not None
            data = self.data(node.inputs[0])
            total = node.function(data)
            (part,) = self._vjp(node, values, [arrived[0] / torch.where(total == 0, 1.0, total)])
            return [None if part is None else part * data], "r"
        multipliers = [
            None
            if a is None
            else torch.where(self.values[p] == 0, 0.0, a / torch.where(self.values[p] == 0, 1.0, self.values[p]))
            for p, a in zip(node.outputs, arrived, strict=True)
        ]
        return self._simple(node, multipliers, rule), "g"

    def _shares(self, node: Primitive) -> Sequence[float]:
        """Of the operands of a product of branches."""
        if node.kind == "matmul":
            count, signals = len(node.inputs), node.data["signals"]
            if self.attention == "Gradient":
                return [1.0] * count
            live = signals if self.attention == "CPLRP" and any(signals) else [True] * count
            return [float(x) / sum(live) for x in live]
        gates, alike = node.data["gates"], node.data["alike"]
        if self.products == "CPLRP" and gates[0] == gates[1]:
            gates = node.data["activated"]
        if self.products == "Uniform" or gates[0] == gates[1]:
            return alike
        return [0.0 if gate else 1.0 for gate in gates]

    def _simple(self, node: Primitive, arrived: list[Any], rule: RuleSpec) -> list[Tensor | None]:
        values = [self.values[i] for i in node.inputs]
        out, g, kind = self.values[node.outputs[0]], arrived[0], node.kind
        if kind == "relu":
            return [g * relu_factor(out, rule)]
        if kind == "activation":
            eps = node.data.get("eps") or (rule.eps if rule.name == "Epsilon" else min(rule.eps, 1e-6))
            return [g * out / stabilized(values[0], eps)]
        if kind == "add":
            signs = node.data["signs"]
            if rule.name in LAYERWISE:
                finite = out.isfinite()  # a masked score hands nothing on, whatever its share
                safe = torch.where(finite, out, 1.0)
                g = torch.where(finite, g * safe / stabilized(safe, rule.eps), g)
            if rule.name == "ZPlus" and len(values) == 2:
                terms = [v * s for v, s in zip(values, signs, strict=True)]
                g = g * out / (terms[0].clamp(min=0) + terms[1].clamp(min=0) + rule.eps)
                return [_sum_to(g * (t >= 0) * s, v.shape) for t, s, v in zip(terms, signs, values, strict=True)]
            return [_sum_to(g * s, v.shape) for v, s in zip(values, signs, strict=True)]
        if kind == "quotient":
            return [g / values[1], None]
        if kind == "norm":
            x = values[0]
            function = node.function
            assert function is not None
            if self.norms == "Gradient":
                alias = (x if x.requires_grad else x.detach().requires_grad_()).view_as(x)
                (back,) = torch.autograd.grad(function(alias, alias), alias, g, create_graph=True)
                return [back]
            free = x.detach().requires_grad_()
            (back,) = torch.autograd.grad(function(free, x), free, g, create_graph=True)
            return [back]
        if kind == "average" and rule.name == "ZPlus":
            assert node.function is not None
            positive = node.function(values[0].clamp(min=0))
            (back,) = self._vjp(node, values, [g * out / stabilized(positive, rule.eps)])
            assert back is not None
            return [back * (values[0] >= 0)]
        if kind in ("average", "winner") and rule.name in LAYERWISE and not (kind == "winner" and rule.name == "Norm"):
            arrived = [g * out / stabilized(out, rule.eps)]
        parts = self._vjp(node, values, arrived)
        shares = self._shares(node) if kind in ("product", "matmul") else [1.0] * len(parts)
        return [None if p is None or not share else p * share for p, share in zip(parts, shares, strict=True)]

    def _vjp(self, node: Primitive, values: list[Tensor], arrived: list[Any]) -> list[Tensor | None]:
        assert node.function is not None
        free = [v if v.requires_grad else v.detach().requires_grad_() for v in values]
        free = [v.view_as(v) for v in free]
        made = node.function(*free)
        made = [made] if isinstance(made, Tensor) else list(made)
        pairs = [(y, g) for y, g in zip(made, arrived, strict=True) if g is not None]
        ys, gs = [y for y, _ in pairs], [g for _, g in pairs]
        return list(torch.autograd.grad(ys, free, gs, create_graph=True, allow_unused=True))


def _spread(vector: Tensor, shape: torch.Size) -> Tensor:
    """Per channel (the first dimension) to per output."""
    return vector.view(-1, *(1,) * (len(shape) - 1)).expand(shape).reshape(-1)


def _sum_to(g: Tensor, shape: torch.Size) -> Tensor:
    return g.sum_to_size(shape) if g.shape != shape else g
