"""Products of two branches in transformers: matrix products, softmax, attention, whose rules composites choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedOperationError
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .arithmetic import made_by_activation, made_by_gate
from .gradients import pull_back
from .linear import Linear
from .registry import Recorder, bind, leaves, recorded, records
from .replayed import Place, Replayed


class Taylor(Replayed):
    """A function that follows its first-order Taylor term, R = x * gradient: softmax (AttnLRP, eq. 7), Lp pooling (homogeneous).

    Written out by PyTorch's derivative.
    """

    kind = "taylor"
    linear = False


class Softmax(Taylor):
    """Weights that sum to 1: a product treats them as a gate."""

    kind = "softmax"
    family = "attention"
    module_type = nn.Softmax
    is_gate = True

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.softmax(self, multipliers[0]),)

    def pull(self, g: Tensor) -> Tensor | None:
        return self._vjp([g])[0]


class Product(Replayed):
    """A matrix product of branches, or of one with itself."""

    kind = "product"
    family = "attention"
    linear = False

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.matmul(self, multipliers[0])

    @property
    def operands(self) -> list[Value]:
        """The inputs as often as they occur."""
        return [self.inputs[leaf.index] for leaf in leaves(self._call) if isinstance(leaf, Place)]

    @property
    def gates(self) -> tuple[bool, ...]:
        return tuple(made_by_gate(value) for value in self.operands)

    @property
    def activated(self) -> tuple[bool, ...]:
        return tuple(made_by_activation(value) for value in self.operands)

    def back(self, g: Tensor, shares: Sequence[float]) -> Multipliers:
        if len(set(shares)) == 1:
            return self._vjp([g * shares[0]])
        share_of = {id(value): share for value, share in zip(self.operands, shares, strict=True)}
        pulled = zip(self._vjp([g]), (share_of[id(value)] for value in self.inputs), strict=True)
        return tuple(None if part is None or share == 0 else part * share for part, share in pulled)


class Attention(Node):
    """softmax(Q K^T scale + mask) V. Some of Q, K and V may be constants (learned queries)."""

    kind = "attention"
    family = "attention"
    reads_outputs = False

    def __init__(self, operands: Sequence[Value | Tensor], mask: Tensor | None, causal: bool, scale: float) -> None:
        super().__init__(*(operand for operand in operands if not isinstance(operand, Tensor)))
        self.operands, self.mask, self.causal, self.scale = operands, mask, causal, scale

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.attention(self, multipliers[0])

    @property
    def live(self) -> tuple[bool, bool, bool]:
        q, k, v = (not isinstance(operand, Tensor) for operand in self.operands)
        return q, k, v

    def back(self, g: Tensor, q: float, k: float, v: float) -> Multipliers:
        share_q, share_k, share_v = (share if live else None for share, live in zip((q, k, v), self.live, strict=True))
        query, key, value = (operand if isinstance(operand, Tensor) else operand.tensor for operand in self.operands)
        g = g.unflatten(0, (-1, self.output.shape[0]))  # [T, B, ...]
        p = _attention_weights(query, key, self.mask, self.causal, self.scale)
        parts: list[Tensor | None] = []
        g_s = None
        if share_q or share_k:
            g_p = g @ value.transpose(-2, -1)
            g_s = p * (g_p - (p * g_p).sum(-1, keepdim=True)) * self.scale
        if share_q is not None:
            parts.append(share_q * (g_s @ key) if g_s is not None else None)
        if share_k is not None:
            parts.append(share_k * (g_s.transpose(-2, -1) @ query) if g_s is not None else None)
        if share_v is not None:
            parts.append(share_v * (p.transpose(-2, -1) @ g) if share_v else None)
        return tuple(None if part is None else part.flatten(0, 1) for part in parts)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        def attend(*live: Tensor) -> Tensor:
            given = iter(live)
            q, k, v = (operand if isinstance(operand, Tensor) else next(given) for operand in self.operands)
            return _attention_weights(q, k, self.mask, self.causal, self.scale) @ v

        return pull_back(attend, [value.tensor for value in self.inputs], multipliers[0])


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    scores = q @ k.transpose(-2, -1) * scale
    if causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~keep, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


@records(F.scaled_dot_product_attention)
def _attention(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    q, k, v, mask, dropout, causal = bind(args, kwargs, *names, dropout_p=0.0, is_causal=False)
    operands = [rec.value(t) or t for t in (q, k, v)]
    leading = {t.shape[:-2] for t in (q, k, v)}
    if kwargs.get("enable_gqa") or len(leading) > 1 or rec.value(mask) is not None:
        return rec.unknown(func, args, kwargs)
    if dropout:
        raise UnsupportedOperationError(
            f"{rec.path()}: attention draws a dropout mask (dropout_p={dropout}) that the relevance pass cannot see; set the "
            "attention dropout to 0 while heatmaps are made"
        )
    out = func(*args, **kwargs)
    scale = kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    rec.add(Attention(operands, mask, causal, scale), out)
    return out


@records(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm, torch.einsum,
    torch.outer,
)  # fmt: skip
def _matmul(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = func(*args, **kwargs)
    inputs = recorded(rec, args, kwargs)
    if len(inputs) == 1 and func in _PLAIN_PRODUCTS and not kwargs and len(args) == 2:
        left, right = (args[1], args[0]) if func is Tensor.__rmatmul__ else args
        if rec.value(left) is not None and left.dim() >= 2 and right.dim() == 2:  # a dense layer written as a product
            rec.add(Linear(inputs[0], right.t(), None), out)
            return out
    kind = Product if len(inputs) > 1 or _twice(inputs, args, kwargs) else Replayed
    rec.add(kind(inputs, func, args, kwargs), out)
    return out


def _twice(inputs: list[Value], args: Any, kwargs: Any) -> bool:
    """Whether a product's two operands are the same tensor."""
    return sum(leaf is inputs[0].tensor for leaf in leaves((args, kwargs))) > 1


_PLAIN_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm)


@records(torch.addmm, Tensor.addmm)
def _addmm(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    bias, x, weight = bind(args, {"input": kwargs.get("self"), **kwargs}, "input", "mat1", "mat2")
    plain = not {"alpha", "beta", "out"} & set(kwargs) and bias.dim() == 1 and len(args) <= 3
    if not plain or rec.value(x) is None or rec.value(weight) is not None or rec.value(bias) is not None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    rec.add(Linear(rec.known(x), weight.t(), bias), out)
    return out


@records(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)
def _taylor(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = func(*args, **kwargs)
    kind = Softmax if func in (F.softmax, torch.softmax, Tensor.softmax) else Taylor
    rec.add(kind(recorded(rec, args, kwargs), func, args, kwargs), out, nonnegative=kind.is_gate)
    return out


@records(F.multi_head_attention_forward)
def _multi_head(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """nn.MultiheadAttention written out in recorded parts; the common form only, the rest is refused by name."""
    names = (
        "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
        "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights",
        "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v",
        "average_attn_weights", "is_causal",
    )  # fmt: skip
    given = dict(zip(names, bind(args, kwargs, *names, training=True, need_weights=True), strict=True))
    for name in ("bias_k", "bias_v", "add_zero_attn", "static_k", "static_v"):
        if given[name] is not None and given[name] is not False:
            raise UnsupportedOperationError(f"{rec.path()}: multi-head attention with {name} has no rule; leave it out")
    q, k, v, heads = given["query"], given["key"], given["value"], given["num_heads"]
    if q.dim() != 3:
        raise UnsupportedOperationError(
            f"{rec.path()}: multi-head attention needs batched input, got {q.dim()} dimensions"
        )
    call = rec.call
    if given["use_separate_proj_weight"]:
        weights = [given[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
    else:
        weights = given["in_proj_weight"].chunk(3)
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    projected = []
    for x, weight, bias in zip((q, k, v), weights, biases, strict=True):
        x = call(F.linear, call(torch.transpose, x, 0, 1), weight, bias)  # [B, L, E]
        x = call(Tensor.reshape, x, (x.shape[0], x.shape[1], heads, -1))
        projected.append(call(torch.transpose, x, 1, 2))
    dropout = given["dropout_p"] if given["training"] else 0.0
    mask = _merged_mask(given["attn_mask"], given["key_padding_mask"], heads, projected[0].dtype)
    out = call(F.scaled_dot_product_attention, *projected, attn_mask=mask, dropout_p=dropout)
    out = call(Tensor.flatten, call(torch.transpose, out, 1, 2), 2)
    out = call(F.linear, out, given["out_proj_weight"], given["out_proj_bias"])
    attention = None
    if given["need_weights"]:
        query = call(torch.mul, projected[0], 1 / math.sqrt(projected[0].shape[-1]))
        scores = call(torch.matmul, query, call(torch.transpose, projected[1], -2, -1))
        if mask is not None:
            scores = call(torch.add, scores, mask)
        attention = call(torch.softmax, scores, -1)
        if given["average_attn_weights"] is not False:
            attention = call(torch.mean, attention, 1)
    return call(torch.transpose, out, 0, 1), attention


def _merged_mask(mask: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype) -> Tensor | None:
    """The two masks of multi-head attention as one to be added to the scores, broadcastable to (B, heads, L, S)."""

    def additive(m: Tensor) -> Tensor:
        if m.dtype != torch.bool:
            return m
        return torch.zeros(m.shape, dtype=dtype, device=m.device).masked_fill(m, -torch.inf)

    if mask is not None:
        mask = additive(mask)
        mask = mask.unflatten(0, (-1, heads)) if mask.dim() == 3 else mask
    if padding is None:
        return mask
    padding = additive(padding)[:, None, None, :]
    return padding if mask is None else mask + padding
