"""Which epoch a run kept, and why: read from its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from isnet.config.groups import Monitor
from isnet.training.validation import RULES


class Kept(NamedTuple):
    """The epoch whose weights a run uses.

    Attributes:
        rule: The monitor that chose; None: the last epoch is used.
        epoch, epochs: Of how many trained, the warm-up included.
        step: Optimizer steps behind the weights.
        score: What the rule said of the epoch, None if nothing chose it.
        runner_up: The next best epoch that could have been kept, and its score.
        refused: Epochs that must not be kept (:func:`isnet.training.validation.worth`).
        validation: The epoch's scores on the validation images, as logged.
    """

    rule: Monitor | None
    epoch: int
    epochs: int
    step: int
    score: float | None = None
    runner_up: tuple[int, float] | None = None
    refused: int = 0
    validation: Mapping[str, Any] = {}

    @property
    def text(self) -> str:
        """One line: which and why."""
        place = f"epoch {self.epoch} of {self.epochs}"
        if self.rule is None:
            return f"{place}, the last: nothing chose among them (--best-by none)"
        if self.score is None:
            return f"{place}, the last: no epoch could be kept by {self.rule}"
        direction = "highest" if RULES[self.rule].rises else "lowest"
        told = f"{place}, by {self.rule} on the validation images ({direction}: {self.score:.4g}"
        if self.runner_up is not None:
            told += f"; then epoch {self.runner_up[0]}: {self.runner_up[1]:.4g}"
        told += ")"
        if self.refused:
            told += f"; {self.refused} {'epoch' if self.refused == 1 else 'epochs'} not considered, no better than the class shares"
        return told

    @property
    def warning(self) -> str | None:
        """What a reader must know of the choice."""
        if self.rule is None or self.score is not None or not self.refused:
            return None
        return (
            "no epoch had a validation loss below that of answering with the shares of the classes: nothing was learnt that could be "
            f"kept, and the last epoch, {self.epoch}, is used"
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values, ``"why"`` and ``"warning"`` among them."""
        values = {**self._asdict(), "validation": dict(self.validation), "why": self.text, "warning": self.warning}
        if self.runner_up is not None:
            values["runner_up"] = {"epoch": self.runner_up[0], "score": self.runner_up[1]}
        return values


def kept_epoch(entries: Sequence[Mapping[str, Any]], monitor: Monitor | None) -> Kept | None:
    """The epoch whose weights are used.

    Args:
        entries: The log, as :func:`isnet.training.fit` returns it.
        monitor: The rule of the run.

    Returns:
        None for a log without a whole epoch.
    """
    epochs = [entry for entry in entries if entry.get("kind") == "epoch"]
    if not epochs:
        return None
    if monitor is None:
        return _kept(epochs[-1], epochs, None)
    candidates = [entry for entry in epochs if "best" in entry]  # those after the warm-up
    chosen = [entry for entry in candidates if entry["best"]]
    refused = sum(entry.get("score") is None for entry in candidates)
    if not chosen:
        return _kept(epochs[-1], epochs, monitor, refused=refused)
    sign = 1 if RULES[monitor].rises else -1
    best = chosen[-1]
    others = [entry for entry in candidates if entry is not best and entry.get("score") is not None]
    second = max(others, key=lambda entry: sign * entry["score"], default=None)
    return _kept(
        best,
        epochs,
        monitor,
        score=best["score"],
        runner_up=None if second is None else (second["epoch"], second["score"]),
        refused=refused,
    )


def _kept(entry: Mapping[str, Any], epochs: Sequence[Any], rule: Monitor | None, **more: Any) -> Kept:
    return Kept(rule, entry["epoch"], len(epochs), entry["step"], validation=entry.get("validation") or {}, **more)
