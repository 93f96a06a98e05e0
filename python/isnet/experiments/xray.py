"""Experiment 2: chest radiographs out of distribution. Does a classifier survive another patient and another hospital's marks?

The reproducible set is semi-synthetic (:mod:`isnet.experiments.radiographs`), rendered once into a folder with manifests, which
``isnet train --data`` reads as well; each patient can be the one that is left out. The same trainings run on the user's own manifest.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from isnet.config import ImagesConfig, RunConfig
from isnet.data.backgrounds import WARMUP_BACKGROUNDS, WarmupBackground
from isnet.experiments import trainings
from isnet.experiments.cells import Cell, Method, Result
from isnet.experiments.chest_ct import CT_SOURCES
from isnet.experiments.grid import Experiment
from isnet.experiments.grid_tables import Column
from isnet.experiments.xray_images import CLASSES, MANIFEST, UNMARKED, RenderConfig, images_folder, render_images
from isnet.runs import Run, RunData, evaluate_run, load_run_data
from isnet.runs.contents import contents
from isnet.runs.data import with_classes
from isnet.runs.evaluate import moved_between

OWN = "own images"  # the setting where the images are the user's
_RESAMPLES = 200
_MOVED_IMAGES = 200
_PATIENTS = ("other patients", "seen patients")
_SWAP = {"warmup_background": "swap"}
_SWAP_KEPT = {**_SWAP, "keep_replacing": True}

# Every method by name. ``images``: "unmarked", or with marks. Methods with a warm-up go on from one that they share.
METHODS: Mapping[str, Method] = {
    "trained without marks": Method(images="unmarked"),
    "standard": Method(),
    "warm-up": Method({"epochs": 0}, warm=True, scored=False),
    "control (warm-up, then standard)": Method(warm=True, after="warm-up"),
    "background noise": Method({"keep_replacing": True}, warm=True, after="warm-up"),
    "selective": Method({"variant": "selective"}, warm=True, after="warm-up"),
    "stochastic": Method({"variant": "stochastic"}, warm=True, after="warm-up"),
    # With P = 0.7 it follows the marks.
    "dual": Method({"variant": "dual", "p": 0.9}, warm=True, after="warm-up"),
    "swap warm-up": Method({**_SWAP, "epochs": 0}, warm=True, scored=False),
    "background swap": Method(_SWAP_KEPT, warm=True, after="swap warm-up"),
    "selective with background swap, P = 0.2": Method(
        {**_SWAP_KEPT, "variant": "selective", "p": 0.2}, warm=True, after="swap warm-up"
    ),
    "selective with background swap, P = 0.4": Method(
        {**_SWAP_KEPT, "variant": "selective", "p": 0.4}, warm=True, after="swap warm-up"
    ),
    "selective with background swap at layer2, K = 8, P = 0.4": Method(
        {**_SWAP_KEPT, "variant": "selective", "p": 0.4, "supervise": "layer2", "heatmap_every": 8},
        warm=True,
        after="swap warm-up",
    ),
    "recipe best": Method(trainings.of_recipe("best"), warm=True, after="swap warm-up"),
    "lungs alone": Method(rival="segmented"),
    # Students see whole radiographs, their teacher the lungs alone, as it was trained.
    **{
        f"{distill} of lungs alone": Method(
            {"distill": distill, "view": "zeros"}, after="lungs alone", handed="teacher"
        )
        for distill in ("maps", "logits", "features")
    },
}


@dataclass(frozen=True)
class XrayConfig(Experiment):
    """The size of the experiment; its settings are patients that only tests see.

    Attributes:
        folder, methods: See :class:`isnet.experiments.grid.Experiment`.
        seeds: One rendering of the images and one training per method each; of ``own_data`` only the training differs.
        held_out: Patients that are left out, each in turn.
        rendering: How many images are rendered, how large, and where: each patient's and seed's in a folder of their own.
        own_data: The user's own image folder, manifest or shards instead of rendered images.
        size: Side of the network's images.
        warmup, epochs: Of each method that has a warm-up; all see warmup + epochs epochs.
        warmup_background: What replaces the background then, and throughout for the rival "background noise"; see
            :class:`isnet.config.ScheduleConfig`. Methods named after the swap use the swap.
        batch_size, lr: Of the training.

    Raises:
        ValueError: unknown patients, methods or backgrounds, or nothing to run.
    """

    name: ClassVar[str] = "xray"
    overall: ClassVar[str] = "mean of the patients"
    folder: str = "runs/xray"
    held_out: tuple[str, ...] = ("totalsegmentator",)
    rendering: RenderConfig = field(default_factory=RenderConfig)
    own_data: str | None = None
    size: int = 224
    warmup: int = 20
    epochs: int = 20
    warmup_background: WarmupBackground = "smooth"
    batch_size: int = 32
    lr: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 2:
            raise ValueError(f"size: expected at least 2, got {self.size}")
        trainings.require_known("held_out", self.held_out, tuple(CT_SOURCES))
        trainings.require_different("held_out", self.held_out, "patients")
        trainings.require_known("warmup_background", [self.warmup_background], WARMUP_BACKGROUNDS)

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """:data:`METHODS`."""
        return METHODS

    @property
    def settings(self) -> tuple[str, ...]:
        """The patients that are left out."""
        return self.held_out if self.own_data is None else (OWN,)

    def has(self, cell: Cell) -> bool:
        """The user's training images are not available without marks."""
        return self.own_data is None or METHODS[cell.method].images != "unmarked"

    def rendered(self, setting: str) -> RenderConfig:
        """What is rendered where one patient is left out."""
        return dataclasses.replace(
            self.rendering, images=str(Path(self.rendering.images) / setting), held_out=(setting,)
        )

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Renders the images that are missing."""
        if self.own_data is None:
            render_images(self.rendered(setting), seed, processes=processes, progress=progress)

    def notes(self, cell: Cell) -> dict[str, Any]:
        """How the images are made; of the user's, what they are."""
        if self.own_data is not None:
            return {"contents": _contents(self.own_data)}
        return {key: getattr(self.rendering, key) for key in ("train", "validation", "test", "pixels")}

    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run."""
        method = METHODS[cell.method]
        warmup = self.warmup if method.warm else 0
        augment = {"flip": 0.5, "shift": 0.04 * self.size}
        data = ImagesConfig(
            self.own_data or self._manifest(cell), size=(self.size, self.size), channels=1, augment=augment
        )
        data = with_classes(data) if self.own_data else dataclasses.replace(data, classes=CLASSES)
        options = {
            "variant": "standard",
            "epochs": self.warmup + self.epochs - warmup,
            "warmup": warmup,
            "warmup_background": self.warmup_background if warmup else "noise",  # another one leaves plain runs valid
            "batch_size": self.batch_size,
            "lr": self.lr,
            "lr_rampup": 2.0,
            "lr_after_warmup": 1.0,
            "lr_schedule": "cosine",
            "monitor": None,
            "seed": method.training_seed(cell),
        }
        run = RunConfig(data=data, network=trainings.NARROW_RESNET, name=cell.method)
        run = run.replaced(**{**options, **method.options})
        return run.replaced(**{"tune": 1, **method.options}) if run.is_isnet else run

    def _manifest(self, cell: Cell) -> str:
        unmarked = METHODS[cell.method].images == "unmarked"
        return str(images_folder(self.rendered(cell.setting), cell.seed) / (UNMARKED if unmarked else MANIFEST))

    def data(self, cell: Cell, run: RunConfig) -> RunData:
        """The data sets of a cell."""
        return load_run_data(run, progress=False)

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """Area under the ROC curve and accuracy on each test, relevance outside the lungs, and what swapped marks do to the decisions."""
        found = evaluate_run(run, data, resamples=_RESAMPLES, sensitivity=False, progress=False)
        scores: dict[str, dict[str, Any]] = {}
        for test, by_source in found["scores"].items():
            scores[test] = {name: by_source[""][name] for name in ("auc", "accuracy")}
            scores[test]["background"] = found["background_attention"].get(test)
        return {"scores": scores, "moved": {} if cell.setting == OWN else _moved(run, data)}

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """AUC on each test of the first result, and the relevance in the background, in the mean of the tests."""
        moved = [Column(f"{who}, moved", ("moved", who, "distance"), 100) for who in results[0].moved]
        return [
            *(Column(test.replace(", marks", ","), ("scores", test, "auc"), digits=3) for test in results[0].scores),
            Column("relevance outside the lungs", ("scores", "*", "background"), 100, 0, " %"),
            *moved,
        ]


@functools.cache
def _contents(path: str) -> str:
    """A hash of all images, masks and labels of a set."""
    found = contents(RunConfig(data=ImagesConfig(path)))
    return hashlib.sha256(repr(sorted((found or {}).items())).encode()).hexdigest()[:16]


def _moved(run: Run, data: RunData) -> dict[str, dict[str, float]]:
    """What swapped marks do to the decisions, of each group of patients."""
    found = {}
    for who in _PATIENTS:
        before, after = (data.tests[f"{who}, marks {marks}"] for marks in ("as in training", "swapped"))
        found[who] = moved_between(run, before, after, max_images=_MOVED_IMAGES)
    return found


PRESETS: Mapping[str, XrayConfig] = {
    "full": XrayConfig(),
    "quick": XrayConfig(
        folder="runs/xray-quick",
        rendering=RenderConfig(images="data/xray-quick", train=1200, validation=120, test=200, pixels=112),
        size=64,
        warmup=12,
        epochs=10,
        seeds=(0,),
        methods=tuple(name for name, method in METHODS.items() if method.scored and "lungs alone" not in name),
    ),
}


def preset(name: str, **changes: Any) -> XrayConfig:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
