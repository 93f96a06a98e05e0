"""Convolutions, dense layers and batch norm."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .program import Program
from .steps import Shape, Step, is_image

_CONV = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
_TRANSPOSED = {
    1: (nn.ConvTranspose1d, F.conv_transpose1d),
    2: (nn.ConvTranspose2d, F.conv_transpose2d),
    3: (nn.ConvTranspose3d, F.conv_transpose3d),
}


class Conv(Step):
    frequency = 5.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        if not is_image(shape):
            return None
        smallest = min(shape[1:])
        kernel, dilation = rng.randint(1, 3), rng.choice([1, 1, 2])
        mode = rng.choice(["zeros", "zeros", "zeros", "circular", "reflect", "replicate"])
        padding: Any = rng.choice([0, 1, "same", "valid"])
        stride = 1 if padding == "same" else rng.choice([1, 1, 2])
        reach = dilation * (kernel - 1) + 1
        if padding in (0, "valid") and reach > smallest:
            kernel = dilation = 1
        if padding == 1 and (reach > smallest + 2 or (mode != "zeros" and smallest < 2)):
            kernel = dilation = 1
        if padding == "same" and dilation * (kernel - 1) % 2:  # EvenSame
            padding = 0 if reach <= smallest else 1
        if padding == "same" and mode != "zeros" and dilation * (kernel - 1) >= smallest:
            mode = "zeros"
        groups = rng.choice([1, 1, shape[0]])
        out = groups * rng.randint(1, 2) if groups > 1 else rng.randint(1, 4)
        form = "module" if mode != "zeros" else rng.choice(["module", "function", "keywords"])
        return {
            "kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups, "out": out, "mode": mode,
            "bias": rng.random() < 0.6, "form": form,
        }  # fmt: skip

    def build(self, training: bool) -> None:
        o = self.options
        module, self.function = _CONV[len(self.shape) - 1]
        conv = module(
            self.shape[0], o["out"], o["kernel"], o["stride"], o["padding"], o["dilation"], o["groups"], o["bias"], o["mode"],
            dtype=torch.float64,
        )  # fmt: skip
        with torch.no_grad():
            for p in conv.parameters():
                p.copy_(0.6 * torch.randn(p.shape, generator=self.generator, dtype=torch.float64))
        self.conv = conv

    def _slide(self) -> dict[str, Any]:
        return {name: self.options[name] for name in ("stride", "padding", "dilation", "groups")}

    def forward(self, x: Tensor) -> Tensor:
        o, conv = self.options, self.conv
        if o["form"] == "module":
            return conv(x)
        if o["form"] == "function":
            return self.function(x, conv.weight, conv.bias, o["stride"], o["padding"], o["dilation"], o["groups"])
        return self.function(input=x, weight=conv.weight, bias=conv.bias, **self._slide())

    def mean(self, ref: Program, x: int) -> int:
        slide, mode = self._slide(), self.options["mode"]
        if mode != "zeros" and slide["padding"] not in (0, "valid"):
            pads = self.conv._reversed_padding_repeated_twice
            x = ref.vjp([x], lambda v: F.pad(v, pads, mode=mode), "move")
            slide["padding"] = 0
        return ref.linear(x, lambda v, w, b: self.function(v, w, b, **slide), self.conv.weight, self.conv.bias)


class EvenSame(Conv):
    """padding="same" with an even reach, whose one-sided pad is part of the layer."""

    frequency = 1.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        found = super().draw(rng, shape)
        if found is not None:
            found.update(kernel=2, dilation=1, padding="same", stride=1, mode="zeros")
        return found


class ConvTranspose(Step):
    frequency = 1.5

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        if not is_image(shape) or max(shape[1:]) > 3:
            return None
        stride = rng.choice([1, 2])
        groups = rng.choice([1, shape[0]])
        return {
            "kernel": rng.randint(max(1, stride), 3), "stride": stride, "padding": 0 if min(shape[1:]) < 2 else rng.choice([0, 1]),
            "output_padding": rng.choice([0, 1]) if stride == 2 else 0, "groups": groups, "bias": rng.random() < 0.6,
            "out": groups * rng.randint(1, 2), "dilation": 1, "form": rng.choice(["module", "function"]),
        }  # fmt: skip

    def build(self, training: bool) -> None:
        o = self.options
        _, self.function = _TRANSPOSED[len(self.shape) - 1]
        kernel = (o["kernel"],) * (len(self.shape) - 1)
        self.weight = self.parameter(self.shape[0], o["out"] // o["groups"], *kernel, scale=0.6)
        self.bias = self.parameter(o["out"], scale=0.6) if o["bias"] else None

    def _slide(self) -> dict[str, Any]:
        return {name: self.options[name] for name in ("stride", "padding", "output_padding", "groups", "dilation")}

    def forward(self, x: Tensor) -> Tensor:
        if self.options["form"] == "function":
            return self.function(x, self.weight, self.bias, *self._slide().values())
        return self.function(x, self.weight, self.bias, **self._slide())

    def mean(self, ref: Program, x: int) -> int:
        return ref.linear(x, lambda v, w, b: self.function(v, w, b, **self._slide()), self.weight, self.bias)


class Linear(Step):
    frequency = 3.0
    forms = ("module", "function", "matmul", "operator", "mm")

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        form = rng.choice(cls.forms)
        if len(shape) > 1 and form == "mm":
            form = "function"
        return {"out": rng.randint(1, 5), "bias": rng.random() < 0.7, "form": form}

    def build(self, training: bool) -> None:
        self.weight = self.parameter(self.options["out"], self.shape[-1], scale=0.6)
        self.bias = self.parameter(self.options["out"], scale=0.6) if self.options["bias"] else None

    def forward(self, x: Tensor) -> Tensor:
        form, weight, bias = self.options["form"], self.weight, self.bias
        if form in ("module", "function"):
            return F.linear(x, weight, bias)
        if form == "matmul":
            out = torch.matmul(x, weight.t())
        elif form == "operator":
            out = x @ weight.t()
        else:
            out = torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())
            return out
        return out if bias is None else out + bias

    def mean(self, ref: Program, x: int) -> int:
        if self.options["form"] in ("matmul", "operator"):
            y = ref.linear(x, lambda v, w, b: F.linear(v, w, b), self.weight, None, -1)
            return y if self.bias is None else ref.add([(y, 1.0)], self.bias)
        return ref.linear(x, lambda v, w, b: F.linear(v, w, b), self.weight, self.bias, -1)


class MatrixProduct(Step):
    """A product with a constant matrix, of several constants, or by another one for each place."""

    frequency = 3.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        forms = ["left", "einsum", "bmm", "tensordot", "two constants", "places"]
        return {"form": rng.choice(forms), "out": rng.randint(1, 4)} if len(shape) == 2 else None

    def build(self, training: bool) -> None:
        places = self.shape[1:] if self.options["form"] == "places" else ()
        self.weight = self.parameter(self.options["out"], self.shape[0], *places, scale=0.6)
        self.second = self.parameter(self.shape[0], self.shape[0], scale=0.6)

    def forward(self, x: Tensor) -> Tensor:
        form, w = self.options["form"], self.weight
        if form == "tensordot":
            return torch.tensordot(x, w, ([1], [1])).transpose(1, 2)
        if form == "two constants":
            return torch.einsum("oc,cp,bpd->bod", w, self.second, x)
        if form == "places":
            return torch.einsum("ocd,bcd->bod", w, x)
        if form == "left":
            return w @ x
        if form == "bmm":
            return torch.bmm(w.expand(len(x), *w.shape), x)
        return torch.einsum("oc,bcd->bod", w, x)

    def mean(self, ref: Program, x: int) -> int:
        form = self.options["form"]
        if form == "tensordot":
            y = ref.linear(x, lambda v, w, b: (w @ v).transpose(1, 2), self.weight, None, -1)
            return ref.vjp([y], lambda v: v.transpose(1, 2), "move")
        if form == "places":
            return ref.linear(x, lambda v, w, b: torch.einsum("ocd,bcd->bod", w, v), self.weight)
        weight = self.weight @ self.second if form == "two constants" else self.weight
        return ref.linear(x, lambda v, w, b: w @ v, weight)


class BatchNorm(Step):
    frequency = 4.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        affine = rng.random() < 0.8
        return {"affine": affine, "form": rng.choice(["module", "function"]), "eps": rng.choice([1e-5, 1e-3])}

    def build(self, training: bool) -> None:
        kind = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d, 4: nn.BatchNorm3d}[len(self.shape)]
        norm = kind(self.shape[0], eps=self.options["eps"], affine=self.options["affine"], dtype=torch.float64)
        norm.running_mean.copy_(0.5 * self.constant(self.shape[0]))
        norm.running_var.copy_(0.5 + self.constant(self.shape[0]).square())
        with torch.no_grad():
            for p in norm.parameters():
                p.add_(0.5 * torch.randn(p.shape, generator=self.generator, dtype=torch.float64))
        self.norm = norm
        self.before = norm.running_mean.clone(), norm.running_var.clone()

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        if self.options["form"] == "module":
            return n(x)
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps)

    def mean(self, ref: Program, x: int) -> int:
        mean, var = self.before
        return ref.batch_norm(x, self.norm.weight, self.norm.bias, mean, var, self.norm.eps, self.training)
