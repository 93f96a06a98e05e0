"""The ISNet loss: classification plus a penalty on relevance outside the foreground mask."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrpkernels.functional import HeatmapScores, has_heatmap_kernels, heatmap_scores

from .gwrp import gwrp
from .model import ISNetOutput

Normalization = Literal["absolute", "signed", "none"]
Foreground = Literal["hybrid", "L2", "L1"]
EmptyMask = Literal["error", "skip"]
Bound = float | Sequence[float]

_STABILIZER = 1e-10
_EVERY_LAYER = "*"
_LARGEST = -math.log(1e-7)  # of -log(1 - x) with x <= 1 - 1e-7


@dataclass(frozen=True)
class LayerLoss:
    """The heatmap loss of one supervised layer and its parts, each a mean over the batch.

    Attributes:
        loss: w_background * background + w_foreground * foreground, a scalar with its graph.
        background: L_bg, detached.
        foreground: L_fg, detached.
        foreground_relevance: sum of |R| inside the mask, mean over images and maps, detached: what c1 and c2 bound.
    """

    loss: Tensor
    background: Tensor
    foreground: Tensor
    foreground_relevance: Tensor


@dataclass(frozen=True)
class LossTerms:
    """What :class:`ISNetLoss` returns.

    Attributes:
        total: (1 - p) * classification + p * heatmap, a scalar with its graph.
        classification: cross-entropy, or binary cross-entropy for multi-label.
        heatmap: the heatmap loss; 0 if no heatmap was computed in this step.
        layers: the heatmap loss of each supervised layer, "input" first.
    """

    total: Tensor
    classification: Tensor
    heatmap: Tensor
    layers: dict[str, LayerLoss] = field(default_factory=dict)


def _with_channel(masks: Tensor, shape: torch.Size) -> Tensor:
    """[B, 1 or C, H, W] for heatmaps of ``shape`` [B, M, C, h, w]; ValueError if the masks do not fit them."""
    spatial = len(shape) - 3
    if masks.dim() == 1 + spatial:
        masks = masks.unsqueeze(1)
    if masks.dim() != 2 + spatial or masks.shape[0] != shape[0]:
        sizes = ", ".join("DHW"[-spatial:]) if 1 <= spatial <= 3 else "..."
        raise ValueError(f"masks must have shape [B, 1, {sizes}] with B = {shape[0]}, got {tuple(masks.shape)}")
    return masks


def _check_values(masks: Tensor, empty_mask: EmptyMask) -> None:
    """ValueError for values other than 0 and 1 and, unless skipped, for images without foreground. One synchronisation on a GPU.

    Skipped while a CUDA graph is captured, when waiting is not allowed.
    """
    if masks.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    binary = ((masks == 0) | (masks == 1)).all()
    filled = (masks != 0).flatten(1).any(1)
    if bool(binary & filled.all() if empty_mask == "error" else binary):
        return
    if not bool(binary):
        low, high = float(masks.min()), float(masks.max())
        raise ValueError(f"masks must hold 0 (background) and 1 (foreground) only, got values in [{low:g}, {high:g}]")
    image = filled.tolist().index(False)
    raise ValueError(f'masks: image {image} of the batch has no foreground; mend its mask or set empty_mask="skip"')


def _fit(mask: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The masks [B, 1, 1 or C, h, w] at the size of heatmaps [B, M, C, h, w]: average pooling, then every non-zero is foreground."""
    channels, size = shape[2], tuple(shape[3:])
    mask = mask.to(dtype)
    if mask.shape[1] not in (
        1,
        channels,
    ):  # a mask per image channel, beside a hidden layer's heatmap: foreground in any
        mask = mask.amax(1, keepdim=True)
    if tuple(mask.shape[2:]) != size:
        pool: Any = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}[len(size)]
        mask = (pool(mask, size) != 0).to(dtype)
    return mask.unsqueeze(1)


class HeatmapLoss(nn.Module):
    """Penalises relevance in the background and keeps the foreground's total in its natural range, for one layer's heatmaps.

    With A = |R| and the mask m: F = sum A m; A is divided by the mean foreground relevance n = F / sum m; the background score of
    each map and channel is g = GWRP_d(A (1 - m) / n); L_bg = mean of -log(1 - x), x = g / (g + e), x <= 1 - 1e-7;
    L_fg = mean of (min(F/c1, 1) - 1)^2 plus a right side for F > c2. The loss is w_background L_bg + w_foreground L_fg.

    Args:
        d: GWRP decay, in [0, 1]; lower resists bias more and is less stable.
        e: E > 0, the background score at which x is 1/2.
        c1, c2: the natural range of F, 0 < c1 < c2; one number, or one per map.
        w_background, w_foreground: weights of the two terms, >= 0.
        foreground: right side of L_fg. "L2": (max(F, c2)/c1 - c2/c1)^2. "hybrid": that up to F = c1 + c2, then F - (c1 + c2) + 1.
            "L1": max(F, c2) - c2.
        normalization: "absolute": n as above; "signed": by the mean of the signed relevance; "none": A times the number of elements
            of a map.
        empty_mask: the effect of an image without foreground: "error", or "skip" (its heatmaps are not penalised).
        check_masks: look at the masks' values on every call (one synchronisation on a GPU). Without it an image without foreground is
            no error, and its background gets the largest penalty.

    Raises:
        ValueError: a parameter out of its range.

    Source: Bassi et al., Nature Communications 15:291, 2024; arXiv 2401.08409 ("hybrid"); docs/method.md section 3.
    """

    def __init__(
        self,
        d: float = 0.9,
        e: float = 1.0,
        c1: Bound = 1.0,
        c2: Bound = 25.0,
        w_background: float = 1.0,
        w_foreground: float = 1.0,
        foreground: Foreground = "hybrid",
        normalization: Normalization = "absolute",
        empty_mask: EmptyMask = "error",
        check_masks: bool = True,
    ) -> None:
        super().__init__()
        _check("d", d, 0 <= d <= 1, "in [0, 1]")
        _check("e", e, e > 0, "> 0")
        _check("w_background", w_background, w_background >= 0, ">= 0")
        _check("w_foreground", w_foreground, w_foreground >= 0, ">= 0")
        _check("foreground", foreground, foreground in get_args(Foreground), f"one of {get_args(Foreground)}")
        _check(
            "normalization",
            normalization,
            normalization in get_args(Normalization),
            f"one of {get_args(Normalization)}",
        )
        _check("empty_mask", empty_mask, empty_mask in get_args(EmptyMask), f"one of {get_args(EmptyMask)}")
        low, high = _numbers(c1), _numbers(c2)
        good = len(low) == len(high) and all(0 < a < b < math.inf for a, b in zip(low, high, strict=True))
        _check("c1, c2", (c1, c2), good, "as many as maps (or one for all), 0 < c1 < c2")
        self.d, self.e, self.c1, self.c2 = d, e, low, high
        self.w_background, self.w_foreground = w_background, w_foreground
        self.foreground, self.normalization = foreground, normalization
        self.empty_mask, self.check_masks = empty_mask, check_masks

    def forward(self, heatmaps: Tensor, masks: Tensor) -> LayerLoss:
        """The loss of one layer.

        Args:
            heatmaps: R, [B, M, C, H, W], M maps per image; half precision is computed in float32.
            masks: [B, 1, h, w], [B, C, h, w] or [B, h, w], bool or numbers 0 and 1, 1 = foreground; resized to H x W.

        Raises:
            ValueError: shapes that do not fit, mask values other than 0 and 1, or an image without foreground.
        """
        if heatmaps.dim() < 4:
            raise ValueError(f"heatmaps must have shape [B, M, C, H, W], got {tuple(heatmaps.shape)}")
        with torch.autocast(heatmaps.device.type, enabled=False):
            if heatmaps.dtype not in (torch.float32, torch.float64):
                heatmaps = heatmaps.float()
            masks = _with_channel(masks, heatmaps.shape)
            if self.check_masks:
                _check_values(masks, self.empty_mask)
            return self._loss(heatmaps, _fit(masks, heatmaps.shape, heatmaps.dtype))

    def _loss(self, heatmaps: Tensor, mask: Tensor) -> LayerLoss:
        dims = tuple(range(2, heatmaps.dim()))
        # The mask counts once for each channel of the heatmap, also where one mask serves all of them.
        area = mask.sum(dims) * (heatmaps.shape[2] // mask.shape[2])
        total, signed, background = self._scores(heatmaps, mask)
        if self.normalization == "none":
            background = background * heatmaps.shape[2:].numel()
        else:
            level = ((total if self.normalization == "absolute" else signed) / (area + _STABILIZER) + _STABILIZER).abs()
            background = background / level.unsqueeze(-1)
        # -log(1 - g/(g + E)) = log(1 + g/E)
        l_background = torch.log1p(background / self.e).clamp(max=_LARGEST).mean(-1)
        l_foreground = self._foreground(total)
        loss = self.w_background * l_background + self.w_foreground * l_foreground

        def mean(v: Tensor) -> Tensor:
            return (torch.where(area > 0, v, torch.zeros_like(v)) if self.empty_mask == "skip" else v).mean()

        return LayerLoss(mean(loss), mean(l_background.detach()), mean(l_foreground.detach()), mean(total.detach()))

    def _scores(self, heatmaps: Tensor, mask: Tensor) -> HeatmapScores:
        """Foreground, signed foreground and pooled background; one kernel where the device has it."""
        if has_heatmap_kernels(heatmaps):
            return heatmap_scores(heatmaps.flatten(3), mask.flatten(3).squeeze(1), decay=self.d)
        dims = tuple(range(2, heatmaps.dim()))
        magnitude = heatmaps.abs()
        inside = magnitude * mask
        total = inside.sum(dims)
        signed = (heatmaps * mask).sum(dims) if self.normalization == "signed" else total
        return HeatmapScores(total, signed, gwrp((magnitude - inside).flatten(3), self.d))

    def _foreground(self, total: Tensor) -> Tensor:
        if len(self.c1) not in (1, total.shape[1]):
            raise ValueError(f"c1, c2: {len(self.c1)} ranges for {total.shape[1]} maps per image")
        c1, c2 = _per_map(self.c1, total), _per_map(self.c2, total)
        low = ((total / c1).clamp(max=1) - 1).square()
        if self.foreground == "L1":
            return low + total.clamp(min=c2) - c2
        high = ((total.clamp(min=c2) - c2) / c1).square()
        if self.foreground == "hybrid":
            edge = c1 + c2
            high = torch.where(total > edge, total - edge + 1, high)
        return low + high


class ISNetLoss(nn.Module):
    """(1 - p) * classification loss + p * heatmap loss.

    With deep supervision (heatmaps at several layers) the layers' losses are combined by GWRP with ``layer_decay``.

    Args:
        p: share of the heatmap loss, in [0, 1]; an attribute that a schedule may change.
        d, e, c1, c2, w_background, w_foreground, foreground, normalization, empty_mask, check_masks: see :class:`HeatmapLoss`. c1 and
            c2 may be dicts {"input": ..., layer: ...} with one range for each supervised layer.
        layer_decay: GWRP decay over layers, in [0, 1].

    Raises:
        ValueError: a parameter out of its range.

    Source: Bassi et al., Nature Communications 15:291, 2024; arXiv 2401.08409; docs/method.md section 3.
    """

    def __init__(
        self,
        p: float = 0.7,
        d: float = 0.9,
        e: float = 1.0,
        c1: Bound | Mapping[str, Bound] = 1.0,
        c2: Bound | Mapping[str, Bound] = 25.0,
        w_background: float = 1.0,
        w_foreground: float = 1.0,
        foreground: Foreground = "hybrid",
        layer_decay: float = 0.8,
        normalization: Normalization = "absolute",
        empty_mask: EmptyMask = "error",
        check_masks: bool = True,
    ) -> None:
        super().__init__()
        _check("p", p, 0 <= p <= 1, "in [0, 1]")
        _check("layer_decay", layer_decay, 0 <= layer_decay <= 1, "in [0, 1]")
        self.p, self.layer_decay = p, layer_decay
        bounds: dict[str, tuple[Bound, Bound]] = {}
        if isinstance(c1, Mapping) and isinstance(c2, Mapping) and set(c1) == set(c2):
            bounds = {layer: (c1[layer], c2[layer]) for layer in c1}
        elif not isinstance(c1, Mapping) and not isinstance(c2, Mapping):
            bounds = {_EVERY_LAYER: (c1, c2)}
        else:
            raise ValueError(f"c1, c2: both must be numbers, or dicts with the same layers, got {c1!r} and {c2!r}")
        self._losses = {
            layer: HeatmapLoss(
                d, e, low, high, w_background, w_foreground, foreground, normalization, empty_mask, check_masks=False
            )
            for layer, (low, high) in bounds.items()
        }
        self.empty_mask, self.check_masks = empty_mask, check_masks

    def forward(self, out: ISNetOutput, labels: Tensor, masks: Tensor | None = None) -> LossTerms:
        """All loss terms of a batch.

        Args:
            out: what an :class:`isnet.ISNet` in training mode returned.
            labels: class indices [B], of any integer dtype (cross-entropy), or 0/1 numbers [B, K] (multi-label, binary cross-entropy).
            masks: [B, 1, H, W] of 0 and 1, 1 = foreground; needed whenever ``out`` has heatmaps.

        Raises:
            ValueError: labels or masks that do not fit.
        """
        classification = classification_loss(out.logits, labels)
        if not out.heatmaps:
            return LossTerms((1 - self.p) * classification, classification, torch.zeros_like(classification.detach()))
        if masks is None:
            raise ValueError("masks: the heatmap loss needs foreground masks, got None")
        for name, maps in out.heatmaps.items():
            if name != "input" and maps.dim() - 3 not in (masks.dim() - 1, masks.dim() - 2):
                raise ValueError(
                    f"masks: {tuple(masks.shape)} cannot be laid on the relevance at {name!r}, {tuple(maps.shape)}; supervise modules "
                    "that return planes as images have them, [B, C, H, W]"
                )
        masks = _with_channel(masks, next(iter(out.heatmaps.values())).shape)
        if self.check_masks:  # once for all layers
            _check_values(masks, self.empty_mask)
        layers = {name: self._loss_of(name)(maps, masks) for name, maps in out.heatmaps.items()}
        heatmap = gwrp(torch.stack([layer.loss for layer in layers.values()]), self.layer_decay)
        total = (1 - self.p) * classification + self.p * heatmap.to(classification.dtype)
        return LossTerms(total, classification, heatmap, layers)

    def _loss_of(self, layer: str) -> HeatmapLoss:
        loss = self._losses.get(layer, self._losses.get(_EVERY_LAYER))
        if loss is None:
            raise ValueError(f"c1, c2: no range for the supervised layer {layer!r}, only for {', '.join(self._losses)}")
        return loss


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy for class indices [B], binary cross-entropy for multi-label 0/1 numbers [B, K]; float32 or better.

    Raises:
        ValueError: labels of another shape.
    """
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    if labels.dim() == 1 and not labels.is_floating_point() and labels.dtype != torch.bool:
        return F.cross_entropy(logits, labels.long())
    if labels.shape == logits.shape:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    raise ValueError(
        f"labels must be class indices [B] (integers) or 0/1 numbers [B, K] = {list(logits.shape)}, got {labels.dtype} of shape "
        f"{tuple(labels.shape)}"
    )


def _check(name: str, value: object, good: bool, expected: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {expected}, got {value!r}")


def _per_map(numbers: tuple[float, ...], total: Tensor) -> Any:
    """One number unchanged, several as a tensor [M], filled on the device (a copy from the host would make it wait)."""
    return numbers[0] if len(numbers) == 1 else torch.stack([total.new_full((), n) for n in numbers])


def _numbers(bound: Bound) -> tuple[float, ...]:
    return tuple(float(b) for b in bound) if isinstance(bound, Sequence) else (float(bound),)
