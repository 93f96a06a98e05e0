"""What a checkpoint keeps beside tensors, checked as it is read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveInt


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class WatchState(_Strict):
    """Of :class:`isnet.training.validation.Watch`."""

    best: float | None
    epochs_since: NonNegativeInt


class BalanceState(_Strict):
    """Of :class:`isnet.training.balance.Balance`."""

    classification: NonNegativeFloat
    heatmap: NonNegativeFloat
    seen: bool


class TotalsState(_Strict):
    """Of one layer of :class:`isnet.training.ranges.RelevanceTotals`."""

    count: NonNegativeInt
    mean: list[float]
    squares: list[NonNegativeFloat]


class TrainingState(_Strict):
    """Settings of a checkpoint.

    Attributes:
        config: Of the training.
        images: In the training set.
        scaler: Of the loss, in float16.
        watch, balance: If there are any.
        observed: By each process, by layer.
        averaged_steps: In the moving average of the weights.
    """

    config: dict[str, Any]
    images: PositiveInt
    scaler: dict[str, int | float]
    watch: WatchState | None
    balance: BalanceState | None
    observed: list[dict[str, TotalsState]]
    averaged_steps: NonNegativeInt | None = None
