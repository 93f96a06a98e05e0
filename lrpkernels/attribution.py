"""LRP of a whole model: the class most users need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .composite import Composite, as_composite
from .rules import Rule
from .tape import record
from .target import Target


class LRP:
    """Layer-wise relevance propagation through an unchanged PyTorch model.

    Args:
        model: any ``nn.Module`` that maps images (B, C, H, W) or other float tensors to logits (B, K).
        composite: the rule of each layer: a rule for all, or a :class:`Composite`. Default: ``Epsilon(1e-2)``.

    Example:
        >>> attribution = lrp.LRP(model, composite=lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))
        >>> logits, heatmap = attribution(x, target=3)

    Source: Bach et al. 2015; docs/method.md.
    """

    def __init__(self, model: nn.Module, composite: Composite | Rule | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        self.model = model
        self.composite = as_composite(composite)

    def __call__(
        self,
        x: Tensor | tuple[Tensor, ...],
        target: Target = None,
        *,
        output: Callable[[Any], Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """Logits and heatmap of a batch.

        Args:
            x: what the model takes, usually one float tensor (B, C, H, W); a tuple if it takes several.
            target: what is explained, per image: a class index for all images; a LongTensor [B]; a list of T such (the heatmap
                gains a dimension, [B, T, ...]; the forward pass is shared); "all" classes; a callable from the logits to one
                scalar per image; None: the highest logit. Of a dense output [B, K, H, W] an index means channel K summed over
                positions; a regression output [B] needs no target.
            output: picks the logits out of the model's output, when that is no tensor.
            kwargs: passed on to the model.

        Returns:
            The model's output, and R at its input (a tuple for several), its shape and dtype, in units of the explained score. Both are
            differentiable (the heatmap once) when gradients are on; use ``torch.no_grad()`` for pictures only.

        Raises:
            TypeError, ValueError: an input or target that does not fit.
            lrpkernels.errors.RelevanceError: a model that cannot be explained as asked.
        """
        with record(self.model, x, **kwargs) as tape:
            heatmap = tape.relevance(target, self.composite, output=output)
            return tape.output, heatmap
