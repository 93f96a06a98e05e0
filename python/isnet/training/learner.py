"""One optimization step, and the state that steps change."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from isnet._seeds import stream_seed
from isnet.config import TrainConfig
from isnet.data import Example
from isnet.data.backgrounds import replace_background
from isnet.distillation import Distilled, MatchingLoss
from isnet.loss import ISNetLoss
from isnet.model import ISNet, ISNetOutput
from isnet.training.balance import Balance
from isnet.training.checkpoints import Checkpoint, CheckpointError, restore_tensors
from isnet.training.distributed import World
from isnet.training.state import TrainingState
from isnet.training.steps import (
    AUTOCAST,
    SMALLEST_SCALE,
    HeatmapObserver,
    StepLosses,
    build_optimizer,
    build_scheduler,
    layer_numbers,
    mean_losses,
    non_finite,
    synchronize_batch_norm,
)


class Learner:
    """A network in training: it takes steps, and its state can be saved and restored.

    Args:
        network: The classifier, an ISNet, or a student with its teacher.
        config: How to train.
        world: The processes that train together.
        steps_per_epoch: Optimizer steps.
        criterion: The heatmap loss, if any.
        classification_loss: (logits, labels) -> scalar.
        input_range: Of the noise in replaced backgrounds.
        observer: Gets the heatmaps of the last epoch.
        run_dir: Where a batch goes whose loss is not finite.

    Attributes:
        step: Steps done.
        averaged: The moving average of the weights, if there is one.
        shared: What each step calls: the network, or DDP around it.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        world: World,
        steps_per_epoch: int,
        *,
        criterion: ISNetLoss | None,
        classification_loss: Callable[[Tensor, Tensor], Tensor],
        input_range: tuple[Any, Any],
        observer: HeatmapObserver | None,
        run_dir: Path | None,
    ) -> None:
        self.isnet = network if isinstance(network, ISNet) else None
        self.distilled = network if isinstance(network, Distilled) else None
        self.model: nn.Module = network.model if isinstance(network, ISNet | Distilled) else network
        self.network, self.config, self.world, self.steps_per_epoch = network, config, world, steps_per_epoch
        self.criterion, self.classification_loss = criterion, classification_loss
        self.input_range, self.observer, self.run_dir = input_range, observer, run_dir
        self.device = next(self.model.parameters()).device
        self.last_step = (config.schedule.warmup + config.schedule.epochs) * steps_per_epoch
        if config.train.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.train.sync_batch_norm and world.size > 1:
            synchronize_batch_norm(self.model)
        self.averaged: AveragedModel | None = None
        if config.train.ema is not None:
            self.averaged = AveragedModel(
                self.model, multi_avg_fn=get_ema_multi_avg_fn(config.train.ema), use_buffers=True
            ).eval()
        self.optimizer = build_optimizer(self.model, config)
        self.scheduler = build_scheduler(self.optimizer, config, steps_per_epoch)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.train.precision == "float16")
        self.balance = Balance() if config.loss.balance == "auto" else None
        self.matching = MatchingLoss()
        self.step = 0
        self.noise = torch.Generator()
        self.shared: nn.Module = network

    def distribute(self) -> None:
        """Averages gradients over all processes from now on."""
        if self.world.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.network, device_ids=devices)

    def first_of(self, part: int) -> int:
        """Where a part of this process begins in the batch."""
        parts = self.config.train.accumulate
        return (self.world.rank * parts + part) * (self.config.train.batch_size // (self.world.size * parts))

    def generator(self, stream: str, index: int) -> torch.Generator:
        """The draws of a stream, seeded by its name and an index alone."""
        return self.noise.manual_seed(stream_seed(self.config.train.seed, stream, index))

    def take_step(self, parts: list[Example]) -> StepLosses:
        """One step on the parts of a batch.

        Raises:
            NonFiniteLossError: loss or gradient not finite.
        """
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            ddp = self.shared if isinstance(self.shared, DistributedDataParallel) else None
            with contextlib.nullcontext() if last or ddp is None else ddp.no_sync():
                losses.append(self._accumulate(part, index, len(parts)))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.train.clip_norm or math.inf)
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
        self.step += 1
        return mean

    def _accumulate(self, part: Example, index: int, count: int) -> StepLosses:
        """Forward and backward pass of one part; its gradient is added to those of the parts before."""
        config, step = self.config, self.step
        images, labels, masks = part = tuple(value.to(self.device) for value in part)  # type: ignore[assignment]
        if config.replaces_background(step, self.steps_per_epoch):
            images = replace_background(
                images,
                masks,
                self.generator("noise", step),
                *self.input_range,
                kind=config.schedule.warmup_background,
                first=self.first_of(index),
                total=config.train.batch_size,
            )
        if config.train.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        # Dropout: the first part draws as the whole batch would; the others need draws of their own.
        own = () if self.first_of(index) == 0 else (self.first_of(index),)
        torch.manual_seed(stream_seed(config.train.seed, "model", step, *own))

        supervised = self.isnet is not None and self.criterion is not None
        share = self._share(step) if supervised else 0.0
        takes = supervised and config.takes_heatmap(step, self.steps_per_epoch)
        observed = self.observer is not None and step >= self.last_step - self.steps_per_epoch
        heatmap_loss, layers = None, {}
        dtype = AUTOCAST.get(config.train.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            explained = self.isnet or self.distilled
            if explained is not None and explained.generator is not None:
                explained.generator.manual_seed(stream_seed(config.train.seed, "target", step))
            place = (self.first_of(index), config.train.batch_size)
            if self.distilled is not None:
                output = self.shared(images, masks, place=place)
            elif self.isnet is not None:
                output = self.shared(images, heatmaps=takes or observed, place=place)
            else:
                output = ISNetOutput(self.shared(images))
        # Beside a teacher it is logged alone, and no label reaches the weights.
        with contextlib.nullcontext() if self.distilled is None else torch.no_grad():
            classification = self.classification_loss(output.logits, labels)
        loss = (1 - share) * classification
        if self.distilled is not None:
            loss = heatmap_loss = self.matching(output).total
            if isinstance(
                self.shared, DistributedDataParallel
            ):  # which waits for a gradient of each parameter, a free head's bias, too
                loss = loss + 0 * output.logits.sum()
        elif takes and self.criterion is not None:
            terms = self.criterion(output, labels, masks)
            heatmap_loss = terms.heatmap
            loss = loss + share * config.loss.heatmap_every * heatmap_loss
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

    # ---- state

    @property
    def scored(self) -> nn.Module:
        """The model whose weights are used in the end: the moving average, if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    def checkpoint(self, settings: dict[str, Any]) -> Checkpoint:
        """The state between two steps; ``settings`` are kept with it, and get what is not a tensor."""
        settings["scaler"] = self.scaler.state_dict()
        settings["balance"] = None if self.balance is None else self.balance.state()
        optimizer, ema = self.optimizer.state_dict(), None
        if self.averaged is not None:
            ema, settings["averaged_steps"] = self.averaged.module.state_dict(), int(self.averaged.n_averaged)
        return Checkpoint(self.step, self.model.state_dict(), optimizer, settings, ema)

    def restore(self, state: Checkpoint, settings: TrainingState, path: Path) -> None:
        """Continues from a state; ``path`` is where it comes from, for errors.

        Raises:
            CheckpointError: it does not fit.
        """
        restore_tensors(
            state, path, self.model, self.optimizer, None if self.averaged is None else self.averaged.module
        )
        if self.averaged is not None:
            self.averaged.n_averaged.fill_(settings.averaged_steps or 0)
        try:
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(settings.scaler)
            if self.balance is not None and settings.balance is not None:
                self.balance.restore(settings.balance.model_dump())
            if self.observer is not None and self.world.is_main:  # takes over for all, whose number may have changed
                self.observer.restore(
                    [{name: of.model_dump() for name, of in part.items()} for part in settings.observed]
                )
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{path}: its settings cannot be used ({error})") from error
        self.step = state.step
        self.scheduler = build_scheduler(self.optimizer, self.config, self.steps_per_epoch, self.step)


def _whole(parts: list[Example]) -> Example:
    images, labels, masks = (torch.cat(values) for values in zip(*parts, strict=True))
    return images, labels, masks
