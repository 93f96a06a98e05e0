"""Training runs as folders: settings, log, checkpoint and scores, each in its own file.

``config.json`` (the settings; ``config.yaml``: the same for people and for ``--config``), ``ranges.json`` (C1 and C2, if they were
measured), ``log.jsonl``, ``last.safetensors`` (model and optimizer), ``best.safetensors`` (if a validation score chooses),
``evaluation.json``.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from isnet._files import write_json, write_text
from isnet.config import RunConfig
from isnet.config.files import to_yaml
from isnet.runs.build import build_model
from isnet.training.checkpoints import CheckpointError, checkpoint_step, load_checkpoint, load_model_state
from isnet.training.distributed import current_world
from isnet.training.loop import BEST_NAME, CHECKPOINT_NAME

CONFIG_NAME = "config.json"
YAML_NAME = "config.yaml"
EVALUATION_NAME = "evaluation.json"
TUNING_FOLDER = "tuning"


class Run(NamedTuple):
    """A trained run, loaded from its folder."""

    folder: Path
    config: RunConfig
    model: nn.Module


def open_run(folder: Path, config: RunConfig, resume: bool) -> Path:
    """The folder of a run, with its settings written.

    Raises:
        FileExistsError: it holds a run and ``resume`` is off.
        CheckpointError: ``config`` would not continue that run.
    """
    world, path = current_world(), folder / CONFIG_NAME
    exists = world.from_main(path.exists())
    if exists:
        if not resume:
            raise FileExistsError(
                f"{folder} holds a run: go on with --resume, replace it with --overwrite, or name another folder"
            )
        require_same_run(folder, config)
    world.barrier()
    if world.is_main:
        write_json(path, config.to_json())
        write_text(folder / YAML_NAME, to_yaml(config))
    world.barrier()
    return folder


def remove_run(folder: str | os.PathLike[str]) -> None:
    """Removes the run in ``folder``, if there is one, and nothing that is not a run's.

    Raises:
        FileExistsError: the folder holds other things, but no run.
    """
    folder = Path(folder)
    if (folder / CONFIG_NAME).exists():
        shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"--overwrite: {folder} is no run, and is left as it is; name another folder")


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
        values = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error
    if isinstance(values, dict) and "heatmap" in values:
        raise ValueError(f"{path}: an older version's run, which this one cannot read; train in a new folder")
    try:
        return RunConfig.from_json(values)
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
    differences = asked.differences(theirs)
    for group in ("data", "network"):
        differences += [
            f"{group}.{key}: {theirs[group].get(key)!r} there, {ours[group].get(key)!r} now"
            for key in {**theirs[group], **ours[group]}
            if theirs[group].get(key) != ours[group].get(key)
        ]
    if differences:
        raise CheckpointError(f"{path} is a run with other settings ({'; '.join(differences)})")


def what_to_resume(folder: str | os.PathLike[str]) -> str:
    """A text on what an interrupted run in ``folder`` can resume from."""
    for path in (Path(folder) / CHECKPOINT_NAME, Path(folder) / TUNING_FOLDER / CHECKPOINT_NAME):
        if path.exists():
            return f"{path} holds step {checkpoint_step(path)}: go on with --resume"
    return "there is no checkpoint yet: begin again with --resume"
