"""Activations, sums, factors, gates and quotients."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .program import Program
from .steps import Shape, Step

_RELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "function": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "in place method": lambda x: x.relu_(),
}


class Relu(Step):
    frequency = 5.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["module", "in place", *_RELUS])}

    def build(self, training: bool) -> None:
        form = self.options["form"]
        self.run = _RELUS.get(form) or nn.ReLU(inplace=form == "in place")

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def mean(self, ref: Program, x: int) -> int:
        return ref.relu(x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "softplus": F.softplus,
    "mish": F.mish,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "relu6": F.relu6,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "logsigmoid": F.logsigmoid,
    "abs": torch.abs,
    "square": torch.square,
    "power": lambda x: x**3,
    "sin": torch.sin,
    "atan": torch.atan,
    "clamp": lambda x: x.clamp(-0.5, 0.7),
}


class Activation(Step):
    frequency = 3.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(list(_ACTIVATIONS))}

    def forward(self, x: Tensor) -> Tensor:
        return _ACTIVATIONS[self.options["form"]](x)

    def mean(self, ref: Program, x: int) -> int:
        form = self.options["form"]
        return ref.activation(x, _ACTIVATIONS[form], gate=form in ("sigmoid", "hardsigmoid"))


class PRelu(Step):
    def build(self, training: bool) -> None:
        self.slope = self.parameter(self.shape[0], scale=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.slope)

    def mean(self, ref: Program, x: int) -> int:
        return ref.activation(x, lambda v: F.prelu(v, self.slope))


_WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (lambda x: x * torch.sigmoid(x), F.silu),
    "hardswish": (lambda x: x * F.relu6(x + 3) / 6, F.hardswish),
    "hardswish hardtanh": (lambda x: x * F.hardtanh(x + 3, 0, 6) / 6, F.hardswish),
    "hardswish clamp": (lambda x: x * (x + 3).clamp(0, 6) / 6, F.hardswish),
    "gelu erf": (lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)), F.gelu),
    "gelu tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "silu quotient": (lambda x: x / (1 + torch.exp(-x)), F.silu),
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), F.softplus),
    "square": (lambda x: x * x, torch.square),
    "ratio": (lambda x: x / x.abs(), torch.sign),
    "tanh": (lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1), torch.tanh),
    "relu": (lambda x: x * torch.relu(x) / (1 + x.abs()), lambda x: x * x.clamp(min=0) / (1 + x.abs())),
}


class WrittenOut(Step):
    """Activations spelled as products and quotients of functions of one value."""

    frequency = 3.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(list(_WRITTEN))}

    def forward(self, x: Tensor) -> Tensor:
        return _WRITTEN[self.options["form"]][0](x)

    def mean(self, ref: Program, x: int) -> int:
        return ref.activation(x, _WRITTEN[self.options["form"]][1])


_SUMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "+": (lambda x, y: x + y, 1.0, 1.0),
    "-": (lambda x, y: x - y, 1.0, -1.0),
    "add": (torch.add, 1.0, 1.0),
    "method": (lambda x, y: x.add(y), 1.0, 1.0),
    "alpha": (lambda x, y: torch.add(x, y, alpha=0.5), 1.0, 0.5),
    "rsub": (lambda x, y: torch.rsub(x, y), -1.0, 1.0),
    "in place": (lambda x, y: x.add_(y), 1.0, 1.0),
    "in place -": (lambda x, y: x.sub_(y, alpha=2), 1.0, -2.0),
}


class Sum(Step):
    arity = 2
    frequency = 4.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(list(_SUMS))}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return _SUMS[self.options["form"]][0](x, y)

    def mean(self, ref: Program, x: int, y: int) -> int:
        _, left, right = _SUMS[self.options["form"]]
        return ref.add([(x, left), (y, right)])


class BroadcastSum(Step):
    """A branch plus its own mean over positions, broadcast."""

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {} if len(shape) > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(-1, keepdim=True)

    def mean(self, ref: Program, x: int) -> int:
        m = ref.average(x, lambda v: v.mean(-1, keepdim=True))
        return ref.add([(x, 1.0), (m, 1.0)])


class AddConstant(Step):
    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["number", "parameter", "from"])}

    def build(self, training: bool) -> None:
        self.added = self.parameter(*self.shape) if self.options["form"] == "parameter" else None

    def forward(self, x: Tensor) -> Tensor:
        form = self.options["form"]
        if form == "parameter":
            return x + self.added
        return x + 0.7 if form == "number" else 1.3 - x

    def mean(self, ref: Program, x: int) -> int:
        form = self.options["form"]
        if form == "parameter":
            assert self.added is not None
            return ref.add([(x, 1.0)], self.added)
        return ref.add([(x, 1.0)], 0.7) if form == "number" else ref.add([(x, -1.0)], 1.3)


class Factor(Step):
    frequency = 2.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["number", "divide", "negative", "parameter", "buffer", "in place"])}

    def build(self, training: bool) -> None:
        form = self.options["form"]
        self.factor = self.parameter(self.shape[-1]) if form == "parameter" else None
        if form == "buffer":
            self.register_buffer("fixed", self.constant(*self.shape))

    def _factor(self) -> Any:
        form = self.options["form"]
        if form == "parameter":
            return self.factor
        return (
            self.fixed
            if form == "buffer"
            else {"number": -0.8, "divide": 1 / 1.6, "negative": -1.0, "in place": 1.2}[form]
        )

    def forward(self, x: Tensor) -> Tensor:
        form = self.options["form"]
        if form == "divide":
            return x / 1.6
        if form == "negative":
            return -x
        return x.mul_(1.2) if form == "in place" else self._factor() * x

    def mean(self, ref: Program, x: int) -> int:
        return ref.scale(x, self._factor())


class Gate(Step):
    """A signal times a gate of its own shape, or one number per channel (squeeze-and-excite)."""

    arity = 2
    frequency = 2.0

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        forms = ["sigmoid", "hardsigmoid", "first"] + (
            ["squeeze"] if len(shape) > 1 and shape[1:].count(1) < len(shape) - 1 else []
        )
        return {"form": rng.choice(forms)}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        form = self.options["form"]
        if form == "squeeze":
            return x * torch.sigmoid(y.mean(tuple(range(2, y.dim())), keepdim=True))
        if form == "first":
            return torch.sigmoid(y) * x
        return x * (torch.sigmoid(y) if form == "sigmoid" else F.hardsigmoid(y))

    def mean(self, ref: Program, x: int, y: int) -> int:
        form = self.options["form"]
        if form == "squeeze":
            dims = tuple(range(2, len(self.shape) + 1))
            y = ref.average(y, lambda v: v.mean(dims, keepdim=True))
        return ref.product(x, ref.activation(y, F.hardsigmoid if form == "hardsigmoid" else torch.sigmoid, gate=True))


class ProductOfTwo(Step):
    """Two similar branches: half each."""

    arity = 2
    frequency = 2.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * torch.tanh(y)

    def mean(self, ref: Program, x: int, y: int) -> int:
        return ref.product(x, ref.activation(y, torch.tanh))


class Glu(Step):
    """A signal and its gate, the halves of one value."""

    @classmethod
    def draw(cls, rng: random.Random, shape: Shape) -> dict[str, Any] | None:
        return {"form": rng.choice(["glu", "chunk"])} if shape[0] % 2 == 0 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.options["form"] == "glu":
            return F.glu(x, 1)
        signal, gate = x.chunk(2, 1)
        return signal * gate.sigmoid()

    def mean(self, ref: Program, x: int) -> int:
        signal, gate = ref.vjp([x], lambda v: v.chunk(2, 1), "move")
        if self.options["form"] == "chunk":
            return ref.product(signal, ref.activation(gate, torch.sigmoid, gate=True))
        return ref.product(signal, ref.activation(gate, torch.sigmoid, eps=1e-6), [False, True])


class Swish(Step):
    """x * sigmoid(beta x) with a learned number for each channel."""

    def build(self, training: bool) -> None:
        self.beta = self.parameter(self.shape[0], *(1,) * (len(self.shape) - 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.beta * x) * x

    def mean(self, ref: Program, x: int) -> int:
        return ref.activation(x, lambda v: v * torch.sigmoid(self.beta * v))


class Quotient(Step):
    arity = 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x / (1.0 + y.square())

    def mean(self, ref: Program, x: int, y: int) -> int:
        return ref.quotient(x, ref.add([(ref.activation(y, torch.square), 1.0)], 1.0))


class ProductOfThree(Step):
    """A product of n similar branches: 1/n each."""

    arity = 2

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bi,bi,bi->bi", x.flatten(1), y.flatten(1), x.flatten(1).tanh()).view_as(x)

    def mean(self, ref: Program, x: int, y: int) -> int:
        t = ref.activation(x, torch.tanh)
        return ref.matrix_product([x, y, t], lambda a, b, c: a * b * c)


class Dropout(Step):
    """The reference draws the same masks in the same order, from the same seed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.4, self.training)

    def mean(self, ref: Program, x: int) -> int:
        if not self.training:
            return x
        return ref.scale(x, F.dropout(torch.ones_like(ref.values[x]), 0.4, True), drawn=True)
