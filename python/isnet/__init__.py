"""isnet: classifiers that do not look at the background, trained through their own LRP heatmaps.

>>> net = isnet.ISNet(model, variant="selective", input_range=(0.0, 1.0))
>>> out = net(images)                                       # training mode: out.logits, out.heatmaps
>>> isnet.ISNetLoss(p=0.7)(out, labels, masks).total.backward()
"""

from .gwrp import gwrp
from .loss import HeatmapLoss, ISNetLoss, LayerLoss, LossTerms
from .model import ISNet, ISNetOutput
from .variants import ISNetComposite, ISNetDualComposite, selective_score, stochastic_target

__all__ = [
    "HeatmapLoss",
    "ISNet",
    "ISNetComposite",
    "ISNetDualComposite",
    "ISNetLoss",
    "ISNetOutput",
    "LayerLoss",
    "LossTerms",
    "gwrp",
    "selective_score",
    "stochastic_target",
]
