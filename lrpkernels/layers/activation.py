"""Activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Multipliers, Op, bind, records

if TYPE_CHECKING:
    from ..rules.base import Rule
    from ..tape import Tape


class Relu(Op):
    """u = max(z, 0)."""

    kind = "relu"
    module_type = nn.ReLU

    def propagate(self, multipliers: list[Tensor | None], rule: Rule) -> Multipliers:
        return (rule.relu(self, multipliers[0]),)


@records(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _relu(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, inplace = bind(args, kwargs, "input", "inplace", inplace=False)
    out = torch.relu(x)
    tape.add(Relu(tape.value(x)), out, nonnegative=True)
    if inplace or func is torch.relu_ or func is Tensor.relu_:
        tape.replace(x, out)
    return out
