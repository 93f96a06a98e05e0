"""What each PyTorch function means on the tape, one file per family. Importing this package fills the table of recorders."""

from . import activation, arithmetic, attention, fallback, linear_maps, normalization, norms, pooling, structure

__all__ = [
    "activation",
    "arithmetic",
    "attention",
    "fallback",
    "linear_maps",
    "normalization",
    "norms",
    "pooling",
    "structure",
]
