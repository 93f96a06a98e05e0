"""Training with explanations alone: a student whose heatmaps are to equal a teacher's."""

from isnet.distillation.distilled import EXPONENTS, Distilled, DistilledOutput, Head, Layers, Match, Start
from isnet.distillation.matching import MatchingLoss, MatchingTerms, map_distance
from isnet.distillation.views import VIEWS, View, ViewName

__all__ = [
    "EXPONENTS",
    "VIEWS",
    "Distilled",
    "DistilledOutput",
    "Head",
    "Layers",
    "Match",
    "MatchingLoss",
    "MatchingTerms",
    "Start",
    "View",
    "ViewName",
    "map_distance",
]
