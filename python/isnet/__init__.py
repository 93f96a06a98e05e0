"""isnet: classifiers that do not look at the background, trained through their own LRP heatmaps.

>>> net = isnet.ISNet(model, variant="selective", input_range=(0.0, 1.0))
>>> out = net(images)                                       # training mode: out.logits, out.heatmaps
>>> isnet.ISNetLoss(p=0.7)(out, labels, masks).total.backward()
>>> isnet.load("runs/guarded").predict("scan.png")          # what ``isnet train`` made
"""

import importlib
from typing import TYPE_CHECKING, Any

from .distillation import Distilled, DistilledOutput, MatchingLoss, MatchingTerms
from .gwrp import gwrp
from .loss import HeatmapLoss, ISNetLoss, LayerLoss, LossTerms
from .model import ISNet, ISNetOutput
from .variants import ISNetComposite, ISNetDualComposite, selective_score, stochastic_target

if TYPE_CHECKING:
    from .runs.trained import load

__all__ = [
    "Distilled",
    "DistilledOutput",
    "HeatmapLoss",
    "ISNet",
    "ISNetComposite",
    "ISNetDualComposite",
    "ISNetLoss",
    "ISNetOutput",
    "LayerLoss",
    "LossTerms",
    "MatchingLoss",
    "MatchingTerms",
    "gwrp",
    "load",
    "selective_score",
    "stochastic_target",
]


def __getattr__(name: str) -> Any:
    # Runs need the packages of the extra isnet, which the classes above do without.
    if name == "load":
        return importlib.import_module("isnet.runs.trained").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
