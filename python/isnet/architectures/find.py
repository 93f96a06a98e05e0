"""From the name of an architecture to its constructor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isnet.factories import FactoryError, find_network


class ArchitectureError(ValueError):
    """An architecture that cannot be found, built, or run on the data."""


def find(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The constructor that a name stands for, and its positional arguments (:func:`isnet.factories.find_network`).

    Raises:
        ArchitectureError: there is none.
    """
    try:
        return find_network(name)
    except FactoryError as error:
        raise ArchitectureError(f"architecture: {error}") from error
