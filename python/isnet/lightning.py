"""ISNet training as a LightningModule, for those who use Lightning (extra ``lightning``)."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from isnet.loss import ISNetLoss, classification_loss
from isnet.model import ISNet
from isnet.scoring.evaluation import Example, right_answers


class ISNetModule(lightning.LightningModule):
    """An ISNet with its loss; logs ``train_loss``, ``train_classification``, ``train_heatmap``, ``val_loss`` and ``val_accuracy``.

    Args:
        network: The ISNet.
        criterion: Its loss.
        lr: Learning rate of AdamW; override ``configure_optimizers`` for anything else.
        weight_decay: Of AdamW.
        heatmap_every: The heatmap loss is taken on every K-th step of the optimizer, weighted K.

    Raises:
        ValueError: lr or heatmap_every out of range.

    Example:
        >>> module = ISNetModule(isnet.ISNet(model, "selective"), isnet.ISNetLoss(p=0.7))
        >>> lightning.Trainer(max_epochs=10, gradient_clip_val=1.0).fit(module, loader)   # batches (images, labels, masks)
    """

    def __init__(
        self, network: ISNet, criterion: ISNetLoss, lr: float = 1e-3, weight_decay: float = 1e-2, heatmap_every: int = 1
    ) -> None:
        super().__init__()
        if lr <= 0 or heatmap_every < 1:
            raise ValueError(f"expected lr > 0 and heatmap_every >= 1, got {lr} and {heatmap_every}")
        self.network, self.criterion = network, criterion
        self.lr, self.weight_decay, self.heatmap_every = lr, weight_decay, heatmap_every

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K], without heatmaps in either mode."""
        return self.network.model(images)

    def on_train_epoch_start(self) -> None:
        """Passes the epoch to the training set, as :func:`isnet.training.fit` does, so that its augmentation draws anew."""
        set_epoch = getattr(getattr(self.trainer.train_dataloader, "dataset", None), "set_epoch", None)
        if set_epoch is not None:
            set_epoch(self.current_epoch)

    def training_step(self, batch: Example, batch_idx: int) -> Tensor:
        images, labels, masks = batch
        # Counts the optimizer's steps over all epochs: batch numbers restart in each.
        takes = (self.global_step + 1) % self.heatmap_every == 0
        terms = self.criterion(self.network(images, heatmaps=takes), labels, masks)
        p = self.criterion.p
        loss = (1 - p) * terms.classification + p * self.heatmap_every * terms.heatmap
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_classification", terms.classification)
        if takes:
            self.log("train_heatmap", terms.heatmap)
        return loss

    def validation_step(self, batch: Example, batch_idx: int) -> None:
        images, labels, _ = batch
        logits = self.network.model(images)
        count = len(images)
        self.log("val_loss", classification_loss(logits, labels), prog_bar=True, batch_size=count)
        self.log("val_accuracy", right_answers(logits, labels).float().mean(), prog_bar=True, batch_size=count)

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
