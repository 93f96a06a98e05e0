"""What must still be so for the calls of a model to be those that were noted: its modules, their plain attributes, sizes of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.registry import leaves

_LISTS = (list, dict, set)
_NO_SETTINGS = (nn.Module, Tensor, *_LISTS, type, FunctionType, BuiltinFunctionType, MethodType, ModuleType)
_NEVER = object()
_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device, tuple, *_LISTS)
# Of a module: what does not change its forward pass.
_NO_MATTER = frozenset({
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks", "_non_persistent_buffers_set", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs",
})  # fmt: skip
# Functions that read numbers, or whose result's size follows from them: the calls that follow may depend on them.
READS_NUMBERS = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__", "__contains__", "is_nonzero",
    "equal", "allclose", "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "__repr__", "__str__",
    "__format__", "__deepcopy__", "__reduce_ex__", "__dlpack__", "data_ptr", "storage", "untyped_storage", "to_sparse",
    "_local_scalar_dense", "_unique2",
})  # fmt: skip


class ModuleGuard:
    """Whether the modules of a model, their hooks and their plain attributes are what they were.

    Attributes that the model itself changes while it runs (counters, tensors kept for later) do not count. To be made ahead of a pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = [(place, _copied(place)) for place in _places(model)]
        self._modules = [*model.modules()]
        self._types = [*map(type, self._modules)]
        # Where to look, how many attributes there are, those that count, and what these were.
        self._watched: list[tuple[dict[str, Any], int, Callable[[Any], Any], Any]] = []

    def settle(self) -> None:
        """The pass is over."""
        for place, before in self._before:
            names = [name for name, value in before.items() if _equal(place.get(name, _NEVER), value)]
            if names:
                pick = itemgetter(*names)
                self._watched.append((place, len(place), pick, pick(before)))
        self._before = []

    def holds(self) -> bool:
        """Whether nothing has changed since."""
        if [*map(type, self._modules)] != self._types:
            return False
        try:
            for place, size, pick, before in self._watched:
                if len(place) != size or pick(place) != before:
                    return False
        except (
            KeyError,
            RuntimeError,
            ValueError,
        ):  # gone; tensors and arrays that are not the same any more compare by element
            return False
        return True


def _places(model: nn.Module) -> list[dict[str, Any]]:
    """The attributes of all modules, and of the objects with plain settings that these hold."""
    places = {id(module): vars(module) for module in model.modules()}
    for place in [*places.values()]:
        for value in place.values():
            if hasattr(value, "__dict__") and not isinstance(value, _NO_SETTINGS) and _is_plain(vars(value)):
                places[id(value)] = vars(value)
    return [*places.values()]


def _is_plain(place: Any) -> bool:
    return all(isinstance(value, _PLAIN) for value in place.values())


def _copied(place: dict[str, Any]) -> dict[str, Any]:
    pairs = ((name, value) for name, value in place.items() if name not in _NO_MATTER)
    return {name: _snapshot(value) for name, value in pairs}


def _snapshot(value: Any) -> Any:
    """A list, dict or set, and those in it, as they are now; anything else as it is."""
    if type(value) is dict:
        return {key: _snapshot(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_snapshot, value))
    return value.copy() if isinstance(value, _LISTS) else value


def _equal(now: Any, before: Any) -> bool:
    try:
        return now is before or bool(now == before)
    except (RuntimeError, TypeError, ValueError):
        return False


def reads_numbers(func: Any, args: Sequence[Any]) -> str:
    """Why the calls that follow may depend on the numbers of a tensor; an empty string if they do not as far as one can see."""
    name = getattr(func, "__name__", "").partition(".")[0]
    if name in READS_NUMBERS or (name == "where" and len(args) == 1):
        return f"{name}() reads the numbers of a tensor, on which the model's next calls may depend"
    if name in ("__getitem__", "__setitem__"):
        for part in leaves(args[1:2]):
            if isinstance(part, slice) and any(
                isinstance(bound, Tensor) for bound in (part.start, part.stop, part.step)
            ):
                return "a slice takes its bounds from the numbers of a tensor"
            mask = isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8)
            if mask and name == "__getitem__":
                return "a mask picks as many numbers as it has ones, on which the model's next calls may depend"
    return ""


def depends_on_indices(args: Any, kwargs: Any) -> bool:
    """Whether the size of a call's result may follow from the numbers of an index or mask among its arguments."""
    return any(
        isinstance(leaf, Tensor) and not (leaf.is_floating_point() or leaf.is_complex())
        for leaf in leaves((args, kwargs))
    )
