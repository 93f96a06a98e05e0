"""The rules, one small class each."""

from .alpha_beta import AlphaBeta, ZPlus
from .base import Rule
from .epsilon import Epsilon
from .gamma import Gamma
from .layerwise import EpsilonLayerwise, Norm
from .weights_only import Flat, Pass, WSquare
from .zbox import ZBox

__all__ = [
    "AlphaBeta",
    "Epsilon",
    "EpsilonLayerwise",
    "Flat",
    "Gamma",
    "Norm",
    "Pass",
    "Rule",
    "WSquare",
    "ZBox",
    "ZPlus",
]
