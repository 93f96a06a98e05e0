"""Classifiers from the field's libraries or your own file, and the weights that they begin with."""

from isnet.architectures.build import build_architecture, construction, tell_left_out
from isnet.architectures.catalogue import Entry, catalogue, count_parameters
from isnet.architectures.find import ArchitectureError
from isnet.architectures.weights import WeightsError, load_weights, read_weights

__all__ = [
    "ArchitectureError",
    "Entry",
    "WeightsError",
    "build_architecture",
    "catalogue",
    "construction",
    "count_parameters",
    "load_weights",
    "read_weights",
    "tell_left_out",
]
