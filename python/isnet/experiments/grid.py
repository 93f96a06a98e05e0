"""Experiments as grids: cells of (setting, method, seed), trained side by side, each with its result in one JSON file.

A grid goes on where it was interrupted, within a cell, too, and may be run over as many sittings as it takes. docs/experiments.md says
how to add a method, a setting or an experiment.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from isnet._files import require_place, write_json, write_text
from isnet.config import RunConfig
from isnet.experiments import trainings
from isnet.experiments.baselines import RIVALS
from isnet.experiments.cells import CELLS, Cell, Method, Result, read_result
from isnet.experiments.code_version import code_version
from isnet.experiments.grid_tables import Column, table
from isnet.runs import Run, RunData, branch_run, build_model, train_run
from isnet.training import fit
from isnet.training.checkpoints import CheckpointError
from isnet.training.log import LOG_NAME, flatten, read_log
from isnet.training.loop import CHECKPOINT_NAME

RUNS = "runs"  # the folder of the run folders


@dataclass(frozen=True)
class Experiment(ABC):
    """A grid of trainings.

    A subclass says what its settings and methods are, how a cell is trained (:meth:`run_config`, :meth:`data`) and scored
    (:meth:`score`), and which columns its tables have. It is pickled for the processes that train.

    Attributes:
        folder: Where cells (``cells/*.json``), run folders (``runs/``) and tables go.
        seeds: One cell per setting and method for each.
        methods: Names to run; empty: all.
    """

    name: ClassVar[str] = ""
    overall: ClassVar[str] = ""  # what the rows with the mean over the settings are called; empty: there are none
    folder: str = "runs/experiment"
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # before any training
        trainings.require_different("seeds", self.seeds)
        scored = [name for name, method in self.all_methods().items() if method.scored]
        unknown = set(self.methods) - set(scored)
        if unknown:
            raise ValueError(f"methods: no {', '.join(sorted(unknown))}; there are {', '.join(scored)}")

    @classmethod
    @abstractmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """Every method by name, in the order of the tables."""

    @property
    @abstractmethod
    def settings(self) -> tuple[str, ...]:
        """The wanted settings, in the order of the tables."""

    @abstractmethod
    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run. Needs no data that :meth:`prepare` makes."""

    @abstractmethod
    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """``{"scores": ..., "moved": ...}`` of a trained cell, as in :class:`Scores`."""

    @abstractmethod
    def data(self, cell: Cell, run: RunConfig) -> RunData:
        """The data sets of a cell, before a rival changes them."""

    @classmethod
    @abstractmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """The columns of a table of these results."""

    @classmethod
    def table(cls, results: Sequence[Result], *, by_seed: bool = False) -> str:
        """The results, at least one, as a table in Markdown; see :func:`isnet.experiments.grid_tables.table`."""
        return table(results, cls.columns(results), by_seed=by_seed, overall=cls.overall)

    def has(self, cell: Cell) -> bool:
        """Whether a method makes sense in a setting."""
        return True

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Makes what the cells of a setting and seed share, if it is missing; called before one of them is trained."""
        return

    def notes(self, cell: Cell) -> dict[str, Any]:
        """What decides a cell's result, beside its method and the options of its run: the making of its images, say."""
        return {}

    def cells(self) -> list[Cell]:
        """The wanted cells, seed by seed."""
        wanted = [name for name, method in self.all_methods().items() if method.scored]
        return [
            cell
            for seed in self.seeds
            for setting in self.settings
            for name in wanted
            if (not self.methods or name in self.methods) and self.has(cell := Cell(setting, name, seed))
        ]

    def run_folder(self, cell: Cell) -> Path:
        """The folder of a cell's run."""
        return Path(self.folder) / RUNS / cell.key

    def run_cell(self, cell: Cell, folder: Path, before: Path | None) -> dict[str, Any]:
        """Trains and scores a cell, or goes on with it.

        Args:
            cell: The cell.
            folder: Of its run.
            before: That of the cell that its method comes after.

        Returns:
            The fields of :class:`Scores`.
        """
        method, config = self.all_methods()[cell.method], handed_on(self, cell, before)
        if before is not None and not method.handed:
            branch_run(folder, before)
        data = RIVALS[method.rival].data(self.data(cell, config))
        run = _train(folder, config, data, method.rival)
        found = self.score(cell, run, data) if method.scored else {}
        return {**found, **costs(folder)}


def handed_on(experiment: Experiment, cell: Cell, before: Path | None = None) -> RunConfig:
    """The options of a cell's run; of the run that it gets, the method's name stands for the folder if that is not given."""
    method, config = experiment.all_methods()[cell.method], experiment.run_config(cell)
    return config.replaced(**{method.handed: str(before or method.after)}) if method.handed else config


def costs(folder: Path) -> dict[str, Any]:
    """``{"cpu_seconds", "steps"}`` of the training in ``folder``, its tuning included in the seconds, as its logs say."""
    last = read_log(folder / LOG_NAME)[-1]
    tuning = folder / "tuning" / LOG_NAME
    more = read_log(tuning)[-1]["cpu_seconds"] if tuning.exists() else 0.0
    return {"cpu_seconds": last["cpu_seconds"] + more, "steps": last["step"]}


def _train(folder: Path, config: RunConfig, data: RunData, rival: str) -> Run:
    wrap = RIVALS[rival].network
    if wrap is None:
        return train_run(folder, config, data=data, resume=True, progress=False)
    model = build_model(config)
    network = wrap(model)
    fit(
        network, data.train, config, classification_loss=network.loss, input_range=config.data.pixel_range,
        run_dir=folder, resume=True, progress=False,
    )  # fmt: skip
    return Run(folder, config, model.eval())


def run_grid(
    experiment: Experiment, *, processes: int = 2, hours: float | None = None, progress: bool = True
) -> tuple[list[Result], int]:
    """Trains what is missing and writes ``table.md`` and ``seeds.md`` (every seed by itself) of what there is.

    Args:
        experiment: The grid.
        processes: Cells at a time, each with one thread.
        hours: Begin no cell once this much time has passed; None: no limit. A later call goes on.
        progress: Show a progress bar.

    Returns:
        The results, in the order of the cells, and the number of cells that are left for another time.

    Raises:
        CheckpointError: the folder holds cells of other settings, or damaged ones.
        TrainingsError: cells failed; the others are done.
        OSError: the folder cannot be written.
        ValueError: unknown names, or options or arguments that do not fit.
    """
    if hours is not None and not 0 <= hours < math.inf:
        raise ValueError(f"hours: expected a number >= 0, got {hours}")
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    require_place(Path(experiment.folder) / "table.md", "folder (--out)")
    wanted, known = experiment.cells(), experiment.all_methods()
    found = {cell: finished(experiment, cell) for cell in wanted}
    jobs: list[Cell] = []  # what a cell comes after stands before it
    handed: set[Cell] = set()
    for cell in wanted:
        needed = _chain(experiment, cell)
        for before in needed:
            finished(experiment, before)  # it may be gone, but not another one
        needed = [] if found[cell] else needed
        handed.update(needed)
        jobs += [job for job in (*needed, cell) if job not in jobs]
    if len({cell.key for cell in jobs}) < len(jobs):
        raise ValueError(
            f"{experiment.name}: two of the methods {', '.join(known)} have the same file name; rename one"
        )
    prepared: set[tuple[str, int]] = set()

    def preparation(cell: Cell) -> Callable[[], None] | None:
        if (made := (cell.setting, cell.seed)) in prepared:
            return None
        prepared.add(made)
        return partial(experiment.prepare, *made, processes=processes, progress=progress)

    left = trainings.train_missing(
        train_cell, experiment, jobs, partial(_usable, experiment, handed), processes=processes, progress=progress,
        after=partial(_before, experiment), prepare=preparation, hours=hours,
    )  # fmt: skip
    results = [result for cell in wanted if (result := found[cell] or finished(experiment, cell)) is not None]
    for name, by_seed in (("table.md", False), ("seeds.md", True)) if results else ():
        write_text(Path(experiment.folder) / name, experiment.table(results, by_seed=by_seed))
    return results, len(set(left) & set(wanted))


def train_cell(experiment: Experiment, cell: Cell) -> None:
    """Trains and scores one cell and writes its file; what it comes after must be there."""
    torch.set_num_threads(1)
    code = code_version()  # that runs: files may change while it does
    before = _before(experiment, cell)
    folder = None if before is None else experiment.run_folder(before)
    found = experiment.run_cell(cell, experiment.run_folder(cell), folder)
    head = {"experiment": experiment.name, **cell._asdict()}
    result = Result(**head, **found, **_identity(experiment, cell), code=code)
    write_json(_path(experiment, cell), {**head, **result.model_dump(mode="json")})


def finished(experiment: Experiment, cell: Cell) -> Result | None:
    """The result of a cell, if there is one.

    Raises:
        CheckpointError: it is of other settings, or cannot be read.
    """
    ours, path = _identity(experiment, cell), _path(experiment, cell)
    if not path.exists():
        return None
    try:
        result = read_result(path)
        if (result.experiment, result.cell) != (experiment.name, cell):
            raise ValueError(f"it is of another cell ({result.experiment}: {result.cell})")
        places = {"data": {**result.settings.get("data", {}), **experiment.run_config(cell).locations}}
        # Through the settings again: one newer than the cell has its default.
        theirs = {"settings": RunConfig.from_json({**result.settings, **places}).identity(), "notes": result.notes}
    except ValueError as error:
        text = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise CheckpointError(f"{text}; choose another folder (--out)") from error
    a, b = flatten(theirs), flatten(ours)
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    if keys:
        told = "; ".join(f"{key.partition('.')[2]}: {a.get(key)!r} there, {b.get(key)!r} now" for key in keys)
        raise CheckpointError(f"{path} is of other settings ({told}); choose another folder (--out)")
    return result


def _identity(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """What decides the result of a cell."""
    method = experiment.all_methods()[cell.method]
    notes = {"images": method.images, "rival": method.rival, "after": method.after, **experiment.notes(cell)}
    return {"settings": handed_on(experiment, cell).identity(), "notes": notes}


def _path(experiment: Experiment, cell: Cell) -> Path:
    return Path(experiment.folder) / CELLS / f"{cell.key}.json"


def _before(experiment: Experiment, cell: Cell) -> Cell | None:
    after = experiment.all_methods()[cell.method].after
    return None if after is None else cell._replace(method=after)


def _chain(experiment: Experiment, cell: Cell) -> list[Cell]:
    """What must be trained before a cell, the first at the front.

    Raises:
        ValueError: an unknown method, or a circle.
    """
    found: list[Cell] = []
    while True:
        name = experiment.all_methods()[cell.method].after
        if name is None:
            return found[::-1]
        if name not in experiment.all_methods() or len(found) > len(experiment.all_methods()):
            raise ValueError(f"after: {cell.method} comes after {name!r}, which is no method, or comes after it")
        cell = cell._replace(method=name)
        found.append(cell)


def _usable(experiment: Experiment, handed: Collection[Cell], cell: Cell) -> bool:
    """Whether a cell needs no training: it has its result and, if another one goes on from its run, that run."""
    done = finished(experiment, cell) is not None
    return done and (cell not in handed or (experiment.run_folder(cell) / CHECKPOINT_NAME).exists())
