"""zennit's color maps, written as text: ``ColorMap("00f,80:fff,f00")`` runs from blue over white in the middle to red."""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NODE = re.compile(r"\s*(?:([0-9a-f]{1,2})\s*:\s*)?([0-9a-f]{6}|[0-9a-f]{3})\s*", re.IGNORECASE)
_LAST = 255  # positions are bytes


class ColorMapError(ValueError, RuntimeError):
    """A text that is no color map. A RuntimeError, too, since zennit raises these."""


class ColorMap:
    """A color map from colors between which it is linear.

    Args:
        source: hexadecimal colors with one or two digits per channel, separated by commas; ahead of a color, and a colon, its position
            may stand, from 0 to f or 00 to ff, in ascending order. Colors without one are spaced evenly.

    Raises:
        ColorMapError: a text of another form.

    Example:
        >>> colors = ColorMap("fff,f00")(np.linspace(0, 1, 5))
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @property
    def source(self) -> str:
        """The text; another one may be assigned."""
        return self._source

    @source.setter
    def source(self, source: str) -> None:
        self._positions, self._colors = _compiled(source)
        self._source = source

    def __call__(self, x: Any) -> NDArray[np.float64]:
        """The colors of numbers in [0, 1]; those outside have the color of the nearest end.

        Args:
            x: of any shape.

        Returns:
            Of this shape with an axis of red, green and blue behind it, in [0, 1].
        """
        at = (np.asarray(x) * _LAST).clip(0, _LAST)
        return np.stack([np.interp(at, self._positions, channel) for channel in self._colors.T], -1) / 255

    def palette(self, level: float = 1.0) -> NDArray[np.uint8]:
        """256 colors.

        Args:
            level: below 1, the range of colors narrows towards the middle; above, the ends are reached earlier.

        Returns:
            uint8 [256, 3].
        """
        colors = self((np.linspace(-1, 1, 256) * level + 1) / 2)
        return (colors * 255).round(12).clip(0, 255).astype(np.uint8)

    def __repr__(self) -> str:
        return f"ColorMap({self.source!r})"


class LazyColorMapCache(MutableMapping[str, Any]):
    """Color maps by their names, made when they are first asked for.

    Args:
        sources: texts of :class:`ColorMap` by their names. What is assigned later is a text as well.
    """

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = dict(sources)
        self._made: dict[str, ColorMap] = {}

    def __getitem__(self, name: str) -> ColorMap:
        if name not in self._sources:
            raise KeyError(f"no color map is called {name!r}, there are {', '.join(self._sources)}")
        if name not in self._made:
            self._made[name] = ColorMap(self._sources[name])
        return self._made[name]

    def __setitem__(self, name: str, source: str) -> None:
        if name in self._made:
            self._made[name].source = source
        self._sources[name] = source

    def __delitem__(self, name: str) -> None:
        del self._sources[name]
        self._made.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources


def _compiled(source: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Positions in 0 to 255 and their colors, [n] and [n, 3] in 0 to 255."""
    if not isinstance(source, str):
        raise ColorMapError(f"source: a color map is a text such as '000,fff', got {type(source).__name__}")
    parts = source.split(",")
    if not parts[-1].strip():
        del parts[-1]  # a comma at the end
    found = [_NODE.fullmatch(part) for part in parts]
    positions: list[int | None] = []
    colors: list[list[int]] = []
    for part, match in zip(parts, found, strict=True):
        if match is None:
            raise ColorMapError(
                f"source: {part.strip()!r} in {source!r} is no color; write f00 or ff0000, or 80:ff0000 with a position"
            )
        position, color = match.groups()
        digits = len(color) // 3
        positions.append(None if position is None else int(position * (3 - len(position)), 16))
        colors.append([int(color[i : i + digits] * (3 - digits), 16) for i in range(0, len(color), digits)])
    if len(colors) < 2:
        raise ColorMapError(f"source: a color map has at least two colors, as '000,fff', got {source!r}")
    placed = _placed(positions)
    if placed != sorted(placed):
        raise ColorMapError(f"source: the positions of {source!r} must ascend")
    return np.array(placed), np.array(colors, dtype=np.float64)


def _placed(positions: list[int | None]) -> list[int]:
    """Positions for all, those without one spaced evenly between their neighbours (0 and 255 at the ends)."""
    given = list(positions)
    given[0] = 0 if given[0] is None else given[0]
    given[-1] = _LAST if given[-1] is None else given[-1]
    known = [i for i, position in enumerate(given) if position is not None]
    places = [position for position in given if position is not None]
    at = np.interp(np.arange(len(given)), known, places)
    return [int(position + 1e-9) for position in at]  # rounded down, as in zennit
