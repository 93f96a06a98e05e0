"""captum's LRP on this engine: ``from lrpkernels.compat.captum import LRP`` in place of ``from captum.attr import LRP``.

captum itself need not be installed; its rule objects are understood where it is (docs/coming_from_captum.md).
"""

from .layer_lrp import LayerLRP
from .lrp import LRP
from .rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule, IdentityRule, PropagationRule
from .targets import TargetError

__all__ = [
    "LRP",
    "Alpha1_Beta0_Rule",
    "EpsilonRule",
    "GammaRule",
    "IdentityRule",
    "LayerLRP",
    "PropagationRule",
    "TargetError",
]
