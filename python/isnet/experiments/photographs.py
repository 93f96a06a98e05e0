"""Natural backgrounds: crops of the photographs that scikit-image carries inside its package, so that nothing is downloaded.

Digits in front of pieces of photographs go back to Larochelle et al. 2007 (MNIST variations); linking photograph and class is ours.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# One per class. Textures and scenes of similar brightness and contrast once scaled, so that they differ in their pattern.
CLASS_PHOTOGRAPHS = (
    "brick.png",
    "grass.png",
    "gravel.png",
    "coins.png",
    "text.png",
    "page.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "coffee.png",
)
# Behind the digits where the background must be uninformative; no training image has them.
UNSEEN_PHOTOGRAPHS = ("camera.png", "astronaut.png", "chelsea.png", "rocket.jpg", "moon.png", "retina.jpg")

_SHORT_SIDE = 128  # pixels; a crop of 40 then shows a pattern, not a smooth patch
_BRIGHTNESS = 0.3
_CONTRAST = 0.12
_BRIGHTEST = 0.6  # white digits stay readable


@functools.lru_cache(maxsize=len(CLASS_PHOTOGRAPHS) + len(UNSEEN_PHOTOGRAPHS))
def photograph(name: str) -> Tensor:
    """One of scikit-image's photographs in grey, its shorter side 128 pixels, at mean 0.3 and standard deviation 0.12.

    Args:
        name: File name in scikit-image's data folder.

    Returns:
        float32 [h, w] in [0, 0.6].

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
        FileNotFoundError: this release of scikit-image does not carry the file.
    """
    from PIL import Image

    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("mark 'photo' takes its backgrounds from scikit-image: pip install scikit-image")
    path = Path(found.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise FileNotFoundError(f"scikit-image carries no {name} ({path}); release 0.26 does")
    with Image.open(path) as file:
        grey = file.convert("L")
    factor = _SHORT_SIDE / min(grey.size)
    size = round(grey.width * factor), round(grey.height * factor)
    pixels = np.asarray(grey.resize(size, Image.Resampling.BOX), np.float64) / 255
    scaled = _BRIGHTNESS + _CONTRAST * (pixels - pixels.mean()) / pixels.std()
    return torch.from_numpy(scaled.clip(0, _BRIGHTEST).astype(np.float32))


def crops(photographs: Sequence[Tensor], chosen: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random piece of a photograph for each image, half of them mirrored.

    The places of the pieces are drawn independently of the photographs, so that two sets of the same generator differ only in these.

    Args:
        photographs: [h, w] each, at least ``side`` in both directions.
        chosen: Which of them, int64 [N].
        side: Of the square pieces.
        generator: Of the draws, on the CPU.

    Returns:
        float32 [N, side, side].

    Raises:
        ValueError: a photograph smaller than ``side``.
    """
    places = torch.rand(len(chosen), 2, generator=generator)
    mirrored = torch.rand(len(chosen), generator=generator) < 0.5
    smallest = min(min(photo.shape) for photo in photographs)
    if smallest < side:
        raise ValueError(f"side: expected at most {smallest}, the shorter side of the photographs, got {side}")
    pieces = torch.empty(len(chosen), side, side)
    for row, index in enumerate(chosen.tolist()):
        photo = photographs[index]
        top, left = (
            min(int(place * (size - side + 1)), size - side)
            for place, size in zip(places[row].tolist(), photo.shape, strict=True)
        )
        pieces[row] = photo[top : top + side, left : left + side]
    return torch.where(mirrored[:, None, None], pieces.flip(2), pieces)
