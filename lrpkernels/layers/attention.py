"""Products of two branches in transformers: matrix products, softmax, attention, whose rules composites choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UnsupportedOperationError
from ..functional import attention_pull, attention_weights, softmax_pull
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .gradients import pull_back
from .registry import Recorder, bind, recorded, records
from .replayed import Replayed


class Taylor(Replayed):
    """A function that follows its first-order Taylor term, R = x * gradient: logarithms of a softmax, Lp pooling (homogeneous).

    Written out by PyTorch's derivative.
    """

    kind = "taylor"
    linear = False


class Softmax(Node):
    """Weights that sum to 1: a product treats them as a gate.

    Args:
        dim: along which they do; not the batch's.
    """

    kind = "softmax"
    family = "attention"
    module_type = nn.Softmax
    bounds = (0.0, 1.0)
    reads_inputs = False

    def __init__(self, input: Value, dim: int) -> None:
        super().__init__(input)
        self.dim = dim

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.softmax(self, multipliers[0]),)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (self.pull(multipliers[0]),)

    def pull(self, g: Tensor) -> Tensor | None:
        return softmax_pull(g, self.value, self.dim)


class Attention(Node):
    """softmax(Q K^T scale + mask) V."""

    kind = "attention"
    family = "attention"
    reads_outputs = False

    def __init__(self, qkv: Sequence[Value], mask: Tensor | None, scale: float) -> None:
        super().__init__(*qkv)
        self.mask, self.scale = mask, scale

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.attention(self, multipliers[0])

    def back(self, g: Tensor, q: float, k: float, v: float) -> Multipliers:
        query, key, value = (operand.tensor.to(self.output.dtype) for operand in self.inputs)  # as autocast runs it
        parts = attention_pull(g, query, key, value, self.mask, scale=self.scale, shares=(q, k, v))
        pairs = zip(parts, self.inputs, strict=True)
        return tuple(None if part is None else part.to(operand.dtype) for part, operand in pairs)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (t.to(self.output.dtype) for t in (q, k, v))
            return attention_weights(q, k, self.mask, self.scale) @ v

        return pull_back(attend, [value.tensor for value in self.inputs], multipliers[0])


@records(F.scaled_dot_product_attention)
def _attention(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    q, k, v, mask, dropout, causal = bind(args, kwargs, *names, dropout_p=0.0, is_causal=False)
    if dropout:
        raise UnsupportedOperationError(
            f"{rec.path()}: attention draws a dropout mask (dropout_p={dropout}) that the relevance pass cannot see; set the "
            "attention dropout to 0 while heatmaps are made"
        )
    scale = kwargs.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if kwargs.get("enable_gqa"):  # each head of K and V serves several of Q, one after the other
        heads = q.shape[-3]
        k, v = (t if t.shape[-3] == heads else rec.call(_repeat, t, heads // t.shape[-3], -3) for t in (k, v))
    if causal:
        mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if rec.value(mask) is not None or any(rec.value(t) is None for t in (q, k, v)):
        return _in_parts(rec, q, k, v, mask, scale)
    leading = torch.broadcast_shapes(*(t.shape[:-2] for t in (q, k, v)))
    shapes = [(*leading, *t.shape[-2:]) for t in (q, k, v)]
    spread = [
        t if t.shape == shape else rec.call(Tensor.expand, t, shape) for t, shape in zip((q, k, v), shapes, strict=True)
    ]
    out = func(*args, **kwargs)
    rec.add(Attention([rec.known(t) for t in spread], mask, scale), out)
    return out


_repeat = Tensor.repeat_interleave


def _in_parts(rec: Recorder, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention with constant operands, whose products are linear maps, or with a mask that depends on the input, a branch of a sum."""
    scores = rec.call(torch.mul, rec.call(torch.matmul, q, rec.call(torch.transpose, k, -2, -1)), scale)
    if mask is None:
        return rec.call(torch.matmul, rec.call(torch.softmax, scores, -1), v)
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    empty = mask.detach().isneginf().all(-1, keepdim=True)
    scores = rec.call(torch.masked_fill, rec.call(torch.add, scores, mask), empty, 0.0)
    weights = rec.call(torch.masked_fill, rec.call(torch.softmax, scores, -1), empty, 0.0)
    return rec.call(torch.matmul, weights, v)


@records(F.softmax, torch.softmax, Tensor.softmax)
def _softmax(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, dim = bind(args, {**kwargs, "input": kwargs.get("input", kwargs.get("self"))}, "input", "dim")[:2]
    value = rec.value(x)
    if value is None or type(dim) is not int or x.dim() < 2 or dim % x.dim() == 0:
        return _taylor(rec, func, args, kwargs)
    out = func(*args, **kwargs)
    rec.add(Softmax(value, dim % x.dim()), out, nonnegative=True)
    return out


@records(F.log_softmax, F.lp_pool1d, F.lp_pool2d, F.lp_pool3d)
def _taylor(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = func(*args, **kwargs)
    rec.add(Taylor(recorded(rec, args, kwargs), func, args, kwargs), out)
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
