"""Experiment 1: MNIST with background bias. Every method, with its accuracy on the three tests, its blind spot and its cost.

Each cell (method, mark, seed) is trained in a process of its own and leaves one JSON file; an interrupted experiment continues where it
stopped, within a cell, too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from isnet._files import write_json, write_text
from isnet.config import RunConfig
from isnet.config.groups import Balance
from isnet.data import Example
from isnet.data.backgrounds import WARMUP_BACKGROUNDS, WarmupBackground
from isnet.experiments import trainings
from isnet.experiments.baselines import Altered, InputGradients, segmented, with_mask
from isnet.experiments.biased_mnist import Bias, Mark
from isnet.experiments.digits import DigitsConfig, digits_run, load_digits
from isnet.experiments.mnist_files import load_mnist
from isnet.experiments.mnist_table import rows_of, table
from isnet.runs import RunData, build_criterion, build_isnet, build_model
from isnet.scoring.evaluation import accuracy, background_attention
from isnet.scoring.sensitivity import blind_spot
from isnet.training import fit
from isnet.training.checkpoints import CheckpointError
from isnet.training.log import flatten

_GRADIENT_STRENGTH = 1.0
_ATTENTION_IMAGES = 200
_SWAP_LAZY = 4  # K of the Selective ISNet beside swapped backgrounds: the cheap one
# Of the hard setting: pixels by which masks are grown and moved; and strokes so faint that a cut-out's edge is the easier thing to see.
_MASK_ERROR = 2
_INK = 0.6


@dataclass(frozen=True)
class MNISTConfig:
    """The size of the experiment.

    Attributes:
        folder: Where cells and tables go.
        data_folder: Where the MNIST files are kept.
        train_size, test_size: Digits; None: all.
        warmup, epochs: Of each method that has them; all methods see warmup + epochs epochs.
        warmup_background: What replaces the background then, and throughout for the rival "background noise"; see
            :class:`isnet.config.ScheduleConfig`. Methods named after the swap use the swap.
        batch_size: Images per step.
        heatmap_every: K of the ISNets.
        lazy: Further K, of the Selective ISNet after the warm-up.
        marks, seeds: One cell per method for each pair.
        methods: Names to run; empty: all.
    """

    folder: str = "runs/mnist"
    data_folder: str = "data/mnist"
    train_size: int | None = None
    test_size: int | None = None
    warmup: int = 3
    epochs: int = 7
    warmup_background: WarmupBackground = "noise"
    batch_size: int = 64
    heatmap_every: int = 1
    lazy: tuple[int, ...] = (2, 4, 8, 16)
    marks: tuple[Mark, ...] = ("place", "texture", "photo")
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # before any training
        trainings.require_known("marks", self.marks, get_args(Mark))
        trainings.require_known("warmup_background", [self.warmup_background], WARMUP_BACKGROUNDS)
        trainings.require_different("seeds", self.seeds)


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
        lazy=(2, 4, 8, 16),
        marks=("place", "photo"),
        seeds=(0,),
        methods=_QUICK,
    ),
}


class Method(NamedTuple):
    """A way to train: a variant (or a rival's name) with or without the warm-up, and how its heatmap loss is taken and weighted.

    Attributes:
        throughout: Backgrounds are replaced after the warm-up, too.
        background: Their replacement, if not the experiment's.
        bias: Of the training images.
        rival: A kind of training for which the package has no variant.
    """

    variant: str
    warm: bool = False
    throughout: bool = False
    background: WarmupBackground | None = None
    every: int = 1
    bias: Bias = "biased"
    rival: Literal["", "segmented", "gradients"] = ""
    balance: Balance = "fixed"


class Cell(NamedTuple):
    """One training: its method's name, mark and seed."""

    method: str
    mark: Mark
    seed: int

    @property
    def key(self) -> str:
        """Name of its file."""
        return f"{self.method}, {self.mark}, {self.seed}".replace(" ", "_").replace(",", "")


def methods(config: MNISTConfig) -> dict[str, Method]:
    """Every method by name, rivals first."""
    found = {
        "trained without marks": Method("standard", bias="unbiased"),
        "trained without bias": Method("standard", bias="unrelated"),
        "standard": Method("standard"),
        "control (warm-up, then standard)": Method("standard", warm=True),
        "background noise": Method("standard", warm=True, throughout=True),
        "background swap": Method("standard", warm=True, throughout=True, background="swap"),
        "segmentation, then classification": Method("standard", rival="segmented"),
        "input gradients": Method("standard", rival="gradients"),
    }
    variants = ("selective", "stochastic", "dual", "gradient_times_input", "original")
    for variant in variants:
        name = variant.replace("_", " ")
        found[f"{name} from scratch"] = Method(variant, every=config.heatmap_every)
        found[f"{name} after warm-up"] = Method(variant, warm=True, every=config.heatmap_every)
    for every in config.lazy:
        if every != config.heatmap_every:
            found[f"selective after warm-up, K = {every}"] = Method("selective", warm=True, every=every)
    every = config.heatmap_every
    found["selective from scratch, automatic P"] = Method("selective", every=every, balance="auto")
    found["selective after warm-up, automatic P"] = Method("selective", warm=True, every=every, balance="auto")
    swap = Method("standard", warm=True, background="swap")
    found["control (swap warm-up, then standard)"] = swap
    for guard, guarded in (
        ("selective", swap._replace(variant="selective", every=_SWAP_LAZY)),
        ("dual", swap._replace(variant="dual")),
    ):
        lazy = f", K = {guarded.every}" if guarded.every > 1 else ""
        found[f"{guard} after swap warm-up{lazy}"] = guarded
        found[f"{guard} with background swap{lazy}"] = guarded._replace(throughout=True)
    return trainings.chosen(found, config.methods)


def run_experiment(config: MNISTConfig, *, processes: int = 2, progress: bool = True) -> list[dict[str, Any]]:
    """Trains every cell that has no result yet and writes ``table.md`` and ``results.json``.

    Args:
        config: The experiment.
        processes: Cells at a time, each with one thread.
        progress: Show a progress bar.

    Returns:
        One row per method and mark, as :func:`table_rows` returns them.

    Raises:
        CheckpointError: the folder holds cells of other settings.
    """
    folder = Path(config.folder)
    load_mnist(config.data_folder, progress=progress)  # once, not in every process
    cells = all_cells(config)
    trainings.train_missing(
        train_cell, config, cells, partial(_finished, config), processes=processes, progress=progress
    )
    rows = table_rows(config, cells)
    write_json(folder / "results.json", rows)
    write_text(folder / "table.md", table(rows))
    return rows


def _finished(config: MNISTConfig, cell: Cell) -> bool:
    """Whether a cell has its scores.

    Raises:
        CheckpointError: those are of other settings.
    """
    path = _path(Path(config.folder), cell)
    if not path.exists():
        return False
    try:
        saved = json.loads(path.read_text()).get("settings")
        if saved is None:
            raise ValueError("an older version's, which kept no settings")
        # Through JSON again: a setting newer than the cell has its default.
        ours, theirs = (flatten(run.to_json()) for run in (run_config(config, cell), RunConfig.from_json(saved)))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; choose another folder (--out)") from error
    differences = [
        f"{key}: {theirs.get(key)!r} there, {ours[key]!r} now" for key in ours if ours[key] != theirs.get(key)
    ]
    if differences:
        raise CheckpointError(f"{path} is of other settings ({'; '.join(differences)}); choose another folder")
    return True


def all_cells(config: MNISTConfig) -> list[Cell]:
    """Every training of the experiment. A photograph is always behind the digit: then there is no training without marks."""
    found = methods(config).items()
    return [
        Cell(name, mark, seed)
        for seed in config.seeds
        for mark in config.marks
        for name, method in found
        if not (mark == "photo" and method.bias == "unbiased")
    ]


def train_cell(config: MNISTConfig, cell: Cell) -> None:
    """Trains one cell and writes its scores."""
    torch.set_num_threads(1)
    method, folder = methods(config)[cell.method], Path(config.folder)
    run = run_config(config, cell)
    data = cell_data(run, method)
    model = build_model(run)
    network: nn.Module = model
    options: dict[str, Any] = {}
    if run.is_isnet:
        network, options = build_isnet(run, model), {"criterion": build_criterion(run)}
    elif method.rival == "gradients":
        network = InputGradients(model, _GRADIENT_STRENGTH)
        options = {"classification_loss": network.loss}
    train_set = Altered(data.train, with_mask) if method.rival == "gradients" else data.train
    log = fit(network, train_set, run, run_dir=folder / "runs" / cell.key, resume=True, progress=False, **options)
    scores = {test: accuracy(model, dataset) for test, dataset in data.tests.items()}
    biased, deceiving = (_first(data.tests[test], _ATTENTION_IMAGES) for test in ("biased", "deceiving"))
    shown = background_attention(model, deceiving)
    spot = blind_spot(model, biased, deceiving)
    result = {"accuracy": scores, "background": shown, "blind_spot": spot._asdict(), "settings": run.to_json()}
    write_json(
        _path(folder, cell),
        {**cell._asdict(), **result, "cpu_seconds": log[-1]["cpu_seconds"], "steps": log[-1]["step"]},
    )


def _first(dataset: Dataset[Example], count: int) -> Dataset[Example]:
    return Subset(dataset, range(min(count, len(cast(Sized, dataset)))))


def run_config(config: MNISTConfig, cell: Cell) -> RunConfig:
    """The settings of a cell."""
    method = methods(config)[cell.method]
    total = config.warmup + config.epochs
    warmup = config.warmup if method.warm else 0
    data = DigitsConfig(config.data_folder, config.train_size, config.test_size, mark=cell.mark)
    if cell.mark == "photo":
        data = dataclasses.replace(data, mask="digit", imprecise=_MASK_ERROR, ink=_INK)
    return digits_run(
        data,
        variant=method.variant,
        static=True,
        epochs=total - warmup,
        warmup=warmup,
        # Without a warm-up, another background leaves runs valid.
        warmup_background=(method.background or config.warmup_background) if warmup else "noise",
        keep_replacing=method.throughout,
        batch_size=config.batch_size,
        channels_last=True,
        lr_after_warmup=1.0,
        lr_schedule="cosine",
        balance=method.balance,
        heatmap_every=method.every,
        seed=cell.seed,
    )


def cell_data(run: RunConfig, method: Method) -> RunData:
    """The data sets of a cell: biased training images, except for the methods that see others."""
    assert isinstance(run.data, DigitsConfig)
    data = load_digits(run.data, seed=run.train.seed, progress=False, train_bias=method.bias)
    if method.rival == "segmented":
        tests: dict[str, Dataset[Example]] = {name: Altered(test, segmented) for name, test in data.tests.items()}
        return RunData(Altered(data.train, segmented), {}, tests)
    return data


def table_rows(config: MNISTConfig, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows of :func:`isnet.experiments.mnist_table.rows_of`, from the files of the cells."""
    return rows_of([json.loads(_path(Path(config.folder), cell).read_text()) for cell in cells], config.marks)


def _path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def preset(name: str, **changes: Any) -> MNISTConfig:
    """A preset with some settings changed.

    Raises:
        ValueError: no such preset.
    """
    return trainings.preset(PRESETS, name, changes)
