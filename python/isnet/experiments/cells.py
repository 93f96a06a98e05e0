"""What an experiment is made of: cells of (setting, method, seed), their methods, and the file that each leaves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from isnet._files import read_json
from isnet.experiments import trainings
from isnet.experiments.baselines import RIVALS
from isnet.runs.evaluation_file import Figure

CELLS = "cells"  # the folder of the cells' files
_STUDENT = 1000  # added to the seed of a student: with its teacher's it would begin with the same weights, and learn more easily


class Cell(NamedTuple):
    """One training.

    Attributes:
        setting: One of the experiment's, such as the mark of the training images, or the patient that is left out.
        method: Name of its :class:`Method`.
        seed: Of its data and its training.
    """

    setting: str
    method: str
    seed: int

    @property
    def key(self) -> str:
        """Name of its file and folder."""
        return f"{_slug(self.setting)}_{_slug(self.method)}_{self.seed}"

    def __str__(self) -> str:
        return f"{self.setting}, {self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Method:
    """A way to train: run options, and what a run has no option for.

    Attributes:
        options: Of the run, over those of the experiment, as :meth:`isnet.config.RunConfig.replaced` takes and checks them.
        warm: With the experiment's warm-up, whose epochs then count as part of the whole.
        images: Which training images, as the experiment names them; empty: its usual ones.
        rival: A kind of :data:`isnet.experiments.baselines.RIVALS`.
        after: Name of the method whose cell, of the same setting and seed, is trained before and handed on as a run folder.
        handed: The run option that gets this folder; empty: training goes on from its last checkpoint (a shared warm-up).
        scored: False for what only others go on from: it is no row of a table, and trained if one of these needs it.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    warm: bool = False
    images: str = ""
    rival: str = ""
    after: str | None = None
    handed: str = ""
    scored: bool = True

    def training_seed(self, cell: Cell) -> int:
        """The seed of a cell's weights and order."""
        return cell.seed + (_STUDENT if self.handed == "teacher" else 0)

    def __post_init__(self) -> None:
        trainings.require_known("rival", [self.rival], tuple(RIVALS))
        if self.handed and self.after is None:
            raise ValueError(f"handed: {self.handed} gets the run of another method, whose name is missing (after)")


class Scores(BaseModel):
    """What a cell found.

    Attributes:
        scores: Test -> score -> value, or value with its interval; shares and rates in [0, 1]. ``"background"``: share of relevance there.
        moved: What other marks, or swapped backgrounds, did to the decisions: name of the change ->
            :class:`isnet.scoring.sensitivity.BlindSpot` as a mapping (at least ``"changed"``).
        cpu_seconds: Processor time of the training, shared parts included, on one thread.
        steps: Steps of the training.
    """

    model_config = ConfigDict(extra="forbid")
    scores: dict[str, dict[str, float | Figure | None]] = {}
    moved: dict[str, dict[str, float]] = {}
    cpu_seconds: float
    steps: NonNegativeInt


class Result(Scores):
    """The file of a cell.

    Attributes:
        experiment, setting, method, seed: Which cell.
        settings: All options of the run as JSON values, without places; an option that gets another run has the name of its method.
        notes: What else decides the result: of the method and of the experiment.
        code: See :func:`isnet.experiments.code_version.code_version`.
    """

    experiment: str
    setting: str
    method: str
    seed: NonNegativeInt
    settings: dict[str, dict[str, Any]]
    notes: dict[str, Any]
    code: dict[str, Any]

    @property
    def cell(self) -> Cell:
        """Which cell."""
        return Cell(self.setting, self.method, self.seed)


def read_result(path: Path) -> Result:
    """The file of a cell.

    Raises:
        ValueError: it cannot be read; the text names it.
    """
    try:
        return Result.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}") from error


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
