"""Semi-synthetic chest radiographs, rendered from real CTs: pose, shape, exposure and noise vary, opacities are added in the lungs.

An image is the mean attenuation along parallel rays from back to front (a digitally reconstructed radiograph). Nothing here is a
clinical image: the disease is drawn, and there are only as many patients as CTs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from isnet.experiments.chest_ct import SPACING, ChestCT

_RAY_STEPS = 56
_KNOTS = 10  # per axis, between which the bent rays are straight
_BONE = 0.25  # 1/cm: what attenuates more counts as bone
_LEAST_PATH = 8.0  # mm of lung on a ray that belongs to the lung mask
_SMALLEST_PART = 0.01  # of the image: smaller parts of the mask are dropped

FloatImage = npt.NDArray[np.float32]


class Radiograph(NamedTuple):
    """A rendered image.

    Attributes:
        image: float32 [size, size] in [0, 1], bright where absorption is high.
        mask: The lungs, bool [size, size].
    """

    image: FloatImage
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Opacities:
    """Peripheral opacities, ranges of uniform draws.

    Attributes:
        number: Of opacities, at least one and at most this many (inclusive).
        radius: mm.
        strength: Added attenuation, 1/cm; 0.12 to 0.2 are 600 to 1000 Hounsfield units, dense ground glass to consolidation.
    """

    number: tuple[int, int] = (5, 9)
    radius: tuple[float, float] = (16.0, 32.0)
    strength: tuple[float, float] = (0.12, 0.2)


def render(
    chest: ChestCT, rng: np.random.Generator, *, ill: bool, size: int = 224, opacities: Opacities | None = None
) -> Radiograph:
    """Draws a radiograph of a chest.

    Args:
        chest: The patient.
        rng: Of all draws.
        ill: Add opacities, inside the lungs only.
        size: Pixels of a side.
        opacities: Their ranges.
    """
    attenuation = add_opacities(chest, rng, opacities or Opacities()) if ill else chest.attenuation
    spectrum = rng.uniform(-0.3, 0.3)  # harder or softer rays see bone less or more
    attenuation = attenuation + np.float32(spectrum) * np.maximum(attenuation - np.float32(_BONE), 0)
    volume = torch.from_numpy(np.stack([attenuation, chest.lungs]))[None]
    grid, depth = _rays(chest, rng, size)
    with torch.no_grad():
        sampled = F.grid_sample(volume, grid, padding_mode="border", align_corners=False)[0]
    mean_attenuation, path = sampled[0].mean(1).numpy(), (sampled[1].mean(1) * depth).numpy()
    return Radiograph(_expose(mean_attenuation, rng), _clean(path > _LEAST_PATH))


def add_opacities(chest: ChestCT, rng: np.random.Generator, opacities: Opacities) -> FloatImage:
    """The chest's attenuation with opacities in the lungs' periphery; unchanged outside the lungs."""
    attenuation = chest.attenuation.copy()
    for _ in range(rng.integers(opacities.number[0], opacities.number[1], endpoint=True)):
        centre = chest.periphery[rng.integers(len(chest.periphery))]
        radii = rng.uniform(*opacities.radius) * rng.uniform(0.7, 1.3, 3) / SPACING
        low = np.maximum(np.floor(centre - radii).astype(int), 0)
        high = np.minimum(np.ceil(centre + radii).astype(int) + 1, attenuation.shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
        away = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radii, strict=True))
        patchy = ndimage.gaussian_filter(rng.standard_normal(away.shape), 2.0)
        patchy = np.clip(1 + 0.4 * patchy / (patchy.std() + 1e-6), 0, 2)
        added = rng.uniform(*opacities.strength) * np.clip(1.5 * (1 - away), 0, 1) * patchy
        attenuation[box] += added.astype(np.float32) * chest.lungs[box]
    return attenuation


def _rays(chest: ChestCT, rng: np.random.Generator, size: int) -> tuple[Tensor, float]:
    """Where the rays meet the volume: grid [1, row, step, column, 3] for grid_sample, and their length in mm."""
    shape = np.array(chest.attenuation.shape)
    inside = np.argwhere(chest.lungs[::2, ::2, ::2] > 0) * 2
    low, high = inside.min(0), inside.max(0)
    # A square around the lungs; the image plane is (z, x).
    half = 0.5 * max(high[0] - low[0], high[2] - low[2]) * rng.uniform(1.12, 1.3)
    centre = 0.5 * (low + high) + rng.uniform(-5, 5, 3) * [1, 0, 1]
    depth = shape[1] / 2
    offsets = [np.linspace(end, -end, _KNOTS) for end in (half, -depth, -half)]
    points = torch.stack(torch.meshgrid(*(torch.from_numpy(o).float() for o in offsets), indexing="ij"))
    turn = _rotation(rng.uniform(-6, 6, 3)) * rng.uniform(0.9, 1.1, 3)
    points = torch.einsum("ij,jklm->iklm", torch.from_numpy(turn).float(), points)
    bend = torch.from_numpy(rng.normal(0, 3.0, (1, 3, 4, 4, 4))).float()
    points = points + F.interpolate(bend, points.shape[1:], mode="trilinear", align_corners=True)[0]
    centre[1] = depth
    box = torch.from_numpy(shape).float().view(3, 1, 1, 1)
    unit = (2 * (points + torch.from_numpy(centre).float().view(3, 1, 1, 1)) + 1) / box - 1
    unit = F.interpolate(unit.flip(0)[None], (size, _RAY_STEPS, size), mode="trilinear", align_corners=True)
    return unit.permute(0, 2, 3, 4, 1), float(shape[1] * SPACING)


def _rotation(degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rotations about the three axes, one after the other."""
    result = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def _expose(attenuation: FloatImage, rng: np.random.Generator) -> FloatImage:
    """Grey values of a detector: window, gamma, blur and noise."""
    low, high = np.percentile(attenuation, (1, 99))
    image = np.clip((attenuation - low) / max(high - low, 1e-6), 0, 1) ** rng.uniform(0.8, 1.25)
    image = ndimage.gaussian_filter(image, rng.uniform(0.3, 0.8))
    image = rng.uniform(0.85, 1.0) * image + rng.uniform(0, 0.08) + rng.normal(0, rng.uniform(0.005, 0.02), image.shape)
    return np.clip(image, 0, 1).astype(np.float32)


def _clean(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Closed, without holes and without small parts."""
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(mask, iterations=2))
    labels, count = ndimage.label(mask)
    sizes = ndimage.sum(mask, labels, range(1, count + 1))
    return np.isin(labels, [n + 1 for n, found in enumerate(sizes) if found > _SMALLEST_PART * mask.size])
