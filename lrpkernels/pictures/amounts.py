"""How much relevance each layer carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrpkernels.engine.places import Place
from lrpkernels.engine.target import Target
from lrpkernels.rules import Composite, Rule
from lrpkernels.tape import Tape

from .arrays import array
from .draw import label, new_figure, relevance_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST = 4  # places that a picture of a model's relevance should have


class Amount(NamedTuple):
    """Relevance at one place, summed over its elements, as a mean over the images.

    Attributes:
        place: its name.
        positive: sum of what is positive.
        negative: sum of what is negative, <= 0.
    """

    place: str
    positive: float
    negative: float

    @property
    def net(self) -> float:
        """What is conserved from layer to layer: the sum of both."""
        return self.positive + self.negative

    @property
    def absolute(self) -> float:
        """The sum of magnitudes."""
        return self.positive - self.negative


def flow(
    source: Tape | Mapping[Any, Any],
    target: Target = None,
    composite: Composite | Rule | None = None,
    at: Sequence[str | Place] | None = None,
) -> list[Amount]:
    """The amount of relevance at each place, from the input on.

    Args:
        source: a recording (``with lrp.record(model, x) as tape``), or what ``tape.relevance(..., at=[...])`` returned.
        target: of a recording: what is explained, one target for each image.
        composite: of a recording: the rules; None: ``Epsilon(1e-2)``.
        at: of a recording: the places. None: the blocks that the model is made of.

    Raises:
        TypeError, ValueError: neither of both; places that do not fit; NaN or infinite relevance.
    """
    if isinstance(source, Tape):
        places = _blocks(source) if at is None else list(at)
        found = source.relevance(target, composite, at=places)
    elif isinstance(source, Mapping):
        if target is not None or composite is not None or at is not None:
            raise ValueError(
                "flow: target, composite and at belong to a recording; a mapping holds the relevance itself"
            )
        found = source
    else:
        raise TypeError(f"source: expected a Tape or a mapping from places to relevance, got {type(source).__name__}")
    if not found:
        raise ValueError("source: the mapping is empty")
    return [_amount(str(place), relevance) for place, relevance in found.items()]


def show_flow(
    source: Tape | Mapping[Any, Any],
    target: Target = None,
    composite: Composite | Rule | None = None,
    at: Sequence[str | Place] | None = None,
    *,
    title: str = "",
) -> Figure:
    """A figure of the relevance at each layer: what supports the class, what speaks against it, and their sum.

    The sum stays the same from layer to layer where the rules conserve relevance; the bars grow towards the input where positive and
    negative relevance cancel.

    Args:
        source: as for :func:`flow`.
        target: likewise.
        composite: likewise.
        at: likewise.
        title: above the picture.

    Returns:
        ``matplotlib.figure.Figure``, as :func:`lrpkernels.show` does.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: as :func:`flow` and :func:`lrpkernels.show`.

    Example:
        >>> with torch.no_grad(), lrp.record(model, x) as tape:
        ...     figure = lrp.show_flow(tape, target=3)
    """
    amounts = flow(source, target, composite, at)
    figure = new_figure(6.5, 1.2 + 0.28 * len(amounts), title)
    axes = figure.subplots()
    rows = np.arange(len(amounts))
    colors = relevance_colors()
    axes.barh(rows, [amount.positive for amount in amounts], color=colors(0.75), label="supports")
    axes.barh(rows, [amount.negative for amount in amounts], color=colors(0.25), label="speaks against")
    axes.plot([amount.net for amount in amounts], rows, "k.-", linewidth=1, label="sum")
    axes.set_yticks(rows, [label(amount.place) for amount in amounts], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("relevance, summed over each layer; mean of the images", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.legend(loc="best", fontsize=8, frameon=False)
    return figure


def _amount(place: str, relevance: Any) -> Amount:
    tensors = relevance if isinstance(relevance, (tuple, list)) else (relevance,)
    values = [array(f"relevance at {place}", tensor) for tensor in tensors]
    images = values[0].shape[0] if values[0].ndim else 1
    return Amount(
        place,
        sum(float(np.clip(value, 0, None).sum()) for value in values) / images,
        sum(float(np.clip(value, None, 0).sum()) for value in values) / images,
    )


def _blocks(tape: Tape) -> list[str]:
    """The modules at the first depth of names at which the recording has several; of a model of one layer, that one."""
    names: list[str] = []
    for depth in range(1, 8):
        found = [name for name, _ in tape.model.named_modules() if name and name.count(".") < depth]
        names = [name for name in found if _is_deepest(name, found) and _is_recorded(tape, name)]
        if len(names) >= _LEAST:
            break
    return names


def _is_deepest(name: str, names: Sequence[str]) -> bool:
    return not any(other.startswith(f"{name}.") for other in names)


def _is_recorded(tape: Tape, name: str) -> bool:
    try:
        tape.values_at(name)
    except ValueError:
        return False
    return True
