"""Experiment 2: chest radiographs out of distribution. Does a classifier survive another patient and another hospital's marks?

The reproducible set is semi-synthetic (:mod:`isnet.experiments.radiographs`), rendered once into a folder with manifests, which
``isnet train --data`` reads as well. The same trainings run on the user's own manifest.
"""

from __future__ import annotations

import csv
import dataclasses
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

from isnet._files import atomic_path, write_bytes, write_json, write_text
from isnet.data.chest_ct import CT_SOURCES, ChestCT, load_chest_cts
from isnet.experiments import trainings
from isnet.experiments.markings import HOSPITALS, mark
from isnet.experiments.radiographs import Radiograph, render
from isnet.ranges import RANGES_NAME, save_ranges, tune
from isnet.run_config import ImagesConfig, RunConfig, Variant
from isnet.run_data import load_data, with_classes
from isnet.runlog import LOG_NAME
from isnet.runs import Run, build_isnet, evaluate_run, load_evaluation, load_run, require_same_run, train_run
from isnet.train_config import TrainConfig
from isnet.training import CHECKPOINT_NAME

CLASSES = tuple(HOSPITALS)  # "normal", "opacity"
MARKINGS = ("as in training", "absent", "swapped")
MANIFEST, UNMARKED = "manifest.csv", "unmarked.csv"
_RESAMPLES = 200
_WARMUP = "warm-up"


@dataclass(frozen=True)
class XrayConfig:
    """How large the experiment is.

    Attributes:
        folder: Where runs and tables go.
        data: The user's own image folder, manifest or shards; None: the rendered images.
        images: Folder to render into.
        ct_folder: Where the CTs are kept.
        train, validation, test: Images rendered of the training patients (train, validation, test) and of the others (test again).
        held_out: Patients that only tests see.
        pixels: Side of the rendered images.
        size: Side of the network's images.
        warmup, epochs: Of each method that has a warm-up; all see warmup + epochs epochs.
        batch_size, lr: Of the training.
        p: P of the ISNets, the share of the heatmap loss.
        heatmap_every: K of the ISNets.
        seed: Of rendering and training.
        methods: Names to run; empty: all.
    """

    folder: str = "runs/xray"
    data: str | None = None
    images: str = "data/xray"
    ct_folder: str = "data/chest-ct"
    train: int = 3000
    validation: int = 300
    test: int = 400
    held_out: tuple[str, ...] = ("totalsegmentator",)
    pixels: int = 224
    size: int = 224
    warmup: int = 20
    epochs: int = 20
    batch_size: int = 32
    lr: float = 2e-3
    p: float = 0.8
    heatmap_every: int = 1
    seed: int = 0
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.held_out if name not in CT_SOURCES]
        if unknown or not 0 < len(self.held_out) < len(CT_SOURCES):
            raise ValueError(f"held_out: expected some, not all, of {', '.join(CT_SOURCES)}, got {list(self.held_out)}")
        for name in ("train", "validation", "test", "pixels", "size"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: expected at least 2, got {getattr(self, name)}")


PRESETS: Mapping[str, XrayConfig] = {
    "full": XrayConfig(),
    "quick": XrayConfig(
        folder="runs/xray-quick",
        images="data/xray-quick",
        train=1200,
        validation=120,
        test=200,
        pixels=112,
        size=64,
        warmup=12,
        epochs=10,
    ),
}


class Method(NamedTuple):
    """A way to train: variant, whether the background is noise at first, and whether on images without marks."""

    variant: Variant
    warm: bool = False
    only_noise: bool = False
    unmarked: bool = False


METHODS: Mapping[str, Method] = {
    "trained without marks": Method("standard", unmarked=True),
    "standard": Method("standard"),
    "control (warm-up, then standard)": Method("standard", warm=True),
    "background noise": Method("standard", only_noise=True),
    "selective": Method("selective", warm=True),
    "stochastic": Method("stochastic", warm=True),
    "dual": Method("dual", warm=True),
}


class _Picture(NamedTuple):
    """One radiograph to render: every draw follows from the seed and the number."""

    number: int
    split: str
    patient: str
    ill: bool


def _pictures(config: XrayConfig) -> list[_Picture]:
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


def render_images(config: XrayConfig, *, processes: int = 2, progress: bool = True) -> Path:
    """Renders what is not there yet, and writes the manifests; goes on where it was interrupted.

    ``manifest.csv`` has training and validation images with the marks that give the class away, and six test sets: seen and other
    patients with marks as in training, absent, and swapped. ``unmarked.csv`` differs in that training images have no marks.

    Raises:
        DataError: the CTs cannot be had.
    """
    folder = Path(config.images)
    settings = {key: getattr(config, key) for key in ("train", "validation", "test", "pixels", "seed")}
    settings["held_out"] = list(config.held_out)
    noted = folder / "settings.json"
    if noted.exists() and json.loads(noted.read_text()) != settings:
        raise ValueError(f"images: {folder} was rendered with other settings ({noted}); choose another folder")
    write_json(noted, settings)
    pictures = _pictures(config)
    missing = [picture for picture in pictures if not (folder / _name(picture, "mask")).exists()]
    if missing:
        chests = load_chest_cts(config.ct_folder, progress=progress)
        work = partial(_render, folder, config, chests)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            # Threads: the kernels that take the time leave the interpreter's lock.
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


def _render(folder: Path, config: XrayConfig, chests: Mapping[str, ChestCT], picture: _Picture) -> None:
    rng = np.random.default_rng([config.seed, picture.number])
    radiograph = render(chests[picture.patient], rng, ill=picture.ill, size=config.pixels)
    images = {marking: _marked(radiograph, picture.ill, marking, rng) for marking in MARKINGS}
    for marking, image in images.items():
        _save(folder / _name(picture, marking), np.rint(255 * image))
    _save(folder / _name(picture, "mask"), 255 * radiograph.mask)  # last: its presence says that all are there


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


def run_experiment(config: XrayConfig, *, processes: int = 2, progress: bool = True) -> list[dict[str, Any]]:
    """Renders, trains and scores what is missing; writes ``table.md`` and ``results.json``.

    Args:
        config: The experiment.
        processes: Trainings at a time, each with one thread.
        progress: Show progress bars.

    Returns:
        Per method ``{"method", "tests": {split: {"auc": {value, low, high}, "background": share}}}``.

    Raises:
        DataError: the CTs or the user's images cannot be used.
        ValueError: unknown methods.
        CheckpointError: the folder holds runs with other settings.
    """
    methods = trainings.chosen(METHODS, config.methods)
    if config.data is None:
        render_images(config, processes=processes, progress=progress)
    else:  # what the user's training images would look like without marks, nobody knows
        methods = {name: method for name, method in methods.items() if not method.unmarked}
    names = list(methods)
    missing = [name for name in names if not _finished(config, name)]
    shared = [_WARMUP] if any(METHODS[name].warm for name in missing) else []
    alone = [name for name in missing if not METHODS[name].warm]
    # Methods with a warm-up go on from one that they share.
    for jobs in (shared + alone, [name for name in missing if METHODS[name].warm]):
        trainings.train_missing(
            train_method, config, jobs, lambda name: _finished(config, name), processes=processes, progress=progress
        )
    rows = [_row(config, name) for name in names]
    write_json(Path(config.folder) / "results.json", rows)
    write_text(Path(config.folder) / "table.md", table(rows))
    return rows


def run_config(config: XrayConfig, name: str) -> RunConfig:
    """The settings of a method's run, or of the warm-up that several share."""
    method = METHODS.get(name, Method("standard", warm=True))
    total = config.warmup + config.epochs
    warmup = total if method.only_noise else config.warmup if method.warm else 0
    path = Path(config.data or Path(config.images) / (UNMARKED if method.unmarked else MANIFEST))
    data = ImagesConfig(
        str(path), size=(config.size, config.size), channels=1, flip=0.5, shift=0.04 * config.size, seed=config.seed
    )
    train = TrainConfig(
        epochs=0 if name == _WARMUP else total - warmup,
        warmup=warmup,
        batch_size=config.batch_size,
        lr=config.lr,
        lr_rampup=2.0,
        lr_after_warmup=0.5,
        schedule="cosine",
        seed=config.seed,
    )
    if method.warm:  # only where they matter: another P leaves the plain networks valid
        train = dataclasses.replace(train, p=config.p, heatmap_every=config.heatmap_every)
    tune = 0 if method.variant == "standard" else 1
    return RunConfig(method.variant, data=with_classes(data), train=train, tune=tune, name=name)


def train_method(config: XrayConfig, name: str) -> None:
    """Trains one method and scores it, or trains the shared warm-up, which must be there before the methods that go on from it."""
    torch.set_num_threads(1)
    folder, settings = _folder(config, name), run_config(config, name)
    if name != _WARMUP and METHODS[name].warm:
        folder.mkdir(parents=True, exist_ok=True)
        # The log first: a checkpoint without it would never get one.
        for file in (LOG_NAME, CHECKPOINT_NAME):
            if not (folder / CHECKPOINT_NAME).exists():
                write_bytes(folder / file, (_folder(config, _WARMUP) / file).read_bytes())
        if settings.tune:
            _measure(folder, settings, load_run(_folder(config, _WARMUP)))
    train_run(folder, settings, resume=True, progress=False)
    if name != _WARMUP:
        evaluate_run(load_run(folder), resamples=_RESAMPLES, progress=False)


def _measure(folder: Path, settings: RunConfig, warm: Run) -> None:
    """C1 and C2 from the network as the warm-up left it: from scratch, the few epochs of tuning see no relevance of a trained one."""
    if (folder / RANGES_NAME).exists():
        return
    plain = dataclasses.replace(settings.train, lr=settings.train.lr * settings.train.lr_after_warmup)
    ranges = tune(
        build_isnet(settings, warm.model),
        load_data(settings.data, progress=False).train,
        plain,
        epochs=settings.tune,
        run_dir=folder / "tuning",
        resume=True,
        progress=False,
    )
    save_ranges(folder / RANGES_NAME, ranges)


def _finished(config: XrayConfig, name: str) -> bool:
    """Whether a method has its scores.

    Raises:
        CheckpointError: those are of a run with other settings.
    """
    folder = _folder(config, name)
    if (
        load_evaluation(folder) is None
    ):  # of the warm-up there is none: it is resumed, which does nothing where it is complete
        return False
    require_same_run(folder, run_config(config, name))
    return True


def _folder(config: XrayConfig, name: str) -> Path:
    return Path(config.folder) / name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")


def _row(config: XrayConfig, name: str) -> dict[str, Any]:
    found = load_evaluation(_folder(config, name))
    assert found is not None
    tests = {
        test: {"auc": scores[""]["auc"], "background": found["background_attention"][test]}
        for test, scores in found["scores"].items()
    }
    return {"method": name, "tests": tests}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Area under the ROC curve with its interval per test, and the share of relevance in the background, in Markdown."""
    tests = list(rows[0]["tests"])
    lines = [
        f"| method | {' | '.join(tests)} | relevance outside the lungs |",
        f"| --- |{' ---: |' * (len(tests) + 1)}",
    ]
    for row in rows:
        cells = []
        for test in tests:
            auc = row["tests"][test]["auc"]
            interval = "" if auc["low"] is None else f" [{auc['low']:.3f}, {auc['high']:.3f}]"
            cells.append("-" if auc["value"] is None else f"{auc['value']:.3f}{interval}")
        background = sum(scores["background"] for scores in row["tests"].values()) / len(tests)
        lines.append(f"| {row['method']} | {' | '.join(cells)} | {100 * background:.0f} % |")
    return "\n".join(lines) + "\n"


def preset(name: str, **changes: Any) -> XrayConfig:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
