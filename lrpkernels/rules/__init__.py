"""The rules, one small class each, and composites, which assign them to layers."""

from .alpha_beta import AlphaBeta, ZPlus
from .attn_lrp import AttnLRP, CPLRP, Uniform
from .base import OperationRule, Rule
from .composite import (
    Composite,
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    as_composite,
)
from .epsilon import Epsilon
from .gamma import Gamma
from .gradient import Gradient
from .layerwise import EpsilonLayerwise, Norm
from .weights_only import Flat, Pass, WSquare
from .zbox import ZBox
