"""The training loop: standard classifiers and ISNets, with foreground warm-up and lazy heatmap loss.

Every random draw (order of the images, background noise, explained logit, dropout) is a function of the seed and the
step alone. A run that was killed and resumed, or branched from another run's checkpoint, therefore continues bit for
bit as if it had never stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from isnet._files import atomic_path
from isnet.checkpoints import Checkpoint, CheckpointError, load_checkpoint, load_model_state, save_checkpoint
from isnet.evaluation import Example, accuracy
from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet
from isnet.train_config import TrainConfig

CHECKPOINT_NAME = "last.safetensors"
LOG_NAME = "log.jsonl"


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient became infinite or not a number."""


def replace_background(
    images: Tensor, masks: Tensor, generator: torch.Generator, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Replaces everything outside the foreground by uniform noise, of another amplitude in each image.

    Args:
        images: [B, C, H, W] in [low, high].
        masks: [B, 1, H, W], 1 = foreground.
        generator: CPU generator of the draws.
        low: Lower end of the pixel range.
        high: Upper end.
    """
    noise = torch.rand(images.shape, generator=generator) * torch.rand(len(images), 1, 1, 1, generator=generator)
    noise = (low + (high - low) * noise).to(images)
    return torch.where(masks > 0, images, noise)


def fit(
    network: nn.Module,
    train_set: Dataset[Example],
    config: TrainConfig,
    *,
    criterion: ISNetLoss | None = None,
    classification_loss: Callable[[Tensor, Tensor], Tensor] = classification_loss,
    input_range: tuple[float, float] = (0.0, 1.0),
    validation: Mapping[str, Dataset[Example]] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    title: str = "training",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Trains a classifier, or an ISNet with its heatmap loss.

    Args:
        network: An :class:`isnet.ISNet`, or any module from images to logits, which is then trained without heatmaps.
            It is trained on the device where its parameters are.
        train_set: Items (image [C, H, W], label [], mask [1, H, W]).
        config: How to train.
        criterion: The heatmap loss; needed for an ISNet. Its ``p`` gives way to the schedule in ``config``.
        classification_loss: (logits, labels) -> scalar, used in steps without a heatmap.
        input_range: Pixel range of the noise in the warm-up.
        validation: Data sets whose accuracy is logged after each epoch.
        run_dir: Folder for the log and the checkpoint; None keeps nothing on disk.
        resume: Continue from the checkpoint in ``run_dir`` if there is one.
        title: Shown beside the progress bar.
        progress: Show a progress bar on the terminal.

    Returns:
        The log: one entry per ``log_every`` steps and one per epoch, those of a resumed run included.

    Raises:
        ValueError: too few images for one batch, an ISNet without criterion, or ``resume`` without ``run_dir``.
        CheckpointError: the checkpoint is of other settings (``log_every``, ``save_every`` and,
            under a constant schedule, ``epochs`` may change).
        NonFiniteLossError: loss or gradient not finite; the batch is saved in ``run_dir``.
    """
    trainer = _Trainer(network, train_set, config, criterion, classification_loss, input_range, run_dir)
    if resume:
        trainer.restore()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), disable=not progress) as display:
        return trainer.run(validation or {}, display, title)


class _StepLosses(NamedTuple):
    total: float
    classification: float
    heatmap: float | None
    grad_norm: float | None


class _Trainer:
    """The state of one call of :func:`fit`."""

    def __init__(
        self,
        network: nn.Module,
        train_set: Dataset[Example],
        config: TrainConfig,
        criterion: ISNetLoss | None,
        classification_loss: Callable[[Tensor, Tensor], Tensor],
        input_range: tuple[float, float],
        run_dir: str | os.PathLike[str] | None,
    ) -> None:
        self.isnet = network if isinstance(network, ISNet) else None
        self.model: nn.Module = self.isnet.model if self.isnet is not None else network
        if self.isnet is not None and criterion is None:
            raise ValueError("criterion: an ISNet needs an ISNetLoss")
        self.images_count = len(cast(Sized, train_set))
        self.steps_per_epoch = self.images_count // config.batch_size
        if self.steps_per_epoch == 0:
            raise ValueError(f"train_set: {self.images_count} images do not fill one batch of {config.batch_size}")
        self.network, self.train_set, self.config, self.criterion = network, train_set, config, criterion
        self.classification_loss, self.input_range = classification_loss, input_range
        self.run_dir = None if run_dir is None else Path(run_dir)
        self.device = next(self.model.parameters()).device
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = _build_optimizer(self.model, config)
        self.step = 0
        self.log: list[dict[str, Any]] = []
        self.noise = torch.Generator()

    # ---- the loop

    def run(self, validation: Mapping[str, Dataset[Example]], display: Progress, title: str) -> list[dict[str, Any]]:
        last_step = (self.config.warmup + self.config.epochs) * self.steps_per_epoch
        task = display.add_task(title, total=last_step, completed=self.step, loss="")
        self._start_log()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            while self.step < last_step:
                started = time.perf_counter()
                epoch = self.step // self.steps_per_epoch
                self._epoch(epoch, display, task)
                entry: dict[str, Any] = {"kind": "epoch", "step": self.step, "epoch": epoch + 1}
                entry["phase"] = "warm-up" if epoch < self.config.warmup else "training"
                entry["seconds"] = time.perf_counter() - started
                if validation:
                    entry["accuracy"] = {name: accuracy(self.model, data) for name, data in validation.items()}
                self._write_log(entry)
                self._save()
        return self.log

    def _epoch(self, epoch: int, display: Progress, task: Any) -> None:
        """The rest of an epoch, from ``self.step`` on."""
        self.network.train()
        window: list[_StepLosses] = []
        for images, labels, masks in self._batches(epoch):
            losses = self._train_step(images, labels, masks)
            self.step += 1
            window.append(losses)
            display.update(task, completed=self.step, loss=f"loss {losses.total:.3f}")
            if self.step % self.config.log_every == 0:
                self._write_log(self._summary(window))
                window.clear()
            due = self.config.save_every is not None and self.step % self.config.save_every == 0
            if due and self.step % self.steps_per_epoch:  # run() saves at the end of the epoch, after its log entry
                self._save()

    def _batches(self, epoch: int) -> Iterator[Example]:
        order = torch.randperm(self.images_count, generator=self._generator("order", epoch))
        size = self.config.batch_size
        first = self.step - epoch * self.steps_per_epoch
        rows = [order[i * size : (i + 1) * size].tolist() for i in range(first, self.steps_per_epoch)]
        return iter(DataLoader(self.train_set, batch_sampler=rows))

    def _train_step(self, images: Tensor, labels: Tensor, masks: Tensor) -> _StepLosses:
        config, step = self.config, self.step
        images, labels, masks = (value.to(self.device) for value in (images, labels, masks))
        if step < config.warmup * self.steps_per_epoch:
            images = replace_background(images, masks, self._generator("noise", step), *self.input_range)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        torch.manual_seed(self._seed("model", step))
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(step, self.steps_per_epoch)

        share = config.heatmap_share(step, self.steps_per_epoch) if self.isnet is not None else 0.0
        heatmap_loss = None
        if self.isnet is not None and self.criterion is not None and config.takes_heatmap(step, self.steps_per_epoch):
            if self.isnet.generator is not None:
                self.isnet.generator.manual_seed(self._seed("target", step))
            terms = self.criterion(self.isnet(images), labels, masks)
            classification, heatmap_loss = terms.classification, terms.heatmap
            loss = (1 - share) * classification + share * config.heatmap_every * heatmap_loss
        else:
            classification = self.classification_loss(self.model(images), labels)
            loss = (1 - share) * classification

        self._require_finite("loss", loss, images, labels, masks)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = None
        if config.clip_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
            self._require_finite("gradient norm", norm, images, labels, masks)
        self.optimizer.step()
        return _StepLosses(
            loss.item(),
            classification.item(),
            None if heatmap_loss is None else heatmap_loss.item(),
            None if norm is None else norm.item(),
        )

    def _require_finite(self, what: str, value: Tensor, images: Tensor, labels: Tensor, masks: Tensor) -> None:
        if bool(torch.isfinite(value)):
            return
        where = ""
        if self.run_dir is not None:
            path = self.run_dir / "non-finite-batch.safetensors"
            batch = {"images": images, "labels": labels, "masks": masks}
            with atomic_path(path) as temporary:
                save_file({name: part.detach().cpu().contiguous() for name, part in batch.items()}, temporary)
            where = f" The batch is in {path}."
        raise NonFiniteLossError(
            f"step {self.step + 1}: the {what} is {value.item()}.{where} Lower the learning rate or P, raise eps or "
            "clip_norm's effect, or start from a warm-up; the last checkpoint is from before this step."
        )

    # ---- randomness: a function of (seed, stream, index)

    def _seed(self, stream: str, index: int) -> int:
        entropy = [self.config.seed, *stream.encode(), index]
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def _generator(self, stream: str, index: int) -> torch.Generator:
        return self.noise.manual_seed(self._seed(stream, index))

    # ---- log and checkpoints

    def _summary(self, window: list[_StepLosses]) -> dict[str, Any]:
        heatmap = [losses.heatmap for losses in window if losses.heatmap is not None]
        norms = [losses.grad_norm for losses in window if losses.grad_norm is not None]
        step = self.step - 1
        return {
            "kind": "step",
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "loss": float(np.mean([losses.total for losses in window])),
            "classification": float(np.mean([losses.classification for losses in window])),
            "heatmap": float(np.mean(heatmap)) if heatmap else None,
            "grad_norm": float(np.mean(norms)) if norms else None,
            "p": self.config.heatmap_share(step, self.steps_per_epoch) if self.isnet is not None else 0.0,
            "lr": self.config.learning_rate(step, self.steps_per_epoch),
        }

    def _start_log(self) -> None:
        """Starts the log file afresh with the entries that precede the checkpoint."""
        if self.run_dir is not None:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.log)
            with atomic_path(self.run_dir / LOG_NAME) as temporary:
                temporary.write_text(lines)

    def _write_log(self, entry: dict[str, Any]) -> None:
        self.log.append(entry)
        if self.run_dir is not None:
            with (self.run_dir / LOG_NAME).open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def _save(self) -> None:
        if self.run_dir is not None:
            settings = {"train": asdict(self.config), "images": self.images_count}
            state = Checkpoint(self.step, self.model.state_dict(), self.optimizer.state_dict(), settings)
            save_checkpoint(self.run_dir / CHECKPOINT_NAME, state)

    def restore(self) -> None:
        """Takes up the run in ``run_dir``, if it has a checkpoint."""
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
        self.step = state.step
        log = self.run_dir / LOG_NAME
        if log.exists():
            self.log = [entry for entry in read_log(log) if entry["step"] <= self.step]


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The entries of a JSONL log; a last line that a kill cut short is left out."""
    entries = []
    for line in Path(path).read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return entries


def _build_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
