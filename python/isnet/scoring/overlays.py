"""A picture of some images of a set with the outlines of their masks, to see at a glance whether they fit."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from isnet._text import figure_text
from isnet.data import Facts, Finding, MaskedImages, MaskError, read_image
from isnet.scoring.pictures import show_image

_SHOWN = 16
_COLUMNS = 4
_TINT, _TINT_ALPHA = (0.1, 0.7, 0.3), 0.25
_LONGEST = 30  # characters of a name below an image


class Overlay(NamedTuple):
    """An image [C, H, W] in [0, 1], its mask [1, H, W] (all 0: none) and what stands above and below it."""

    image: Tensor
    mask: Tensor
    title: str
    caption: str


def overlays(images: MaskedImages, facts: Sequence[Facts], findings: Sequence[Finding] = ()) -> list[Overlay]:
    """The first of every class of every split in turn, at most 16; up to half of them are images that a finding about masks names.

    Args:
        images: The set.
        facts: What :func:`isnet.data.examine` noted about it.
        findings: What the checks found.
    """
    named = {name for finding in findings if finding.code.startswith("mask-") for name in finding.examples}
    records = images.table.records
    readable = [seen for seen in facts if seen.size is not None]
    suspects = [seen for seen in readable if str(records[seen.row].mask or records[seen.row].image) in named]
    by_class: dict[object, list[Facts]] = {}
    for seen in readable:
        by_class.setdefault((records[seen.row].split, records[seen.row].label), []).append(seen)
    in_turn = [seen for seen in chain.from_iterable(zip_longest(*by_class.values())) if seen is not None]
    chosen = dict.fromkeys([seen.row for seen in suspects[: _SHOWN // 2]] + [seen.row for seen in in_turn])
    return [_overlay(images, row) for row in list(chosen)[:_SHOWN]]


def _overlay(images: MaskedImages, row: int) -> Overlay:
    record = images.table.records[row]
    image = read_image(record.image, images.channels)
    try:
        image, mask = images.fit(record, image)
        told = f"{100 * float(mask.mean()):.0f} % foreground" if bool(mask.any()) else "no mask"
    except MaskError:
        mask, told = image.new_zeros(1, *image.shape[1:]), "unusable mask"
    label, classes = record.label, images.table.classes
    names = [classes[label]] if isinstance(label, int) else [n for n, v in zip(classes, label, strict=True) if v]
    name = record.image.name or record.image.path.name
    shown = name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"
    return Overlay(image, mask, f"{', '.join(names) or 'none'} ({record.split})", f"{shown}\n{told}")


def overlay_figure(shown: Sequence[Overlay]) -> Figure:
    """Images with the outlines of their masks and a tinted foreground, four in a row."""
    rows = max(1, -(-len(shown) // _COLUMNS))
    figure = Figure(figsize=(2.6 * _COLUMNS, 3.0 * rows), layout="constrained")
    for axes in figure.subplots(rows, _COLUMNS, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (image, mask, title, caption) in zip(figure.axes, shown, strict=False):
        axes.set_axis_on()
        show_image(axes, image, mask)
        tint = np.zeros((*mask.shape[1:], 4), np.float32)  # an outline alone does not tell which side is foreground
        tint[mask[0].numpy() > 0] = (*_TINT, _TINT_ALPHA)
        axes.imshow(tint, interpolation="nearest")
        axes.set_title(figure_text(title), fontsize=9)
        axes.set_xlabel(figure_text(caption), fontsize=7)
    return figure
