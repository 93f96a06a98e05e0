"""Training runs as folders: settings, log, checkpoint and scores, each in its own file.

``config.json`` (the settings), ``ranges.json`` (C1 and C2, if they were measured), ``log.jsonl``, ``last.safetensors`` (model and
optimizer), ``best.safetensors`` (if a validation score chooses), ``evaluation.json``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sized
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from isnet._files import atomic_path, write_json
from isnet._steps import require_validation
from isnet.architectures import build_architecture
from isnet.checkpoints import CheckpointError, checkpoint_step, load_checkpoint, load_model_state
from isnet.distributed import current_world
from isnet.evaluation import Example, evaluate, masked_rows, predict, spread_rows
from isnet.loss import ISNetLoss
from isnet.metrics import as_json, classification_scores
from isnet.model import ISNet
from isnet.ranges import RANGES_NAME, load_ranges, save_ranges, tune
from isnet.run_config import RunConfig
from isnet.run_data import RunData, load_data, require_tests, splits_with_masks
from isnet.runlog import LOG_NAME
from isnet.sensitivity import OtherBackground, bias_sensitivity, blind_spot
from isnet.training import BEST_NAME, CHECKPOINT_NAME, fit

CONFIG_NAME = "config.json"
EVALUATION_NAME = "evaluation.json"
_TUNING_FOLDER = "tuning"
_ATTENTION_IMAGES = 500


class Run(NamedTuple):
    """A trained run, loaded from its folder."""

    folder: Path
    config: RunConfig
    model: nn.Module


def build_model(config: RunConfig) -> nn.Module:
    """The untrained classifier, initialised from the training seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return build_architecture(
            config.arch,
            config.arch_arguments,
            image_shape=config.data.image_shape,
            num_classes=len(config.data.classes),
        )


def build_isnet(config: RunConfig, model: nn.Module) -> ISNet:
    """The ISNet of a run around its classifier.

    Raises:
        ValueError: a standard run, or settings that do not fit the classifier.
    """
    if config.variant == "standard":
        raise ValueError("variant: a standard run has no heatmaps")
    heatmap = config.heatmap
    layers = list(heatmap.layers)
    return ISNet(
        model,
        config.variant,
        eps=heatmap.eps,
        input_range=heatmap.input_range,
        layers=layers,
        generator=torch.Generator(),
        static=heatmap.static,
        checkpoint=heatmap.checkpoint,
        form=heatmap.form,
    )


def build_criterion(config: RunConfig, folder: Path | None = None) -> ISNetLoss:
    """The heatmap loss of a run, with the ranges measured in its folder if there are any."""
    heatmap = config.heatmap
    c1: Any = heatmap.c1
    c2: Any = heatmap.c2
    if folder is not None and (folder / RANGES_NAME).exists():
        ranges = load_ranges(folder / RANGES_NAME)
        c1, c2 = ({name: getattr(found, key) for name, found in ranges.items()} for key in ("c1", "c2"))
    return ISNetLoss(
        p=config.train.p,
        d=heatmap.d,
        e=heatmap.e,
        c1=c1,
        c2=c2,
        w_background=heatmap.w_background,
        w_foreground=heatmap.w_foreground,
        foreground=heatmap.foreground,
        layer_decay=heatmap.layer_decay,
    )


def train_run(
    folder: str | os.PathLike[str],
    config: RunConfig,
    *,
    data: RunData | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: bool = True,
) -> Run:
    """Trains a run in ``folder`` and keeps settings, log and checkpoint there.

    With ``config.tune`` the natural range of relevance is measured first, as :func:`tune_run` does, unless the folder has it already. In
    processes started by torchrun each calls this with the same arguments.

    Args:
        folder: Made if needed. Without ``resume`` it must not hold a run.
        config: The settings. A resumed run takes its own; these must equal them except for the number of epochs.
        data: The data sets, if already built.
        device: Where to train.
        resume: Continue from the last checkpoint.
        progress: Show progress on the terminal.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is off.
        ValueError: ``resume`` with other settings, or ``config.train.monitor`` without validation data.
    """
    data = data or load_data(config.data, need_masks=splits_with_masks(config), progress=progress)
    require_validation(config.train, data.validation)  # now, not after tuning
    _network(config)  # settings that do not fit are refused before the run has a folder
    if config.variant != "standard":
        build_criterion(config)
    folder = _open(Path(folder), config, resume)
    criterion = None
    if config.variant != "standard":
        # If that included the warm-up, training continues from its checkpoint.
        resume |= _measure(folder, config, data, device=device, resume=resume, progress=progress)
        criterion = build_criterion(config, folder)
    fit(
        _network(config, device),
        data.train,
        config.train,
        criterion=criterion,
        input_range=config.data.pixel_range,
        validation=data.validation,
        run_dir=folder,
        resume=resume,
        title=config.title,
        progress=progress,
    )
    current_world().barrier()  # the checkpoint is written by rank 0
    return load_run(folder, device=device)


def tune_run(
    folder: str | os.PathLike[str],
    config: RunConfig,
    *,
    data: RunData | None = None,
    device: str = "cpu",
    resume: bool = False,
    progress: bool = True,
) -> Path:
    """Measures the natural range of relevance alone (``config.tune`` epochs) and returns the file of ranges; see :func:`train_run`.

    With ``config.train.warmup`` the warm-up is trained first, and the ranges are those of the resulting network, at the learning rate
    after it. It is the first part of the run: :func:`train_run` continues from there.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is off.
        ValueError: a standard run, ``config.tune`` = 0, or no range can be determined.
    """
    if config.tune < 1:
        raise ValueError(f"tune: expected at least one epoch, got {config.tune}")
    # Refuse what does not fit before the run has a folder.
    build_isnet(config, build_model(config))
    data = data or load_data(config.data, need_masks=splits_with_masks(config), progress=progress)
    folder = _open(Path(folder), config, resume)
    _measure(folder, config, data, device=device, resume=resume, progress=progress)
    return folder / RANGES_NAME


def branch_run(folder: str | os.PathLike[str], start: str | os.PathLike[str]) -> None:
    """Lets the run in ``folder`` continue, once resumed, from where the one in ``start`` is; a run that has begun is left unchanged."""
    folder, start = Path(folder), Path(start)
    if (folder / CHECKPOINT_NAME).exists():
        return
    for name in (LOG_NAME, CHECKPOINT_NAME):  # the log first: a checkpoint without it would never get one
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(start / name, temporary)


def _network(config: RunConfig, device: str = "cpu") -> nn.Module:
    """The network to train: the classifier, or an ISNet around it."""
    model = build_model(config).to(device)
    return model if config.variant == "standard" else build_isnet(config, model)


def _open(folder: Path, config: RunConfig, resume: bool) -> Path:
    """The folder of a run, with its settings written."""
    world, path = current_world(), folder / CONFIG_NAME
    exists = world.from_main(path.exists())
    if exists:
        if not resume:
            raise FileExistsError(f"{folder} holds a run: resume it, or choose another folder")
        require_same_run(folder, config)
    world.barrier()
    if world.is_main:
        write_json(path, config.to_json())
    world.barrier()
    return folder


def _measure(folder: Path, config: RunConfig, data: RunData, *, device: str, resume: bool, progress: bool) -> bool:
    """Writes the ranges, unless they exist or are not wanted, for the network after the warm-up, if the run has one.

    Returns:
        Whether the folder now has the checkpoint of that warm-up.
    """
    world, train = current_world(), config.train
    if config.tune == 0 or world.from_main((folder / RANGES_NAME).exists()):
        return False
    network = build_isnet(config, build_model(config).to(device))
    options: dict[str, Any] = {"input_range": config.data.pixel_range, "resume": resume, "progress": progress}
    if train.warmup:
        warmup = dataclasses.replace(train, epochs=0)
        fit(network, data.train, warmup, validation=data.validation, run_dir=folder, title=config.title, **options)
        train = dataclasses.replace(train, lr=train.lr * train.lr_after_warmup)
    ranges = tune(network, data.train, train, epochs=config.tune, run_dir=folder / _TUNING_FOLDER, **options)
    if world.is_main:
        save_ranges(folder / RANGES_NAME, ranges)
    world.barrier()
    return config.train.warmup > 0


def load_config(folder: str | os.PathLike[str]) -> RunConfig:
    """The settings of the run in ``folder``.

    Raises:
        FileNotFoundError: ``folder`` holds no run.
        ValueError: its settings cannot be read.
    """
    path = Path(folder) / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run: it has no {CONFIG_NAME}")
    try:
        return RunConfig.from_json(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_run(folder: str | os.PathLike[str], *, device: str = "cpu") -> Run:
    """The trained classifier in ``folder``, in evaluation mode: its best checkpoint, if a validation score chose one, else its last.

    Raises:
        FileNotFoundError: no run, or none that has reached its first checkpoint.
        CheckpointError: the checkpoint does not fit the settings.
    """
    folder = Path(folder)
    config = load_config(folder)
    path = folder / (BEST_NAME if (folder / BEST_NAME).exists() else CHECKPOINT_NAME)
    model = build_model(config)
    load_model_state(model, load_checkpoint(path), path, averaged=config.train.ema is not None)
    return Run(folder, config, model.to(device).eval())


def run_data(run: Run, *, progress: bool = True) -> RunData:
    """The data sets of a run, as for its training."""
    return load_data(run.config.data, need_masks=splits_with_masks(run.config), progress=progress)


def evaluate_run(
    run: Run, data: RunData | None = None, *, resamples: int = 0, sensitivity: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Scores a run on its test sets and writes the scores into its folder.

    Args:
        run: The run.
        data: Its data sets, if already built.
        resamples: Of the bootstrap that gives the intervals; 0: none.
        sensitivity: Score with removed and swapped backgrounds, too.
        progress: Show progress on the terminal while data are fetched.

    Raises:
        ValueError: no test and no validation images.

    Returns:
        ``{"accuracy": {test: [0, 1]}, "background_attention": {test: [0, 1]}, "masks": {test: {"images", "missing", "looked_at"}},
        "dropped": [what was wrong with each image of the whole set that the mask policy ``"skip"`` left out],
        "scores": {test: {source or "": {score: {value, low, high}}}}, "sensitivity": {test: {change: ...}}}``, the last if requested; the
        accuracy is over all sources. ``looked_at``: the number of images in the mean of background attention. It and the sensitivity
        use images with masks; a test without any is left out there.
    """
    data = data or run_data(run, progress=progress)
    require_tests(data, run.folder)
    heatmap, train = run.config.heatmap, run.config.train
    # As many images at a time as in one part of a training step: more might not fit into memory.
    batch_size = max(1, train.batch_size // train.accumulate)
    answers = {name: predict(run.model, test, batch_size) for name, test in data.tests.items()}
    scores: dict[str, Any] = evaluate(
        run.model,
        data.tests,
        eps=heatmap.eps,
        input_range=heatmap.input_range,
        attention_images=_ATTENTION_IMAGES,
        batch_size=batch_size,
        answers=answers,
    )
    scores["dropped"] = list(data.dropped)
    scores["masks"] = {name: _masks(test) for name, test in data.tests.items()}
    scores["scores"] = {name: _by_source(*answers[name], test, resamples) for name, test in data.tests.items()}
    if sensitivity:
        changes = {name: _sensitivity(run, test, answers[name], batch_size) for name, test in data.tests.items()}
        scores["sensitivity"] = {name: found for name, found in changes.items() if found}
    write_json(run.folder / EVALUATION_NAME, scores)
    return scores


def _masks(dataset: Dataset[Example]) -> dict[str, int]:
    images, masked = len(cast(Sized, dataset)), masked_rows(dataset)
    return {
        "images": images,
        "missing": images - len(masked),
        "looked_at": len(spread_rows(masked, _ATTENTION_IMAGES)),
    }


def _sensitivity(
    run: Run, test: Dataset[Example], answers: tuple[Tensor, Tensor], batch_size: int
) -> dict[str, dict[str, Any]]:
    """Bias sensitivity and blind spot, per change of the background."""
    heatmap, pixel_range = run.config.heatmap, run.config.data.pixel_range
    found = bias_sensitivity(run.model, test, pixel_range, batch_size=batch_size, answers=answers)
    spots = {
        change: blind_spot(
            run.model,
            Subset(test, masked_rows(test)),
            OtherBackground(test, change, pixel_range),
            eps=heatmap.eps,
            input_range=heatmap.input_range,
            batch_size=batch_size,
        )
        for change in found
    }
    return {change: {**of._asdict(), "blind_spot": spots[change]._asdict()} for change, of in found.items()}


def _by_source(logits: Tensor, labels: Tensor, dataset: Dataset[Example], resamples: int) -> dict[str, Any]:
    """Scores of all images ("") and, if there are several, of each source."""
    sources = getattr(dataset, "sources", [""] * len(labels))
    groups = getattr(dataset, "groups", [""] * len(labels))

    def scores(rows: list[int]) -> dict[str, Any]:
        ours = [groups[row] for row in rows]
        return as_json(classification_scores(logits[rows], labels[rows], groups=ours, resamples=resamples))

    found = {"": scores(list(range(len(labels))))}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else []:
        found[source] = scores([row for row, name in enumerate(sources) if name == source])
    return found


def load_evaluation(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The scores that :func:`evaluate_run` wrote, or None."""
    path = Path(folder) / EVALUATION_NAME
    return json.loads(path.read_text()) if path.is_file() else None


def require_same_run(folder: str | os.PathLike[str], asked: RunConfig) -> None:
    """Compares the settings of the run in ``folder`` with others.

    Raises:
        CheckpointError: ``asked`` would not continue that run.
        FileNotFoundError: ``folder`` holds no run.
    """
    found, path = load_config(folder), Path(folder) / CONFIG_NAME
    ours, theirs = asked.to_json(), found.to_json()
    differences = asked.train.differences(theirs["train"])
    differences += [
        f"{key}: {theirs[key]} there, {ours[key]} now"
        for key in ours
        if key not in ("train", "name") and ours[key] != theirs[key]
    ]
    if differences:
        raise CheckpointError(f"{path} is a run with other settings ({'; '.join(differences)})")


def what_to_resume(folder: str | os.PathLike[str]) -> str:
    """A text on what an interrupted run in ``folder`` can resume from."""
    for path in (Path(folder) / CHECKPOINT_NAME, Path(folder) / _TUNING_FOLDER / CHECKPOINT_NAME):
        if path.exists():
            return f"{path} holds step {checkpoint_step(path)}: go on with --resume"
    return "there is no checkpoint yet: begin again with --resume"
