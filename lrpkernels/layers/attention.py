"""Products of two branches in transformers: matrix products, softmax, attention, by the rules of AttnLRP (arXiv 2402.05602)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import UnsupportedOperationError
from .base import Arrived, Multipliers, Op, bind, records
from .fallback import Replayed
from .linear_maps import _unrecorded
from .structure import record_call

if TYPE_CHECKING:
    from ..rules.base import Rule
    from ..tape import Tape, Value


class Taylor(Replayed):
    """A function that follows its first-order Taylor term, R = x * gradient: softmax (AttnLRP, eq. 7), Lp pooling (homogeneous)."""

    kind = "taylor"
    linear = False


class Product(Replayed):
    """A product of two branches: each operand is given half of the relevance (the uniform rule, AttnLRP, eq. 8)."""

    kind = "product"
    linear = False

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        halves = [None if g is None else g * 0.5 for g in multipliers]
        return self._vjp(halves)


class Attention(Op):
    """softmax(Q K^T scale + mask) V: the two products share relevance uniformly, softmax follows its Taylor term."""

    kind = "attention"

    def __init__(self, query: Value, key: Value, value: Value, mask: Tensor | None, causal: bool, scale: float) -> None:
        super().__init__(query, key, value)
        self.mask, self.causal, self.scale = mask, causal, scale

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        q, k, v = (value.tensor for value in self.inputs)
        g = multipliers[0].unflatten(0, (-1, self.output.shape[0]))  # [T, B, ...]
        scores = q @ k.transpose(-2, -1) * self.scale
        if self.causal:
            keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
            scores = scores.masked_fill(~keep, -torch.inf)
        if self.mask is not None:
            mask = self.mask
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        p = scores.softmax(-1)
        g_p = 0.5 * (g @ v.transpose(-2, -1))
        g_v = 0.5 * (p.transpose(-2, -1) @ g)
        g_s = p * (g_p - (p * g_p).sum(-1, keepdim=True)) * self.scale
        parts = (0.5 * (g_s @ k), 0.5 * (g_s.transpose(-2, -1) @ q), g_v)
        return tuple(part.flatten(0, 1) for part in parts)


@records(F.scaled_dot_product_attention)
def _attention(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    q, k, v, mask, dropout, causal = bind(args, kwargs, *names, dropout_p=0.0, is_causal=False)
    if kwargs.get("enable_gqa") or any(tape.value(t) is None for t in (q, k, v)):
        return _unrecorded(tape, func, args, kwargs)
    if dropout:
        raise UnsupportedOperationError(
            f"{tape.path()}: attention draws a dropout mask (dropout_p={dropout}) that the relevance pass cannot see; set the "
            "attention dropout to 0 while heatmaps are made"
        )
    out = func(*args, **kwargs)
    scale = kwargs.get("scale") or 1 / math.sqrt(q.shape[-1])
    tape.add(Attention(tape.known(q), tape.known(k), tape.known(v), mask, causal, scale), out)
    return out


def _distinct(tape: Tape, args: Any, kwargs: Any) -> list[Value]:
    return list({id(v): v for v in map(tape.value, tree_leaves((args, kwargs))) if v is not None}.values())


@records(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm, torch.einsum,
    torch.outer,
)  # fmt: skip
def _matmul(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = func(*args, **kwargs)
    inputs = _distinct(tape, args, kwargs)
    kind = Product if len(inputs) > 1 else Replayed
    tape.add(kind(inputs, func, args, kwargs), out)
    return out


@records(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)
def _taylor(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = func(*args, **kwargs)
    nonnegative = func in (F.softmax, torch.softmax, Tensor.softmax)
    tape.add(Taylor(_distinct(tape, args, kwargs), func, args, kwargs), out, nonnegative=nonnegative)
    return out


@records(F.multi_head_attention_forward)
def _multi_head(tape: Tape, func: Any, args: Any, kwargs: Any) -> Any:
    """nn.MultiheadAttention written out in recorded parts; the common form only, the rest is refused by name."""
    names = (
        "query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v",
        "add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights",
        "attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "static_k", "static_v",
        "average_attn_weights", "is_causal",
    )  # fmt: skip
    given = dict(zip(names, bind(args, kwargs, *names, training=True, need_weights=True), strict=True))
    for name in (
        "bias_k",
        "bias_v",
        "add_zero_attn",
        "static_k",
        "static_v",
        "use_separate_proj_weight",
        "key_padding_mask",
    ):
        if given[name] is not None and given[name] is not False:
            raise UnsupportedOperationError(
                f"{tape.path()}: multi-head attention with {name} has no rule; leave it out"
            )
    q, k, v, heads = given["query"], given["key"], given["value"], given["num_heads"]
    if q.dim() != 3:
        raise UnsupportedOperationError(
            f"{tape.path()}: multi-head attention needs batched input, got {q.dim()} dimensions"
        )
    call = lambda function, *a, **kw: record_call(tape, function, a, kw)  # noqa: E731
    weights = given["in_proj_weight"].chunk(3)
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    projected = []
    for x, weight, bias in zip((q, k, v), weights, biases, strict=True):
        x = call(F.linear, call(torch.transpose, x, 0, 1), weight, bias)  # [B, L, E]
        x = call(Tensor.reshape, x, (x.shape[0], x.shape[1], heads, -1))
        projected.append(call(torch.transpose, x, 1, 2))
    dropout = given["dropout_p"] if given["training"] else 0.0
    mask = given["attn_mask"]
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask  # here True forbids, in scaled_dot_product_attention it allows
    if mask is not None and mask.dim() == 3:
        mask = mask.unflatten(0, (-1, heads))
    out = call(F.scaled_dot_product_attention, *projected, attn_mask=mask, dropout_p=dropout)
    out = call(Tensor.flatten, call(torch.transpose, out, 1, 2), 2)
    out = call(F.linear, out, given["out_proj_weight"], given["out_proj_bias"])
    attention = None
    if given["need_weights"]:
        with torch.no_grad():
            scores = projected[0] @ projected[1].transpose(-2, -1) / math.sqrt(projected[0].shape[-1])
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
            attention = scores.softmax(-1)
            if given["average_attn_weights"] is not False:
                attention = attention.mean(1)
    return call(torch.transpose, out, 0, 1), attention
