"""Rivals of the ISNet that need more than another training set: input-gradient regularisation, and training on segmented images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet.data import Example
from isnet.loss import classification_loss


class Altered(Dataset[Example]):
    """A set with each image replaced by another.

    Args:
        dataset: Items (image, label, mask), with an attribute ``labels``.
        change: From image [C, H, W] and mask [1, H, W] to the new image.
    """

    def __init__(self, dataset: Dataset[Example], change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.dataset, self.change = dataset, change
        self.labels = cast(Any, dataset).labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """(changed image, label, mask)."""
        image, label, mask = self.dataset[index]
        return self.change(image, mask), label, mask


def segmented(image: Tensor, mask: Tensor) -> Tensor:
    """What a perfect segmenter ahead of the classifier would leave: zero outside the foreground."""
    return image * mask


def with_mask(image: Tensor, mask: Tensor) -> Tensor:
    """The mask as one more channel, for :class:`InputGradients`."""
    return torch.cat([image, mask])


class InputGradients(nn.Module):
    """Right for the right reasons: the input gradient of the summed log-probabilities is penalised outside the mask.

    Args:
        model: The classifier.
        strength: Weight of the penalty, the sum of squares per image, averaged over the batch.

    Source: Ross, Hughes, Doshi-Velez 2017, equation 1.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.model, self.strength = model, strength
        self._seen: tuple[Tensor, Tensor] | None = None

    def forward(self, images_and_masks: Tensor) -> Tensor:
        """Logits [B, K] of images [B, C + 1, H, W] whose last channel is the mask."""
        images, masks = images_and_masks[:, :-1], images_and_masks[:, -1:]
        if not self.training:
            return self.model(images)
        images = images.detach().requires_grad_()
        self._seen = images, masks
        return self.model(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy plus the penalty, for the logits of the last call."""
        classification = classification_loss(logits, labels)
        if self._seen is None:
            return classification
        images, masks = self._seen
        self._seen = None
        chances = torch.log_softmax(logits, 1).sum()
        (gradient,) = torch.autograd.grad(chances, images, create_graph=True)
        return classification + self.strength * ((1 - masks) * gradient).square().sum() / len(images)
