"""Is a recording complete? Its gradients, compared with autograd's on the model itself.

Both passes run on copies of the same few images with the same random numbers. Where they differ, :mod:`lrpkernels.engine.locate` looks
for the operation, and decides whether it is more than rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import RelevanceError
from .locate import Departure, locate, path_of, steps_of
from .own_pass import Inputs, Watch, copy_of, explainable, own_pass, unchanged
from .tape_pass import Take, difference, gradients_of, starts_of, tolerance


@dataclass(frozen=True)
class Checked:
    """What a check has found.

    Attributes:
        error: the largest relative difference between the gradients at an input (of norms); NaN: there is none to be had, since the
            outputs are not finite.
        departures: where the recording is not what the model does; none: it is complete.
    """

    error: float
    departures: tuple[Departure, ...] = ()


def check(model: nn.Module, inputs: Inputs, kwargs: dict[str, Any], take: Take) -> Checked:
    """Compares a recording with the model itself.

    Args:
        model: in the mode in which it will be explained.
        inputs, kwargs: what it is called with; a few images suffice.
        take: records it on such inputs, in the caller's grad mode.

    Raises:
        RelevanceError: a relevance pass will not go through an operation that has a gradient.
        Exception: what the model, or recording it, raises on these inputs.
    """
    refused: list[RelevanceError] = []
    with unchanged(model, inputs[0].device):
        tape = take(tuple(map(copy_of, inputs)))
        try:
            starts, limits = starts_of(tape), tolerance(tape)
            explained = [out.detach() for i, out in enumerate(explainable(tape.output)) if i in starts]
            found = gradients_of(tape, [*starts.values()], refused)
            steps = steps_of(tape)
        finally:
            tape.clear()
    watch = Watch()
    try:
        own = own_pass(model, inputs, kwargs, starts, watch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if refused:
            raise refused[0] from None  # as a relevance pass will
        reason = f"the model runs without gradients but fails with them ({type(error).__name__}: {_first_line(error)})"
        return Checked(float("nan"), (Departure(path_of(model, watch.running), "own pass", reason),))
    if not all(bool(torch.isfinite(out).all()) for out in own.outputs):
        return Checked(float("nan"))
    at_outputs = [difference(*pair) for pair in zip(explained, own.outputs, strict=True)]
    at_inputs = [difference(*pair) for pair in zip(found, own.gradients, strict=True)]
    relative = max(e / norm if norm else float(e > 0) for e, norm in at_inputs)
    if all(e <= limits.sure * norm for e, norm in (*at_outputs, *at_inputs)):
        return Checked(relative)
    if refused:
        raise refused[0]
    departure = locate(model, inputs, kwargs, take, own, found, steps)
    return Checked(relative, () if departure is None else (departure,))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
