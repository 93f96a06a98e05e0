"""The semi-synthetic images of experiment 2: rendered radiographs with and without the hospitals' marks, and their manifests."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from isnet._files import atomic_path, write_json, write_text
from isnet.experiments.chest_ct import CT_SOURCES, ChestCT, load_chest_cts
from isnet.experiments.markings import HOSPITALS, mark
from isnet.experiments.radiographs import Radiograph, render

CLASSES = tuple(HOSPITALS)  # "normal", "opacity"
MARKINGS = ("as in training", "absent", "swapped")
MANIFEST, UNMARKED = "manifest.csv", "unmarked.csv"


@dataclass(frozen=True)
class RenderConfig:
    """What to render.

    Attributes:
        images: Folder to render into, ``seed-N`` in it for each seed.
        ct_folder: Where the CTs are kept.
        train, validation, test: Images of the training patients (train, validation, test) and of the others (test again).
        held_out: Patients that only tests see.
        pixels: Side of the images.

    Raises:
        ValueError: a patient that is not there, none or all held out, or fewer than two images or pixels.
    """

    images: str = "data/xray"
    ct_folder: str = "data/chest-ct"
    train: int = 3000
    validation: int = 300
    test: int = 400
    held_out: tuple[str, ...] = ("totalsegmentator",)
    pixels: int = 224

    def __post_init__(self) -> None:
        unknown = [name for name in self.held_out if name not in CT_SOURCES]
        if unknown or not 0 < len(self.held_out) < len(CT_SOURCES):
            raise ValueError(f"held_out: expected some, not all, of {', '.join(CT_SOURCES)}, got {list(self.held_out)}")
        for name in ("train", "validation", "test", "pixels"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")


class _Picture(NamedTuple):
    """One radiograph to render: every draw follows from the seed and the number."""

    number: int
    split: str
    patient: str
    ill: bool


def _pictures(config: RenderConfig) -> list[_Picture]:
    """What to render, the classes in turn, the patients in turn."""
    seen = [name for name in CT_SOURCES if name not in config.held_out]
    found: list[_Picture] = []
    for split, count, patients in (
        ("train", config.train, seen),
        ("validation", config.validation, seen),
        ("seen patients", config.test, seen),
        ("other patients", config.test, list(config.held_out)),
    ):
        first = len(found)
        found += [_Picture(first + n, split, patients[(n // 2) % len(patients)], bool(n % 2)) for n in range(count)]
    return found


def images_folder(config: RenderConfig, seed: int) -> Path:
    """The folder with the images of a seed."""
    return Path(config.images) / f"seed-{seed}"


def render_images(config: RenderConfig, seed: int, *, processes: int = 2, progress: bool = True) -> Path:
    """Renders the missing images of a seed and writes the manifests; continues where it was interrupted.

    ``manifest.csv`` has training and validation images with the marks that give the class away, and six test sets: seen and other
    patients with marks as in training, absent, and swapped. ``unmarked.csv`` differs in that training images have no marks.

    Returns:
        The former.

    Raises:
        DataError: the CTs cannot be obtained.
        ValueError: the folder holds images of other settings.
    """
    folder = images_folder(config, seed)
    settings: dict[str, Any] = {key: getattr(config, key) for key in ("train", "validation", "test", "pixels")}
    settings |= {"seed": seed, "held_out": list(config.held_out)}
    noted = folder / "settings.json"
    if noted.exists() and json.loads(noted.read_text()) != settings:
        raise ValueError(f"images: {folder} was rendered with other settings ({noted}); choose another folder")
    write_json(noted, settings)
    pictures = _pictures(config)
    missing = [picture for picture in pictures if not (folder / _name(picture, "mask")).exists()]
    if missing:
        chests = load_chest_cts(config.ct_folder, progress=progress)
        work = partial(_render, folder, config, seed, chests)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            # Threads: the kernels that take the time release the interpreter's lock.
            with ThreadPoolExecutor(processes) as pool:
                for _ in track(pool.map(work, missing), "rendering", len(missing), disable=not progress):
                    pass
        finally:
            torch.set_num_threads(threads)
    for name, train_marks in ((MANIFEST, MARKINGS[0]), (UNMARKED, MARKINGS[1])):
        write_text(folder / name, _manifest(pictures, train_marks))
    return folder / MANIFEST


def _name(picture: _Picture, what: str) -> str:
    return f"{what.replace(' ', '-')}/{picture.number:05d}.png"


def _render(folder: Path, config: RenderConfig, seed: int, chests: Mapping[str, ChestCT], picture: _Picture) -> None:
    rng = np.random.default_rng([seed, picture.number])
    radiograph = render(chests[picture.patient], rng, ill=picture.ill, size=config.pixels)
    images = {marking: _marked(radiograph, picture.ill, marking, rng) for marking in MARKINGS}
    for marking, image in images.items():
        _save(folder / _name(picture, marking), np.rint(255 * image))
    _save(folder / _name(picture, "mask"), 255 * radiograph.mask)  # last: its presence means that all are there


def _marked(radiograph: Radiograph, ill: bool, marking: str, rng: np.random.Generator) -> Any:
    if marking == "absent":
        return radiograph.image
    return mark(radiograph, HOSPITALS[CLASSES[int(ill) if marking == "as in training" else 1 - int(ill)]], rng)


def _save(path: Path, pixels: Any) -> None:
    with atomic_path(path) as temporary:
        Image.fromarray(pixels.astype(np.uint8)).save(temporary, format="png", compress_level=3)


def _manifest(pictures: Sequence[_Picture], train_marks: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "mask", "label", "source", "split", "group"])
    for picture in pictures:
        tested = picture.split.endswith("patients")
        for marks in MARKINGS if tested else (train_marks,):
            split = f"{picture.split}, marks {marks}" if tested else picture.split
            label = CLASSES[int(picture.ill)]
            row = [_name(picture, marks), _name(picture, "mask"), label, picture.patient, split, picture.patient]
            writer.writerow(row)
    return text.getvalue()
