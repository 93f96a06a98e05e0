"""The natural range [C1, C2] of foreground relevance, measured on a network trained without heatmap loss.

Source: arXiv 2401.08409 (hyper-parameters of the foreground loss); docs/method.md section 3.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import TypedDict

from isnet._files import read_json, write_json
from isnet.config import TrainConfig
from isnet.data import Example
from isnet.loss import classification_loss
from isnet.model import ISNet, ISNetOutput
from isnet.training.distributed import current_world
from isnet.training.loop import fit
from isnet.variants import VARIANTS

RANGES_NAME = "ranges.json"

_SMALLEST_SPREAD = 1 + 1e-6  # of c2 over c1; less is rounding


@dataclass(frozen=True)
class NaturalRange:
    """Where the total relevance of a layer's heatmaps lies in a network trained without heatmap loss.

    Attributes:
        c1, c2: The range, one number for all maps of an image or one per map (z+ and epsilon of the Dual ISNet).
        mean, std: Of the totals on which it is based.
        images: Number of these totals: one per image, for the Original ISNet one per heatmap.
    """

    c1: tuple[float, ...]
    c2: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


def natural_range(mean: float, std: float) -> tuple[float, float]:
    """C1 = max(mean/5, mean - 3 std), C2 = min(25 C1, mean + 3 std)."""
    c1 = max(mean / 5, mean - 3 * std)
    return c1, min(25 * c1, mean + 3 * std)


def total_relevance(heatmaps: Tensor) -> Tensor:
    """Sum of absolute relevance over channels and pixels, in float64: [B, M] for heatmaps [B, M, C, H, W]."""
    return heatmaps.detach().double().abs().flatten(2).sum(2)


class Welford:
    """Running mean and standard deviation of columns of numbers; exact also where the mean is large beside the spread."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor = torch.zeros(0, dtype=torch.float64)
        self.squares: Tensor = torch.zeros(0, dtype=torch.float64)  # sum of squared deviations from the mean

    def add(self, rows: Tensor) -> None:
        """Adds rows [N, K]."""
        rows = rows.double().cpu()
        mean = rows.mean(0)
        self._merge(len(rows), mean, (rows - mean).square().sum(0))

    def merge(self, state: Mapping[str, Any]) -> None:
        """Adds what another one has seen, as :meth:`state` gives it."""
        if state["count"]:
            self._merge(state["count"], *(torch.tensor(state[key], dtype=torch.float64) for key in ("mean", "squares")))

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        if self.count == 0:
            self.count, self.mean, self.squares = count, mean, squares
            return
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    def std(self) -> Tensor:
        """Sample standard deviation [K] (divided by N - 1)."""
        return (self.squares / max(1, self.count - 1)).sqrt()

    def state(self) -> dict[str, Any]:
        """JSON values; floats survive JSON exactly."""
        return {"count": self.count, "mean": self.mean.tolist(), "squares": self.squares.tolist()}


class RelevanceTotals:
    """Statistics of the total relevance of each supervised layer, gathered from an ISNet's outputs.

    Args:
        per_map: A range for each of an image's maps (the rules of the Dual ISNet differ in size); else one for all, where each counts.
    """

    def __init__(self, per_map: bool = False) -> None:
        self.per_map = per_map
        self.layers: dict[str, Welford] = {}

    def observe(self, output: ISNetOutput) -> None:
        """Takes one batch.

        Raises:
            FloatingPointError: relevance that is not finite.
        """
        for name, heatmaps in output.heatmaps.items():
            totals = total_relevance(heatmaps)
            if not bool(torch.isfinite(totals).all()):
                raise FloatingPointError(f"relevance at {name!r} is not finite: raise eps or lower the learning rate")
            self.layers.setdefault(name, Welford()).add(totals if self.per_map else totals.reshape(-1, 1))

    def state(self) -> dict[str, Any]:
        """JSON values for :meth:`restore`."""
        return {name: layer.state() for name, layer in self.layers.items()}

    def restore(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Continues from what one or more others have seen."""
        for state in states:
            for name, layer in state.items():
                self.layers.setdefault(name, Welford()).merge(layer)

    def ranges(self) -> dict[str, NaturalRange]:
        """The natural range of each layer.

        Raises:
            ValueError: fewer than two heatmaps, or totals that are zero or all equal.
        """
        found = {}
        for name, layer in self.layers.items():
            mean, std = tuple(layer.mean.tolist()), tuple(layer.std().tolist())
            bounds = [natural_range(m, s) for m, s in zip(mean, std, strict=True)]
            if layer.count < 2 or not all(0 < c1 * _SMALLEST_SPREAD < c2 for c1, c2 in bounds):
                raise ValueError(
                    f"no natural range at {name!r}: the total relevance of {layer.count} heatmaps has mean {mean} and "
                    f"standard deviation {std}; train the plain network for longer, or set c1 and c2 by hand"
                )
            c1, c2 = zip(*bounds, strict=True)
            found[name] = NaturalRange(c1, c2, mean, std, layer.count)
        return found


def tune(
    network: ISNet,
    train_set: Dataset[Example],
    config: TrainConfig,
    *,
    epochs: int,
    classification_loss: Callable[[Tensor, Tensor], Tensor] = classification_loss,
    input_range: tuple[Any, Any] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, NaturalRange]:
    """Trains a copy of the classifier without heatmap loss and measures its heatmaps in the last epoch.

    Args:
        network: The ISNet whose ranges are wanted; left unchanged.
        train_set: As for :func:`isnet.training.fit`.
        config: As it will be trained; warm-up, schedules, averaging, monitoring and loggers are left out.
        epochs: Epochs of plain training, at least 1; the heatmaps of the last one count.
        classification_loss: (logits, labels) -> scalar.
        input_range: Pixel range of the noise, if ``config`` keeps replacing the background; None: that of the network, or [0, 1].
        run_dir: Folder for the log and the checkpoint of this phase.
        resume: Continue from the checkpoint in ``run_dir``.
        progress: Show a progress bar.

    Returns:
        The natural range of each supervised layer, "input" first.

    Raises:
        ValueError: ``epochs`` < 1, or no range can be determined (see :meth:`RelevanceTotals.ranges`).
    """
    if epochs < 1:
        raise ValueError(f"epochs: expected >= 1, got {epochs}")
    plain = config.replaced(
        epochs=epochs,
        warmup=0,
        lr_schedule="constant",
        lr_rampup=0.0,
        ema=None,
        monitor=None,
        patience=None,
        keep_last=0,
        loggers=(),
    )
    trained = ISNet(
        copy.deepcopy(network.model),
        network.variant,
        network.eps,
        network.input_range,
        network.layers,
        None if network.generator is None else torch.Generator(),
        checkpoint=network.checkpoint,
        static=network.is_static,
        form=network.form,
        supervise=network.supervise,
    )
    totals = RelevanceTotals(per_map=VARIANTS[network.variant].has_unlike_maps)
    fit(
        trained,
        train_set,
        plain,
        classification_loss=classification_loss,
        input_range=input_range or network.input_range or (0.0, 1.0),
        run_dir=run_dir,
        resume=resume,
        observer=totals,
        title="tuning C1, C2",
        progress=progress,
    )
    everywhere = RelevanceTotals(totals.per_map)
    everywhere.restore(current_world().gather(totals.state()))
    return everywhere.ranges()


def save_ranges(path: str | os.PathLike[str], ranges: Mapping[str, NaturalRange]) -> None:
    """Writes ranges as JSON, atomically."""
    write_json(path, {name: dataclasses.asdict(found) for name, found in ranges.items()})


def load_ranges(path: str | os.PathLike[str]) -> dict[str, NaturalRange]:
    """Reads what :func:`save_ranges` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    values = read_json(path)
    try:
        found = _RANGES.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{path}: {place}: {first['msg']}: no natural ranges of relevance") from error
    for name, layer in found.items():
        lengths = {len(layer[key]) for key in ("c1", "c2", "mean", "std")}
        if len(lengths) != 1 or not all(0 < c1 < c2 for c1, c2 in zip(layer["c1"], layer["c2"], strict=True)):
            raise ValueError(f"{path}: {name}: expected 0 < c1 < c2 for each map, got {layer['c1']} and {layer['c2']}")
    return {name: NaturalRange(**layer) for name, layer in found.items()}


class _Range(TypedDict):
    c1: tuple[float, ...]
    c2: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: int


_RANGES = TypeAdapter(dict[str, _Range], config=ConfigDict(allow_inf_nan=False, extra="forbid"))
