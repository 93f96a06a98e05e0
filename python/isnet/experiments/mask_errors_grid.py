"""Experiments 4 and 5: how wrong masks change training, on digits before photographs and on rendered radiographs.

Their settings are the errors of :mod:`isnet.experiments.mask_errors`; only training images have wrong masks. Dice tells how wrong they are.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from isnet._files import atomic_path, write_text
from isnet.config import ImagesConfig, RunConfig
from isnet.data.names import TRAIN
from isnet.experiments import mnist, trainings, xray
from isnet.experiments.biased_mnist import BiasedMNIST
from isnet.experiments.cells import Cell, Method, Result
from isnet.experiments.digits import DigitsConfig, load_digits
from isnet.experiments.grid_tables import Column
from isnet.experiments.mask_errors import ERRORS, MaskError, altered, dice, without_masks
from isnet.experiments.segmenter import Segmenter, train_segmenter
from isnet.experiments.xray_images import MANIFEST
from isnet.runs import Run, RunData

_MASKS = "training masks"
_AT_A_TIME = 500
_STEPS = 300  # of the segmenter's training
_DIGITS = ("background swap", "selective with background swap, K = 4")
_RADIOGRAPHS = ("swap warm-up", "background swap", "selective with background swap, P = 0.2")


@dataclass(frozen=True)
class DigitMasks(mnist.MNISTConfig):
    """Digits before photographs whose training masks are wrong.

    Attributes:
        errors: The settings.
    """

    name: ClassVar[str] = "masks"
    folder: str = "runs/masks"
    errors: tuple[str, ...] = tuple(ERRORS)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_errors(self.errors)

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """Swapped backgrounds, alone and with the heatmap loss."""
        return {name: mnist.METHODS[name] for name in _DIGITS}

    @property
    def settings(self) -> tuple[str, ...]:
        """The errors."""
        return self.errors

    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run: those of experiment 1 on photographs, with exact masks to begin with."""
        run = super().run_config(cell._replace(setting="photo"))
        assert isinstance(run.data, DigitsConfig)
        return dataclasses.replace(run, data=dataclasses.replace(run.data, imprecise=0))

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Fetches MNIST, and trains the segmenter that makes the missing masks."""
        super().prepare(setting, seed, processes=processes, progress=progress)
        error, path = ERRORS[setting], self._segmenter(setting, seed)
        if error.kind != "segmenter" or path.exists():
            return
        run = self.run_config(Cell(setting, _DIGITS[0], seed))
        train = super().data(Cell(setting, _DIGITS[0], seed), run).train
        assert isinstance(train, BiasedMNIST)
        has = ~without_masks(len(train), error, seed)
        train_segmenter(train.images[has], train.masks[has], steps=_STEPS, seed=seed).save(path)

    def data(self, cell: Cell, run: RunConfig) -> RunData:
        """The data sets of a cell, the training masks wrong."""
        data, error = super().data(cell, run), ERRORS[cell.setting]
        train = data.train
        assert isinstance(train, BiasedMNIST)
        lack = without_masks(len(train), error, cell.seed)
        if error.kind == "missing" and error.policy == "skip":
            for name in ("images", "labels", "masks", "marks"):
                setattr(train, name, getattr(train, name)[~lack])
        elif error.kind == "missing":
            train.masks[lack] = 1
        elif error.kind == "segmenter":
            segmenter = Segmenter.load(self._segmenter(cell.setting, cell.seed))
            train.masks[lack] = _usable(_segmented(segmenter, train.images[lack]))
        else:
            train.masks = altered(train.masks, error, cell.seed)
        return data

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """As in experiment 1, and how good the training masks are."""
        found = super().score(cell, run, data)
        assert isinstance(run.config.data, DigitsConfig) and isinstance(data.train, BiasedMNIST)
        truth = load_digits(run.config.data, seed=cell.seed, progress=False).train
        assert isinstance(truth, BiasedMNIST)
        masks = truth.masks
        if len(data.train) < len(truth):
            masks = masks[~without_masks(len(truth), ERRORS[cell.setting], cell.seed)]
        return {**found, "scores": {**found["scores"], _MASKS: {"dice": dice(data.train.masks, masks)}}}

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """Dice of the training masks, then as in experiment 1, without the cost."""
        return [Column("Dice of the masks", ("scores", _MASKS, "dice"), digits=2), *super().columns(results)[:-1]]

    def _segmenter(self, setting: str, seed: int) -> Path:
        return Path(self.folder) / "segmenters" / f"{ERRORS[setting].amount}-{seed}-{self.train_size}.pt"


@dataclass(frozen=True)
class RadiographMasks(xray.XrayConfig):
    """Rendered radiographs whose training masks are wrong.

    Attributes:
        errors: The settings; ``held_out`` is the one patient that only tests see.
    """

    name: ClassVar[str] = "xray-masks"
    overall: ClassVar[str] = ""
    folder: str = "runs/xray-masks"
    errors: tuple[str, ...] = tuple(ERRORS)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_errors(self.errors)
        if len(self.held_out) != 1 or self.own_data is not None:
            raise ValueError(f"held_out: expected one patient, and rendered images, got {list(self.held_out)}")

    @classmethod
    def all_methods(cls) -> Mapping[str, Method]:
        """Swapped backgrounds, alone and with the heatmap loss."""
        return {name: xray.METHODS[name] for name in _RADIOGRAPHS}

    @property
    def settings(self) -> tuple[str, ...]:
        """The errors."""
        return self.errors

    def run_config(self, cell: Cell) -> RunConfig:
        """The options of a cell's run: those of experiment 2, with the mask policy of the error."""
        run = super().run_config(cell)
        return run.replaced(mask_policy=ERRORS[cell.setting].policy)

    def prepare(self, setting: str, seed: int, *, processes: int, progress: bool) -> None:
        """Renders the images and writes the wrong masks, with a manifest that names them."""
        super().prepare(self.held_out[0], seed, processes=processes, progress=progress)
        path = Path(self._manifest(Cell(setting, _RADIOGRAPHS[0], seed)))
        if not path.exists():
            scale = self.rendering.pixels / self.size
            write_wrong_masks(path.with_name(MANIFEST), path, ERRORS[setting], seed, scale=scale)

    def _manifest(self, cell: Cell) -> str:
        usual = Path(super()._manifest(cell._replace(setting=self.held_out[0])))
        error = ERRORS[cell.setting]
        return str(usual.with_name(f"masks-{error.kind}-{error.amount}-{self.size}.csv"))

    def score(self, cell: Cell, run: Run, data: RunData) -> dict[str, Any]:
        """As in experiment 2, and how good the training masks are."""
        found = super().score(cell, run, data)
        assert isinstance(run.config.data, ImagesConfig)
        good = manifest_dice(Path(run.config.data.path), ERRORS[cell.setting])
        return {**found, "scores": {**found["scores"], _MASKS: {"dice": good}}}

    @classmethod
    def columns(cls, results: Sequence[Result]) -> list[Column]:
        """Dice of the training masks, then as in experiment 2."""
        tested = [result.model_copy(update={"scores": _tests(result)}) for result in results]
        return [Column("Dice of the masks", ("scores", _MASKS, "dice"), digits=2), *super().columns(tested)]


def write_wrong_masks(manifest: Path, out: Path, error: MaskError, seed: int, *, scale: float = 1.0) -> None:
    """Writes a manifest like another one, whose training masks are wrong, and these masks, into a folder of its name.

    Args:
        manifest: With the exact masks, of images and masks of one size.
        out: The new one, in the same folder.
        error: What is wrong.
        seed: Of the draws, and of the segmenter.
        scale: Pixels of the masks to a pixel of the error.
    """
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == TRAIN]
    masks = _read([manifest.parent / row["mask"] for row in train])
    lack = without_masks(len(train), error, seed)
    if error.kind == "segmenter":
        images = _read([manifest.parent / row["image"] for row in train])
        segmenter = train_segmenter(images[~lack], (masks[~lack] > 0.5).float(), steps=_STEPS, size=(64, 64), seed=seed)
        masks[lack] = _segmented(segmenter, images[lack])
    masks = altered(masks, error, seed, scale=scale)
    for index, row in enumerate(train):
        if error.kind == "missing":
            row["mask"] = "" if lack[index] else row["mask"]
        elif error.kind != "exact" and not (error.kind == "segmenter" and not lack[index]):
            row["mask"] = f"{out.stem}/{index:05d}.png"
            with atomic_path(out.parent / row["mask"]) as temporary:
                Image.fromarray((255 * masks[index, 0]).to(torch.uint8).numpy()).save(temporary, format="png")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out, text.getvalue())


def manifest_dice(manifest: Path, error: MaskError) -> float:
    """Dice of the training masks of a manifest of wrong ones.

    By the error's policy, images with a missing mask are left out, or count as wholly foreground.
    """
    found = []
    for path in (manifest, manifest.with_name(MANIFEST)):
        with path.open(newline="") as file:
            found.append([row["mask"] for row in csv.DictReader(file) if row["split"] == TRAIN])
    pairs = [(ours, exact) for ours, exact in zip(*found, strict=True) if ours or error.policy == "full"]
    truth = _read([manifest.parent / exact for _, exact in pairs])
    masks = torch.ones_like(truth)
    masks[torch.tensor([bool(ours) for ours, _ in pairs])] = _read(
        [manifest.parent / ours for ours, _ in pairs if ours]
    )
    return dice(_usable(masks), truth)


def _require_errors(errors: tuple[str, ...]) -> None:
    trainings.require_known("errors", errors, ERRORS)
    trainings.require_different("errors", errors, "errors")


def _segmented(segmenter: Segmenter, images: Tensor) -> Tensor:
    return torch.cat([(segmenter.probabilities(part) > 0.5).float() for part in images.split(_AT_A_TIME)])


def _usable(masks: Tensor) -> Tensor:
    """An empty mask counts as the whole image, as under the mask policy full."""
    return torch.where(masks.flatten(1).any(1)[:, None, None, None], masks, torch.ones_like(masks))


def _read(paths: Sequence[Path]) -> Tensor:
    """Grey images of one size in [0, 1], [N, 1, H, W]."""
    images = [np.asarray(Image.open(path).convert("L"), np.float32) / 255 for path in paths]
    return torch.from_numpy(np.stack(images))[:, None]


def _tests(result: Result) -> dict[str, Any]:
    return {name: found for name, found in result.scores.items() if name != _MASKS}


def digits(folder: str = DigitMasks.folder, **changes: Any) -> DigitMasks:
    """Experiment 4 at the size of experiment 1's quick preset."""
    quick = mnist.PRESETS["quick"]
    sizes = {key: getattr(quick, key) for key in ("train_size", "test_size", "warmup", "epochs", "batch_size", "seeds")}
    return DigitMasks(**{**sizes, "folder": folder, **changes})


def radiographs(folder: str = RadiographMasks.folder, **changes: Any) -> RadiographMasks:
    """Experiment 5 at the size of experiment 2's quick preset."""
    quick = xray.PRESETS["quick"]
    sizes = {key: getattr(quick, key) for key in ("rendering", "size", "warmup", "epochs", "seeds")}
    return RadiographMasks(**{**sizes, "folder": folder, **changes})
