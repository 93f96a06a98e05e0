"""lrpkernels: a fast, differentiable engine for layer-wise relevance propagation (LRP) in PyTorch.

>>> import lrpkernels as lrp
>>> logits, heatmap = lrp.LRP(model, composite=lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))(x, target=3)
"""

from . import heatmap, pictures
from .attribution import LRP
from .config import __version__, show_config
from .engine.places import input_of, output_of
from .engine.replay import StaticCalls
from .engine.target import select_logits
from .errors import (
    FallbackWarning,
    InPlaceError,
    InputWarning,
    NonFiniteError,
    RelevanceError,
    UnsupportedOperationError,
    UnusedInputError,
    VerificationError,
)
from .pictures import picture, save, show, show_flow
from .rules import (
    CPLRP,
    AlphaBeta,
    AttnLRP,
    BetaSmooth,
    Composite,
    DeconvNet,
    Epsilon,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonLayerwise,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    Flat,
    Gamma,
    Gradient,
    GuidedBackprop,
    Norm,
    OperationRule,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    Rule,
    Uniform,
    WSquare,
    ZBox,
    ZPlus,
)
from .tape import Tape, record
from .verification import Report, verify

__all__ = [
    "CPLRP",
    "LRP",
    "AlphaBeta",
    "AttnLRP",
    "BetaSmooth",
    "Composite",
    "DeconvNet",
    "Epsilon",
    "EpsilonAlpha2Beta1",
    "EpsilonAlpha2Beta1Flat",
    "EpsilonGammaBox",
    "EpsilonLayerwise",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "ExcitationBackprop",
    "FallbackWarning",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedBackprop",
    "InPlaceError",
    "InputWarning",
    "NonFiniteError",
    "Norm",
    "OperationRule",
    "Pass",
    "ReLUBetaSmooth",
    "ReLUDeconvNet",
    "ReLUGuidedBackprop",
    "RelevanceError",
    "Report",
    "Rule",
    "StaticCalls",
    "Tape",
    "Uniform",
    "UnsupportedOperationError",
    "UnusedInputError",
    "VerificationError",
    "WSquare",
    "ZBox",
    "ZPlus",
    "__version__",
    "heatmap",
    "input_of",
    "output_of",
    "picture",
    "pictures",
    "record",
    "save",
    "select_logits",
    "show",
    "show_config",
    "show_flow",
    "verify",
]
