"""Biased MNIST before photographs: whose photograph stands behind a digit, and how far the masks are off."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from isnet.experiments.biased_mnist import BiasedMNIST
from isnet.experiments.photographs import CLASS_PHOTOGRAPHS, UNSEEN_PHOTOGRAPHS, crops, photograph

RANDOM = np.random.default_rng(0)
COUNT = 60
LABELS = RANDOM.integers(0, 10, COUNT, dtype=np.uint8)
IMAGES = np.zeros((COUNT, 28, 28), np.uint8)
IMAGES[:, 6:22, 12:15] = 255


def photos(bias: str = "biased", **options: object) -> BiasedMNIST:
    settings = {"mark": "photo", "mask": "digit", "noise": 0.0, "seed": 4, **options}
    return BiasedMNIST(IMAGES, LABELS, bias=bias, **settings)  # type: ignore[arg-type]


def shown(data: BiasedMNIST, row: int) -> list[str]:
    """The photographs of which the upper part of an image, where no ink is, is a piece, mirrored or not."""
    strip = data.images[row, 0, :6]
    found = []
    for name in (*CLASS_PHOTOGRAPHS, *UNSEEN_PHOTOGRAPHS):
        pieces = photograph(name).unfold(0, 6, 1).unfold(1, 40, 1)
        if any(
            bool((pieces == piece[..., None, None, :, :]).flatten(2).all(2).any()) for piece in (strip, strip.flip(1))
        ):
            found.append(name)
    return found


def test_photographs_are_alike_in_brightness() -> None:
    for name in (*CLASS_PHOTOGRAPHS, *UNSEEN_PHOTOGRAPHS):
        photo = photograph(name)
        assert min(photo.shape) == 128 and photo.min() >= 0 and photo.max() <= np.float32(0.6)
        assert photo.mean().item() == pytest.approx(0.3, abs=0.03) and 0.06 < photo.std() < 0.13
    assert len(set(CLASS_PHOTOGRAPHS)) == 10 and not set(CLASS_PHOTOGRAPHS) & set(UNSEEN_PHOTOGRAPHS)


def test_the_photograph_tells_the_class_that_the_mark_says() -> None:
    for bias in ("biased", "deceiving", "unrelated"):
        data = photos(bias)
        for row in range(3):
            assert CLASS_PHOTOGRAPHS[int(data.marks[row])] in shown(data, row)
        same = (data.marks == data.labels).float().mean()
        assert same == 1 if bias == "biased" else same == 0 if bias == "deceiving" else 0 < same < 0.4
    assert all(set(shown(photos("unbiased"), row)) & set(UNSEEN_PHOTOGRAPHS) for row in range(3))


def test_sets_share_digits_and_masks() -> None:
    biased, deceiving = photos(imprecise=2), photos("deceiving", imprecise=2)
    ink = biased.images == 1
    assert torch.equal(ink, deceiving.images == 1) and torch.equal(ink.sum((1, 2, 3)), torch.full((COUNT,), 48))
    assert torch.equal(biased.masks, deceiving.masks) and torch.equal(biased.labels, deceiving.labels)
    assert not torch.equal(biased.images, deceiving.images)
    assert torch.equal(biased.images, photos(imprecise=2).images)


def test_faint_strokes_let_the_photograph_through() -> None:
    full, faint = photos(), photos(ink=0.4)
    strokes = full.images == 1
    assert torch.equal(full.images[~strokes], faint.images[~strokes])
    behind = (faint.images[strokes] - 0.4) / 0.6
    assert behind.min() > -1e-6 and behind.max() < 0.6 + 1e-6 and behind.std() > 0.05
    plain = BiasedMNIST(IMAGES, LABELS, ink=0.4, noise=0.0, bias="unbiased")
    assert plain.images.unique().tolist() == pytest.approx([0, 0.4])


def test_masks_are_grown_and_moved() -> None:
    """The ink's box is known, so growth and displacement can be read off the masks' boxes."""
    exact, careless = photos(shift=0), photos(shift=0, imprecise=2)
    assert all(torch.equal(mask, exact.masks[0]) for mask in exact.masks)
    rows, columns = (exact.masks[0, 0].any(dim).nonzero()[:, 0] for dim in (1, 0))
    seen = set()
    for mask in careless.masks[:, 0]:
        down, right = (mask.any(dim).nonzero()[:, 0] for dim in (1, 0))
        growth = (len(down) - len(rows)) // 2
        assert mask.sum() == len(down) * len(right) and len(right) == len(columns) + 2 * growth
        seen.add((growth, int(down[0] - rows[0]) + growth, int(right[0] - columns[0]) + growth))
    for part, values in zip(zip(*seen, strict=True), ({0, 1, 2}, set(range(-2, 3)), set(range(-2, 3))), strict=True):
        assert set(part) == values


def test_masks_at_the_border_lose_what_is_moved_out() -> None:
    data = BiasedMNIST(IMAGES, LABELS, mask="box", shift=2, canvas=40, imprecise=9)
    assert data.masks.shape == (COUNT, 1, 40, 40) and bool(((data.masks == 0) | (data.masks == 1)).all())
    assert bool((data.masks.sum((1, 2, 3)) > 0).all())


def test_faults_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="num_classes: mark 'photo' has 10 photographs, got 12"):
        photos(num_classes=12)
    for fault in ({"imprecise": -1}, {"ink": 0}):
        with pytest.raises(ValueError, match="imprecise >= 0, 0 < ink <= 1; got"):
            photos(**fault)
    with pytest.raises(ValueError, match="side: expected at most 5, the shorter side"):
        crops([torch.zeros(5, 9)], torch.zeros(2, dtype=torch.int64), 6, torch.Generator())
    with pytest.raises(FileNotFoundError, match=r"scikit-image carries no zebra\.png"):
        photograph("zebra.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-image"):
        photograph("tiger.png")
