"""The training loop: standard classifiers and ISNets, with foreground warm-up and lazy heatmap loss.

Every random draw (order of the images, background noise, explained logit, dropout) is a function of the seed and the
step alone. A run that was killed and resumed, or branched from another run's checkpoint, therefore continues bit for
bit as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

from isnet import validation as scoring
from isnet._seeds import stream_seed
from isnet._steps import (
    AUTOCAST,
    SMALLEST_SCALE,
    HeatmapObserver,
    StepLosses,
    build_optimizer,
    build_scheduler,
    deterministic,
    layer_numbers,
    mean_losses,
    non_finite,
    require_trainable,
    require_validation,
    synchronize_batch_norm,
)
from isnet.balance import Balance
from isnet.checkpoints import Checkpoint, CheckpointError, load_checkpoint, load_model_state, save_checkpoint
from isnet.distributed import current_world
from isnet.evaluation import Example
from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet, ISNetOutput
from isnet.runlog import RunLog
from isnet.train_config import TrainConfig
from isnet.warmup import replace_background

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
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Trains a classifier, or an ISNet with its heatmap loss.

    In processes started by torchrun, with ``torch.distributed`` set up (:func:`isnet.distributed.launched_world`), each
    call is a part of one training: the batch is divided, gradients are averaged, rank 0 writes the files.

    Args:
        network: An :class:`isnet.ISNet`, or any module from images to logits, which is then trained without heatmaps.
            It is trained on the device where its parameters are.
        train_set: Items (image [C, H, W], label [] or labels [K], mask [1, H, W]). Its ``set_epoch``, if it has one, is called
            with the number of each epoch before its first item is requested.
        config: How to train.
        criterion: The heatmap loss; needed for an ISNet, unless there is only a warm-up. The schedule in ``config``
            replaces its ``p``, and ``classification_loss`` its classification loss.
        classification_loss: (logits, labels) -> scalar, a mean over the images; for validation, too.
        input_range: Pixel range of the noise in the warm-up.
        validation: Data sets whose accuracy is logged after each epoch. ``config.monitor`` is computed on the first.
        run_dir: Folder for the log and the checkpoints; None keeps nothing on disk.
        resume: Continue from the checkpoint in ``run_dir`` if there is one.
        observer: Gets the heatmaps of the last epoch, in which they are not penalised; ``criterion`` may then be None.
        title: Shown beside the progress bar.
        progress: Show a progress bar on the terminal.

    Returns:
        The log: one entry per ``log_every`` steps, ahead of a checkpoint and at the end of an epoch, each the mean of the steps since
        the one before, and one per epoch, those of a resumed run included. ``"cpu_seconds"``: processor time of this process from the
        beginning up to the entry, without what a killed process did after its last checkpoint.

    Raises:
        ValueError: too few images for one batch, a batch that processes and parts do not divide, or leave single images whose
            backgrounds are to be swapped, an ISNet without criterion, ``resume`` without ``run_dir``, ``config.monitor`` without
            ``validation``, an ISNet in float16 on the CPU, or synchronised batch norm with
            static calls or on the CPU.
        CheckpointError: the checkpoint is of other settings (those of logging, saving and loading, and, under a
            constant schedule, ``epochs`` may change).
        NonFiniteLossError: loss or gradient not finite; the batch is saved in ``run_dir``.
    """
    validation = validation or {}
    require_validation(config, validation)
    trainer = _Trainer(network, train_set, config, criterion, classification_loss, input_range, run_dir, observer)
    if resume:
        trainer.restore()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = not (progress and trainer.world.is_main)
    with Progress(*columns, TextColumn("{task.fields[loss]}"), disable=hidden) as display:
        return trainer.run(validation, display, title)


class _Trainer:
    """The state of one call of :func:`fit`."""

    def __init__(
        self,
        network: nn.Module,
        train_set: Dataset[Example],
        config: TrainConfig,
        criterion: ISNetLoss | None,
        classification_loss: Callable[[Tensor, Tensor], Tensor],
        input_range: tuple[Any, Any],
        run_dir: str | os.PathLike[str] | None,
        observer: HeatmapObserver | None,
    ) -> None:
        self.isnet = network if isinstance(network, ISNet) else None
        self.model: nn.Module = self.isnet.model if self.isnet is not None else network
        if self.isnet is not None and criterion is None and observer is None and config.epochs:
            raise ValueError("criterion: an ISNet needs an ISNetLoss")
        self.world, self.device = current_world(), next(self.model.parameters()).device
        self.images_count = len(cast(Sized, train_set))
        require_trainable(config, self.world, self.images_count, self.isnet, self.device)
        self.steps_per_epoch = self.images_count // config.batch_size
        self.last_step = (config.warmup + config.epochs) * self.steps_per_epoch
        self.network, self.train_set, self.config, self.criterion = network, train_set, config, criterion
        self.classification_loss, self.input_range, self.observer = classification_loss, input_range, observer
        self.run_dir = None if run_dir is None else Path(run_dir)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_batch_norm and self.world.size > 1:
            synchronize_batch_norm(self.model)
        self.averaged: AveragedModel | None = None
        if config.ema is not None:
            self.averaged = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True
            ).eval()
        self.optimizer = build_optimizer(self.model, config)
        self.scheduler = build_scheduler(self.optimizer, config, self.steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "float16")
        self.watch = None if config.monitor is None else scoring.Watch(config.monitor, config.patience)
        self.balance = Balance() if config.balance == "auto" else None
        self.step = 0
        self.started = 0.0  # the processor time at which this process would have started the whole run
        self.log = RunLog(self.run_dir if self.world.is_main else None, tensorboard=config.tensorboard)
        self.noise = torch.Generator()
        self.shared: nn.Module = network  # what each step calls: the network, or DDP around it

    # ---- the loop

    def run(self, validation: Mapping[str, Dataset[Example]], display: Progress, title: str) -> list[dict[str, Any]]:
        task = display.add_task(title, total=self.last_step, completed=self.step, loss="")
        self.log.start()
        before = self.log.entries[-1].get("cpu_seconds", 0.0) if self.log.entries else 0.0  # absent in old logs
        self.started = time.process_time() - before
        devices = [self.device] if self.device.type == "cuda" else []
        if self.world.size > 1:
            self.shared = DistributedDataParallel(self.network, device_ids=devices or None)
        with (
            torch.random.fork_rng(devices=devices),
            deterministic(self.config.deterministic),
            warnings.catch_warnings(),
        ):
            # With loss scaling the optimizer sometimes skips steps, which the scheduler mistakes for calls in the wrong order.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            while self.step < self.last_step and not (self.watch and self.watch.is_over):
                started = time.perf_counter()
                epoch = self.step // self.steps_per_epoch
                self._epoch(epoch, display, task)
                entry: dict[str, Any] = {"kind": "epoch", "step": self.step, "epoch": epoch + 1}
                entry["phase"] = "warm-up" if epoch < self.config.warmup else "training"
                entry["seconds"] = time.perf_counter() - started
                self._end_epoch(entry, validation)
        self.log.close()
        return self.log.entries

    def _epoch(self, epoch: int, display: Progress, task: Any) -> None:
        """The rest of an epoch, from ``self.step`` on."""
        self.shared.train()
        window: list[StepLosses] = []
        parts = self._batches(epoch)
        for batch in parts:
            losses = self._train_step([batch, *(next(parts) for _ in range(self.config.accumulate - 1))])
            self.step += 1
            window.append(losses)
            display.update(task, completed=self.step, loss=f"loss {losses.total:.3f}")
            last = self.step % self.steps_per_epoch == 0
            due = self.config.save_every is not None and self.step % self.config.save_every == 0
            # Ahead of a checkpoint, too: a run resumed from it knows nothing of the steps before.
            if last or due or self.step % self.config.log_every == 0:
                self._note(self._summary(window))
                window.clear()
            if due and not last:  # run() saves at the end of the epoch, after its log entry
                self._save(CHECKPOINT_NAME)

    def _end_epoch(self, entry: dict[str, Any], validation: Mapping[str, Dataset[Example]]) -> None:
        config, best = self.config, False
        self.world.share_buffers(self.model)
        scored = self.model
        if self.averaged is not None:
            self.world.share_buffers(self.averaged)
            scored = self.averaged.module
        if validation:
            entry["accuracy"] = scoring.accuracies(scored, validation, self.world)
        if self.watch is not None:
            name, data = next(iter(validation.items()))
            if self.watch.monitor == "accuracy":
                score = entry["accuracy"][name]
            else:
                # Always at the final P: a schedule must not change the score that epochs are compared by.
                p = config.heatmap_share(self.last_step - 1, self.steps_per_epoch) if self.criterion else 0.0
                entry["validation"] = scoring.losses(
                    scored,
                    data,
                    self.world,
                    isnet=self.isnet,
                    criterion=self.criterion,
                    classification_loss=self.classification_loss,
                    p=p,
                )
                score = entry["validation"][self.watch.monitor]
            if entry["phase"] != "warm-up":  # the run is not about a network before its ISNet training
                best = entry["best"] = self.watch.see(score)
        self._note(entry)
        self.log.save_table()
        # The one to resume from comes last: it refers to the others, which a run killed before it writes again.
        if best:
            self._save(BEST_NAME)
        if config.keep_last:
            self._save(f"epoch-{entry['epoch']:04d}.safetensors")
            self._forget(entry["epoch"] - config.keep_last)
        self._save(CHECKPOINT_NAME)

    def _batches(self, epoch: int) -> Iterator[Example]:
        """This process's parts of the batches of an epoch, from ``self.step`` on."""
        set_epoch = getattr(self.train_set, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)
        order = torch.randperm(self.images_count, generator=self._generator("order", epoch))
        size = self.config.batch_size // (self.world.size * self.config.accumulate)
        offsets = [self._first(part) for part in range(self.config.accumulate)]
        first = self.step - epoch * self.steps_per_epoch
        starts = [
            step * self.config.batch_size + offset for step in range(first, self.steps_per_epoch) for offset in offsets
        ]
        rows = [order[start : start + size].tolist() for start in starts]
        return iter(DataLoader(self.train_set, batch_sampler=rows, num_workers=self.config.workers))

    def _first(self, part: int) -> int:
        """Where a part of this process begins in the batch."""
        parts = self.config.accumulate
        return (self.world.rank * parts + part) * (self.config.batch_size // (self.world.size * parts))

    def _train_step(self, parts: list[Example]) -> StepLosses:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            ddp = self.shared if isinstance(self.shared, DistributedDataParallel) else None
            with contextlib.nullcontext() if last or ddp is None else ddp.no_sync():
                losses.append(self._accumulate(part, index, len(parts)))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm or math.inf)
        # With loss scaling an overflow is expected occasionally: the step is skipped and the scale halved.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < SMALLEST_SCALE:
            self._require_finite("gradient norm", norm, _whole(parts))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        mean = mean_losses(losses)._replace(grad_norm=norm.item())
        if self.balance is not None and mean.heatmap is not None:  # in every process alike: P must be the same in all
            self.balance.see(*self.world.mean((mean.classification, mean.heatmap)))
        return mean

    def _accumulate(self, part: Example, index: int, count: int) -> StepLosses:
        """Forward and backward pass of one part; its gradient is added to those of the parts before."""
        config, step = self.config, self.step
        images, labels, masks = part = tuple(value.to(self.device) for value in part)  # type: ignore[assignment]
        if config.replaces_background(step, self.steps_per_epoch):
            images = replace_background(
                images,
                masks,
                self._generator("noise", step),
                *self.input_range,
                kind=config.warmup_background,
                first=self._first(index),
                total=config.batch_size,
            )
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # Dropout: the first part draws as the whole batch would; the others need draws of their own.
        own = () if self._first(index) == 0 else (self._first(index),)
        torch.manual_seed(stream_seed(config.seed, "model", step, *own))

        supervised = self.isnet is not None and self.criterion is not None
        share = self._share(step) if supervised else 0.0
        takes = supervised and config.takes_heatmap(step, self.steps_per_epoch)
        observed = self.observer is not None and step >= self.last_step - self.steps_per_epoch
        heatmap_loss, layers = None, {}
        dtype = AUTOCAST.get(config.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            if self.isnet is None:
                output = ISNetOutput(self.shared(images))
            else:
                if self.isnet.generator is not None:
                    self.isnet.generator.manual_seed(stream_seed(config.seed, "target", step))
                place = (self._first(index), config.batch_size)
                output = self.shared(images, heatmaps=takes or observed, place=place)
        classification = self.classification_loss(output.logits, labels)
        loss = (1 - share) * classification
        if takes and self.criterion is not None:
            terms = self.criterion(output, labels, masks)
            heatmap_loss = terms.heatmap
            loss = loss + share * config.heatmap_every * heatmap_loss
            layers = {name: layer_numbers(term) for name, term in terms.layers.items()}
        if observed and self.observer is not None:
            self.observer.observe(output)

        self._require_finite("loss", loss, part)
        self.scaler.scale(loss / count).backward()
        heatmap = None if heatmap_loss is None else heatmap_loss.item()
        return StepLosses(loss.item(), classification.item(), heatmap, None, layers, share)

    def _share(self, step: int) -> float:
        """P of a step, from the schedule or from the losses so far."""
        share = self.config.heatmap_share(step, self.steps_per_epoch)
        return share if self.balance is None or not share else self.balance.share(share)

    def _require_finite(self, what: str, value: Tensor, part: Example) -> None:
        if not bool(torch.isfinite(value)):
            rank = f"-rank{self.world.rank}" if self.world.size > 1 else ""
            path = None if self.run_dir is None else self.run_dir / f"non-finite-batch{rank}.safetensors"
            raise non_finite(self.step, what, value.item(), part, path)

    def _generator(self, stream: str, index: int) -> torch.Generator:
        return self.noise.manual_seed(stream_seed(self.config.seed, stream, index))

    # ---- log and checkpoints

    def _note(self, entry: dict[str, Any]) -> None:
        self.log.add({**entry, "cpu_seconds": time.process_time() - self.started})

    def _summary(self, window: list[StepLosses]) -> dict[str, Any]:
        """The means of the steps since the last entry, over all processes."""
        window = [losses for part in self.world.gather(window) for losses in part]
        mean = mean_losses(window)
        return {
            "kind": "step",
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": mean.total,
            "classification": mean.classification,
            "heatmap": mean.heatmap,
            "layers": mean.layers,
            "grad_norm": mean.grad_norm,
            "p": mean.share,
            "lr": self.config.lr * self.config.rate_factor(self.step - 1, self.steps_per_epoch),
        }

    def _save(self, name: str) -> None:
        if self.run_dir is None:
            return
        observed = [] if self.observer is None else self.world.gather(self.observer.state())
        if not self.world.is_main:
            return
        settings: dict[str, Any] = {"train": self.config.to_json(), "images": self.images_count}
        settings["scaler"] = self.scaler.state_dict()
        settings["watch"] = None if self.watch is None else self.watch.state()
        settings["observed"] = observed
        settings["balance"] = None if self.balance is None else self.balance.state()
        optimizer, ema = self.optimizer.state_dict(), None
        if self.averaged is not None:
            ema, settings["averaged_steps"] = self.averaged.module.state_dict(), int(self.averaged.n_averaged)
        state = Checkpoint(self.step, self.model.state_dict(), optimizer, settings, ema)
        save_checkpoint(self.run_dir / name, state)

    def _forget(self, epoch: int) -> None:
        if self.run_dir is not None and self.world.is_main:
            (self.run_dir / f"epoch-{epoch:04d}.safetensors").unlink(missing_ok=True)

    def restore(self) -> None:
        """Restores the run in ``run_dir``, if it has a checkpoint."""
        if self.run_dir is None:
            raise ValueError("resume: needs run_dir")
        path = self.run_dir / CHECKPOINT_NAME
        if not path.exists():
            return
        state = load_checkpoint(path)
        past_warmup = state.step > self.config.warmup * self.steps_per_epoch
        differences = self.config.differences(state.settings["train"], past_warmup=past_warmup)
        if state.settings["images"] != self.images_count:
            differences.append(f"training images: {state.settings['images']} there, {self.images_count} now")
        if differences:
            raise CheckpointError(f"{path} was made with other settings ({'; '.join(differences)})")
        load_model_state(self.model, state, path)
        if state.optimizer is None:
            raise CheckpointError(f"{path} has no optimizer state to resume from")
        self.optimizer.load_state_dict(state.optimizer)
        if self.averaged is not None:
            load_model_state(self.averaged.module, state, path, averaged=True)
            self.averaged.n_averaged.fill_(state.settings["averaged_steps"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state.settings["scaler"])
        if self.watch is not None and state.settings["watch"] is not None:
            self.watch.restore(state.settings["watch"])
        if self.balance is not None:
            self.balance.restore(state.settings["balance"])
        if self.observer is not None and self.world.is_main:  # takes over for all, whose number may have changed
            self.observer.restore(state.settings["observed"])
        self.step = state.step
        self.scheduler = build_scheduler(self.optimizer, self.config, self.steps_per_epoch, self.step)
        self.log.restore(self.step)


def _whole(parts: list[Example]) -> Example:
    images, labels, masks = (torch.cat(values) for values in zip(*parts, strict=True))
    return images, labels, masks
