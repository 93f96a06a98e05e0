"""lrpkernels: a fast, differentiable engine for layer-wise relevance propagation (LRP) in PyTorch.

>>> import lrpkernels as lrp
>>> logits, heatmap = lrp.LRP(model, composite=lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))(x, target=3)
"""

from . import heatmap
from .attribution import LRP
from .config import __version__, show_config
from .engine.replay import StaticCalls
from .errors import (
    FallbackWarning,
    InPlaceError,
    NonFiniteError,
    RelevanceError,
    UnsupportedOperationError,
    UnusedInputError,
    VerificationError,
)
from .rules import (
    AlphaBeta,
    Composite,
    Epsilon,
    EpsilonAlpha2Beta1,
    EpsilonGammaBox,
    EpsilonLayerwise,
    EpsilonPlus,
    EpsilonPlusFlat,
    Flat,
    Gamma,
    Gradient,
    Norm,
    Pass,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)
from .tape import Tape, record
from .verification import Report, verify

__all__ = [
    "LRP",
    "AlphaBeta",
    "Composite",
    "Epsilon",
    "EpsilonAlpha2Beta1",
    "EpsilonGammaBox",
    "EpsilonLayerwise",
    "EpsilonPlus",
    "EpsilonPlusFlat",
    "FallbackWarning",
    "Flat",
    "Gamma",
    "Gradient",
    "InPlaceError",
    "NonFiniteError",
    "Norm",
    "Pass",
    "RelevanceError",
    "Report",
    "Rule",
    "StaticCalls",
    "Tape",
    "UnsupportedOperationError",
    "UnusedInputError",
    "VerificationError",
    "WSquare",
    "ZBox",
    "ZPlus",
    "__version__",
    "heatmap",
    "record",
    "show_config",
    "verify",
]
