"""Models whose calls are always the same: their Python code runs once for each form of input, later passes run its PyTorch calls alone.

Recording looks at every PyTorch function that a model calls. Seen once, the list of these calls with their arguments can be run again
without modules, hooks and the ``TorchFunctionMode``, which on small layers cost more than the layers themselves. Every call goes
through its own recorder as in any other recording, so that batch-norm statistics move and dropout masks are drawn anew.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .composite import Composite, as_composite
from .errors import UnsupportedOperationError
from .rules import Rule

if TYPE_CHECKING:
    from .trace import Trace


class StaticCalls:
    """The calls of one model, by the form of its input (shapes, strides, dtypes, device) and its state (training, gradients, autocast).

    For :func:`lrpkernels.record`, which fills it. The model must make the same PyTorch calls whenever these are the same; its modules
    must stay what they are, numbers such as the p of a dropout included (parameters may be trained, loaded and replaced). Forward
    hooks and other Python code of the model do not run again. A copy of this object, or a pickled one, knows no calls.
    """

    def __init__(self) -> None:
        self._model: Callable[[], nn.Module | None] = lambda: None
        self._modules: list[nn.Module] = []
        self._traces: dict[Any, Trace] = {}

    def __reduce__(self) -> Any:
        return StaticCalls, ()

    def key(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        kwargs: Mapping[str, Any],
        demand: Any,
        checkpoint: bool,
    ) -> Any:
        """All that the calls and what is kept of them depend on.

        Raises:
            ValueError: another model.
            UnsupportedOperationError: an argument beside the inputs is no plain value.
        """
        if not self._modules:
            self._model, self._modules = weakref.ref(model), [*model.modules()]
        if model is not self._model():
            raise ValueError("static: these calls belong to another model; make a StaticCalls for each")
        for name, value in kwargs.items():
            if isinstance(value, Tensor) or not is_plain(value):
                raise UnsupportedOperationError(
                    f"static: expected {name} to be a number, a string or None, got {type(value).__name__}; leave `static` out"
                )
        device = inputs[0].device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        forms = [(x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in inputs]
        training = [module.training for module in self._modules]
        state = (torch.is_grad_enabled(), autocast, checkpoint)
        return (*forms, *training, *state, *sorted(kwargs.items()), demand)

    def find(self, key: Any) -> Trace | None:
        """The calls of that key, if they are known and the model's parameters are where they were."""
        trace = self._traces.get(key)
        return trace if trace is not None and trace.is_current() else None

    def keep(self, key: Any, trace: Trace) -> None:
        self._traces[key] = trace


def demand_key(composites: Sequence[Composite | Rule] | None, at: Sequence[str]) -> Any:
    """What the values to keep depend on; rules without selectors are equal where their settings are."""
    if composites is None:
        return None
    found: list[Any] = []
    for composite in map(as_composite, composites):
        found += [_settings(composite.first), _settings(composite.default)]
        found += [(selector, _settings(rule)) for selector, rule in composite.layers.items()]
    return (*found, *at)


def _settings(rule: Rule | None) -> Any:
    """What stands for a rule in a key: itself, or its text if it holds lists (the bounds of ZBox may be some)."""
    try:
        hash(rule)
    except TypeError:
        return type(rule), repr(rule)
    return rule


def is_plain(value: Any) -> bool:
    """Whether a value can be compared with that of another call."""
    return value is None or isinstance(value, (int, float, bool, str, torch.dtype, torch.device))
