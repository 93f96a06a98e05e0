"""Canonizers of torchvision's networks: accepted, and not needed (:mod:`.canonizers`)."""

from __future__ import annotations

from .canonizers import Canonizer, SequentialMergeBatchNorm


class VGGCanonizer(SequentialMergeBatchNorm):
    """Batch norms are merged without it."""


class ResNetBottleneckCanonizer(Canonizer):
    """Sums are shared out without it."""


class ResNetBasicBlockCanonizer(Canonizer):
    """Sums are shared out without it."""


class ResNetCanonizer(Canonizer):
    """Batch norms are merged and sums shared out without it."""
