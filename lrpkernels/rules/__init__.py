"""The rules, one small class each, and composites, which assign them to layers."""

from .alpha_beta import AlphaBeta, ZPlus
from .attn_lrp import CPLRP, AttnLRP, Uniform
from .base import OperationRule, Rule
from .composite import (
    BetaSmooth,
    Composite,
    DeconvNet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
    as_composite,
)
from .epsilon import Epsilon
from .gamma import Gamma
from .gradient import Gradient
from .layerwise import EpsilonLayerwise, Norm
from .modified_gradients import ReLUBetaSmooth, ReLUDeconvNet, ReLUGuidedBackprop
from .weights_only import Flat, Pass, WSquare
from .zbox import ZBox
