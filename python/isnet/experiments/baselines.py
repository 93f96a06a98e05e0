"""Rivals of the ISNet that need more than run options: training on segmented images, and input-gradient regularisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet.data import Example
from isnet.loss import classification_loss
from isnet.runs import RunData

_GRADIENT_STRENGTH = 1.0


class Altered(Dataset[Example]):
    """A set with each image replaced by another; else as the set itself.

    Args:
        dataset: Items (image, label, mask), with an attribute ``labels``.
        change: From image [C, H, W] and mask [1, H, W] to the new image.
    """

    def __init__(self, dataset: Dataset[Example], change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.dataset, self.change = dataset, change

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        """(changed image, label, mask)."""
        image, label, mask = self.dataset[index]
        return self.change(image, mask), label, mask

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "dataset":  # __getitems__ would give unchanged images
            raise AttributeError(name)
        return getattr(self.dataset, name)


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

    def __init__(self, model: nn.Module, strength: float = _GRADIENT_STRENGTH) -> None:
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


class Rival(NamedTuple):
    """A way to train for which there is no run option.

    Attributes:
        train, test: Change each training or test image, given its mask; None: left as it is.
        network: Around the classifier while it is trained, with a method ``loss(logits, labels)``; None: the classifier alone.
    """

    train: Callable[[Tensor, Tensor], Tensor] | None = None
    test: Callable[[Tensor, Tensor], Tensor] | None = None
    network: Callable[[nn.Module], InputGradients] | None = None

    def data(self, data: RunData) -> RunData:
        """The data sets as this rival sees them."""

        def changed(
            sets: Mapping[str, Dataset[Example]], change: Callable[[Tensor, Tensor], Tensor] | None
        ) -> Mapping[str, Dataset[Example]]:
            return sets if change is None else {name: Altered(found, change) for name, found in sets.items()}

        (train,) = changed({"": data.train}, self.train).values()
        return data._replace(
            train=train, validation=changed(data.validation, self.test), tests=changed(data.tests, self.test)
        )


RIVALS: Mapping[str, Rival] = {
    "": Rival(),
    "segmented": Rival(train=segmented, test=segmented),
    "input gradients": Rival(train=with_mask, network=InputGradients),
}
