"""Training runs as folders: settings, log, checkpoint and scores, each in its own file.

``config.json`` (the settings; ``config.yaml``: the same for people and for ``--config``), ``ranges.json`` (C1 and C2, if they were
measured), ``data.json`` (what the images were), ``log.jsonl``, ``last.safetensors`` (model and optimizer, to go on from),
``best.safetensors`` (the weights to use: of the best epoch, or, if no validation score chooses, of the latest), ``evaluation.json``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError
from torch import nn

from isnet._files import read_json, write_json, write_text
from isnet.config import FROM_RUN, DistillConfig, ImagesConfig, RunConfig, flag
from isnet.config.files import to_yaml
from isnet.config.option import to_json
from isnet.config.run import kind_of
from isnet.factories import require_no_files, require_trusted
from isnet.loggers import tensorboard, wandb
from isnet.runs.build import build_model
from isnet.runs.evaluation_file import Evaluation
from isnet.runs.lock import LOCK_NAME
from isnet.training.checkpoints import (
    CheckpointError,
    checked,
    checkpoint_header,
    load_checkpoint,
    load_state,
    load_weights,
)
from isnet.training.distributed import current_world
from isnet.training.log import LOG_NAME, TABLE_NAME, read_log
from isnet.training.loop import BEST_NAME, CHECKPOINT_NAME
from isnet.training.ranges import RANGES_NAME, load_ranges
from isnet.training.state import TrainingState
from isnet.training.steps import require_epochs
from isnet.training.tracking import STATE_NAME

CONFIG_NAME = "config.json"
YAML_NAME = "config.yaml"
EVALUATION_NAME = "evaluation.json"
DATA_NAME = "data.json"
TUNING_FOLDER = "tuning"
OTHER_FOLDER = "evaluations"  # scores on other data
_WRITTEN = (  # by a run, beside config.json: patterns of names
    *(YAML_NAME, DATA_NAME, EVALUATION_NAME, RANGES_NAME, LOG_NAME, TABLE_NAME, TUNING_FOLDER),
    *(STATE_NAME, tensorboard.FOLDER, wandb.FOLDER),
    *(CHECKPOINT_NAME, BEST_NAME, "epoch-*.safetensors", "non-finite-batch*.safetensors"),
    *("predictions-*.csv", OTHER_FOLDER),
)


class Run(NamedTuple):
    """A trained run, loaded from its folder."""

    folder: Path
    config: RunConfig
    model: nn.Module

    @property
    def home(self) -> Path:
        """The folder that training wrote: of a run on other data (:func:`isnet.runs.other.on_data`) the one around."""
        inside = self.folder.parent.name == OTHER_FOLDER and not (self.folder / CONFIG_NAME).exists()
        return self.folder.parent.parent if inside else self.folder


def open_run(folder: Path, config: RunConfig) -> RunConfig:
    """Writes the settings of a run, in which paths are absolute.

    To be called where :func:`require_room` has passed, by the only writer (:func:`isnet.runs.lock.one_writer`).
    """
    world = current_world()
    world.barrier()
    absolute = {name: os.path.abspath(path) if path else path for name, path in config.locations.items()}
    config = config.moved(absolute)
    if world.is_main:
        home = os.path.realpath(folder)
        from_run = {name: os.path.relpath(os.path.realpath(path), home) for name, path in absolute.items() if path}
        write_json(folder / CONFIG_NAME, {**config.to_json(), FROM_RUN: from_run})
        write_text(folder / YAML_NAME, to_yaml(config))
    world.barrier()
    return config


def require_room(folder: Path, config: RunConfig, *, resume: bool = False, overwrite: bool = False) -> None:
    """Checks that a run with these settings can begin or go on in ``folder``; changes nothing.

    Raises:
        FileExistsError: it holds a run, and neither is wanted; or it is to be overwritten and holds other things, but no run.
        CheckpointError: ``config`` would not continue that run.
        ValueError: a file of that run is damaged.
    """
    world = current_world()
    if world.from_main(folder.exists() and not folder.is_dir()):
        raise FileExistsError(f"RUN: {folder} is a file; name a folder")
    if world.from_main((folder / CONFIG_NAME).exists()):
        if resume:
            require_same_run(folder, config)
            _require_whole(folder, config)
        elif not overwrite:
            raise FileExistsError(
                f"{folder} holds a run: go on with --resume, replace it with --overwrite, or name another folder"
            )
    elif overwrite and world.from_main(folder.exists() and any(path.name != LOCK_NAME for path in folder.iterdir())):
        raise FileExistsError(f"--overwrite: {folder} is no run, and is left as it is; name another folder")


def _require_whole(folder: Path, config: RunConfig) -> None:
    """Checks what a run goes on from, as far as no tensor is needed.

    Raises:
        ValueError: a damaged file.
        CheckpointError: likewise, or fewer epochs than were trained.
    """
    for part in (folder, folder / TUNING_FOLDER):
        if (part / LOG_NAME).exists():
            read_log(part / LOG_NAME)
        if (part / CHECKPOINT_NAME).exists():
            step, settings = checkpoint_header(part / CHECKPOINT_NAME)
            state = checked(TrainingState, settings, f"{part / CHECKPOINT_NAME}: its settings")
            if part == folder:
                _require_code(config, state.config, part / CHECKPOINT_NAME)
                require_epochs(config, step, state.images, part / CHECKPOINT_NAME)
                begun = step > config.schedule.warmup * max(1, state.images // config.train.batch_size)
                differences = config.differences(state.config, past_warmup=begun)
                if differences:
                    raise CheckpointError(
                        f"{part / CHECKPOINT_NAME} was made with other settings ({'; '.join(differences)})"
                    )
    if (folder / RANGES_NAME).exists():
        load_ranges(folder / RANGES_NAME)


def _require_code(config: RunConfig, trained: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError if ``path`` was trained with another network than the settings name."""
    network = trained.get("network")
    for option in ("arch", "arch_args"):
        ours = config.to_json()["network"][option]
        if isinstance(network, Mapping) and network.get(option) != ours:
            raise CheckpointError(f"{path} was trained with network.{option} {network.get(option)!r}, not {ours!r}")


def remove_run(folder: Path) -> None:
    """Removes what the run in ``folder`` has written, and nothing else; the settings last, so that it remains a run until then."""
    for pattern in (*_WRITTEN, CONFIG_NAME):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def load_config(folder: str | os.PathLike[str]) -> RunConfig:
    """The settings of the run in ``folder``; data that lie no longer where they did, but still so from the run, are found.

    Raises:
        FileNotFoundError: ``folder`` holds no run.
        ValueError: its settings cannot be read.
    """
    config, from_run = _read_config(Path(folder))
    found = {name: _found(Path(folder), path, from_run.get(name)) for name, path in config.locations.items()}
    return config.moved(found)


def _read_config(folder: Path) -> tuple[RunConfig, dict[str, str]]:
    """The settings as they were written, and the locations relative to the run."""
    path = folder / CONFIG_NAME
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not a run: it has no {CONFIG_NAME}")
    values = read_json(path)
    try:
        config = RunConfig.from_json(values)
        from_run = values.get(FROM_RUN) or {}
        if not isinstance(from_run, dict) or not all(isinstance(value, str) for value in from_run.values()):
            raise ValueError(f"{FROM_RUN}: expected options with paths, got {from_run!r}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, from_run


def _found(folder: Path, path: str | None, from_run: str | None) -> str | None:
    if path and from_run and not os.path.exists(path) and os.path.exists(folder / from_run):
        return os.path.realpath(folder / from_run)
    return path


def require_data(folder: str | os.PathLike[str], config: RunConfig) -> None:
    """Checks that the data of a run are where its settings say.

    Raises:
        FileNotFoundError: they are not; the text names the places and the remedy.
    """
    from_run = _read_config(Path(folder))[1] if (Path(folder) / CONFIG_NAME).exists() else {}
    for name, path in config.locations.items():
        if path and not os.path.exists(path) and isinstance(config.data, ImagesConfig):
            other = os.path.normpath(Path(folder).absolute() / from_run[name]) if name in from_run else None
            also = f", nor at {other}" if other not in (None, path) else ""
            raise FileNotFoundError(
                f"{folder}: its data are not at {path}{also}; say where they are ({flag(name)} PATH)"
            )


def load_run(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    trust: str | Collection[str] = (),
    data: str | os.PathLike[str] | None = None,
    masks: str | os.PathLike[str] | None = None,
) -> Run:
    """The trained classifier in ``folder``, in evaluation mode: of the best epoch, if a validation score chose one, else of the last.

    Args:
        folder: Of the run.
        device: Where to compute.
        trust: Code of yours that the run may use: ``package.module:CALLABLE``, or a package or module. That of known libraries needs none.
        data, masks: Where its images and masks are now, if they have moved.

    Raises:
        FileNotFoundError: no run, or none that has reached its first checkpoint.
        FactoryError: its settings name other code than that of known libraries, which is not trusted.
        ValueError: a damaged file, named in the text.
        CheckpointError: likewise, or the checkpoint does not fit the settings.
    """
    folder = Path(folder)
    config = load_config(folder)
    require_trusted_config(config, folder / CONFIG_NAME, trust)
    moved = {name: os.fspath(path) for name, path in (("path", data), ("masks", masks)) if path is not None}
    if moved:
        if not isinstance(config.data, ImagesConfig):
            raise ValueError(f"{folder}: a run on {kind_of(config.data)}, whose data cannot be named")
        config = config.moved(moved)
    averaged = config.train.ema is not None
    if (folder / BEST_NAME).exists():
        path = folder / BEST_NAME
        state, note = load_weights(path)
        trained = note["config"]
    else:
        path = folder / CHECKPOINT_NAME
        checkpoint = load_checkpoint(path)
        trained = checked(TrainingState, checkpoint.settings, f"{path}: its settings").config
        state = checkpoint.ema if averaged and checkpoint.ema is not None else checkpoint.model
    ours = config.identity()
    differences = _differences(trained, ours) if "data" in trained else []
    if differences:
        raise CheckpointError(
            f"{path} was trained with other settings than {folder / CONFIG_NAME} has ({'; '.join(differences)})"
        )
    model = build_model(config, pretrained=False)
    load_state(model, state, path)
    return Run(folder, config, model.to(device).eval())


def require_trusted_config(config: RunConfig, path: Path, trust: str | Collection[str]) -> None:
    """Checks that settings read from a file make no code run but that of known libraries and what the user trusts.

    Raises:
        FactoryError: they would.
    """
    require_trusted(config.named_code, trust, path)
    require_no_files(config.network.arch, config.network.arch_args, path)


def load_evaluation(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The scores that :func:`evaluate_run` wrote, or None.

    Raises:
        ValueError: the file is damaged.
    """
    path = Path(folder) / EVALUATION_NAME
    if not path.exists():
        return None
    values = read_json(path)
    try:
        Evaluation.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(
            f"{path}: {place}: {first['msg']}; remove the file, and `isnet evaluate` writes it anew"
        ) from error
    return values


def require_same_run(folder: str | os.PathLike[str], asked: RunConfig) -> None:
    """Compares the settings of the run in ``folder`` with others; where its data lie may differ.

    Raises:
        CheckpointError: ``asked`` would not continue that run.
        FileNotFoundError: ``folder`` holds no run.
    """
    found, path = load_config(folder), Path(folder) / CONFIG_NAME
    ours, theirs = asked.identity(), found.identity()
    differences = asked.differences(theirs) + _differences(theirs, ours)
    if differences:
        raise CheckpointError(f"{path} is a run with other settings ({'; '.join(differences)})")


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """How data, network and teacher differ."""
    found, without = [], to_json(DistillConfig())
    for group in ("data", "network", "distill"):
        a, b = theirs.get(group, without if group == "distill" else None), ours[group]
        if not isinstance(a, Mapping):
            return [f"{group}: {a!r} there"]
        found += [
            f"{group}.{key}: {a.get(key)!r} there, {b.get(key)!r} now" for key in {**a, **b} if a.get(key) != b.get(key)
        ]
    return found


def what_to_resume(folder: str | os.PathLike[str]) -> str:
    """A text on what an interrupted run in ``folder`` can resume from."""
    for path in (Path(folder) / CHECKPOINT_NAME, Path(folder) / TUNING_FOLDER / CHECKPOINT_NAME):
        if path.exists():
            return f"{path} holds step {checkpoint_header(path)[0]}: go on with --resume"
    return "there is no checkpoint yet: begin again with --resume"
