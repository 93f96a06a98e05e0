"""A classifier trained as an ISNet by Lightning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from isnet._seeds import stream_seed
from isnet.architectures import build_architecture
from isnet.data.backgrounds import WarmupBackground, replace_background
from isnet.factories import require_no_files, require_trusted
from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet
from isnet.scoring.evaluation import Example, background_share, right_answers
from isnet.training.ranges import NaturalRange

_RANGES = "isnet_ranges"  # in a checkpoint


class ISNetModule(lightning.LightningModule):
    """A classifier trained as an ISNet.

    Logs ``train_loss``, ``train_classification``, ``train_heatmap``, and for ``val`` and ``test`` ``_loss``, ``_accuracy`` and
    ``_background_share``, the mean share of relevance outside the masks. All arguments but a module are hyper-parameters, which checkpoints
    keep.

    Args:
        model: The classifier: a module, or ``monai:NAME``, ``torchvision:NAME`` or ``timm:NAME``. With a name
            ``load_from_checkpoint(path)`` needs nothing else; with a module, ``load_from_checkpoint(path, model=...)``.
        model_args: Arguments of a named model.
        image_shape: (channels, height, width) for a named model.
        num_classes: For a named model.
        isnet: Arguments of :class:`isnet.ISNet`, ``{"variant": "dual"}`` for example.
        loss: Arguments of :class:`isnet.ISNetLoss`.
        lr: Learning rate of AdamW; override ``configure_optimizers`` for anything else.
        weight_decay: Of AdamW.
        heatmap_every: The heatmap loss is taken on every K-th step of the optimizer, weighted K.
        seed: Dropout, explained logits and noise of a step follow from it and the step's number, as in :func:`isnet.training.fit`, and
            PyTorch's generator is seeded in every step. None: dropout draws from PyTorch's generator.
        explained_images: How many images per epoch, process and data set ``_background_share`` looks at; 0: it is left out.

    Raises:
        ValueError: a setting out of range, no model, or a named one without ``image_shape`` and ``num_classes``.
        TypeError: ``model`` is an ISNet.
        FactoryError: a name of code other than these libraries', which ISNET_TRUST does not name.

    Examples:
        >>> module = ISNetModule(model, loss={"p": 0.7})
        >>> lightning.Trainer(max_epochs=10, gradient_clip_val=1.0).fit(module, loader)   # batches (images, labels, masks)
    """

    not_kept: tuple[str, ...] = ("model",)  # arguments that are modules: no hyper-parameters

    def __init__(
        self,
        model: nn.Module | str | None = None,
        *,
        model_args: Mapping[str, Any] | None = None,
        image_shape: Sequence[int] | None = None,
        num_classes: int | None = None,
        isnet: Mapping[str, Any] | None = None,
        loss: Mapping[str, Any] | None = None,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        heatmap_every: int = 1,
        seed: int | None = None,
        explained_images: int = 64,
    ) -> None:
        super().__init__()
        if lr <= 0 or heatmap_every < 1 or explained_images < 0:
            raise ValueError(
                "expected lr > 0, heatmap_every >= 1 and explained_images >= 0, got "
                f"{lr}, {heatmap_every} and {explained_images}"
            )
        if model is None:
            raise ValueError(
                "model: expected a module or a name; a checkpoint of a module needs load_from_checkpoint(path, model=...)"
            )
        if isinstance(model, ISNet):
            raise TypeError("model: expected the classifier, got an ISNet; give its arguments as isnet={...}")
        self.save_hyperparameters(ignore=self.not_kept if isinstance(model, nn.Module) else ())
        if isinstance(model, str):
            model = _built(model, model_args or {}, image_shape, num_classes)
        self.network = ISNet(model, **{"generator": torch.Generator(), **(isnet or {})})
        self.loss_options = dict(loss or {})
        self.criterion = ISNetLoss(**self.loss_options)
        self.lr, self.weight_decay, self.heatmap_every, self.seed = lr, weight_decay, heatmap_every, seed
        self.explained_images = explained_images
        self.ranges: dict[str, NaturalRange] = {}
        self.replaced_background: WarmupBackground | None = None  # set by WarmUp, as is the number of its steps
        self.warmup_steps = 0
        self._shares: dict[int, list[float]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K], without heatmaps in either mode."""
        return self.network.model(images)

    def explain(self, images: Tensor, target: Any = None) -> tuple[Tensor, Tensor]:
        """Logits and heatmaps to look at, in full precision; see :meth:`isnet.ISNet.explain`."""
        with torch.autocast(images.device.type, enabled=False):
            return self.network.explain(images, target)

    # ---- training

    def on_train_epoch_start(self) -> None:
        """Passes the epoch to the training set, as :func:`isnet.training.fit` does, so that its augmentation draws anew."""
        tell_epoch(getattr(self.trainer.train_dataloader, "dataset", None), self.current_epoch)

    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        images, labels, masks = batch
        # Counts the optimizer's steps over all epochs: batch numbers restart in each.
        step, parts = self.global_step, self.trainer.accumulate_grad_batches
        first = (self.global_rank * parts + batch_idx % parts) * len(images)
        total = len(images) * parts * self.trainer.world_size
        warm = self.replaced_background is not None
        if self.replaced_background is not None:
            noise = torch.Generator().manual_seed(self._stream("noise", step))
            low, high = self.network.input_range or (0.0, 1.0)
            kind = self.replaced_background
            images = replace_background(images, masks, noise, low, high, kind=kind, first=first, total=total)
        if self.seed is not None:  # the first part draws as the whole batch would; the others need draws of their own
            torch.manual_seed(self._stream("model", step, *(() if first == 0 else (first,))))
        if self.network.generator is not None:
            self.network.generator.manual_seed(self._stream("target", step))
        takes = not warm and (step - self.warmup_steps + 1) % self.heatmap_every == 0
        output = self.network(images, heatmaps=takes, place=(first, total))
        with torch.autocast(self.device.type, enabled=False):
            terms = self.criterion(output, labels, masks)
        p = 0.0 if warm else self.criterion.p
        loss = (1 - p) * terms.classification + p * self.heatmap_every * terms.heatmap
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_classification", terms.classification)
        if takes:
            self.log("train_heatmap", terms.heatmap)
        return loss

    def _stream(self, name: str, *indices: int) -> int:
        return stream_seed(torch.initial_seed() if self.seed is None else self.seed, name, *indices)

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)

    # ---- C1 and C2

    def use_ranges(self, ranges: Mapping[str, NaturalRange]) -> None:
        """Puts C1 and C2 of each supervised layer into the loss; checkpoints keep them."""
        self.ranges = dict(ranges)
        bounds = {key: {name: getattr(found, key) for name, found in ranges.items()} for key in ("c1", "c2")}
        self.criterion = ISNetLoss(**{**self.loss_options, **bounds})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ranges:
            checkpoint[_RANGES] = {name: dataclasses.asdict(found) for name, found in self.ranges.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if _RANGES in checkpoint:
            self.use_ranges({name: NaturalRange(**found) for name, found in checkpoint[_RANGES].items()})

    # ---- scores

    def validation_step(self, batch: Example, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score("val", batch, dataloader_idx)

    def test_step(self, batch: Example, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._score("test", batch, dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """``{"logits": [B, K], "heatmap": [B, C, H, W]}``, R of the highest logit, for images or batches that begin with them."""
        logits, heatmap = self.explain(batch if isinstance(batch, Tensor) else batch[0])
        return {"logits": logits, "heatmap": heatmap}

    def on_validation_epoch_start(self) -> None:
        self._shares = {}

    def on_test_epoch_start(self) -> None:
        self._shares = {}

    def on_validation_epoch_end(self) -> None:
        self._log_shares("val")

    def on_test_epoch_end(self) -> None:
        self._log_shares("test")

    def _score(self, stage: str, batch: Example, dataset: int) -> None:
        images, labels, masks = batch
        logits = self.network.model(images)
        how: dict[str, Any] = {"prog_bar": True, "batch_size": len(images), "sync_dist": True}
        self.log(f"{stage}_loss", classification_loss(logits, labels), **how)
        self.log(f"{stage}_accuracy", right_answers(logits, labels).float().mean(), **how)
        total, count, seen = self._shares.setdefault(dataset, [0.0, 0.0, 0.0])
        rows = slice(max(0, int(self.explained_images - seen)))
        if len(images[rows]):
            shares = background_share(self.explain(images[rows])[1], masks[rows])
            total, count = total + float(shares.nansum()), count + float(shares.isfinite().sum())
        self._shares[dataset] = [total, count, seen + len(images)]

    def _log_shares(self, stage: str) -> None:
        """Logs the mean over all processes, for data sets with masks."""
        for dataset, (total, count, _) in sorted(self._shares.items()):
            sums = self.trainer.strategy.reduce(torch.tensor([total, count], device=self.device), reduce_op="sum")
            if sums[1] > 0:
                which = f"/dataloader_idx_{dataset}" if len(self._shares) > 1 else ""
                self.log(f"{stage}_background_share{which}", sums[0] / sums[1], prog_bar=True, add_dataloader_idx=False)


def _built(name: str, arguments: Mapping[str, Any], shape: Sequence[int] | None, classes: int | None) -> nn.Module:
    if shape is None or len(shape) != 3 or classes is None:
        raise ValueError(
            f"model: {name!r} needs image_shape=(channels, height, width) and num_classes, got {shape} and {classes}"
        )
    # The name may come from a checkpoint, which must not choose what runs here.
    require_trusted({"network.arch": name}, (), "ISNetModule")
    require_no_files(name, dict(arguments), "ISNetModule")
    channels, height, width = shape
    return build_architecture(name, arguments, image_shape=(channels, height, width), num_classes=classes)


def tell_epoch(dataset: Any, epoch: int) -> None:
    """Passes the epoch on to a data set that asks for it."""
    set_epoch = getattr(dataset, "set_epoch", None)
    if set_epoch is not None:
        set_epoch(epoch)
