"""Training a run in its folder."""

from __future__ import annotations

import contextlib
import copy
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from isnet._files import atomic_path
from isnet.config import AUTO, RunConfig
from isnet.distillation import Distilled
from isnet.model import ISNet
from isnet.runs.build import build_criterion, build_isnet, build_model, build_network
from isnet.runs.contents import contents, note_data, require_same_data
from isnet.runs.data import RunData, load_run_data, settled
from isnet.runs.folder import TUNING_FOLDER, Run, load_run, open_run, remove_run, require_room
from isnet.runs.lock import one_writer
from isnet.runs.plan import checked_network
from isnet.training.checkpoints import load_checkpoint, restore_tensors
from isnet.training.distributed import current_world
from isnet.training.log import LOG_NAME
from isnet.training.loop import CHECKPOINT_NAME, fit
from isnet.training.ranges import RANGES_NAME, save_ranges, tune
from isnet.training.steps import build_optimizer


def train_run(
    folder: str | os.PathLike[str],
    config: RunConfig,
    *,
    data: RunData | None = None,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    trust: str | Collection[str] = (),
) -> Run:
    """Trains a run in ``folder`` and keeps settings, log and checkpoint there.

    The natural range of an ISNet, unless it is set, is measured first, as :func:`tune_run` does, unless the folder has it already. In
    processes started by torchrun each calls this with the same arguments.

    Args:
        folder: Made if needed. Without ``resume`` and ``overwrite`` it must not hold a run.
        config: The settings. A resumed run takes its own; these must equal them except for the number of epochs.
        data: The data sets, if already built.
        device: Where to train.
        resume: Continue from the last checkpoint.
        overwrite: Remove the files of the run that the folder holds, once it is known that this one can be trained.
        progress: Show the epochs.
        trust: Code of the user's that the settings of a teacher may name, as in :func:`isnet.runs.load_run`.

    Raises:
        FileExistsError: ``folder`` holds a run, and it is neither to be resumed nor overwritten.
        RunLockedError: another process writes to it.
        Interrupted: a signal asked to stop (:func:`isnet.training.fit`).
        CheckpointError: a damaged checkpoint, or data that have changed since the run began.
        ValueError: ``resume`` with other settings, or settings that cannot be trained on the data (:func:`isnet.training.fit`).
    """
    if not resume:
        require_epoch(config)
    config = _decided(config)
    data = data or load_run_data(config, progress=progress)
    fresh = not goes_on(Path(folder), resume)
    # Now: before the run has a folder, and not after tuning.
    require_room(Path(folder), config, resume=resume, overwrite=overwrite)
    trusted = (trust,) if isinstance(trust, str) else tuple(trust)
    network = checked_network(config, data, current_world(), device, pretrained=fresh, trust=trusted)
    with _opened(Path(folder), config, network, resume=resume, overwrite=overwrite) as (folder, config):
        criterion = None
        if config.is_isnet:
            # If that included the warm-up, training continues from its checkpoint.
            resume |= _measure(folder, config, data, device=device, resume=resume, progress=progress)
            criterion = build_criterion(config, folder)
        fit(
            build_network(
                config,
                device,
                teacher=copy.deepcopy(network.teacher) if isinstance(network, Distilled) else None,
                pretrained=fresh,
                tell=print if progress and current_world().is_main else None,
            ),
            data.train,
            config,
            criterion=criterion,
            input_range=config.data.pixel_range,
            validation=data.validation,
            run_dir=folder,
            resume=resume,
            title=config.title,
            progress=progress,
        )
        current_world().barrier()  # the checkpoint is written by rank 0
        return load_run(folder, device=device, trust=tuple(config.named_code.values()))


def tune_run(
    folder: str | os.PathLike[str],
    config: RunConfig,
    *,
    data: RunData | None = None,
    device: str = "cpu",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Measures the natural range of relevance alone (``loss.tune`` epochs) and returns the file of ranges; see :func:`train_run`.

    With a warm-up the warm-up is trained first, and the ranges are those of the resulting network, at the learning rate
    after it. It is the first part of the run: :func:`train_run` continues from there.

    Raises:
        FileExistsError: ``folder`` holds a run, and it is neither to be resumed nor overwritten.
        ValueError: a standard run, C1 and C2 that are set, or no range can be determined.
    """
    config = _decided(config)
    require_measurable(config)
    data = data or load_run_data(config, progress=progress)
    require_room(Path(folder), config, resume=resume, overwrite=overwrite)
    network = checked_network(config, data, current_world(), device, pretrained=not goes_on(Path(folder), resume))
    with _opened(Path(folder), config, network, resume=resume, overwrite=overwrite) as (folder, config):
        _measure(folder, config, data, device=device, resume=resume, progress=progress)
        return folder / RANGES_NAME


@contextlib.contextmanager
def _opened(
    folder: Path, config: RunConfig, network: nn.Module, *, resume: bool, overwrite: bool
) -> Iterator[tuple[Path, RunConfig]]:
    """The folder of a run, in which nothing else writes, and its settings as they are kept there."""
    with one_writer(folder):
        require_room(folder, config, resume=resume, overwrite=overwrite)
        found = contents(config)
        if resume:
            require_same_data(folder, config, found)
            _require_restorable(folder / CHECKPOINT_NAME, config, network)
        if overwrite and current_world().is_main:
            remove_run(folder)
        note_data(folder, found)
        yield folder, open_run(folder, config)


def goes_on(folder: Path, resume: bool) -> bool:
    """Whether a run gets its weights from a checkpoint, and not those that it began with, whose file may be gone."""
    return resume and current_world().from_main((folder / CHECKPOINT_NAME).exists())


def _decided(config: RunConfig) -> RunConfig:
    """The settings with a variant, and the teacher's folder as it is found from anywhere; the classes are noted beforehand."""
    if config.distill.teacher is not None:
        config = config.replaced(teacher=os.path.abspath(config.distill.teacher))
    return settled(config) if config.network.variant == AUTO else config


def _require_restorable(path: Path, config: RunConfig, network: nn.Module) -> None:
    """Raises CheckpointError if the tensors of a checkpoint do not fit; before anything in the folder changes."""
    if path.exists():
        model: nn.Module = network.model if isinstance(network, ISNet | Distilled) else network
        averaged = None if config.train.ema is None else copy.deepcopy(model)
        restore_tensors(load_checkpoint(path), path, model, build_optimizer(model, config), averaged)


def require_epoch(config: RunConfig) -> None:
    """Raises ValueError if there is no epoch to train."""
    if not config.schedule.warmup + config.schedule.epochs:
        raise ValueError("epochs: expected at least 1, or a warm-up (--warmup), got 0")


def require_measurable(config: RunConfig) -> None:
    """Checks that a run has ranges to measure.

    Raises:
        ValueError: a standard run, or C1 and C2 that are set.
    """
    if not config.is_isnet:
        raise ValueError("variant: a standard run has no heatmaps, and nothing to measure; name an ISNet (--variant)")
    if not config.tuning_epochs:
        raise ValueError("c1, c2: they are set, so that there is nothing to measure; leave --c1 and --c2 out")


def branch_run(folder: str | os.PathLike[str], start: str | os.PathLike[str]) -> None:
    """Lets the run in ``folder`` continue, once resumed, from where the one in ``start`` is; a run that has begun is left unchanged."""
    folder, start = Path(folder), Path(start)
    if (folder / CHECKPOINT_NAME).exists():
        return
    for name in (LOG_NAME, CHECKPOINT_NAME):  # the log first: a checkpoint without it would never get one
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(start / name, temporary)


def _measure(folder: Path, config: RunConfig, data: RunData, *, device: str, resume: bool, progress: bool) -> bool:
    """Writes the ranges, unless they exist or are not wanted, for the network after the warm-up, if the run has one.

    Returns:
        Whether the folder now has the checkpoint of that warm-up.
    """
    world = current_world()
    if config.tuning_epochs == 0 or world.from_main((folder / RANGES_NAME).exists()):
        return False
    network, after, warmup = (
        build_isnet(config, build_model(config, pretrained=not goes_on(folder, resume)).to(device)),
        config,
        config.schedule.warmup,
    )
    options: dict[str, Any] = {"input_range": config.data.pixel_range, "resume": resume, "progress": progress}
    if warmup:
        first, whole = config.replaced(epochs=0), warmup + config.schedule.epochs
        fit(
            network,
            data.train,
            first,
            validation=data.validation,
            run_dir=folder,
            title=config.title,
            epochs=whole,
            **options,
        )
        after = config.replaced(lr=config.train.lr * config.schedule.lr_after_warmup)
    ranges = tune(network, data.train, after, epochs=config.tuning_epochs, run_dir=folder / TUNING_FOLDER, **options)
    if world.is_main:
        save_ranges(folder / RANGES_NAME, ranges)
    world.barrier()
    return warmup > 0
