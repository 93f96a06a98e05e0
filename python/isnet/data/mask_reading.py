"""How the numbers, colours or transparency of a file become a foreground mask."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from isnet.data.readers import Picture, Pixels

MaskKind = Literal["binary", "labels", "palette", "colours", "alpha", "threshold", "values"]
_SMALL = 32  # whole numbers below this are labels
_FEW = 8  # so many different whole numbers, 0 among them, are labels, too
_FLAT = 0.9  # areas of one number: labels; brightness has slopes or noise (figures in docs/pixels.md)
_SMOOTH = 0.5  # below: slopes or noise
_NAMED = 32  # values that a reading names
_NUMBER = r"\d+(?:\.\d+)?"
_REMEDY = "say which values are foreground (--foreground-values)"


class UnclearMaskError(ValueError):
    """A mask that can be read in more than one way; the text says why, and what to do."""


class MaskReading(NamedTuple):
    """How a mask was read. ``str()`` of it is one line.

    Masks of one set should have one kind. ``"binary"`` fits to all others; ``"labels"`` beside ``"threshold"`` is suspicious.

    Attributes:
        kind: ``"binary"``: at most two numbers, 0 and another; ``"labels"``: whole numbers, all but 0 foreground; ``"palette"``: the same
            of a palette's indices; ``"colours"``: all but black; ``"alpha"``: what is not transparent; ``"threshold"``: what is brighter
            than half of the largest; ``"values"``: the values that were given.
        found: The different values of the file, in ascending order, 32 at most: numbers, or colours such as #ff0000. Empty for
            ``"alpha"`` and ``"threshold"``.
        foreground: Those of them that are foreground.
        threshold: Above which numbers are foreground, for ``"threshold"``.
        between: Share of the pixels from a quarter to three quarters of the largest number, for ``"threshold"``: much of it hints at a
            picture that is no mask.
        share: Of the pixels are foreground.
    """

    kind: MaskKind
    found: tuple[str, ...]
    foreground: tuple[str, ...]
    threshold: float | None
    between: float
    share: float

    def __str__(self) -> str:
        if self.kind == "alpha":
            return "what is not transparent"
        if self.threshold is not None:
            return f"what is brighter than {self.threshold:g}"
        more = ", ..." if len(self.found) == _NAMED else ""
        return f"{self.kind}: {', '.join(self.foreground) or 'none'} of {', '.join(self.found)}{more}"


@dataclass(frozen=True)
class MaskValues:
    """Which values of masks are foreground, and which stands for void.

    Attributes:
        ranges: Numbers, each as (lowest, highest).
        colours: (red, green, blue), 0 to 255.
        void: Is background, whatever else holds; None: no number is.
    """

    ranges: tuple[tuple[float, float], ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    void: int | None = None

    @classmethod
    def of(cls, foreground: Collection[float | str] = (), void: int | None = None) -> MaskValues:
        """From numbers or texts: ``"1"``, ``"-1"``, ``"128-255"``, ``"#ff0000"``.

        Raises:
            ValueError: another text.
        """
        ranges, colours = [], []
        for given in (foreground,) if isinstance(foreground, str) else foreground:
            text = str(given).strip()
            if found := re.fullmatch("#([0-9a-fA-F]{6})", text):
                red, green, blue = bytes.fromhex(found[1])
                colours.append((red, green, blue))
            elif (found := re.fullmatch(f"({_NUMBER})-({_NUMBER})", text)) and float(found[1]) <= float(found[2]):
                ranges.append((float(found[1]), float(found[2])))
            elif not isinstance(given, bool) and re.fullmatch(f"-?{_NUMBER}", text):
                ranges.append((float(text), float(text)))
            else:
                raise ValueError(
                    f"foreground_values: expected numbers (1), ranges (128-255) or colours (#ff0000), got {given!r}"
                )
        return cls(tuple(ranges), tuple(colours), void)

    def __bool__(self) -> bool:
        return bool(self.ranges or self.colours)

    def among(self, numbers: Pixels, palette: Pixels | None = None) -> Pixels:
        """Where numbers are foreground: indices, if there is a palette; else a grey colour counts as its number."""
        chosen = np.zeros(numbers.shape, bool)
        grey = [(float(red), float(red)) for red, green, blue in self.colours if red == green == blue]
        if palette is not None:
            grey = []
            for colour in self.colours:
                chosen |= (palette[numbers] == colour).all(-1)
        for low, high in (*self.ranges, *grey):
            if low < high:
                chosen |= (numbers >= low) & (numbers <= high)
            else:  # a fraction may have been rounded to single precision
                chosen |= numbers == low if low.is_integer() else np.isclose(numbers, low, 1e-6, 0)
        return chosen


def foreground(picture: Picture, values: MaskValues) -> tuple[Pixels, MaskReading]:
    """The foreground of a mask as it is stored, bool [H, W], and how it was found.

    Transparent pixels are background. Where colours or numbers tell something else than the transparency, or can mean several things, the
    mask is refused.

    Args:
        picture: Of :meth:`isnet.data.readers.Reader.read` with ``scaled=False``.
        values: What was said of the set's masks.

    Raises:
        UnclearMaskError: it can be read in more than one way.
    """
    visible = None if picture.alpha is None or np.ptp(picture.alpha) == 0 else picture.alpha > picture.alpha.max() / 2
    if visible is None and picture.alpha is not None and not picture.alpha.any():
        raise UnclearMaskError("transparent everywhere; save it without transparency")
    if picture.white_is_zero and not values:
        raise UnclearMaskError(
            f"its white is 0 and its black the largest number, so that either may be meant; {_REMEDY}"
        )
    numbers = picture.pixels
    if numbers.ndim == 3 and bool((numbers == numbers[..., :1]).all()):
        numbers = numbers[..., 0]
    if values.void is not None and numbers.ndim == 2:
        numbers = np.where(numbers == values.void, numbers.dtype.type(0), numbers)
    if visible is None:
        return _opaque(numbers, picture, values)
    shown = np.where(visible if numbers.ndim == 2 else visible[..., None], numbers, numbers.dtype.type(0))
    if values:
        chosen, reading = _opaque(shown, picture, values)
        chosen &= visible
        return chosen, reading._replace(share=float(chosen.mean()))
    constant = bool((numbers == numbers[0, 0]).all())
    if not constant and not np.array_equal(_opaque(shown, picture, values)[0], visible):
        raise UnclearMaskError(
            f"its transparency and its colours show different areas; {_REMEDY}, or save it without one"
        )
    return visible, MaskReading("alpha", (), (), None, 0.0, float(visible.mean()))


def _opaque(numbers: Pixels, picture: Picture, values: MaskValues) -> tuple[Pixels, MaskReading]:
    if numbers.ndim == 3:
        return _by_colour(numbers, picture.lossy, values)
    if picture.palette is not None:
        return _by_index(numbers, picture.palette, values)
    return _by_number(numbers, picture.lossy, values)


def _by_number(numbers: Pixels, lossy: bool, values: MaskValues) -> tuple[Pixels, MaskReading]:
    found = _distinct(numbers)
    if values:
        return _listed("values", values.among(numbers), found, values.among(found))
    low, high = float(found[0]), float(found[-1])
    if low < 0:
        raise UnclearMaskError(f"numbers from {low:g} to {high:g}; {_REMEDY}")
    whole = bool((found == np.rint(found)).all())
    if (whole and high < _SMALL) or len(found) == 1 or (len(found) == 2 and low == 0):
        kind: MaskKind = "binary" if len(found) < 3 and low in (0, high) else "labels"
        return _listed(kind, numbers > 0, found, found > 0)
    inside = _flatness(numbers, (numbers > low) & (numbers < high))
    if whole and low == 0 and not lossy:
        # Noise around both ends, as of a JPEG file that was saved as PNG, is not flat.
        noise = found[1] <= high / 16 and found[-2] >= high * 15 / 16 and inside < _FLAT
        if inside >= _FLAT or (len(found) <= _FEW and not noise):
            return _listed("labels", numbers > 0, found, found > 0)
    if low > high / 4:
        raise UnclearMaskError(f"numbers from {low:g} to {high:g}, without a dark background; {_REMEDY}")
    if inside > _SMOOTH and bool(((numbers > low) & (numbers < high)).mean() > 0.01):
        raise UnclearMaskError(
            f"areas of {len(found)} brightnesses; {_REMEDY}, or save labels as whole numbers in a PNG file"
        )
    between = (numbers > high / 4) & (numbers < high * 3 / 4)
    bright = numbers > high / 2
    reading = MaskReading("threshold", (), (), high / 2, float(between.mean()), float(bright.mean()))
    return bright, reading


def _by_index(indices: Pixels, palette: Pixels, values: MaskValues) -> tuple[Pixels, MaskReading]:
    """By a palette's indices. Where it holds greys alone, their brightness must tell the same."""
    found = _distinct(indices)
    if found[-1] >= len(palette):
        raise UnclearMaskError(f"the index {found[-1]:g} of a palette of {len(palette)} colours; save it anew")
    if values:
        chosen = values.among(found, palette)
        return _listed("values", np.isin(indices, found[chosen]), found, chosen)
    used = palette[found]
    if bool((used == used[:, :1]).all()):
        grey = palette[indices, 0]
        if bool((used[:, 0] == found).all()):
            return _by_number(indices, False, values)
        if not np.array_equal(_by_number(grey, False, values)[0], indices > 0):
            raise UnclearMaskError(f"the indices of its palette and their greys show different areas; {_REMEDY}")
    elif found[0] != 0 and len(found) > 1:
        raise UnclearMaskError(
            f"no pixel has the index 0, so that any of {_indices(found)} may be the background; {_REMEDY}"
        )
    elif used[0].any() and not used.any(-1).all():
        raise UnclearMaskError(
            f"index 0 of its palette is no black, but another one is; {_REMEDY} among {_indices(found)}"
        )
    return _listed("palette", indices > 0, found, found > 0)


def _indices(found: Pixels) -> str:
    return ", ".join(map(str, found[:_FEW].tolist()))


def _by_colour(colours: Pixels, lossy: bool, values: MaskValues) -> tuple[Pixels, MaskReading]:
    brightest = colours.max(-1)
    if colours.min() < 0:
        raise UnclearMaskError(
            f"numbers from {colours.min():g} to {colours.max():g} in its colours; save it as 8-bit RGB"
        )
    if values and not (colours.dtype.kind in "ui" and colours.max() < 256):
        raise UnclearMaskError("colours of more than 8 bits; save it as 8-bit RGB to say which are foreground")
    if colours.dtype.kind in "ui" and colours.max() < 2**16:
        codes = colours.astype(np.int64) @ np.array([2**32, 2**16, 1])
        found = _distinct(codes)
        digits = 2 if colours.max() < 256 else 4
        parts = ([code >> 32, code >> 16 & 0xFFFF, code & 0xFFFF] for code in found[:_NAMED].tolist())
        names = ["#" + "".join(f"{part:0{digits}x}" for part in three) for three in parts]
        if values:
            if values.ranges:
                raise UnclearMaskError(
                    f"a mask of the colours {', '.join(names[:8])}; say colours (--foreground-values {names[-1]})"
                )
            wanted = [red << 32 | green << 16 | blue for red, green, blue in values.colours]
            return _listed("values", np.isin(codes, wanted), found, np.isin(found, wanted), names)
        areas = len(found) <= _FEW or (not lossy and _flatness(codes, codes != found[0]) >= _FLAT)
        if areas and found[0] == 0 and not lossy:
            return _listed("colours", codes > 0, found, found > 0, names)
        if areas and found[0] != 0:
            raise UnclearMaskError(
                f"colours without black ({', '.join(names[:8])}), so that any may be the background; {_REMEDY}"
            )
    return _by_number(brightest, True, values)


def _listed(
    kind: MaskKind, mask: Pixels, found: Pixels, chosen: Pixels, names: list[str] | None = None
) -> tuple[Pixels, MaskReading]:
    names = [f"{value:g}" for value in found[:_NAMED].tolist()] if names is None else names
    picked = tuple(name for name, one in zip(names, chosen.tolist(), strict=False) if one)
    return mask, MaskReading(kind, tuple(names), picked, None, 0.0, float(mask.mean()))


def _distinct(numbers: Pixels) -> Pixels:
    """The different numbers, in ascending order."""
    if numbers.dtype.kind == "b":
        numbers = numbers.astype(np.uint8)
    if numbers.dtype in (np.uint8, np.uint16):  # many times faster than sorting
        return np.flatnonzero(np.bincount(numbers.ravel()))
    return np.unique(numbers)


def _flatness(numbers: Pixels, where: Pixels) -> float:
    """Share of these pixels that equal a neighbour in their row and one in their column; 0 of none."""
    if not where.any():
        return 0.0
    around = np.pad(numbers, 1, mode="edge")
    rows = (around[1:-1, :-2] == numbers) | (around[1:-1, 2:] == numbers)
    columns = (around[:-2, 1:-1] == numbers) | (around[2:, 1:-1] == numbers)
    return float((rows & columns)[where].mean())


def kinds_that_differ(readings: Collection[MaskReading]) -> tuple[MaskKind, ...]:
    """The kinds of a set's masks if they do not go together, else (): ``"binary"`` fits to each."""
    kinds = sorted({reading.kind for reading in readings} - {"binary"})
    return tuple(kinds) if len(kinds) > 1 else ()
