"""Training runs as folders: settings, log, checkpoint and scores, each in its own file.

``config.json`` (the settings), ``ranges.json`` (C1 and C2, if they were measured), ``log.jsonl``, ``last.safetensors`` (model and
optimizer), ``best.safetensors`` (if a validation score chooses), ``evaluation.json``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from isnet._files import write_json
from isnet.architectures import build_architecture
from isnet.checkpoints import CheckpointError, checkpoint_step, load_checkpoint, load_model_state
from isnet.distributed import current_world
from isnet.evaluation import Example, evaluate, predict
from isnet.loss import ISNetLoss
from isnet.metrics import as_json, classification_scores
from isnet.model import ISNet
from isnet.ranges import RANGES_NAME, load_ranges, save_ranges, tune
from isnet.run_config import RunConfig
from isnet.run_data import RunData, load_data
from isnet.sensitivity import OtherBackground, bias_sensitivity, blind_spot
from isnet.training import BEST_NAME, CHECKPOINT_NAME, fit

CONFIG_NAME = "config.json"
EVALUATION_NAME = "evaluation.json"
_TUNING_FOLDER = "tuning"


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
        leak=heatmap.leak,
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

    With ``config.tune`` the natural range of relevance is measured first, as :func:`tune_run` does. In processes started by torchrun
    each calls this with the same arguments.

    Args:
        folder: Made if needed. Without ``resume`` it must not hold a run.
        config: The settings. A resumed run takes its own; these must equal them but for the number of epochs.
        data: The data sets, if already built.
        device: Where to train.
        resume: Continue from the last checkpoint.
        progress: Show progress on the terminal.

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is off.
        ValueError: ``resume`` with other settings.
    """
    folder = _open(Path(folder), config, resume)
    data = data or load_data(config.data, progress=progress)
    model = build_model(config).to(device)
    network: nn.Module = model
    criterion = None
    if config.variant != "standard":
        network = build_isnet(config, model)
        _measure(folder, config, network, data, resume=resume, progress=progress)
        criterion = build_criterion(config, folder)
    fit(
        network,
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
    current_world().barrier()  # the checkpoint is rank 0's
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

    Raises:
        FileExistsError: ``folder`` holds a run and ``resume`` is off.
        ValueError: a standard run, ``config.tune`` = 0, or no range can be told.
    """
    if config.tune < 1:
        raise ValueError(f"tune: expected at least one epoch, got {config.tune}")
    network = build_isnet(config, build_model(config).to(device))
    folder = _open(Path(folder), config, resume)
    _measure(
        folder, config, network, data or load_data(config.data, progress=progress), resume=resume, progress=progress
    )
    return folder / RANGES_NAME


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


def _measure(folder: Path, config: RunConfig, network: ISNet, data: RunData, *, resume: bool, progress: bool) -> None:
    """Writes the ranges of ``network`` unless they are there or not wanted."""
    world = current_world()
    if config.tune == 0 or world.from_main((folder / RANGES_NAME).exists()):
        return
    ranges = tune(
        network,
        data.train,
        config.train,
        epochs=config.tune,
        run_dir=folder / _TUNING_FOLDER,
        resume=resume,
        progress=progress,
    )
    if world.is_main:
        save_ranges(folder / RANGES_NAME, ranges)
    world.barrier()


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

    Returns:
        ``{"accuracy": {test: [0, 1]}, "background_attention": {test: [0, 1]}, "scores": {test: {source or "": {score: {value, low,
        high}}}}, "sensitivity": {test: {change: ...}}}``, the last if asked for; the accuracy is over all sources.
    """
    data = data or load_data(run.config.data, progress=progress)
    heatmap = run.config.heatmap
    scores: dict[str, Any] = evaluate(run.model, data.tests, eps=heatmap.eps, input_range=heatmap.input_range)
    scores["scores"] = {name: _by_source(run.model, dataset, resamples) for name, dataset in data.tests.items()}
    if sensitivity:
        pixel_range = run.config.data.pixel_range
        scores["sensitivity"] = {
            name: {
                change: {
                    **found._asdict(),
                    "blind_spot": blind_spot(
                        run.model,
                        test,
                        OtherBackground(test, change, pixel_range),
                        eps=heatmap.eps,
                        input_range=heatmap.input_range,
                    )._asdict(),
                }
                for change, found in bias_sensitivity(run.model, test, pixel_range).items()
            }
            for name, test in data.tests.items()
        }
    write_json(run.folder / EVALUATION_NAME, scores)
    return scores


def _by_source(model: nn.Module, dataset: Dataset[Example], resamples: int) -> dict[str, Any]:
    """Scores of all images ("") and, if there are several, of each source."""
    logits, labels = predict(model, dataset)
    sources = getattr(dataset, "sources", [""] * len(labels))
    found = {"": as_json(classification_scores(logits, labels, resamples=resamples))}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else []:
        rows = torch.tensor([place for place, name in enumerate(sources) if name == source])
        found[source] = as_json(classification_scores(logits[rows], labels[rows], resamples=resamples))
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
    """A text on what an interrupted run in ``folder`` can go on from."""
    for path in (Path(folder) / CHECKPOINT_NAME, Path(folder) / _TUNING_FOLDER / CHECKPOINT_NAME):
        if path.exists():
            return f"{path} holds step {checkpoint_step(path)}: go on with --resume"
    return "there is no checkpoint yet: begin again with --resume"
