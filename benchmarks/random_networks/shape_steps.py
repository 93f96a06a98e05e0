"""Data movement, pooling, linear functions without a rule."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .program import Program
from .steps import Shape, Step, is_image

# Name -> (whether it fits, what runs with the step as its first argument).
_MOVES: dict[str, tuple[Callable[[Shape], bool], Callable[[Any, Tensor], Tensor]]] = {
    "flatten": (lambda s: True, lambda _, x: torch.flatten(x, 1)),
    "view": (lambda s: True, lambda _, x: x.reshape(len(x), -1, 1)),
    "permute": (lambda s: len(s) > 1, lambda _, x: x.permute(0, *reversed(range(1, x.dim())))),
    "transpose": (lambda s: len(s) > 1, lambda _, x: x.transpose(1, -1)),
    "mT": (lambda s: len(s) > 1, lambda _, x: x.mT),
    "flip": (lambda s: True, lambda _, x: x.flip(-1)),
    "roll": (lambda s: True, lambda _, x: torch.roll(x, 1, -1)),
    "slice": (lambda s: s[-1] > 1, lambda _, x: x[..., 1:]),
    "steps": (lambda s: s[0] > 1, lambda _, x: x[:, ::2]),
    "narrow": (lambda s: s[-1] > 1, lambda _, x: x.narrow(-1, 0, x.shape[-1] - 1)),
    "select": (lambda s: len(s) > 1, lambda _, x: x.select(-1, 0)),
    "index": (lambda s: True, lambda _, x: x[:, [0, -1, 0]]),
    "index_select": (lambda s: True, lambda _, x: x.index_select(1, torch.tensor([0, x.shape[1] - 1]))),
    "gather": (lambda s: True, lambda _, x: x.gather(1, torch.zeros_like(x, dtype=torch.long))),
    "pad": (lambda s: True, lambda _, x: F.pad(x, (1, 2))),
    "reflect": (lambda s: is_image(s, 1, 2) and min(s[1:]) > 1, lambda _, x: F.pad(x, (1, 1), mode="reflect") if x.dim() == 3
                else F.pad(x, (1, 0, 0, 1), mode="reflect")),
    "where": (lambda s: True, lambda m, x: torch.where(m.kept, x, torch.zeros_like(x))),
    "masked_fill": (lambda s: True, lambda m, x: x.masked_fill(m.kept, 0.0)),
    "repeat": (lambda s: s[0] < 4, lambda _, x: x.repeat(1, 2, *(1,) * (x.dim() - 2))),
    "repeat_interleave": (lambda s: s[-1] < 4, lambda _, x: x.repeat_interleave(2, -1)),
    "expand": (lambda s: s[0] < 4, lambda _, x: x.unsqueeze(1).expand(-1, 2, *x.shape[1:]).flatten(1, 2)),
    "pixel_shuffle": (lambda s: len(s) == 3 and s[0] % 4 == 0, lambda _, x: F.pixel_shuffle(x, 2)),
    "pixel_unshuffle": (lambda s: len(s) == 3 and s[1] % 2 == s[2] % 2 == 0, lambda _, x: F.pixel_unshuffle(x, 2)),
    "unfold": (lambda s: len(s) == 3 and min(s[1:]) > 1 and s[0] < 3, lambda _, x: F.unfold(x, 2)),
    "tril": (lambda s: len(s) > 1, lambda _, x: x.tril()),
    "sort": (lambda s: True, lambda _, x: x.sort(-1).values),
    "clone": (lambda s: True, lambda _, x: x.clone()),
    "stack": (lambda s: len(s) < 3 and s[0] < 4, lambda _, x: torch.stack([x, x.flip(1)], 1).flatten(1, 2)),
    "windows": (lambda s: len(s) == 2 and s[1] % 2 == 0, lambda _, x: x.unflatten(2, (-1, 2)).transpose(1, 2).flatten(2)),
}  # fmt: skip


class Move(Step):
    """Data movement: every output is a copy of one input, or zero."""

    frequency = 5.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice([name for name, (fits, _) in _MOVES.items() if fits(shape)])}

    def _run(self, x: Tensor) -> Tensor:
        return _MOVES[self.options["form"]][1](self, x)

    def build(self, training: bool) -> None:
        if not _MOVES[self.options["form"]][0](self.shape):
            raise ValueError("does not fit")
        self.register_buffer("kept", self.constant(*self.shape) > -0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x)

    def mean(self, ref: Program, x: int) -> int:
        value = ref.values[x]
        if self._run(value) is value:
            return x
        copy = {"copy": True} if self.options["form"] == "clone" else {}  # the value itself
        return ref.vjp([x], self._run, "move", **copy)


# Constants among what moves: values that may be negative though what is moved is not.
_FILLS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "pad": lambda _, x: F.pad(x, (1, 1), value=-0.7),
    "where": lambda m, x: torch.where(m.kept, x, -0.4 * torch.ones_like(x)),
    "masked_fill": lambda m, x: x.masked_fill(m.kept, -0.3),
    "cat": lambda _, x: torch.cat([x, -torch.ones_like(x[:, :1])], 1),
}


class Fill(Step):
    """Data movement with negative constants."""

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(list(_FILLS))}

    def build(self, training: bool) -> None:
        self.register_buffer("kept", self.constant(*self.shape) > -0.3)

    def forward(self, x: Tensor) -> Tensor:
        return _FILLS[self.options["form"]](self, x)

    def mean(self, ref: Program, x: int) -> int:
        return ref.vjp([x], self.forward, "move")


class NegativePool(Step):
    """Average pooling by a negative divisor."""

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {} if len(shape) == 3 and min(shape[1:]) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, 1, divisor_override=-3)

    def mean(self, ref: Program, x: int) -> int:
        weight = torch.full((1, 1, 2, 2), 1 / 3, dtype=torch.float64)

        def pooled(v: Tensor) -> Tensor:
            return F.conv2d(v, weight.expand(v.shape[1], 1, 2, 2), groups=v.shape[1])

        return ref.scale(ref.average(x, pooled), -1.0)  # an average has weights >= 0; the sign is a factor


def _shifted(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[..., 1:] = x[..., :-1]
    return y


def _copied(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    return y


_WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "slice": _shifted,
    "copy_": _copied,
    "fft": lambda x: torch.fft.ifft(torch.fft.fft(x)).real,
    "new buffer": lambda x: x.new_zeros(x.shape).add_(x),
    "out": lambda x: torch.mul(x, 1.0, out=torch.empty_like(x)),
}


class Write(Step):
    """Values written into tensors that were not recorded; complex numbers in between."""

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(list(_WRITES))}

    def forward(self, x: Tensor) -> Tensor:
        return _WRITES[self.options["form"]](x)

    def mean(self, ref: Program, x: int) -> int:
        form = self.options["form"]
        if form == "new buffer":  # zeros, a constant, plus x
            return ref.add([(x, 1.0)])
        if form == "out":
            return ref.scale(x, 1.0)
        return ref.vjp([x], _shifted if form == "slice" else torch.clone, "vjp" if form == "fft" else "move")


class Split(Step):
    """Several outputs."""

    frequency = 1.5

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["split", "chunk", "tensor_split"])} if shape[0] > 1 else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        form, n = self.options["form"], x.shape[1]
        if form == "split":
            return x.split([1, n - 1], 1)
        return x.chunk(2, 1) if form == "chunk" else x.tensor_split([1], 1)

    def mean(self, ref: Program, x: int) -> list[int]:
        return ref.vjp([x], self.forward, "move")


class Fork(Step):
    """A value that two later steps read: the same, and its channels turned around."""

    frequency = 2.0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x * 1.0, x.flip(1)

    def mean(self, ref: Program, x: int) -> list[int]:
        return [ref.scale(x, 1.0), ref.vjp([x], lambda v: v.flip(1), "move")]


class Cat(Step):
    arity = 2
    frequency = 2.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["channels", "last", "constant"])}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        form = self.options["form"]
        if form == "constant":
            return torch.cat([x, torch.ones_like(x[:, :1]), y], 1)
        return torch.cat([x, y], 1 if form == "channels" else -1)

    def mean(self, ref: Program, x: int, y: int) -> int:
        return ref.vjp([x, y], self.forward, "move")


_ADAPTIVE = {2: F.adaptive_avg_pool1d, 3: F.adaptive_avg_pool2d, 4: F.adaptive_avg_pool3d}
_AVERAGE = {2: F.avg_pool1d, 3: F.avg_pool2d, 4: F.avg_pool3d}
_MAXIMUM = {2: F.max_pool1d, 3: F.max_pool2d, 4: F.max_pool3d}
_ADAPTIVE_MAXIMUM = {2: F.adaptive_max_pool1d, 3: F.adaptive_max_pool2d, 4: F.adaptive_max_pool3d}


class AveragePool(Step):
    frequency = 2.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        forms = ["mean"] if len(shape) > 1 else []
        if is_image(shape) and min(shape[1:]) > 1:
            forms += ["windows", "padded", "adaptive", "global", "sum"]
        return {"form": rng.choice(forms)} if forms else None

    def forward(self, x: Tensor) -> Tensor:
        form, n = self.options["form"], len(self.shape)
        dims = tuple(range(2, n + 1))
        if form == "windows":
            return _AVERAGE[n](x, 2, 1)
        if form == "padded":
            return _AVERAGE[n](x, 2, 2, 1, False, False)
        if form == "adaptive":
            return _ADAPTIVE[n](x, 2)
        if form == "global":
            return x.mean(dims)
        return x.sum(dims) * 0.5 if form == "sum" else torch.mean(x, -1, keepdim=True)

    def mean(self, ref: Program, x: int) -> int:
        if self.options["form"] == "sum":
            dims = tuple(range(2, len(self.shape) + 1))
            return ref.scale(ref.average(x, lambda v: v.sum(dims)), 0.5)
        return ref.average(x, self.forward)


class MaxPool(Step):
    frequency = 2.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        if not is_image(shape) or min(shape[1:]) < 2:
            return None
        return {"form": rng.choice(["windows", "overlapping", "padded", "adaptive", "ceil"])}

    def forward(self, x: Tensor) -> Tensor:
        form, n = self.options["form"], len(self.shape)
        if form == "adaptive":
            return _ADAPTIVE_MAXIMUM[n](x, 1)
        if form == "windows":
            return _MAXIMUM[n](x, 2)
        if form == "padded":
            return _MAXIMUM[n](x, 3, 2, 1)
        return _MAXIMUM[n](x, 2, 1) if form == "overlapping" else _MAXIMUM[n](x, 2, ceil_mode=True)

    def mean(self, ref: Program, x: int) -> int:
        return ref.winner(x, self.forward)


class Maximum(Step):
    """The larger of two, and the largest over a dimension: data movement."""

    arity = 2

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["maximum", "minimum", "amax", "max"])}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        form = self.options["form"]
        if form == "amax":
            return torch.amax(torch.stack([x, y], 1), 1)
        return torch.stack([x, y], 1).max(1).values if form == "max" else getattr(torch, form)(x, y)

    def mean(self, ref: Program, x: int, y: int) -> int:
        return ref.vjp([x, y], self.forward, "move")


class LinearFunction(Step):
    """Linear maps that follow their transpose under every rule."""

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        forms = ["cumsum"] + (["nearest"] if is_image(shape) and max(shape[1:]) < 4 else [])
        return {"form": rng.choice(forms + (["bilinear"] if len(shape) == 3 and max(shape[1:]) < 4 else []))}

    def forward(self, x: Tensor) -> Tensor:
        form = self.options["form"]
        return x.cumsum(-1) if form == "cumsum" else F.interpolate(x, scale_factor=2, mode=form)

    def mean(self, ref: Program, x: int) -> int:
        return ref.vjp([x], self.forward, "vjp" if self.options["form"] == "cumsum" else "resampling")
