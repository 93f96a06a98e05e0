"""The training loop: standard classifiers and ISNets, with foreground warm-up and lazy heatmap loss.

Every random draw (order of the images, background noise, explained logit, dropout) is a function of the seed and the
step alone. A run that was killed and resumed, or branched from another run's checkpoint, therefore continues bit for
bit as if it had never stopped.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isnet.config import TrainConfig
from isnet.data import Example
from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet
from isnet.training import validation as scoring
from isnet.training.checkpoints import CheckpointError, checked, load_checkpoint, save_checkpoint, save_weights
from isnet.training.display import Display
from isnet.training.distributed import current_world
from isnet.training.learner import Learner
from isnet.training.log import RunLog
from isnet.training.snapshots import Snapshots
from isnet.training.state import TrainingState
from isnet.training.steps import (
    HeatmapObserver,
    StepLosses,
    deterministic,
    mean_losses,
    require_epochs,
    require_trainable,
    require_validation,
)
from isnet.training.stop import Interrupted, StopSignals, ignore_signals
from isnet.training.tracking import Tracking, flatten

CHECKPOINT_NAME = "last.safetensors"
BEST_NAME = "best.safetensors"


def fit(
    network: nn.Module,
    train_set: Dataset[Example],
    config: TrainConfig,
    *,
    criterion: ISNetLoss | None = None,
    classification_loss: Callable[[Tensor, Tensor], Tensor] = classification_loss,
    input_range: tuple[Any, Any] = (0.0, 1.0),
    validation: Mapping[str, Dataset[Example]] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    observer: HeatmapObserver | None = None,
    title: str = "training",
    epochs: int | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Trains a classifier, or an ISNet with its heatmap loss.

    In processes started by torchrun, with ``torch.distributed`` set up (:func:`isnet.training.distributed.launched_world`), each
    call is a part of one training: the batch is divided, gradients are averaged, rank 0 writes the files.

    Args:
        network: An :class:`isnet.ISNet`, a :class:`isnet.Distilled`, whose matching loss alone is then minimised, or any module from
            images to logits, which is then trained without heatmaps. It is trained on the device where its parameters are.
        train_set: Items (image [C, H, W], label [] or labels [K], mask [1, H, W]). Its ``set_epoch``, if it has one, is called
            with the number of each epoch before its first item is requested.
        config: How to train.
        criterion: The heatmap loss; needed for an ISNet, unless there is only a warm-up. The schedule in ``config``
            replaces its ``p``, and ``classification_loss`` its classification loss.
        classification_loss: (logits, labels) -> scalar, a mean over the images; for validation, too.
        input_range: Pixel range of the noise in the warm-up.
        validation: Data sets whose accuracy is logged after each epoch. ``monitor`` is computed on the first.
        run_dir: Folder for the log and the checkpoints; None keeps nothing on disk, nor in loggers.
        resume: Continue from the checkpoint in ``run_dir`` if there is one.
        observer: Gets the heatmaps of the last epoch, in which they are not penalised; ``criterion`` may then be None.
        title: What is trained, as it is shown.
        epochs: Of the whole training, as it is shown, where this is only its beginning.
        progress: Show the epochs: on a terminal as a table above a progress bar, elsewhere a line for each.

    Returns:
        The log: one entry per ``log_every`` steps, ahead of a checkpoint and at the end of an epoch, each the mean of the steps since
        the one before, and one per epoch, those of a resumed run included. ``"cpu_seconds"``: processor time of this process from the
        beginning up to the entry, without what a killed process did after its last checkpoint.

    Raises:
        ValueError: too few images for one batch, a batch that processes and parts do not divide, or leave single images whose
            backgrounds are to be swapped, an ISNet without criterion, ``resume`` without ``run_dir``, ``monitor`` without
            ``validation``, an ISNet in float16 on the CPU, or synchronised batch norm with
            static calls or on the CPU.
        CheckpointError: the checkpoint is damaged, or of other settings (those of logging, saving and loading, and, under a
            constant schedule, ``epochs`` may change, though not to fewer than were trained).
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the state after the last step was saved in ``run_dir``. A second SIGINT raises
            KeyboardInterrupt at once, and the checkpoint is the one before. Without ``run_dir`` signals act as always.
        ModuleNotFoundError: the package of a logger is missing.
        RuntimeError: a logger cannot be started for a new run.
        NonFiniteLossError: loss or gradient not finite; the batch is saved in ``run_dir``.
    """
    validation = validation or {}
    require_validation(config, validation)
    if isinstance(network, ISNet) and criterion is None and observer is None and config.schedule.epochs:
        raise ValueError("criterion: an ISNet needs an ISNetLoss")
    trainer = _Trainer(
        network,
        train_set,
        config,
        None if run_dir is None else Path(run_dir),
        criterion=criterion,
        classification_loss=classification_loss,
        input_range=input_range,
        observer=observer,
    )
    if resume:
        trainer.restore()
    schedule = config.schedule
    display = Display(
        title,
        epochs=epochs or schedule.warmup + schedule.epochs,
        steps_per_epoch=trainer.steps_per_epoch,
        batch_size=config.train.batch_size,
        done=trainer.learner.step,
        shown=progress and trainer.world.is_main,
    )
    with display, trainer.stop:
        return trainer.run(validation, display)


class _Trainer:
    """The state of one call of :func:`fit`: epochs around the steps of a :class:`Learner`, log and files."""

    def __init__(
        self,
        network: nn.Module,
        train_set: Dataset[Example],
        config: TrainConfig,
        run_dir: Path | None,
        **step_options: Any,
    ) -> None:
        self.train_set, self.config, self.run_dir, self.world = train_set, config, run_dir, current_world()
        self.images_count = len(cast(Sized, train_set))
        device = next(network.parameters()).device
        isnet = network if isinstance(network, ISNet) else None
        require_trainable(config, self.world, self.images_count, isnet, device)
        self.steps_per_epoch = self.images_count // config.train.batch_size
        self.learner = Learner(network, config, self.world, self.steps_per_epoch, run_dir=self.run_dir, **step_options)
        schedule = config.schedule
        self.watch = None if schedule.monitor is None else scoring.Watch(schedule.monitor, schedule.patience)
        self.stop = StopSignals(active=run_dir is not None)
        self.started = 0.0  # the processor time at which this process would have started the whole run
        folder, options = self.run_dir if self.world.is_main else None, flatten(config.identity())
        self.log, self.resumed = RunLog(folder, Tracking(config.files.loggers, folder, options)), False

    # ---- the loop

    def run(self, validation: Mapping[str, Dataset[Example]], display: Display) -> list[dict[str, Any]]:
        learner = self.learner
        self.log.start(resumed=self.resumed)
        before = self.log.entries[-1].get("cpu_seconds", 0.0) if self.log.entries else 0.0
        self.started = time.process_time() - before
        devices = [learner.device] if learner.device.type == "cuda" else []
        learner.distribute()
        self.snapshots = Snapshots(self.config, validation, learner.isnet, learner.input_range)
        with (
            self.log.running(),
            torch.random.fork_rng(devices=devices),
            deterministic(self.config.train.deterministic),
            warnings.catch_warnings(),
        ):
            # With loss scaling the optimizer sometimes skips steps, which the scheduler mistakes for calls in the wrong order.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            while learner.step < learner.last_step and not (self.watch and self.watch.is_over):
                started = time.perf_counter()
                epoch = learner.step // self.steps_per_epoch
                self._epoch(epoch, display)
                entry: dict[str, Any] = {"kind": "epoch", "step": learner.step, "epoch": epoch + 1}
                entry["phase"] = "warm-up" if epoch < self.config.schedule.warmup else "training"
                entry["seconds"] = time.perf_counter() - started
                self._end_epoch(entry, validation)
                display.epoch(entry)
                self._stop_if_told()
        return self.log.entries

    def _epoch(self, epoch: int, display: Display) -> None:
        """The rest of an epoch, from the learner's step on."""
        files, learner = self.config.files, self.learner
        learner.shared.train()
        window: list[StepLosses] = []
        parts = self._batches(epoch)
        for batch in parts:
            losses = learner.take_step([batch, *(next(parts) for _ in range(self.config.train.accumulate - 1))])
            window.append(losses)
            display.step(learner.step, losses.total)
            last = learner.step % self.steps_per_epoch == 0
            told = not last and self.world.largest(self.stop.signum)
            due = files.save_every is not None and learner.step % files.save_every == 0
            # Ahead of a checkpoint, too: a run resumed from it knows nothing of the steps before.
            if last or due or told or learner.step % files.log_every == 0:
                display.window(self._note(self._summary(window)))
                window.clear()
            if (due or told) and not last:  # run() saves at the end of the epoch, after its log entry
                self._save()
            if told:
                raise Interrupted(told, learner.step)

    def _stop_if_told(self) -> None:
        told = self.world.largest(self.stop.signum)
        if told:
            raise Interrupted(told, self.learner.step)

    def _end_epoch(self, entry: dict[str, Any], validation: Mapping[str, Dataset[Example]]) -> None:
        config, learner = self.config, self.learner
        # The run is not about a network before its ISNet training, nor about one whose heatmaps alone are wanted.
        usable = entry["phase"] != "warm-up" and learner.observer is None
        best = usable and self.watch is None  # where no score chooses, the latest
        self.world.share_buffers(learner.model)
        if learner.averaged is not None:
            self.world.share_buffers(learner.averaged)
        scored = learner.scored
        if validation:
            # Always at the final P: a schedule must not change the score that epochs are compared by.
            p = config.heatmap_share(learner.last_step - 1, self.steps_per_epoch) if learner.criterion else 0.0
            entry |= scoring.epoch_scores(
                scored,
                validation,
                self.world,
                monitor=config.schedule.monitor,
                isnet=learner.isnet,
                distilled=learner.distilled,
                criterion=learner.criterion,
                classification_loss=learner.classification_loss,
                input_range=learner.input_range,
                p=p,
            )
        if self.watch is not None:
            entry["score"] = scoring.worth(self.watch.monitor, entry["validation"])
            if usable:
                best = entry["best"] = self.watch.see(entry["score"])
        self._note(entry)
        self.log.save_table()
        if self.snapshots.is_due(entry["epoch"]):
            self.log.tracking.picture("heatmaps", lambda: self.snapshots.draw(scored))
        # The one to resume from comes last: it refers to the others, which a run killed before it writes again.
        if best and self.run_dir is not None and self.world.is_main:
            note: dict[str, Any] = {
                "step": learner.step,
                "config": config.identity(),
                "averaged": learner.averaged is not None,
            }
            save_weights(self.run_dir / BEST_NAME, scored.state_dict(), **note)
        if config.files.keep_last:
            self._save(f"epoch-{entry['epoch']:04d}.safetensors")
            self._forget(entry["epoch"] - config.files.keep_last)
        self._save()

    def _batches(self, epoch: int) -> Iterator[Example]:
        """This process's parts of the batches of an epoch, from the learner's step on."""
        set_epoch = getattr(self.train_set, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        order = torch.randperm(self.images_count, generator=self.learner.generator("order", epoch))
        train = self.config.train
        size = train.batch_size // (self.world.size * train.accumulate)
        offsets = [self.learner.first_of(part) for part in range(train.accumulate)]
        first = self.learner.step - epoch * self.steps_per_epoch
        starts = [step * train.batch_size + offset for step in range(first, self.steps_per_epoch) for offset in offsets]
        rows = [order[start : start + size].tolist() for start in starts]
        return iter(
            DataLoader(self.train_set, batch_sampler=rows, num_workers=train.workers, worker_init_fn=ignore_signals)
        )

    # ---- log and checkpoints

    def _note(self, entry: dict[str, Any]) -> dict[str, Any]:
        self.log.add({**entry, "cpu_seconds": time.process_time() - self.started})
        return entry

    def _summary(self, window: list[StepLosses]) -> dict[str, Any]:
        """The means of the steps since the last entry, over all processes."""
        window = [losses for part in self.world.gather(window) for losses in part]
        mean = mean_losses(window)
        return {
            "kind": "step",
            "step": self.learner.step,
            "epoch": self.learner.step / self.steps_per_epoch,
            "loss": mean.total,
            "classification": mean.classification,
            "heatmap": mean.heatmap,
            "layers": mean.layers,
            "grad_norm": mean.grad_norm,
            "p": mean.share,
            "lr": self.config.train.lr * self.config.rate_factor(self.learner.step - 1, self.steps_per_epoch),
        }

    def _save(self, name: str = CHECKPOINT_NAME) -> None:
        if self.run_dir is None:
            return
        observer = self.learner.observer
        observed = [] if observer is None else self.world.gather(observer.state())
        if not self.world.is_main:
            return
        settings: dict[str, Any] = {"config": self.config.identity(), "images": self.images_count}
        settings["watch"] = None if self.watch is None else self.watch.state()
        settings["observed"] = observed
        self.log.sync()
        save_checkpoint(self.run_dir / name, self.learner.checkpoint(settings))

    def _forget(self, epoch: int) -> None:
        if self.run_dir is not None and self.world.is_main:
            (self.run_dir / f"epoch-{epoch:04d}.safetensors").unlink(missing_ok=True)

    def restore(self) -> None:
        """Restores the run in ``run_dir``, if it has a checkpoint."""
        if self.run_dir is None:
            raise ValueError("resume: needs run_dir")
        self.resumed = True
        path = self.run_dir / CHECKPOINT_NAME
        if not path.exists():
            return
        state = load_checkpoint(path)
        settings = checked(TrainingState, state.settings, f"{path}: its settings")
        past_warmup = state.step > self.config.schedule.warmup * self.steps_per_epoch
        try:
            differences = self.config.differences(settings.config, past_warmup=past_warmup)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        if settings.images != self.images_count:
            differences.append(f"training images: {settings.images} there, {self.images_count} now")
        if differences:
            raise CheckpointError(f"{path} was made with other settings ({'; '.join(differences)})")
        require_epochs(self.config, state.step, self.images_count, path)
        self.learner.restore(state, settings, path)
        if self.watch is not None and settings.watch is not None:
            self.watch.restore(settings.watch.model_dump())
        self.log.restore(self.learner.step)
