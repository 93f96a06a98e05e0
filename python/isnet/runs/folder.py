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
from isnet.training.log import LOG_NAME, TABLE_NAME, TENSORBOARD_NAME
from isnet.training.loop import BEST_NAME, CHECKPOINT_NAME
from isnet.training.ranges import RANGES_NAME

CONFIG_NAME = "config.json"
YAML_NAME = "config.yaml"
EVALUATION_NAME = "evaluation.json"
TUNING_FOLDER = "tuning"
_WRITTEN = (  # by a run, beside config.json: patterns of names
    *(YAML_NAME, EVALUATION_NAME, RANGES_NAME, LOG_NAME, TABLE_NAME, TENSORBOARD_NAME, TUNING_FOLDER),
    *(CHECKPOINT_NAME, BEST_NAME, "epoch-*.safetensors", "non-finite-batch*.safetensors"),
)


class Run(NamedTuple):
    """A trained run, loaded from its folder."""

    folder: Path
    config: RunConfig
    model: nn.Module


def open_run(folder: Path, config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> Path:
    """The folder of a run, with its settings written, and without the run that was there if it is to be overwritten.

    Raises:
        FileExistsError, CheckpointError: see :func:`require_room`.
    """
    world = current_world()
    require_room(folder, config, resume=resume, overwrite=overwrite)
    world.barrier()
    if world.is_main:
        if overwrite:
            remove_run(folder)
        write_json(folder / CONFIG_NAME, config.to_json())
        write_text(folder / YAML_NAME, to_yaml(config))
    world.barrier()
    return folder


def require_room(folder: Path, config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> None:
    """Checks that a run with these settings can begin or go on in ``folder``; changes nothing.

    Raises:
        FileExistsError: it holds a run, and neither is wanted; or it is to be overwritten and holds other things, but no run.
        CheckpointError: ``config`` would not continue that run.
    """
    world = current_world()
    if world.from_main(folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"RUN: {folder} is a file; name a folder")
    if world.from_main((folder / CONFIG_NAME).exists()):
        if resume:
            require_same_run(folder, config)
        elif not overwrite:
            raise FileExistsError(
                f"{folder} holds a run: go on with --resume, replace it with --overwrite, or name another folder"
            )
    elif overwrite and world.from_main(folder.exists() and any(folder.iterdir())):
        raise FileExistsError(f"--overwrite: {folder} is no run, and is left as it is; name another folder")


def remove_run(folder: Path) -> None:
    """Removes what the run in ``folder`` has written, and nothing else; the settings last, so that it remains a run until then."""
    for pattern in (*_WRITTEN, CONFIG_NAME):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


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
    model = build_model(config, pretrained=False)
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
