"""The matching loss: how far a student's maps, features or logits are from its teacher's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isnet.distillation.distilled import DistilledOutput

_SMALLEST_SIDE = 8  # of a level
_STABILIZER = 1e-20  # of the product of two means
_TEMPERATURE = 3.0
_POOLS: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@dataclass(frozen=True)
class MatchingTerms:
    """What :class:`MatchingLoss` returns.

    Attributes:
        total: a scalar with its graph, the mean of ``layers``.
        layers: "input" and the hidden layers, or the features' layer, or "logits" -> its distance, detached.
    """

    total: Tensor
    layers: dict[str, Tensor] = field(default_factory=dict)


def map_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """How far maps are from those of a teacher, mean over the levels and the images.

    Per level n = sqrt(mean |s| mean |t|) and L = mean |s / n - t / n|: s = k t has the distance |k - 1| / sqrt(k), so that neither
    shrinking nor blowing up helps. Levels: the maps, and averages over windows of 2, 4, 8, ... while all sides stay >= 8.

    Args:
        student: s, [B, C, ...], any floating dtype; computed in float32 or better.
        teacher: t, of that shape, a constant. Images for which it is 0 everywhere say nothing and are left out.

    Returns:
        A scalar, >= 0; 0 where all images are left out.

    Raises:
        ValueError: other shapes.

    Source: facts of arXiv 2407.09788 and its public code; docs/distillation.md.
    """
    if student.shape != teacher.shape or student.dim() < 2:
        raise ValueError(
            f"teacher must have the student's shape [B, C, ...] = {list(student.shape)}, got {list(teacher.shape)}"
        )
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    s, t = student.to(dtype), teacher.detach().to(dtype)
    tells = t.flatten(1).abs().amax(1) > 0
    total, levels, side = torch.zeros(len(s), dtype=dtype, device=s.device), 0, 1
    sizes = s.shape[2:]
    pool = _POOLS.get(len(sizes))
    while side == 1 or (pool is not None and min(sizes) // side >= _SMALLEST_SIDE):
        a, b = (s, t) if side == 1 or pool is None else (pool(s, side), pool(t, side))
        a, b = a.flatten(1), b.flatten(1)
        # The stabilizer stands under the root, whose slope at 0 is infinite: a student without any relevance has a gradient.
        n = (a.abs().mean(1) * b.abs().mean(1) + _STABILIZER).sqrt()
        total = total + ((a - b).abs().mean(1) / n)
        levels, side = levels + 1, 2 * side
    return torch.where(tells, total, 0).sum() / (levels * tells.sum().clamp(min=1))


class MatchingLoss(nn.Module):
    """The loss of a :class:`isnet.Distilled`, by what it matches.

    "maps" and "features": :func:`map_distance`, mean over the layers. "logits": the Kullback-Leibler divergence of the softmax at
    temperature 3 from the teacher's, times 9.

    Source: facts of arXiv 2407.09788 and its public code; Hinton, Vinyals, Dean, arXiv 1503.02531 (logits).
    """

    def forward(self, output: DistilledOutput) -> MatchingTerms:
        """The terms for what a :class:`isnet.Distilled` in training mode returned."""
        if output.match == "logits":
            student, teacher = (logits.float() / _TEMPERATURE for logits in (output.logits, output.teacher_logits))
            divergence = F.kl_div(
                student.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
            )
            found = {"logits": _TEMPERATURE**2 * divergence}
        else:
            found = {name: map_distance(s, output.teacher[name]) for name, s in output.student.items()}
        total = torch.stack(list(found.values())).mean()
        return MatchingTerms(total, {name: distance.detach() for name, distance in found.items()})
