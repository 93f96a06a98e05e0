"""captum's ``LayerLRP`` on this engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ...engine.places import Place
from ...engine.verified import Check
from ...tape import Tape
from .lrp import LRP, is_leaf, unwrappable


class LayerLRP(LRP):
    """Relevance at layers inside a model; rules and numbers as in :class:`LRP`.

    Args:
        model: any ``nn.Module``.
        layer: one of its modules, a list of them, or None for all modules without others inside, in the order in which they run.
        check: as in :class:`LRP`.

    Raises:
        TypeError: as :class:`LRP`; ``layer`` is none of these.
        ValueError: a layer is no module of the model.

    Example:
        >>> attribution = LayerLRP(model, model.layer2).attribute(images, target=5)
    """

    def __init__(self, model: nn.Module, layer: nn.Module | list[nn.Module] | None, *, check: Check = True) -> None:
        super().__init__(model, check=check)
        modules = {id(module) for module in model.modules()}
        for module in layer if isinstance(layer, (list, tuple)) else [] if layer is None else [layer]:
            if not isinstance(module, nn.Module):
                raise TypeError(f"layer must be a module, a list of modules or None, got {type(module).__name__}")
            if id(module) not in modules:
                raise ValueError(
                    f"layer: {type(module).__name__} is no module of this model; pass one of model.modules()"
                )
        self.layer = layer
        self._reads = False

    @unwrappable
    def attribute(  # type: ignore[override]
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Relevance at the layer.

        Args:
            inputs, target, additional_forward_args, return_convergence_delta, verbose: as in :meth:`LRP.attribute`.
            attribute_to_layer_input: at the layer's input in place of its output.

        Returns:
            R of the shape of the layer's output (or input), a tuple if it has several, or runs several times; a list with an entry for
            each layer if a list of layers, or None, was given. With ``return_convergence_delta`` a tuple of this and the delta [B], or
            a list of deltas.

        Raises:
            ValueError: a layer that did not run, or does not depend on the inputs.
            TargetError, IndexError, TypeError, lrpkernels.errors.RelevanceError: as :meth:`LRP.attribute`.
        """
        self._reads = attribute_to_layer_input
        _, found, score = self._explained(inputs, target, additional_forward_args, verbose)
        relevance = [parts[0] if len(parts) == 1 else tuple(parts) for parts in map(_flat, found)]
        deltas = [self.compute_convergence_delta(part, score) for part in relevance] if return_convergence_delta else []
        if self.layer is not None and not isinstance(self.layer, (list, tuple)):
            return (relevance[0], deltas[0]) if return_convergence_delta else relevance[0]
        return (relevance, deltas) if return_convergence_delta else relevance

    def _places(self, tape: Tape) -> list[list[Place]]:
        names = {id(module): name for name, module in self.model.named_modules()}
        if self.layer is None:
            order = {id(module): None for module in (node.module for node in tape.nodes) if module is not None}
            modules: Sequence[nn.Module] = [
                m for key in order for m in self.model.modules() if id(m) == key and is_leaf(m)
            ]
        else:
            modules = self.layer if isinstance(self.layer, (list, tuple)) else [self.layer]
        groups = []
        for module in modules:
            name, calls = names[id(module)], len(tape.calls_of(module))
            if not calls:
                raise ValueError(f"layer: {name!r} ({type(module).__name__}) did not run in this forward pass")
            groups.append([Place(name, self._reads, call) for call in range(calls)])
        return groups


def _flat(parts: Sequence[Any]) -> list[Tensor]:
    """The tensors of several calls, each of one or several."""
    return [tensor for part in parts for tensor in (part if isinstance(part, tuple) else (part,))]
