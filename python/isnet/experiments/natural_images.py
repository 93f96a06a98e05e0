"""Natural images whose background tells the class, as in Waterbirds: shoes and bags in front of photographs taken indoors or outdoors.

Objects are Fashion-MNIST's (:mod:`isnet.experiments.natural_objects`), places are colour photographs that scikit-image and scikit-learn
carry inside their packages. Training images show the left half of each photograph, test images the right one, so that they share no pixel.

Source: Sagawa, Koh, Hashimoto, Liang, Distributionally Robust Neural Networks, ICLR 2020 (Waterbirds); the images are ours.
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track
from scipy import ndimage

from isnet._files import atomic_path, write_json, write_text
from isnet.data.names import TRAIN
from isnet.experiments.natural_objects import OBJECTS_PER_KIND, load_objects, outline

CLASSES: Mapping[str, str] = {"bag": "bags", "shoe": "sneakers"}  # and the kind of their objects
# Package and file inside it.
PLACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "indoors": (
        ("skimage", "data/coffee.png"),
        ("skimage", "data/chelsea.png"),
        ("skimage", "data/motorcycle_left.png"),
    ),
    "outdoors": (
        ("sklearn", "datasets/images/china.jpg"),
        ("sklearn", "datasets/images/flower.jpg"),
        ("skimage", "data/rocket.jpg"),
    ),
}
MANIFEST, TEST = "manifest.csv", "test"
_TEST_OBJECTS = 1000  # the last of each kind
_CROP = 120, 200  # pixels of the photograph in a square piece
_SMALLEST, _LARGEST = 0.6, 0.9  # of the image's side: the object's field, of which it fills about half

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NaturalImages:
    """What to render.

    Attributes:
        images: Folder to render into, ``seed-N-CORRELATION`` in it for each.
        objects: Folder of the objects.
        train: Training images, half of each class.
        test: Test images, a quarter for each pair of class and place; each object is shown at both places.
        pixels: Side of the images.

    Raises:
        ValueError: too few images or pixels.
    """

    images: str = "data/natural"
    objects: str = "data/fashion-mnist"
    train: int = 600
    test: int = 400
    pixels: int = 128

    def __post_init__(self) -> None:
        for name, least in (("train", 4), ("test", 4), ("pixels", 16)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


class Picture(NamedTuple):
    """One image: every draw follows from the seed and the object's number, so that pictures of one object differ in the place alone."""

    split: str
    label: str
    place: str
    number: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.split}/{self.number:05d}-{self.place}.png"


def pictures(config: NaturalImages, correlation: int) -> list[Picture]:
    """What to render: training images whose place is that of their class in ``correlation`` % of each class, then the tests.

    Raises:
        ValueError: a correlation outside of [50, 100].
    """
    if not 50 <= correlation <= 100:
        raise ValueError(f"correlation: expected 50 to 100 %, got {correlation}")
    labels, places = list(CLASSES), list(PLACES)
    per_class = config.train // len(labels)
    usual = round(per_class * correlation / 100)
    found = []
    for number in range(per_class * len(labels)):
        k, place = number % 2, number // 2 < usual
        found.append(Picture(TRAIN, labels[k], places[k if place else 1 - k], number))
    for number in range(config.test // len(places)):
        label = labels[number % 2]
        found += [Picture(TEST, label, place, config.train + number) for place in places]
    return found


def images_folder(config: NaturalImages, seed: int, correlation: int) -> Path:
    """The folder with the images of a seed and a correlation."""
    return Path(config.images) / f"seed-{seed}-{correlation}"


def render_images(config: NaturalImages, seed: int, correlation: int, *, progress: bool = True) -> Path:
    """Renders the missing images and writes ``manifest.csv``, which ``isnet train --data`` reads.

    Its columns: image, mask, label, source (the place, so that scores are told for each pair of class and place), split, and group (the
    object, which the tests show at both places).

    Returns:
        The manifest.

    Raises:
        DataError: the objects cannot be obtained.
        FileNotFoundError: a package carries a photograph no longer.
        ValueError: the folder holds images of other settings.
    """
    folder = images_folder(config, seed, correlation)
    settings = {"train": config.train, "test": config.test, "pixels": config.pixels, "seed": seed}
    settings["correlation"] = correlation
    noted = folder / "settings.json"
    if noted.exists() and json.loads(noted.read_text()) != settings:
        raise ValueError(f"images: {folder} was rendered with other settings ({noted}); choose another folder")
    write_json(noted, settings)
    wanted = pictures(config, correlation)
    missing = [picture for picture in wanted if not (folder / "mask" / picture.name).exists()]
    if missing:
        objects = load_objects(config.objects, progress=progress)
        for picture in track(missing, "rendering", disable=not progress):
            image, mask = render(objects, picture, np.random.default_rng([seed, picture.number]), config.pixels)
            _save(folder / "image" / picture.name, np.rint(255 * image))
            _save(folder / "mask" / picture.name, 255 * mask)  # last: its presence means that both are there
    write_text(folder / MANIFEST, _manifest(wanted))
    return folder / MANIFEST


def render(
    objects: Mapping[str, npt.NDArray[np.uint8]], picture: Picture, rng: np.random.Generator, pixels: int
) -> tuple[FloatImage, npt.NDArray[np.bool_]]:
    """Draws an image.

    Args:
        objects: As :func:`isnet.experiments.natural_objects.load_objects` returns them.
        picture: Which.
        rng: Of all draws; they are the same at every place.
        pixels: Side of the image.

    Returns:
        The image, float32 [pixels, pixels, 3] in [0, 1], and the object's mask, bool [pixels, pixels].
    """
    tested = picture.split == TEST
    first, end = (
        (OBJECTS_PER_KIND - _TEST_OBJECTS, OBJECTS_PER_KIND) if tested else (0, OBJECTS_PER_KIND - _TEST_OBJECTS)
    )
    thing = objects[CLASSES[picture.label]][rng.integers(first, end)]
    side = round(pixels * rng.uniform(_SMALLEST, _LARGEST))
    top, left = rng.integers(0, pixels - side + 1, 2)
    colour, mirrored = rng.uniform(0.25, 1.0, 3), rng.random() < 0.5
    cloth = ndimage.gaussian_filter(rng.standard_normal((side, side)), 1.0)
    shape = _enlarged(255.0 * outline(thing), side) > 0.5
    grey = np.clip(_enlarged(thing, side), 0, 1) ** 0.7 * (1 + 0.08 * cloth / max(float(cloth.std()), 1e-6))
    if mirrored:
        shape, grey = shape[:, ::-1], grey[:, ::-1]
    image = _piece(PLACES[picture.place], rng, pixels, right=tested)
    mask = np.zeros((pixels, pixels), bool)
    mask[top : top + side, left : left + side] = shape
    image[mask] = np.clip(grey[shape][:, None] * colour, 0, 1)
    return image, mask


def _enlarged(values: npt.NDArray[np.generic], side: int) -> npt.NDArray[np.float64]:
    """[28, 28] of 0 to 255 as [side, side] of 0 to 1."""
    image = Image.fromarray(values.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float64) / 255


def _piece(
    photographs: tuple[tuple[str, str], ...], rng: np.random.Generator, pixels: int, *, right: bool
) -> FloatImage:
    """A square piece of one half of a photograph, half of them mirrored."""
    which, size, row, column, mirrored = rng.random(5)
    photo = photograph(*photographs[int(which * len(photographs))])
    middle = photo.shape[1] // 2
    half = photo[:, middle:] if right else photo[:, :middle]
    smallest, largest = (min(limit, *half.shape[:2]) for limit in _CROP)
    side = smallest + round(size * (largest - smallest))
    top, left = (int(place * (length - side + 1)) for place, length in zip((row, column), half.shape, strict=False))
    piece = Image.fromarray(half[top : top + side, left : left + side])
    values = np.asarray(piece.resize((pixels, pixels), Image.Resampling.BILINEAR), np.float32) / 255
    return np.ascontiguousarray(values[:, ::-1] if mirrored < 0.5 else values)


@functools.lru_cache(maxsize=16)
def photograph(package: str, file: str) -> npt.NDArray[np.uint8]:
    """A photograph inside an installed package, uint8 [h, w, 3].

    Raises:
        ModuleNotFoundError: the package is not installed.
        FileNotFoundError: this release of it does not carry the file.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        remedy = "pip install 'lrpkernels[isnet,experiments]'"
        raise ModuleNotFoundError(f"places are photographs of scikit-image and scikit-learn; no {package}: {remedy}")
    path = Path(found.submodule_search_locations[0]) / file
    if not path.is_file():
        raise FileNotFoundError(f"{package} carries no {file} ({path})")
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def _save(path: Path, pixels: npt.NDArray[np.generic]) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels.astype(np.uint8)).save(temporary, format="png", compress_level=3)


def _manifest(wanted: list[Picture]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "label", "source", "split", "group"])
    for one in wanted:
        writer.writerow([f"image/{one.name}", f"mask/{one.name}", one.label, one.place, one.split, str(one.number)])
    return text.getvalue()
