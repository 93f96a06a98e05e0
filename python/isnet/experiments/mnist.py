"""Experiment 1: MNIST with background bias. Every method, with its accuracy on the three tests, its blind spot and its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, ClassVar, cast, get_args

from torch.utils.data import Dataset, Subset

from isnet.config import RunConfig
from isnet.data import Example
from isnet.data.backgrounds import WARMUP_BACKGROUNDS, WarmupBackground
from isnet.experiments import trainings
from isnet.experiments.biased_mnist import Bias, Mark
from isnet.experiments.cells import Cell, Method, Result
from isnet.experiments.digits import DigitsConfig, digits_run, load_digits
from isnet.experiments.grid import Experiment
from isnet.experiments.grid_tables import Column
from isnet.experiments.mnist_files import load_mnist
from isnet.runs import Run, RunData
from isnet.scoring.evaluation import accuracy, background_attention
from isnet.scoring.sensitivity import blind_spot

TESTS = ("biased", "unbiased", "deceiving")
_ATTENTION_IMAGES = 200
# Of the hard setting: pixels by which masks are grown and moved; and strokes so faint that a cut-out's edge is the easier thing to see.
_MASK_ERROR = 2
_INK = 0.6

_SWAP = {"warmup_background": "swap"}
_LAZY_SWAP = {**_SWAP, "variant": "selective", "heatmap_every": 4}  # the cheap one
_VARIANTS = ("selective", "stochastic", "dual", "gradient_times_input", "original")

# Every method by name, rivals first. ``images``: the bias of the training images.
METHODS: Mapping[str, Method] = {
    "trained without marks": Method(images="unbiased"),
    "trained without bias": Method(images="unrelated"),
    "standard": Method(),
    "control (warm-up, then standard)": Method(warm=True),
    "background noise": Method({"keep_replacing": True}, warm=True),
    "background swap": Method({**_SWAP, "keep_replacing": True}, warm=True),
    "segmentation, then classification": Method(rival="segmented"),
    "input gradients": Method(rival="input gradients"),
    **{
        f"{variant.replace('_', ' ')} {when}": Method({"variant": variant}, warm=warm)
        for variant in _VARIANTS
        for when, warm in (("from scratch", False), ("after warm-up", True))
    },
    **{
        f"selective after warm-up, K = {every}": Method({"variant": "selective", "heatmap_every": every}, warm=True)
        for every in (2, 4, 8, 16)
    },
    "selective from scratch, automatic P": Method({"variant": "selective", "balance": "auto"}),
    "selective after warm-up, automatic P": Method({"variant": "selective", "balance": "auto"}, warm=True),
    "control (swap warm-up, then standard)": Method(_SWAP, warm=True),
    "selective after swap warm-up, K = 4": Method(_LAZY_SWAP, warm=True),
    "selective with background swap, K = 4": Method({**_LAZY_SWAP, "keep_replacing": True}, warm=True),
    "selective with background swap at layer2, K = 8": Method(
        {**_LAZY_SWAP, "keep_replacing": True, "supervise": "layer2", "heatmap_every": 8}, warm=True
    ),
    "dual after swap warm-up": Method({**_SWAP, "variant": "dual"}, warm=True),
    "dual with background swap": Method({**_SWAP, "variant": "dual", "keep_replacing": True}, warm=True),
    "recipe best": Method(trainings.of_recipe("best"), warm=True),
    # Students see whole images; their teacher sees digits on black, as it was trained.
    **{
        f"{distill} of the segmented network": Method(
            {"distill": distill, "view": "zeros"}, after="segmentation, then classification", handed="teacher"
        )
        for distill in ("maps", "logits", "features")
    },
}


@dataclass(frozen=True)
class MNISTConfig(Experiment):
    """The size of the experiment; its settings are marks.

    Attributes:
        folder, seeds, methods: See :class:`isnet.experiments.grid.Experiment`.
        data_folder: Where the MNIST files are kept.
        train_size, test_size: Digits; None: all.
        warmup, epochs: Of each method that has them; all methods see warmup + epochs epochs.
        warmup_background: What replaces the background then, and throughout for the rival "background noise"; see
            :class:`isnet.config.ScheduleConfig`. Methods named after the swap use the swap.
        batch_size: Images per step.
        marks: The settings.
    """

    name: ClassVar[str] = "mnist"
    folder: str = "runs/mnist"
    data_folder: str = "data/mnist"
    train_size: int | None = None
    test_size: int | None = None
    warmup: int = 3
    epochs: int = 7
    warmup_background: WarmupBackground = "noise"
    batch_size: int = 64
    marks: tuple[Mark, ...] = get_args(Mark)

    def __post_init__(self) -> None:
        super().__post_init__()
        trainings.require_known("marks", self.marks, get_args(Mark))
        trainings.require_different("marks", self.marks, "marks")
        trainings.require_known("warmup_background", [self.warmup_background], WARMUP_BACKGROUNDS)

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """:data:`METHODS`."""
        return METHODS

    @property
    def settings(self) -> tuple[str, ...]:
        """The marks."""
        return self.marks

    def has(self, cell: Cell) -> bool:
        """A photograph is always behind the digit: then there is no training without marks."""
        return not (cell.setting == "photo" and METHODS[cell.method].images == "unbiased")

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Fetches MNIST: once, not in every process."""
        load_mnist(self.data_folder, progress=progress)

    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run."""
        method = METHODS[cell.method]
        warmup = self.warmup if method.warm else 0
        mark = cast(Mark, cell.setting)
        data = DigitsConfig(self.data_folder, self.train_size, self.test_size, mark=mark)
        if mark == "photo":
            data = dataclasses.replace(data, mask="digit", imprecise=_MASK_ERROR, ink=_INK)
        options = {
            "static": True,
            "variant": "standard",
            "epochs": self.warmup + self.epochs - warmup,
            "warmup": warmup,
            "warmup_background": self.warmup_background if warmup else "noise",  # another one leaves plain runs valid
            "batch_size": self.batch_size,
            "channels_last": True,
            "lr_after_warmup": 1.0,
            "lr_schedule": "cosine",
            "seed": method.training_seed(cell),
        }
        return digits_run(data, cell.method, **{**options, **method.options})

    def data(self, cell: Cell, run: RunConfig) -> RunData:
        """Biased training images, except for the methods that see others; nothing to choose a checkpoint by."""
        assert isinstance(run.data, DigitsConfig)
        bias = cast(Bias, METHODS[cell.method].images or "biased")
        data = load_digits(run.data, seed=cell.seed, progress=False, train_bias=bias)
        return data._replace(validation={})

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """Accuracy and background relevance on each test, and what wrong marks do to the decisions."""
        few = {name: _first(test, _ATTENTION_IMAGES) for name, test in data.tests.items()}
        scores = {
            name: {"accuracy": accuracy(run.model, test), "background": background_attention(run.model, few[name])}
            for name, test in data.tests.items()
        }
        spot = blind_spot(run.model, few["biased"], few["deceiving"])
        return {"scores": scores, "moved": {"deceiving": spot._asdict()}}

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """Accuracies and shares in per cent; cost: of a step, over that of the standard network."""
        moved = ("moved", "deceiving")
        return [
            *(Column(test, ("scores", test, "accuracy"), 100) for test in TESTS),
            Column("background relevance", ("scores", "deceiving", "background"), 100),
            Column("decisions moved", (*moved, "distance"), 100),
            Column("blind spot", (*moved, "score"), 100),
            Column("cost", ("cost",), digits=2, relative_to="standard"),
        ]


def _first(dataset: Dataset[Example], count: int) -> Dataset[Example]:
    return Subset(dataset, range(min(count, len(cast(Sized, dataset)))))


# What fits into a quarter of an hour on two cores; the ordering of the full table shows in these.
_QUICK = (
    "trained without bias",
    "standard",
    "control (warm-up, then standard)",
    "background noise",
    "background swap",
    "segmentation, then classification",
    "selective from scratch",
    "selective after warm-up",
    "stochastic after warm-up",
    "dual after warm-up",
    "selective after warm-up, K = 4",
    "selective after warm-up, automatic P",
    "selective with background swap, K = 4",
)

PRESETS: Mapping[str, MNISTConfig] = {
    "full": MNISTConfig(),
    "quick": MNISTConfig(
        folder="runs/mnist-quick",
        train_size=4000,
        test_size=2000,
        warmup=2,
        epochs=4,
        batch_size=40,
        marks=("place", "photo"),
        seeds=(0,),
        methods=_QUICK,
    ),
}


def preset(name: str, **changes: Any) -> MNISTConfig:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
