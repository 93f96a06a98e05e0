"""lxt's idiom: a patched model whose gradients, times the input, are AttnLRP relevance.

``from lxt.efficient import monkey_patch`` -> ``from lrpkernels.compat.lxt import monkey_patch``, which takes the model itself and not the
Python module that defines it: no class is changed. Any architecture will do. docs/coming_from_zennit.md lists the differences.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..rules import Composite, Epsilon, OperationRule
from .zennit.modified import ModifiedModel


def monkey_patch(
    model: nn.Module, patch_map: Any = None, verbose: bool = False, *, attention: OperationRule | None = None
) -> ModifiedModel:
    """Make the gradient of a model's output at its inputs the multiplier G of AttnLRP, so that relevance is input * gradient.

    Args:
        model: a model, called with tensors that require gradients, as ``inputs_embeds`` of a language model.
        patch_map: refused; the composite of :class:`lrpkernels.LRP` chooses rules.
        verbose: accepted.
        attention: rule of attention, products and gates: :class:`lrpkernels.AttnLRP` (None) or :class:`lrpkernels.CPLRP`.

    Returns:
        A handle, whose ``remove()`` gives the model its own gradient back.

    Raises:
        TypeError: not a model.
        ValueError: a patch map.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"monkey_patch: expected the model, an nn.Module, got {type(model).__name__}; classes are left as they are"
        )
    if patch_map is not None:
        raise ValueError("patch_map: nothing is patched here; choose rules by lrpkernels.LRP(model, composite=...)")
    composite = Composite(
        default=Epsilon(1e-10), attention=attention, product=attention, norm=attention, multiply_by_inputs=False
    )
    patched = ModifiedModel(model, composite, lambda: True)
    patched.install()
    return patched
