"""Canonizers are accepted: what zennit's do to a model, this engine does while it reads the recording.

Batch norms are merged with the layer ahead, sums and attention have rules of their own. Only :class:`AttributeCanonizer`, which a user
fills, changes something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

_NOTHING = object()


class Canonizer:
    """Base of canonizers: ``apply`` changes a model and returns what has a ``remove()``."""

    def apply(self, root_module: nn.Module) -> list[Any]:
        return []

    def register(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to be done."""

    def remove(self) -> None:
        """Nothing to be undone."""

    def copy(self) -> Any:
        return self


class MergeBatchNorm(Canonizer):
    """Batch norms are merged without it."""


class SequentialMergeBatchNorm(MergeBatchNorm):
    """Batch norms are merged without it, in the order of calls."""


class NamedMergeBatchNorm(MergeBatchNorm):
    """Batch norms are merged without it.

    Args:
        name_map: ((names of layers), name of the batch norm), not needed.
    """

    def __init__(self, name_map: Sequence[Any]) -> None:
        self.name_map = name_map


class AttributeCanonizer(Canonizer):
    """Attributes of modules, such as ``forward``, replaced for a while.

    Args:
        attribute_map: (name, module) -> {attribute: value} or None.
    """

    def __init__(self, attribute_map: Callable[[str, nn.Module], dict[str, Any] | None]) -> None:
        self.attribute_map = attribute_map

    def apply(self, root_module: nn.Module) -> list[Any]:
        found = [(module, self.attribute_map(name, module)) for name, module in root_module.named_modules()]
        return [_Replaced(module, attributes) for module, attributes in found if attributes is not None]


class _Replaced:
    def __init__(self, module: nn.Module, attributes: dict[str, Any]) -> None:
        self._module = module
        self._before = {key: vars(module).get(key, _NOTHING) for key in attributes}
        for key, value in attributes.items():
            setattr(module, key, value)

    def remove(self) -> None:
        for key, value in self._before.items():
            if value is _NOTHING:
                delattr(self._module, key)
            else:
                setattr(self._module, key, value)


class CompositeCanonizer(Canonizer):
    """Several canonizers as one.

    Args:
        canonizers: applied in order.
    """

    def __init__(self, canonizers: Sequence[Any]) -> None:
        self.canonizers = canonizers

    def apply(self, root_module: nn.Module) -> list[Any]:
        return [handle for canonizer in self.canonizers for handle in canonizer.apply(root_module)]
