"""What images and masks go through together: sizes, normalisation, augmentation, transforms of other libraries."""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlipd
from test_isnet_images import SIDE, image_folder, save
from torch import Tensor

from isnet.data import Augmentation, DataError, MaskedImages, joint_transform, pixel_range, read_table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "set")


def test_padding_keeps_the_aspect_ratio(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a" / "1.png", np.full((10, 20), 255, np.uint8))
    save(tmp_path / "masks" / "a" / "1.png", np.full((10, 20), 255, np.uint8))
    image, _, mask = MaskedImages(read_table(tmp_path), (16, 16), resize="pad")[0]
    assert mask[0].sum(0).tolist() == [8.0] * 16
    torch.testing.assert_close(image, mask)
    assert MaskedImages(read_table(tmp_path), (16, 8))[0][2].sum() == 16 * 8


def test_normalisation(folder: Path) -> None:
    table = read_table(folder)
    plain, shifted = MaskedImages(table, SIDE), MaskedImages(table, SIDE, mean=[0.5], std=[0.25])
    torch.testing.assert_close(shifted[0][0], (plain[0][0] - 0.5) / 0.25)
    assert pixel_range((0.5,), (0.25,)) == ((-2.0,), (2.0,))
    with pytest.raises(DataError, match="mean, std"):
        MaskedImages(table, SIDE, channels=3, mean=[0.5], std=[0.25])


def test_augmentation_is_joint_and_repeats(folder: Path) -> None:
    table = read_table(folder)

    def images(seed: int = 0) -> MaskedImages:
        transform = Augmentation(flip=0.5, rotate=20, shift=2, zoom=0.1, contrast=0.3)
        return MaskedImages(table, 32, transform=transform, seed=seed)

    first, again = images(), images()
    assert all(a.equal(b) for i in (3, 0, 3) for a, b in zip(first[i], again[i], strict=True))
    again.set_epoch(1)
    assert not first[3][0].equal(again[3][0]) and not first[3][0].equal(images(1)[3][0])

    # What moves the image moves the mask: an image that equals its mask still does afterwards, but for the edge.
    mask = torch.zeros(1, 32, 32)
    mask[:, 8:20, 6:22] = 1
    transform = Augmentation(flip=0.5, rotate=90, shift=3, zoom=0.2)
    for seed in range(5):
        transform.set_random_state(seed)
        moved_image, moved_mask = transform(mask, mask)
        assert not moved_mask.equal(mask) and moved_mask.sum() > 80
        assert ((moved_image > 0.5).float() - moved_mask).abs().sum() / moved_mask.sum() < 0.1
    for name, value in (("rotate", 200), ("rotate", "ten"), ("flip", True), ("flip", None)):
        with pytest.raises(ValueError, match=f"{name}: expected a number in .*, got {value!r}"):
            Augmentation(**{name: value})


class _Image(Tensor):
    pass


class _Mask(Tensor):
    pass


def _v2(*parts: Tensor) -> tuple[Tensor, ...]:
    """As torchvision's v2 transforms: of plain tensors the first alone counts as an image."""
    if not any(isinstance(part, (_Image, _Mask)) for part in parts):
        return (parts[0].flip(-1), *parts[1:])
    return tuple(part.flip(-1) for part in parts)


def _albumentations(image: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
    assert image.shape[:2] == mask.shape and image.flags.c_contiguous
    return {"image": image[:, ::-1].squeeze(), "mask": mask[:, ::-1]}


def _of(library: str, call: Any) -> Any:
    """A transform of a class that says it is of ``library``."""
    return type(
        "Flip", (), {"__call__": lambda self, *args, **more: call(*args, **more), "__module__": f"{library}.flips"}
    )()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("library", ["torchvision", "monai", "albumentations", "own"])
def test_transforms_of_every_library_move_image_and_mask(
    library: str, channels: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        sys.modules, "torchvision", SimpleNamespace(tv_tensors=SimpleNamespace(Image=_wrap(_Image), Mask=_wrap(_Mask)))
    )
    transform = {
        "torchvision": _of("torchvision", _v2),
        "monai": Compose([RandFlipd(["image", "mask"], prob=1.0, spatial_axis=1)]),
        "albumentations": _of("albumentations", _albumentations),
        "own": lambda image, mask: (image.flip(-1), mask.flip(-1)),
    }[library]
    image, mask = torch.rand(channels, 6, 5), (torch.rand(1, 6, 5) > 0.5).float()
    moved = joint_transform(transform)(image, mask)
    for found, given in zip(moved, (image, mask), strict=True):
        assert type(found) is Tensor and found.equal(given.flip(-1))
    plain, flipped = (MaskedImages(read_table(folder), 8, channels=channels, transform=t)[3] for t in (None, transform))
    assert flipped[0].equal(plain[0].flip(-1)) and flipped[2].equal(plain[2].flip(-1))


def _wrap(kind: type[Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.as_subclass(kind)


def test_transforms_that_return_something_else_are_refused() -> None:
    image, mask = torch.rand(3, 6, 5), torch.ones(1, 6, 5)
    for result, text in (
        (image, r"got \[3, 6, 5\]$"),
        ({"image": image}, "got dict"),
        ((image, mask[0]), r"got \[3, 6, 5\], \[6, 5\]"),
        ((image[..., 1:], mask), r"got \[3, 6, 4\], \[1, 6, 5\]"),
        ((image, None), r"got \[3, 6, 5\], NoneType"),
    ):
        with pytest.raises(DataError, match=rf"expected image \[3, H, W\] and mask \[1, H, W\] of one size.*({text})"):
            joint_transform(lambda *_, result=result: result)(image, mask)


def test_own_transforms_draw_anew_each_epoch_and_alike_each_time(folder: Path) -> None:
    def noisy(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return image + torch.rand(()) + np.random.rand() + random.random(), mask

    images, before = MaskedImages(read_table(folder), SIDE, transform=noisy), (random.getstate(), torch.get_rng_state())
    first, again = images[2][0], images[2][0]
    images.set_epoch(1)
    assert first.equal(again) and not first.equal(images[2][0])
    assert random.getstate() == before[0] and torch.get_rng_state().equal(before[1])


def test_flips_and_shifts_alone_move_whole_pixels() -> None:
    image, mask = torch.rand(3, 12, 10), torch.ones(1, 12, 10)
    flipped = Augmentation(flip=1.0)(image, mask)[0]
    assert flipped.equal(image.flip(-1))
    seen = set()
    for _ in range(60):
        moved, moved_mask = Augmentation(shift=1.4)(image, mask)
        seen |= {
            (down, right)
            for down in (-1, 0, 1)
            for right in (-1, 0, 1)
            if moved.equal(image.roll((down, right), (1, 2)) * moved_mask)
            and moved_mask.sum() == (12 - abs(down)) * (10 - abs(right))
        }
    assert len(seen) == 9
