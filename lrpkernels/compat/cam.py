"""LRP with the interface of pytorch-grad-cam: ``LRPCAM(model, target_layers=[model.layer4])(input_tensor=x, targets=[...])``.

pytorch-grad-cam itself need not be installed; its targets work. Source: the conventions of its version 1.5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..attribution import refuse_non_finite
from ..engine.places import Place
from ..engine.training_mode import evaluation_mode
from ..engine.verified import Check
from ..rules import Composite, EpsilonPlus, Rule, as_composite
from ..tape import record

if TYPE_CHECKING:
    from typing_extensions import Self

_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class ClassifierOutputTarget:
    """The logit of one class of an image.

    Args:
        category: its index.
    """

    def __init__(self, category: int) -> None:
        self.category = category

    def __call__(self, model_output: Tensor) -> Tensor:
        return model_output[..., self.category]

    def __repr__(self) -> str:
        return f"ClassifierOutputTarget({self.category})"


class LRPCAM:
    """Heatmaps between 0 and 1 from the positive relevance at layers of a model, or at its input.

    The model is explained in evaluation mode, and in its own mode afterwards; it is not changed, and no hooks are left.

    Args:
        model: any ``nn.Module`` that takes images [N, C, H, W] (or volumes).
        target_layers: modules whose outputs' relevance is shown; of several, the mean. None or []: that of the input.
        reshape_transform: makes [N, C, h, w] of what a layer returns, where that is [N, tokens, C].
        composite: the rules. None: ``EpsilonPlus()``.
        check: whether the model is verified at its first use, as in :class:`lrpkernels.LRP`.

    Attributes:
        outputs: what the model returned in the last call.

    Raises:
        TypeError, ValueError: target layers that are no modules of the model.

    Example:
        >>> with LRPCAM(model=model, target_layers=[model.layer4]) as cam:
        ...     grayscale = cam(input_tensor=x, targets=[ClassifierOutputTarget(281)])[0]
    """

    def __init__(
        self,
        model: nn.Module,
        target_layers: Sequence[nn.Module] | None = None,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        *,
        composite: Composite | Rule | None = None,
        check: Check = True,
    ) -> None:
        if isinstance(target_layers, nn.Module) and not isinstance(target_layers, nn.ModuleList):
            raise TypeError(
                f"target_layers must be a list of modules, got {type(target_layers).__name__}; write [model.layer4]"
            )
        names = {id(module): name for name, module in model.named_modules()}
        for layer in target_layers or ():
            if not isinstance(layer, nn.Module) or id(layer) not in names:
                raise ValueError(f"target_layers: {type(layer).__name__} is no module of this model")
        self.model, self.target_layers = model, list(target_layers or ())
        self.reshape_transform = reshape_transform
        self.composite = as_composite(EpsilonPlus() if composite is None else composite)
        self.outputs: Any = None
        self._check = check
        self._names = names

    def __call__(
        self,
        input_tensor: Tensor,
        targets: Sequence[Callable[[Tensor], Tensor]] | None = None,
        aug_smooth: bool = False,
        eigen_smooth: bool = False,
    ) -> NDArray[np.float32]:
        """Heatmaps of a batch.

        Args:
            input_tensor: [N, C, H, W], moved to where the model is.
            targets: for each image a callable from its output to the score that is explained, such as
                :class:`ClassifierOutputTarget`; None: the highest logit.
            aug_smooth: the mean over the image and its mirror image, each scaled by 0.9, 1 and 1.1.
            eigen_smooth: not for relevance, whose sign the first principal component would lose.

        Returns:
            [N, H, W], float32 in [0, 1]: per image, relevance summed over channels, its positive part, from its lowest to its highest.
            All 0 where no relevance is positive, as it may be for a class whose logit is negative.

        Raises:
            ValueError: ``eigen_smooth``; targets that do not fit; a layer whose output has no positions.
        """
        if eigen_smooth:
            raise ValueError(
                "eigen_smooth: not for relevance, whose sign it would lose; choose smoother rules by composite="
            )
        if not isinstance(input_tensor, Tensor) or input_tensor.dim() - 2 not in _MODES:
            given = list(input_tensor.shape) if isinstance(input_tensor, Tensor) else type(input_tensor).__name__
            raise ValueError(f"input_tensor must be a tensor of images [N, C, H, W] (or volumes), got {given}")
        if targets is not None and (callable(targets) or len(targets) != len(input_tensor)):
            got = "one callable" if callable(targets) else f"{len(targets)} of them"
            raise ValueError(f"targets: expected a list with one per image, {len(input_tensor)}, or None, got {got}")
        with evaluation_mode(self.model), torch.no_grad():
            parameter = next(iter(self.model.parameters()), input_tensor)
            x = input_tensor.detach().to(parameter.device)
            if not aug_smooth:
                return self._maps(x, targets).cpu().numpy()
            maps = []
            for factor in (0.9, 1.0, 1.1):
                maps.append(self._maps(x * factor, targets))
                maps.append(self._maps(x.flip(-1) * factor, targets).flip(-1))
            return torch.stack(maps).mean(0).cpu().numpy()

    def _maps(self, x: Tensor, targets: Sequence[Callable[[Tensor], Tensor]] | None) -> Tensor:
        """[N, H, W], float32."""
        with record(self.model, x, check=self._check) as tape:
            self.outputs = tape.output
            places = [
                Place(self._names[id(layer)], call=call)
                for layer in self.target_layers
                for call in range(max(1, len(tape.calls_of(layer))))
            ]
            found = tape.relevance(self._target(targets), self.composite, at=places)
            refuse_non_finite(found["input"], tape, x, {})
        if not places:
            return _scaled(found["input"].sum(1).clamp(min=0).float())
        maps = [self._resized(place, found[place], x) for place in places]
        return _scaled(torch.stack(maps).mean(0))

    def _target(self, targets: Sequence[Callable[[Tensor], Tensor]] | None) -> Any:
        if targets is None:
            return None

        def scores(outputs: Tensor) -> Tensor:
            found = [target(output).reshape(()) for target, output in zip(targets, outputs, strict=True)]
            return torch.stack(found) if found else outputs.flatten(1).sum(1)

        return scores

    def _resized(self, place: Place, relevance: Any, x: Tensor) -> Tensor:
        if isinstance(relevance, Tensor) and self.reshape_transform is not None:
            relevance = self.reshape_transform(relevance)
        if not isinstance(relevance, Tensor) or relevance.dim() != x.dim():
            got = list(relevance.shape) if isinstance(relevance, Tensor) else "several tensors"
            raise ValueError(
                f"target_layers: {place.module!r} returns {got}, expected {x.dim() - 2} dimensions of positions behind the channels; "
                "choose a layer of that kind, or pass reshape_transform"
            )
        summed = _scaled(relevance.sum(1, keepdim=True).clamp(min=0).float())
        return F.interpolate(summed, x.shape[2:], mode=_MODES[x.dim() - 2], align_corners=False)[:, 0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.outputs = None


def _scaled(maps: Tensor) -> Tensor:
    """Each map from 0, its lowest, to 1, its highest; a constant one is 0."""
    flat = maps.flatten(1)
    if not flat.numel():
        return maps
    flat = flat - flat.amin(1, keepdim=True)
    most = flat.amax(1, keepdim=True)
    return (flat / torch.where(most > 0, most, 1.0)).view_as(maps)
