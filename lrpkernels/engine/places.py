"""Places in a model: what a call of one of its modules read or returned."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from ..graph import Value


@dataclass(frozen=True)
class Place:
    """What a module reads or returns; made by :func:`input_of` and :func:`output_of`. A module's name alone stands for its output.

    Attributes:
        module: dotted name, "" for the model itself.
        reads: its input; False: its output.
        call: which call of it, for a module that runs several times in a forward pass, from 0; None: the only one.
    """

    module: str
    reads: bool = False
    call: int | None = None

    def __repr__(self) -> str:
        which = "" if self.call is None else f", call={self.call}"
        return f"{'input_of' if self.reads else 'output_of'}({self.module!r}{which})"


def input_of(module: str, call: int | None = None) -> Place:
    """The input of a module, for ``at`` and ``conditions``: the tensors among its arguments, keyword arguments last.

    Args:
        module: dotted name, as in ``model.named_modules()``.
        call: which call, from 0, of a module that runs several times.
    """
    return Place(module, True, call)


def output_of(module: str, call: int | None = None) -> Place:
    """The output of a module: what its name alone stands for; needed for one ``call`` of a module that runs several times.

    Args:
        module: dotted name, as in ``model.named_modules()``.
        call: which call, from 0.
    """
    return Place(module, False, call)


class ModuleCall(NamedTuple):
    """One call of a module: the recorded floating-point tensors among its arguments and its results."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


def as_place(place: str | Place) -> Place:
    """A place from what users pass: a module's name, or a place.

    Raises:
        TypeError: neither a module's name nor a place.
    """
    if isinstance(place, str):
        return Place(place)
    if not isinstance(place, Place):
        raise TypeError(f"at: expected a module's name, lrp.input_of(...) or lrp.output_of(...), got {place!r}")
    return place


def modules_at(model: nn.Module, places: Sequence[str | Place]) -> list[tuple[Place, nn.Module]]:
    """The places that a user names, each with its module.

    Raises:
        TypeError: not a list of module names and places.
        ValueError: no such module.
    """
    if isinstance(places, (str, Place)):
        raise TypeError(f"at: expected a list of places, got {places!r}; write [{places!r}]")
    modules = dict(model.named_modules(remove_duplicate=False))
    found = []
    for place in map(as_place, places):
        if place.module not in modules:
            near = difflib.get_close_matches(place.module, [n for n in modules if n], n=3, cutoff=0.3)
            raise ValueError(
                f"at: the model has no module {place.module!r}; near matches: {', '.join(near) or 'none'} (the input of a module is "
                "lrp.input_of(name))"
            )
        found.append((place, modules[place.module]))
    return found


def values_at(
    model: nn.Module, calls_of: Callable[[nn.Module], list[ModuleCall]], place: str | Place
) -> tuple[Value, ...]:
    """The recorded values at a place, one or several.

    Raises:
        ValueError: no such module or call, or no recorded tensor there.
    """
    ((found, module),) = modules_at(model, [place])
    ran = calls_of(module)
    if found.call is None and len(ran) != 1:
        remedy = f"; say which: {Place(found.module, found.reads, 0)!r}, ..." if ran else ""
        raise ValueError(
            f"at: module {found.module!r} must run once in a forward pass to be named like this, it ran {len(ran)} times{remedy}"
        )
    number = found.call or 0
    if not 0 <= number < len(ran):
        raise ValueError(f"at: {found!r}: module {found.module!r} ran {len(ran)} times")
    values = ran[number].inputs if found.reads else ran[number].outputs
    if not values:
        what = "reads" if found.reads else "returns"
        raise ValueError(
            f"at: module {found.module!r} {what} no floating-point tensor that depends on the model's input"
        )
    return values
