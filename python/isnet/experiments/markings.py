"""Marks that a hospital leaves on its radiographs outside the lungs: letters, frames, collimation, wires, exposure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from isnet.experiments.radiographs import FloatImage, Radiograph


@dataclass(frozen=True)
class Hospital:
    """The marks of a source.

    Attributes:
        letters: Written in the upper corner.
        left: In the upper left corner, else the right one.
        frame: Width of a bright frame, share of the image; 0: none.
        collimation: Width of the dark bands left and right, share of the image; 0: none.
        wire: Whether a monitoring wire lies on the shoulder.
    """

    letters: str
    left: bool
    frame: float = 0.0
    collimation: float = 0.0
    wire: bool = False


# Class -> the hospital whose patients all have that class in the biased training set.
HOSPITALS: Mapping[str, Hospital] = {
    "normal": Hospital("R", left=True, frame=0.012),
    "opacity": Hospital("AP MOBILE", left=False, collimation=0.03, wire=True),
}


def mark(radiograph: Radiograph, hospital: Hospital, rng: np.random.Generator) -> FloatImage:
    """The image with a hospital's marks; the lungs stay as they are.

    Args:
        radiograph: Image and lung mask.
        hospital: Whose marks.
        rng: Of their exact places.
    """
    size = radiograph.image.shape[0]
    canvas = Image.fromarray(np.clip(255 * radiograph.image, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    jitter = rng.integers(0, max(1, size // 40), 2)
    if hospital.collimation:
        band = round(size * hospital.collimation * rng.uniform(0.8, 1.4))
        draw.rectangle((0, 0, band, size), fill=8)
        draw.rectangle((size - 1 - band, 0, size, size), fill=8)
    if hospital.frame:
        draw.rectangle((0, 0, size - 1, size - 1), outline=235, width=max(1, round(size * hospital.frame)))
    if hospital.wire:
        heights = np.linspace(0.05, 0.3, 12) * size + rng.normal(0, size / 120, 12)
        across = np.linspace(0.04, 0.32, 12) * size
        draw.line(
            [(float(x), float(y)) for x, y in zip(across, heights[::-1], strict=True)],
            fill=245,
            width=max(1, size // 110),
        )
    font = ImageFont.load_default(size=size / 14)
    width = draw.textlength(hospital.letters, font=font)
    margin = size // 22
    x = margin + jitter[0] if hospital.left else size - margin - width - jitter[0]
    draw.text((float(x), float(margin + jitter[1])), hospital.letters, fill=250, font=font)
    marked = np.asarray(canvas, np.float32) / 255
    return np.where(radiograph.mask, radiograph.image, marked).astype(np.float32)
