"""Exporting a run: the network, its preprocessing and its card, checked against the run."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isnet._files import write_json, write_text
from isnet.architectures import construction
from isnet.config import RunConfig
from isnet.export import preprocess
from isnet.export.base import Exported, ExportError, ExportFormat
from isnet.export.card import model_card
from isnet.runs.data import RunData, run_data
from isnet.runs.folder import Run
from isnet.runs.pixels import images_config

_CHECKED = 3  # images


class Parity(NamedTuple):
    """How closely an export answers as the run does.

    Attributes:
        difference: The largest absolute one between two logits.
        images: What they were asked about.
    """

    difference: float
    images: str


def export_run(
    run: Run,
    kind: ExportFormat,
    folder: str | os.PathLike[str],
    *,
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> Parity:
    """Writes a run's network into a folder, with ``preprocessing.json``, ``preprocess.py`` and a model card.

    The export is loaded as anybody would load it and asked about images one by one and together; if its logits differ from the run's
    by more than ``tolerance`` (relative to the largest logit, if that exceeds 1), nothing is left.

    Args:
        run: The run, on the CPU.
        kind: The format, of :data:`isnet.export.FORMATS`.
        folder: Made; it must not exist, or be empty.
        tolerance: See above.
        overwrite: Replace an earlier export.

    Raises:
        FileExistsError: the folder is there.
        ExportError: the format cannot hold the network, or the export answers otherwise.
    """
    folder = Path(folder)
    _require_room(folder, overwrite)
    data = _data_if_there(run)
    images, told = _images(run, data)
    what = Exported(
        run.model.eval(),
        images,
        run.config.title,
        tuple(run.config.data.classes),
        preprocessing(run.config),
        *construction(
            run.config.network.arch,
            run.config.network.arch_args,
            image_shape=run.config.data.image_shape,
            num_classes=len(run.config.data.classes),
        ),
        source=run.config.network.arch,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".{folder.name}.{uuid.uuid4().hex}" / (folder.name or "export")
    temporary.mkdir(parents=True)
    try:
        name = type(kind).__name__
        try:
            kind.write(what, temporary)
            found = parity(what, kind, temporary, tolerance)
        except (ExportError, ModuleNotFoundError):
            raise
        except Exception as error:  # of PyTorch's exporters: errors of every kind
            said = str(error).strip().partition("\n")[0]
            raise ExportError(f"{name}: this network cannot be exported ({type(error).__name__}: {said})") from error
        parity_text = f"It answers as the run does: largest difference of a logit {found:.2g} on {told}."
        write_json(temporary / kind.preprocessing, what.preprocessing)
        write_text(temporary / kind.code, Path(str(preprocess.__file__)).read_text(encoding="utf-8"))
        write_text(temporary / kind.card, model_card(run, data, what, kind, parity_text))
        for cache in temporary.rglob("__pycache__"):
            shutil.rmtree(cache)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)
    return Parity(found, told)


def _require_room(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"--out: {folder} is a file; name a folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise FileExistsError(
            f"--out: {folder} is not empty; name another folder, or replace an earlier export (--overwrite)"
        )
    if not any((folder / name).is_file() for name in ("preprocessing.json", "scripts/preprocessing.json")):
        raise FileExistsError(f"--overwrite: {folder} is no export, and is left as it is; name another folder")


def _data_if_there(run: Run) -> RunData | None:
    try:
        return run_data(run, progress=False)
    except (ValueError, OSError):  # moved or removed since
        return None


@torch.no_grad()
def _images(run: Run, data: RunData | None) -> tuple[Tensor, str]:
    """Some images to check the export with, at least two, and what they are."""
    for name, dataset in {} if data is None else data.tests.items():
        try:
            count = min(_CHECKED, len(dataset))  # type: ignore[arg-type]
            rows = [round(k * (len(dataset) - 1) / max(1, count - 1)) for k in range(count)]  # type: ignore[arg-type]
            images = torch.stack([dataset[row][0] for row in rows])
        except (ValueError, OSError):  # of a file that has changed since
            continue
        if count > 1:
            return images, f"{count} images of the {name} test"
    low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in run.config.data.pixel_range)
    draw = torch.rand(_CHECKED, *run.config.data.image_shape, generator=torch.Generator().manual_seed(0))
    return low + (high - low) * draw, f"{_CHECKED} random images"


@torch.no_grad()
def parity(what: Exported, kind: ExportFormat, folder: Path, tolerance: float) -> float:
    """The largest difference of a logit between model and export, of the images together and one by one.

    Raises:
        ExportError: more than the tolerance, or another shape.
    """
    answer, name = kind.load(what, folder), type(kind).__name__
    worst = 0.0
    for images in (what.example, what.example[:1], torch.cat([what.example, what.example.flip(0)])):
        expected, found = what.model(images), answer(images)
        if found.shape != expected.shape:
            raise ExportError(
                f"{name}: logits of shape {list(found.shape)} for {len(images)} images, not {list(expected.shape)}"
            )
        difference = (found - expected).abs().max().item()
        limit = tolerance * max(1.0, expected.abs().max().item())
        if not difference <= limit:  # NaN, too
            raise ExportError(
                f"{name}: the export answers otherwise: a logit differs by {difference:.3g} (allowed: {limit:.3g}); nothing was written"
            )
        worst = max(worst, difference)
    return worst


def preprocessing(config: RunConfig) -> Mapping[str, Any]:
    """What the network takes, as JSON values."""
    images = images_config(config)
    channels, height, width = config.data.image_shape
    mean, std = images.normalization
    found = {
        "image": {"channels": channels, "height": height, "width": width, "layout": "NCHW", "dtype": "float32"},
        "read": "8-bit pixels over 255, 16-bit pixels over 65535; DICOM and NIfTI as isnet.data.read_image scales them; cameras' pictures "
        "turned upright; colour to grey by 0.299 R + 0.587 G + 0.114 B, grey to colour by repetition",
        "resize": images.resize,
        "interpolation": "bilinear with antialiasing, align_corners=False, clamped to [0, 1]; "
        "pad: the whole image within the size, zeros around",
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
        "range": config.data.pixel_range,
        "classes": list(config.data.classes),
        "multi_label": config.data.multi_label,
        "probabilities": "sigmoid" if config.data.multi_label else "softmax",
    }
    return json.loads(json.dumps(found))
