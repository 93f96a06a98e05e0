"""zennit's interface: change an import, ``from zennit.composites import EpsilonPlus`` -> ``from lrpkernels.compat.zennit.composites ...``.

The files have zennit's names (``composites``, ``attribution``, ``rules``, ``core``, ``types``, ``layer``, ``canonizers``, ``torchvision``);
their names are here as well. :func:`convert` turns rules and composites, those of an installed zennit included, into those of lrpkernels.
No part of zennit is needed. docs/coming_from_zennit.md lists the differences.
"""

from . import types
from .attribution import Attributor, Gradient, IntegratedGradients, Occlusion, SmoothGrad
from .canonizers import (
    AttributeCanonizer,
    Canonizer,
    CompositeCanonizer,
    MergeBatchNorm,
    NamedMergeBatchNorm,
    SequentialMergeBatchNorm,
)
from .composites import (
    COMPOSITES,
    BetaSmooth,
    DeconvNet,
    EpsilonAlpha2Beta1,
    EpsilonAlpha2Beta1Flat,
    EpsilonGammaBox,
    EpsilonPlus,
    EpsilonPlusFlat,
    ExcitationBackprop,
    GuidedBackprop,
    LayerMapComposite,
    MixedComposite,
    NameLayerMapComposite,
    NameMapComposite,
    SpecialFirstLayerMapComposite,
    layer_map_base,
    register_composite,
)
from .convert import convert
from .core import BasicHook, Composite, Hook, ParamMod, Stabilizer, stabilize
from .layer import Sum
from .rules import (
    AlphaBeta,
    ClampMod,
    Epsilon,
    Flat,
    Gamma,
    GammaMod,
    NoMod,
    Norm,
    Pass,
    ReLUBetaSmooth,
    ReLUDeconvNet,
    ReLUGuidedBackprop,
    WSquare,
    ZBox,
    ZPlus,
)
from .torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer, ResNetCanonizer, VGGCanonizer
