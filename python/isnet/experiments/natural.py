"""Experiment 3: natural images whose background tells the class (:mod:`isnet.experiments.natural_images`), as Waterbirds does.

The scores are the field's: accuracy of each pair of class and place, of the worst pair, and their average weighted by training images.
GroupDRO is left out: the libraries that carry it are not maintained (WILDS: last release in 2021; SpuCo: in 2024). It needs no masks, but
the place of every training image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch.utils.data import Subset

from isnet.config import ImagesConfig, NetworkConfig, RunConfig
from isnet.experiments import trainings
from isnet.experiments.cells import Cell, Method, Result
from isnet.experiments.grid import Experiment
from isnet.experiments.grid_tables import Column
from isnet.experiments.natural_images import CLASSES, MANIFEST, TEST, NaturalImages, images_folder, render_images
from isnet.runs import Run, RunData, evaluate_run, load_run_data
from isnet.runs.evaluate import moved_between

RESNET18 = NetworkConfig(
    arch="monai:ResNet",
    arch_args={
        "block": "basic",
        "layers": [2, 2, 2, 2],
        "block_inplanes": [64, 128, 256, 512],
        "conv1_t_size": 7,
        "conv1_t_stride": 2,
    },
)
CORRELATIONS = ("50 %", "95 %", "100 %")
_RESAMPLES = 200
_MOVED_IMAGES = 100  # objects, each at both places
_SWAP = {"warmup_background": "swap", "keep_replacing": True}

# Every method by name. Backgrounds are replaced throughout, without a warm-up.
METHODS: Mapping[str, Method] = {
    "standard": Method(),
    "background noise": Method({"warmup_background": "smooth", "keep_replacing": True}),
    "background swap": Method(_SWAP),
    "selective with background swap": Method({**_SWAP, "variant": "selective"}),
    "selective with background swap, P = 0.2": Method({**_SWAP, "variant": "selective", "p": 0.2}),
    "dual with background swap": Method({**_SWAP, "variant": "dual"}),
}


@dataclass(frozen=True)
class NaturalConfig(Experiment):
    """The size of the experiment; its settings are correlations of place and class in training.

    Attributes:
        folder, methods: See :class:`isnet.experiments.grid.Experiment`.
        seeds: One rendering of the images and one training per method each.
        correlations: The settings. At ``"50 %"`` the place says nothing: the standard network's training there is the reference.
        rendering: How many images are rendered, how large, and where.
        epochs: Of every method.
        batch_size, lr: Of the training.

    Raises:
        ValueError: unknown correlations or methods, or nothing to run.
    """

    name: ClassVar[str] = "natural"
    folder: str = "runs/natural"
    correlations: tuple[str, ...] = CORRELATIONS
    rendering: NaturalImages = field(default_factory=NaturalImages)
    epochs: int = 20
    batch_size: int = 8
    lr: float = 5e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        trainings.require_known("correlations", self.correlations, CORRELATIONS)
        trainings.require_different("correlations", self.correlations, "correlations")

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """:data:`METHODS`."""
        return METHODS

    @property
    def settings(self) -> tuple[str, ...]:
        """The correlations."""
        return self.correlations

    def has(self, cell: Cell) -> bool:
        """Without correlation there is nothing to defend against."""
        return cell.setting != CORRELATIONS[0] or cell.method == "standard"

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Renders the images that are missing."""
        render_images(self.rendering, seed, _per_cent(setting), progress=progress)

    def notes(self, cell: Cell) -> dict[str, Any]:
        """How the images are made."""
        return {key: getattr(self.rendering, key) for key in ("train", "test", "pixels")}

    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run."""
        side = self.rendering.pixels
        manifest = images_folder(self.rendering, cell.seed, _per_cent(cell.setting)) / MANIFEST
        data = ImagesConfig(
            str(manifest), size=(side, side), channels=3, validation=0.0, augment={"flip": 0.5}, classes=tuple(CLASSES)
        )
        options = {
            "variant": "standard",
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "lr_rampup": 1.0,
            "lr_schedule": "cosine",
            "monitor": None,
            "channels_last": True,
            "seed": cell.seed,
        }
        method = METHODS[cell.method]
        run = RunConfig(data=data, network=RESNET18, name=cell.method).replaced(**{**options, **method.options})
        return run.replaced(static=True, tune=1) if run.is_isnet else run

    def data(self, cell: Cell, run: RunConfig) -> RunData:
        """The data sets of a cell."""
        return load_run_data(run, progress=False)

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """Accuracy of all test images, of each subgroup and of the worst, relevance in the background, and what the other place changes."""
        found = evaluate_run(run, data, resamples=_RESAMPLES, sensitivity=False, progress=False)
        subgroups = found["subgroups"][TEST]
        scores: dict[str, dict[str, Any]] = {
            TEST: {
                "accuracy": found["scores"][TEST][""]["accuracy"],
                "worst": None if subgroups["worst"] is None else subgroups["worst"]["accuracy"],
                "average": subgroups["average"],
                "background": found["background_attention"].get(TEST),
            }
        }
        scores |= {one["subgroup"]: {"accuracy": one["accuracy"]} for one in subgroups["all"]}
        return {"scores": scores, "moved": {"other place": _moved(run, data)}}

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """The worst subgroup's accuracy and the average first, then each subgroup's, in per cent."""
        subgroups = [name for name in results[0].scores if name != TEST]
        return [
            Column("worst", ("scores", TEST, "worst"), 100),
            Column("average", ("scores", TEST, "average"), 100),
            *(Column(name, ("scores", name, "accuracy"), 100) for name in subgroups),
            Column("background relevance", ("scores", TEST, "background"), 100, 0),
            Column("moved by the place", ("moved", "other place", "distance"), 100),
            Column("cost", ("cost",), digits=2, relative_to="standard"),
        ]


def _per_cent(setting: str) -> int:
    return int(setting.partition(" ")[0])


def _moved(run: Run, data: RunData) -> dict[str, float]:
    """What the other place does to the decisions on the same objects, which stand at both places one after the other."""
    test = data.tests[TEST]
    rows = range(0, min(2 * _MOVED_IMAGES, len(test)), 2)  # type: ignore[arg-type]
    before, after = (Subset(test, [row + other for row in rows]) for other in (0, 1))
    return moved_between(run, before, after, max_images=_MOVED_IMAGES)


PRESETS: Mapping[str, NaturalConfig] = {
    "full": NaturalConfig(rendering=NaturalImages(train=2000, test=1000)),
    "quick": NaturalConfig(
        folder="runs/natural-quick",
        rendering=NaturalImages(images="data/natural-quick", train=480, test=400),
        epochs=8,
        seeds=(0,),
    ),
}


def preset(name: str, **changes: Any) -> NaturalConfig:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
