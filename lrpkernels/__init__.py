"""lrpkernels: a fast, differentiable engine for layer-wise relevance propagation (LRP) in PyTorch.

>>> import lrpkernels as lrp
>>> logits, heatmap = lrp.LRP(model, composite=lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))(x, target=3)
"""

from . import heatmap
from .attribution import LRP
from .config import __version__, show_config
from .engine.replay import StaticCalls
from .engine.target import select_logits
from .errors import (
    FallbackWarning,
    InPlaceError,
    NonFiniteError,
    RelevanceError,
    UnsupportedOperationError,
    UnusedInputError,
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
    Norm,
    Pass,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)
from .tape import Tape, record

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
    "InPlaceError",
    "NonFiniteError",
    "Norm",
    "Pass",
    "RelevanceError",
    "Rule",
    "StaticCalls",
    "Tape",
    "UnsupportedOperationError",
    "UnusedInputError",
    "WSquare",
    "ZBox",
    "ZPlus",
    "__version__",
    "heatmap",
    "record",
    "select_logits",
    "show_config",
]
