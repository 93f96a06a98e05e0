"""Exceptions of the engine. Each text names the module path and the operation, and says what to do."""

from __future__ import annotations


class RelevanceError(RuntimeError):
    """Base class: the relevance of this model cannot be computed as asked."""


class UnsupportedOperationError(RelevanceError):
    """An operation between input and output has no sensible rule (an index, a comparison, an unknown custom function)."""


class InPlaceError(RelevanceError):
    """The model changes a recorded tensor in place in a way that cannot be carried out on a copy (it changes its size)."""


class UnusedInputError(RelevanceError):
    """The explained output does not depend on the model's input through recorded operations."""


class NonFiniteError(RelevanceError):
    """An activation or the explained score is NaN or infinite."""


class VerificationError(RelevanceError):
    """A recording is not what the model does (:func:`lrpkernels.verify`): its heatmaps would be wrong."""


class FallbackWarning(UserWarning):
    """A function without a rule passes its gradient on, as in gradient times input. Turn it into an error to rule that out."""


class InputWarning(UserWarning):
    """What is asked for can be computed, but is hardly meant: pixels outside of a box rule's range, a model in training mode."""
