"""Heatmaps for Quantus: ``metric(..., explain_func=lrpkernels.compat.quantus.explain)``.

Quantus itself need not be installed. Source: Hedström et al., "Quantus", JMLR 24(34), 2023; the convention of its version 0.6.
"""

from __future__ import annotations

import difflib
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import rules
from ..attribution import LRP
from ..engine.training_mode import evaluation_mode
from ..rules import Composite, Rule

_IGNORED = ("xai_lib", "normalise", "normalise_func", "img_size", "nr_channels", "channel_first", "softmax", "tf_lib")


def explain(
    model: nn.Module,
    inputs: NDArray[Any] | Tensor,
    targets: NDArray[Any] | Tensor | int,
    *,
    method: str | None = None,
    composite: Composite | Rule | None = None,
    device: str | torch.device | None = None,
    reduce_axes: tuple[int, ...] | list[int] = (1,),
    keepdims: bool = True,
    **kwargs: Any,
) -> NDArray[Any]:
    """LRP heatmaps as an ``explain_func`` of Quantus; its ``explain_func_kwargs`` are the arguments behind ``targets``.

    The model is explained in evaluation mode, and in its own mode afterwards. Heatmaps are not normalised.

    Args:
        model: any ``nn.Module`` that returns logits [B, K].
        inputs: [B, C, ...], turned into the dtype of the model's parameters.
        targets: a class index for each image, or one for all.
        method: name of a rule or preset of lrpkernels with its own defaults, "EpsilonPlus", "Gradient", ....
        composite: rules, in place of a name. Neither: ``EpsilonPlus()``.
        device: where to; None: where the model is.
        reduce_axes: dimensions of a heatmap of three or more dimensions to sum over, as in Quantus: by default the channels.
        keepdims: whether these stay, with one entry.
        kwargs: options of ``quantus.explain`` that say nothing here (``xai_lib``, ``normalise``, ``img_size``, ...).

    Returns:
        R, [B, 1, ...] by default, [B, C, ...] with ``reduce_axes=()``, in units of the explained logit.

    Raises:
        TypeError: an unknown option; both a method and a composite.
        ValueError: an unknown method; targets that do not fit; the batch dimension among ``reduce_axes``.

    Example:
        >>> quantus.PixelFlipping()(model, x, y, explain_func=explain, explain_func_kwargs={"method": "EpsilonPlus"})
    """
    unknown = sorted(kwargs.keys() - set(_IGNORED))
    if unknown:
        raise TypeError(
            f"explain: unknown option {unknown[0]!r}; there are method, composite, device, reduce_axes and keepdims"
        )
    if method is not None and composite is not None:
        raise TypeError("explain: give method, a name, or composite, rules, not both")
    chosen = composite if composite is not None else _named(method or "EpsilonPlus")
    first = next(iter(model.parameters()), None)
    device = torch.device(device) if device is not None else first.device if first is not None else torch.device("cpu")
    model = model.to(device)
    dtype = torch.get_default_dtype() if first is None else first.dtype
    x = torch.as_tensor(inputs).detach().to(device=device, dtype=dtype)
    axes = [axis % x.dim() if -x.dim() <= axis < x.dim() else x.dim() for axis in reduce_axes] if x.dim() > 2 else []
    if 0 in axes or x.dim() in axes:
        raise ValueError(
            f"reduce_axes must lie between 1 and {x.dim() - 1}, the dimensions behind the batch's, got {tuple(reduce_axes)!r}"
        )
    with evaluation_mode(model), torch.no_grad():
        heatmap: Tensor = LRP(model, chosen).attribute(x, _indices(targets, len(x)))
    heatmap = heatmap.sum(axes, keepdim=keepdims) if axes else heatmap
    return heatmap.to(torch.float64 if dtype == torch.float64 else torch.float32).cpu().numpy()


def _named(method: str) -> Composite | Rule:
    found = getattr(rules, method, None) if isinstance(method, str) and method[:1].isupper() else None
    try:
        made = None if found is None else found()
    except TypeError:  # not a rule
        made = None
    if not isinstance(made, (Composite, Rule)) or isinstance(made, rules.OperationRule):
        names = [name for name in dir(rules) if name[:1].isupper()]
        near = difflib.get_close_matches(str(method), names, n=3, cutoff=0.3)
        raise ValueError(f"method: no rule or preset is called {method!r}; near matches: {', '.join(near) or 'none'}")
    return made


def _indices(targets: Any, batch: int) -> Tensor:
    found = torch.as_tensor(targets)
    if found.is_floating_point() and bool((found == found.round()).all()):
        found = found.long()  # Quantus keeps labels as they were loaded
    if found.is_floating_point() or found.is_complex() or found.dim() > 1 or found.numel() not in (1, batch):
        raise ValueError(
            f"targets must hold one class index per image, shape [{batch}], or one for all, got {found.dtype} of shape {tuple(found.shape)}"
        )
    return found.long().reshape(-1).expand(batch)
