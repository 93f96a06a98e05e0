"""Norms of one sample, softmax, attention."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .program import Program
from .steps import Shape, Step, is_image, is_sequence


class SampleNorm(Step):
    frequency = 2.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        forms = ["layer", "layer all", "rms", "written out", "quotient"] if shape[-1] > 1 else []
        forms += ["normalize"] if shape[0] > 1 else []
        if is_image(shape) and torch.Size(shape[1:]).numel() > 1:
            forms += ["group", "instance"]
        return {"form": rng.choice(forms), "affine": rng.random() < 0.7} if forms else None

    def build(self, training: bool) -> None:
        form, channels = self.options["form"], self.shape[0]
        size = {"layer all": self.shape, "layer": self.shape[-1:], "rms": self.shape[-1:]}.get(form, (channels,))
        affine = self.options["affine"] and form not in ("normalize", "written out", "quotient")
        self.weight = self.parameter(*size, scale=0.4, offset=1.0) if affine else None
        self.bias = self.parameter(*size, scale=0.4) if affine and form != "rms" else None
        self.eps = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        form = self.options["form"]
        if form == "group":
            return F.group_norm(x, self._groups(), self.weight, self.bias, self.eps)
        if form == "instance":
            return F.instance_norm(x, None, None, self.weight, self.bias, True, 0.1, self.eps)
        if form == "normalize":
            return F.normalize(x)
        if form == "written out":
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        if form == "quotient":
            return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps)
        if form == "rms":
            return F.rms_norm(x, self.shape[-1:], self.weight, self.eps)
        return F.layer_norm(x, self.shape if form == "layer all" else self.shape[-1:], self.weight, self.bias, self.eps)

    def _groups(self) -> int:
        return 2 if self.shape[0] % 2 == 0 else 1

    def mean(self, ref: Program, x: int) -> int:
        form, shape = self.options["form"], self.shape
        groups = {"group": self._groups(), "instance": shape[0], "layer all": 1}.get(form)

        def normalized(v: Tensor, statistics: Tensor) -> Tensor:
            if form == "normalize":
                return v / statistics.square().sum(1, keepdim=True).sqrt()
            if groups is None:
                of, v2 = statistics, v
            else:
                of, v2 = (t.reshape(len(t), groups, -1) for t in (statistics, v))
            if form in ("rms", "written out", "quotient"):
                out = v2 / (of.square().mean(-1, keepdim=True) + self.eps).sqrt()
            else:
                deviation = (of.var(-1, unbiased=False, keepdim=True) + self.eps).sqrt()
                out = (v2 - v2.mean(-1, keepdim=True)) / deviation
            out = out.reshape(v.shape)
            per_channel = form in ("group", "instance")
            for tensor, how in ((self.weight, torch.mul), (self.bias, torch.add)):
                if tensor is not None:
                    out = how(out, tensor.view(-1, *(1,) * (len(shape) - 1)) if per_channel else tensor)
            return out

        return ref.norm(x, normalized)


class Softmax(Step):
    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["softmax", "log_softmax"])} if shape[-1] > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x, -1) if self.options["form"] == "softmax" else F.log_softmax(x, -1)

    def mean(self, ref: Program, x: int) -> int:
        return ref.softmax(x, -1) if self.options["form"] == "softmax" else ref.vjp([x], self.forward)


class Attention(Step):
    """Self-attention over a sequence, spelled three ways."""

    frequency = 4.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        if not is_sequence(shape) or shape[0] < 2:
            return None
        form = rng.choice(["fused", "eager", "module"])
        return {"form": form, "mask": rng.choice(["none", "additive"] + (["causal"] if form != "eager" else []))}

    def build(self, training: bool) -> None:
        d = self.shape[1]
        self.projections = nn.ParameterList([self.parameter(d, d, scale=0.7) for _ in range(4)])
        self.attention = nn.MultiheadAttention(d, 1, bias=False, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.cat(list(self.projections)[:3]))
            self.attention.out_proj.weight.copy_(self.projections[3])
        self.register_buffer("extra", self.constant(self.shape[0], self.shape[0]))

    def _mask(self) -> Tensor | None:
        kind, n = self.options["mask"], self.shape[0]
        if kind == "causal":
            return torch.zeros(n, n, dtype=torch.float64).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
        return self.extra if kind == "additive" else None

    def forward(self, x: Tensor) -> Tensor:
        form, mask = self.options["form"], self._mask()
        if form == "module":
            return self.attention(x, x, x, need_weights=False, attn_mask=mask)[0]
        q, k, v = (F.linear(x, w) for w in list(self.projections)[:3])
        if form == "fused":
            return F.linear(F.scaled_dot_product_attention(q, k, v, attn_mask=mask), self.projections[3])
        scores = q @ k.transpose(-2, -1) * self.shape[1] ** -0.5
        scores = scores if mask is None else scores + mask
        return F.linear(torch.softmax(scores, -1) @ v, self.projections[3])

    def weights(self) -> tuple[Tensor, ...]:
        if self.options["form"] != "module":
            return tuple(self.projections)
        return (*self.attention.in_proj_weight.chunk(3), self.attention.out_proj.weight)

    def mean(self, ref: Program, x: int) -> int:
        mask, weights = self._mask(), self.weights()
        q, k, v = (ref.linear(x, lambda a, w, b: F.linear(a, w), weight, None, -1) for weight in weights[:3])
        if self.options["form"] == "eager":
            # x * gradient: the scale is a constant factor, the mask a constant added; sums of one term pass G on.
            scores = ref.matrix_product([q, k], lambda a, b: a @ b.transpose(-2, -1))
            scores = ref.scale(scores, self.shape[1] ** -0.5)
            scores = scores if mask is None else ref.add([(scores, 1.0)], mask)
        else:
            scores = ref.matrix_product([q, k], lambda a, b: a @ b.transpose(-2, -1) * self.shape[1] ** -0.5)
            # inside the fused form the mask is part of the softmax, whatever the rule of sums
            scores = scores if mask is None else ref.vjp([scores], lambda s: s + mask)
        p = ref.softmax(scores, -1)
        out = ref.matrix_product([p, v], torch.matmul, [False, True])
        return ref.linear(out, lambda a, w, b: F.linear(a, w), weights[3], None, -1)


class AttentionForms(Step):
    """Fused attention of several heads, with fewer heads of keys and values, and with rows that are masked as a whole."""

    frequency = 3.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        if not is_sequence(shape) or shape[0] < 2:
            return None
        return {"form": rng.choice(["grouped", "broadcast", "masked row", "heads"])}

    def build(self, training: bool) -> None:
        d, form = self.shape[1], self.options["form"]
        self.heads = {"grouped": (4, 2), "broadcast": (2, 1), "masked row": (1, 1), "heads": (2, 2)}[form]
        sizes = (self.heads[0], self.heads[1], self.heads[1])
        self.projections = nn.ParameterList([self.parameter(2 * n, d, scale=0.7) for n in sizes])
        self.mixed = self.parameter(d, 2 * self.heads[0], scale=0.7)
        mask = torch.ones(self.shape[0], self.shape[0], dtype=torch.bool)
        mask[0] = False
        self.register_buffer("mask", mask if form == "masked row" else torch.ones_like(mask))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, 2)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self._split(F.linear(x, w), n)
            for w, n in zip(self.projections, (self.heads[0], *(self.heads[1],) * 2), strict=True)
        )
        form = self.options["form"]
        mask = self.mask if form == "masked row" else None
        if form == "broadcast":
            out = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=form == "grouped")
        return F.linear(out.transpose(1, 2).flatten(2), self.mixed)

    def mean(self, ref: Program, x: int) -> int:
        parts = [ref.linear(x, lambda a, w, b: F.linear(a, w), w, None, -1) for w in self.projections]
        counts = (self.heads[0], self.heads[1], self.heads[1])
        q, k, v = (ref.vjp([p], lambda a, n=n: self._split(a, n), "move") for p, n in zip(parts, counts, strict=True))
        times = self.heads[0] // self.heads[1]
        if times > 1:
            k, v = (ref.vjp([p], lambda a: a.repeat_interleave(times, 1), "move") for p in (k, v))
        scores = ref.matrix_product([q, k], lambda a, b: a @ b.transpose(-2, -1) * 0.5**0.5)
        masked = ~self.mask
        weights = ref.vjp([scores], lambda s: torch.softmax(s.masked_fill(masked, -1e300), -1).masked_fill(masked, 0.0))
        out = ref.matrix_product([weights, v], torch.matmul, [False, True])
        out = ref.vjp([out], lambda a: a.transpose(1, 2).flatten(2), "move")
        return ref.linear(out, lambda a, w, b: F.linear(a, w), self.mixed, None, -1)


class MaskedAttention(Attention):
    """Written out, with a mask of minus infinities added to the scores."""

    frequency = 1.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return None if super().draw(rng, shape) is None else {"form": "eager", "mask": "causal"}
