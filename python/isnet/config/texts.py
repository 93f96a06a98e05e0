"""Values that have a short form as a text, on the command line and in files: sizes, pairs, normalisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _size(value: Any) -> Any:
    """A side, ``HEIGHTxWIDTH``, or both in a list."""
    sides = [str(side) for side in value] if isinstance(value, list | tuple) else str(value).lower().split("x")
    if len(sides) not in (1, 2) or not all(side.isdigit() and int(side) for side in sides):
        raise ValueError("HEIGHTxWIDTH or a side")
    return int(sides[0]), int(sides[-1])


def pairs(value: Any) -> dict[str, Any]:
    """A mapping, or texts ``KEY=VALUE`` whose values are JSON or plain text.

    Raises:
        ValueError: neither.
    """
    if isinstance(value, Mapping):
        try:
            json.dumps(list(value.values()), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError("values that JSON has") from error
        return dict(value)
    found = {}
    for text in value if isinstance(value, list | tuple) else [value]:
        name, separator, given = str(text).partition("=")
        if not separator or not name.isidentifier():
            raise ValueError("KEY=VALUE")
        try:
            found[name] = json.loads(given)
        except json.JSONDecodeError:
            found[name] = given
    return found


def _steps(value: Any) -> Any:
    """Pairs (epoch, number), a mapping, or texts ``EPOCH=NUMBER``; in ascending order."""
    if isinstance(value, Mapping):
        value = list(value.items())
    value = _several(value)
    try:
        parts = [text.split("=") if isinstance(text, str) else text for text in value]
        return tuple(sorted((float(epoch), float(number)) for epoch, number in parts))
    except (TypeError, ValueError) as error:
        raise ValueError("EPOCH=P") from error


def _several(value: Any) -> Any:
    """One text or number stands for a list of one."""
    return (value,) if isinstance(value, str | int | float) and not isinstance(value, bool) else value


def normalization(text: str | None, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) per channel of ``imagenet`` or ``MEAN/STD``; None without a text.

    Raises:
        ValueError: another text, or a wrong number of channels.
    """
    if text is None:
        return None
    if text == "imagenet":
        return IMAGENET if channels == 3 else tuple((sum(values) / 3,) for values in IMAGENET)  # type: ignore[return-value]
    try:
        mean, std = (tuple(map(float, half.split(","))) for half in text.split("/"))
    except ValueError as error:
        raise ValueError(f"normalize: expected imagenet or MEAN/STD, got {text!r}") from error
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(f"normalize: expected {channels} means and positive deviations, got {text!r}")
    return mean, std


def _limit(value: Any) -> Any:
    """0 is no limit."""
    return None if not isinstance(value, bool) and str(value) in ("0", "0.0") else value


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdigit() else value


Limit = Annotated[Annotated[float, Field(gt=0)] | None, BeforeValidator(_limit)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_whole)]
Size = Annotated[tuple[int, int], BeforeValidator(_size)]
Pairs = Annotated[dict[str, Any], BeforeValidator(pairs)]
Steps = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_steps)]
Epochs = Annotated[tuple[Annotated[int, Field(gt=0)], ...], BeforeValidator(_several)]
Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
