"""What tables and the report read of a run's ``evaluation.json``: a damaged or edited file is refused before anything is shown."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Figure(BaseModel):
    """A score and its interval."""

    value: float | None
    low: float | None = None
    high: float | None = None


class Kept(BaseModel):
    """Which epoch the weights are of."""

    epoch: int
    step: int
    why: str
    warning: str | None = None


class Warned(BaseModel):
    """A warning."""

    kind: str
    text: str


class ByClass(BaseModel):
    """The scores of a class, or label."""

    name: str = Field(alias="class")
    images: int
    recall: float | None
    precision: float | None
    specificity: float | None
    auc: float | None


class OfSubgroup(BaseModel):
    """The accuracy of a subgroup."""

    subgroup: str
    images: int
    trained_on: int | None
    accuracy: Figure


class BySubgroup(BaseModel):
    """The accuracy of all subgroups of a test."""

    worst: OfSubgroup | None
    average: float | None
    all: list[OfSubgroup]


class BlindSpot(BaseModel):
    """The blind-spot score, and what it is made of."""

    score: float
    distance: float


class Change(BaseModel):
    """What a changed background did to the answers."""

    accuracy: float
    accuracy_after: float
    changed: float
    blind_spot: BlindSpot


class Curve(BaseModel):
    """A ROC curve."""

    false_positive_rate: list[float]
    true_positive_rate: list[float]


class Evaluation(BaseModel):
    """The whole file (:func:`isnet.runs.evaluate_run`)."""

    kept: Kept | None = None
    warnings: dict[str, list[Warned]]
    scores: dict[str, dict[str, dict[str, Figure]]]
    subgroups: dict[str, BySubgroup] = {}
    sensitivity: dict[str, dict[str, Change]] = {}
    accuracy: dict[str, float]
    background_attention: dict[str, float]
    masks: dict[str, dict[str, int]]
    classes: dict[str, list[ByClass]]
    confusion: dict[str, list[list[int]] | list[list[list[int]]]]  # of classes; of labels
    roc: dict[str, dict[str, Curve]]
    dropped: list[str] = []
