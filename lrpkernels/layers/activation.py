"""Activations: relevance passes through them unchanged; the epsilon rule puts its stabilizer here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Arrived, Multipliers, Op, bind, records

if TYPE_CHECKING:
    from ..rules.base import Rule
    from ..tape import Tape, Value


class Relu(Op):
    """u = max(z, 0)."""

    kind = "relu"
    module_type = nn.ReLU

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.relu(self, multipliers[0]),)


@records(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _relu(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, inplace = bind(args, kwargs, "input", "inplace", inplace=False)
    out = torch.relu(x)
    tape.add(Relu(tape.known(x)), out, nonnegative=True)
    if inplace or func is torch.relu_ or func is Tensor.relu_:
        tape.replace(x, out)
    return out


class Activation(Op):
    """Any other elementwise a = f(z): R_z = R_a, so that the multiplier meets f(z) / z.

    Attributes:
        gate: the output is a weight between 0 and 1 (sigmoid and its kin); a product takes it for the gate, not for the signal.
    """

    kind = "activation"

    def __init__(self, input: Value, name: str, gate: bool) -> None:
        super().__init__(input)
        self.name, self.gate = name, gate

    def label(self) -> str:
        return self.name

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.activation(self, multipliers[0]),)


# Out-of-place function -> what else it is called; those that write in place end in an underscore.
_ACTIVATIONS: dict[Any, tuple[Any, ...]] = {
    F.relu6: (),
    F.leaky_relu: (F.leaky_relu_,),
    F.prelu: (torch.prelu, Tensor.prelu),
    F.rrelu: (F.rrelu_,),
    F.elu: (F.elu_,),
    F.selu: (F.selu_,),
    F.celu: (F.celu_,),
    F.gelu: (),
    F.silu: (),
    F.mish: (),
    F.hardswish: (),
    F.hardtanh: (F.hardtanh_,),
    F.hardshrink: (),
    F.softshrink: (),
    F.tanhshrink: (),
    F.softsign: (),
    F.softplus: (),
    F.logsigmoid: (),
    F.threshold: (F.threshold_,),  # type: ignore[attr-defined]
    torch.tanh: (Tensor.tanh, torch.tanh_, Tensor.tanh_, F.tanh),
    torch.clamp: (Tensor.clamp, Tensor.clip, torch.clip, torch.clamp_, Tensor.clamp_, Tensor.clamp_min, torch.clamp_min),
    torch.sigmoid: (Tensor.sigmoid, torch.sigmoid_, Tensor.sigmoid_, F.sigmoid),
    F.hardsigmoid: (),
    F.alpha_dropout: (),
    F.feature_alpha_dropout: (),
}  # fmt: skip
_GATES = (torch.sigmoid, F.hardsigmoid)
_NON_NEGATIVE = (F.relu6, torch.sigmoid, F.hardsigmoid, F.softplus)
_CANONICAL = {alias: function for function, aliases in _ACTIVATIONS.items() for alias in (function, *aliases)}


@records(*_CANONICAL)
def _activation(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    function = _CANONICAL[func]
    x = args[0] if args else kwargs["input"]
    options = {k: v for k, v in kwargs.items() if k != "inplace"}
    # The flag may be positional (F.relu6(x, True)); every function here has it last.
    flagged = bool(args) and isinstance(args[-1], bool) and func not in (F.alpha_dropout, F.feature_alpha_dropout)
    inplace = kwargs.get("inplace", flagged and args[-1]) or getattr(func, "__name__", "").endswith("_")
    named_clamp = getattr(func, "__name__", "") == "clamp_min"
    if named_clamp:
        function = torch.clamp_min
    out = function(*(args[:-1] if flagged else args), **options)
    if out is x:
        return out
    name = getattr(function, "__name__", "activation")
    op = Activation(tape.known(x), name, function in _GATES)
    tape.add(op, out, nonnegative=function in _NON_NEGATIVE)
    if inplace:
        tape.replace(x, out)
    return out
