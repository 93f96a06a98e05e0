"""Digits whose colour tells the class. Students of a teacher that knows no colours beside a standard network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from isnet.config import RunConfig, ScheduleConfig
from isnet.experiments import trainings
from isnet.experiments.cells import Cell, Method, Result
from isnet.experiments.coloured_mnist import TESTS, ColouredConfig, Colours, load_coloured
from isnet.experiments.grid import Experiment
from isnet.experiments.grid_tables import Column
from isnet.experiments.mnist_files import load_mnist
from isnet.experiments.trainings import NARROW_RESNET
from isnet.runs import Run, RunData
from isnet.scoring.evaluation import accuracy

_TEACHER = "teacher (digits in any colour)"
_GREY = "teacher (grey digits)"


def _student(teacher: str = _TEACHER, **options: Any) -> Method:
    """A student, which sees the biased digits alone and chooses its epoch on them."""
    return Method(options, after=teacher, handed="teacher")


# Every method by name, teachers first. ``images``: the colours of the training digits.
METHODS: Mapping[str, Method] = {
    _TEACHER: Method(images="any"),
    _GREY: Method(images="grey"),
    "standard": Method(),
    "logits": _student(distill="logits"),
    "features": _student(distill="features"),
    "maps": _student(),
    "maps, eps 0.01 to 0.1": _student(eps_low=-2.0, eps_high=-1.0),
    "maps, input alone": _student(match_layers=("none",)),
    "maps, free head": _student(head="free"),
    "maps of the grey teacher": _student(_GREY),
    "logits of the grey teacher": _student(_GREY, distill="logits"),
}


@dataclass(frozen=True)
class ColouredExperiment(Experiment):
    """The size of the experiment; its one setting is the colour of the class.

    Attributes:
        folder, seeds, methods: See :class:`isnet.experiments.grid.Experiment`.
        data_folder: Where the MNIST files are kept.
        train_size, test_size: Digits; None: all.
        epochs, batch_size: Of every training.
    """

    name: ClassVar[str] = "coloured"
    folder: str = "runs/coloured"
    data_folder: str = "data/mnist"
    train_size: int | None = None
    test_size: int | None = None
    epochs: int = 10
    batch_size: int = 64

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """:data:`METHODS`."""
        return METHODS

    @property
    def settings(self) -> tuple[str, ...]:
        """One."""
        return ("colour",)

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Fetches MNIST: once, not in every process."""
        load_mnist(self.data_folder, progress=progress)

    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run: as the experiment with biased MNIST, and an epoch chosen by the loss on biased digits."""
        method = METHODS[cell.method]
        data = ColouredConfig(
            self.data_folder, self.train_size, self.test_size, colours=cast(Colours, method.images or "own")
        )
        base = RunConfig(data=data, network=NARROW_RESNET, schedule=ScheduleConfig(), name=cell.method)
        options = {
            "static": method.handed == "teacher",
            "variant": "standard",
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "channels_last": True,
            "lr": 2e-3,
            "lr_schedule": "cosine",
            "seed": method.training_seed(cell),
        }
        return base.replaced(**{**options, **method.options})

    def data(self, cell: Cell, run: RunConfig) -> RunData:
        """As :func:`isnet.experiments.coloured_mnist.load_coloured` makes them."""
        assert isinstance(run.data, ColouredConfig)
        return load_coloured(run.data, seed=cell.seed, progress=False)

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """Accuracy on each test."""
        return {"scores": {name: {"accuracy": accuracy(run.model, test)} for name, test in data.tests.items()}}

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """Accuracies in per cent; cost: of a step, over that of the standard network."""
        tests = [Column(test, ("scores", test, "accuracy"), 100) for test in TESTS]
        return [*tests, Column("cost", ("cost",), digits=2, relative_to="standard")]


PRESETS: Mapping[str, ColouredExperiment] = {
    "full": ColouredExperiment(),
    "quick": ColouredExperiment(
        folder="runs/coloured-quick",
        train_size=4000,
        test_size=2000,
        epochs=6,
        batch_size=40,
        seeds=(0,),
        methods=(_TEACHER, "standard", "logits", "features", "maps"),
    ),
}


def preset(name: str, **changes: Any) -> ColouredExperiment:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
