"""ISNet: any classifier, trained through its own LRP heatmap."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lrpkernels as lrp

from .explanation import heatmaps
from .variants import VARIANTS, Form


@dataclass(frozen=True)
class ISNetOutput:
    """What an :class:`ISNet` in training mode returns.

    Attributes:
        logits: [B, K], from the classifier.
        heatmaps: {"input": [B, M, C, H, W], layer: [B, M, c, h, w]}, R of the M maps per image, differentiable; empty when heatmaps
            were not requested, without "input" where the ISNet supervises a hidden layer in its place.
    """

    logits: Tensor
    heatmaps: dict[str, Tensor] = field(default_factory=dict)


# DistributedDataParallel follows the tensors in what a module returns, with static_graph on pain of averaging nothing in its first step.
torch.utils._pytree.register_pytree_node(
    ISNetOutput, lambda out: ([out.logits, out.heatmaps], None), lambda parts, _: ISNetOutput(*parts)
)


class ISNet(nn.Module):
    """A classifier whose training can penalise relevance outside the foreground.

    In evaluation mode it is exactly the classifier, at its cost. In training mode each call returns logits and LRP heatmaps, made from
    the same forward pass; train on them with :class:`isnet.ISNetLoss`.

    Args:
        model: any ``nn.Module`` from images [B, C, H, W] to logits [B, K]; it is used unchanged, and trained in place.
        variant: what is explained. "selective": log-odds of the lowest class; "stochastic": one random logit per image; "original": every
            logit (cost grows with the classes); "dual": the sum of the logits by z+ and by epsilon; "gradient_times_input": an ablation.
        eps: LRP stabilizer, >= 0.
        input_range: (low, high) of the pixels as the model gets them, numbers or one per channel: switches the z^B rule on at the input;
            None: epsilon there, too. The first training batch is checked against it.
        layers: names of modules whose output's relevance is supervised as well (LRP deep supervision).
        supervise: name of the module whose output's relevance is supervised in place of the input's: relevance goes no further than there
            (and to ``layers``), which is cheaper; docs/performance.md, "Cheaper than the floor". None: the input's.
        generator: a CPU ``torch.Generator`` for the Stochastic variant; None: PyTorch's default one.
        checkpoint: save less of a training step for its backward and recompute it there: the same numbers, less memory, more time.
        static: the model makes the same PyTorch calls in every training step: its Python code runs once for each form of input, later
            steps run these calls alone, which saves time on small layers (:class:`lrpkernels.StaticCalls` states the requirements).
        form: where epsilon maps have their stabilizers: "flex", at each ReLU (LRP-Flex), or "layerwise", at every linear layer, pooling
            and sum (LRP-Block), the second for comparison (docs/isnet.md, "Choices").
        check: whether the model is verified at its first use with each form of input, as in :class:`lrpkernels.LRP`.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: an unknown variant, form or layer name, eps or input_range out of range.

    Source: Bassi et al., Nature Communications 15:291, 2024; Bassi, Decherchi, Cavalli, arXiv 2401.08409; docs/method.md section 2.
    """

    def __init__(
        self,
        model: nn.Module,
        variant: str = "selective",
        eps: float = 1e-2,
        input_range: tuple[Any, Any] | None = (0.0, 1.0),
        layers: Sequence[str] = (),
        generator: torch.Generator | None = None,
        checkpoint: bool = False,
        static: bool = False,
        form: Form = "flex",
        check: bool | Literal["always"] = True,
        supervise: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
        if isinstance(layers, str):
            raise ValueError(f"layers must be a list of module names, got the string {layers!r}")
        names = [name for name, _ in model.named_modules() if name]
        wanted = [("layers", layer) for layer in layers] + ([] if supervise is None else [("supervise", supervise)])
        for argument, layer in wanted:
            if layer not in names:
                near = difflib.get_close_matches(str(layer), names, n=3, cutoff=0.3)
                raise ValueError(
                    f"{argument}: the model has no module {layer!r}; near matches: {', '.join(near) or 'none'}"
                )
        self.model = model
        self.variant = variant
        self.eps, self.input_range, self.layers, self.generator = eps, input_range, tuple(layers), generator
        self.checkpoint, self.form, self.check, self.supervise = checkpoint, form, check, supervise
        self._places = tuple(dict.fromkeys((*(() if supervise is None else (supervise,)), *layers)))
        self._calls = lrp.StaticCalls() if static else None
        self._variant = VARIANTS[variant](eps, input_range, generator, form)
        self._variant.epsilon()  # checks eps and input_range now, not at the first batch
        self._range_is_checked = input_range is None

    @property
    def is_static(self) -> bool:
        """Whether ``static`` was set."""
        return self._calls is not None

    def forward(self, x: Tensor, heatmaps: bool = True, place: tuple[int, int] | None = None) -> ISNetOutput | Tensor:
        """Logits [B, K] in evaluation mode; an :class:`ISNetOutput` in training mode.

        Args:
            x: images [B, C, H, W].
            heatmaps: False skips the relevance pass in a training step (lazy heatmap loss); ``.heatmaps`` is then empty.
            place: (i, n): these images are those from i on of a batch of n whose others are explained elsewhere, and the Stochastic
                variant draws for all n. None: these are all.

        Raises:
            ValueError: the model does not return logits [B, K], too few classes for the variant, or pixels of the first training batch
                outside ``input_range`` by more than a tenth of its width (interpolation may overshoot a little).
            lrpkernels.RelevanceError: the model cannot be explained.
        """
        if not self.training:
            return lrp.select_logits(self.model(x))
        if not heatmaps:
            return ISNetOutput(lrp.select_logits(self.model(x)))
        if not self._range_is_checked:
            self._check_range(x)
        composites = self._variant.composites()
        options: dict[str, Any] = {
            "at": self._places or None,  # no layers: nothing needs to be noted of the modules
            "checkpoint": self.checkpoint,
            "static": self._calls,
            "check": self.check,
        }
        with lrp.record(self.model, x, composite=composites, **options) as tape:
            logits = lrp.select_logits(tape.output)
            if logits.dim() != 2:
                raise ValueError(f"model must return logits of shape [B, K], got shape {tuple(logits.shape)}")
            maps: dict[str, list[Tensor]] = {}
            passes = self._variant.explained(logits, place)
            for explained in passes:
                last = explained is passes[-1]
                found = tape.relevance(
                    explained.target,
                    explained.composite,
                    at=self._places,
                    release=last,
                    to_input=self.supervise is None,
                )
                for name, relevance in found.items():
                    if isinstance(relevance, tuple):
                        raise ValueError(
                            f"supervise, layers: {name!r} returns {len(relevance)} tensors; name a module that returns one"
                        )
                    single = explained.target != "all" if isinstance(explained.target, str) else True
                    maps.setdefault(name, []).append(relevance.unsqueeze(1) if single else relevance)
        return ISNetOutput(
            logits, {name: parts[0] if len(parts) == 1 else torch.cat(parts, 1) for name, parts in maps.items()}
        )

    def explain(self, x: Tensor, target: Any = None) -> tuple[Tensor, Tensor]:
        """Logits and heatmap to look at (:func:`isnet.scoring.evaluation.heatmaps`): in evaluation mode, without gradients.

        By the epsilon rule, z^B at the input if its range is known, whatever the variant: so that networks can be compared.

        Args:
            x: images [B, C, H, W].
            target: as in :class:`lrpkernels.LRP`; None: the highest logit.

        Returns:
            Logits [B, K] and R [B, C, H, W] ([B, T, C, H, W] for several targets).
        """
        return heatmaps(self.model, x, target=target, eps=self.eps, input_range=self.input_range)

    def _check_range(self, x: Tensor) -> None:
        """ValueError for pixels well outside ``input_range``, for which z^B silently distributes relevance wrongly."""
        assert self.input_range is not None
        low, high = (torch.as_tensor(bound, dtype=x.dtype, device=x.device) for bound in self.input_range)
        low, high = (bound.view(-1, *(1,) * (x.dim() - 2)) if bound.dim() else bound for bound in (low, high))
        slack = 0.1 * (high - low)
        if bool(((x < low - slack) | (x > high + slack)).any()):
            raise ValueError(
                f"x: pixels in [{float(x.min()):g}, {float(x.max()):g}] lie outside input_range={self.input_range!r}; give the range of "
                "the pixels as the model gets them, after normalization (low and high may hold one number per channel), or None"
            )
        self._range_is_checked = True
