"""Images that a data set holds in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset


class HeldImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Base of sets whose images are made when the set is.

    Attributes:
        images: float32 [N, C, H, W].
        labels: int64 [N].
        masks: float32 [N, 1, H, W], 1 = foreground.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor

    @property
    def contents(self) -> str:
        """What the set shows, to compare it with others."""
        return hashlib.sha256(self.images.numpy().tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(image [C, H, W], label [], mask [1, H, W])."""
        return self.images[index], self.labels[index], self.masks[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Many items at once; DataLoader prefers this to one call per item."""
        rows = torch.as_tensor(indices)
        return list(zip(self.images[rows], self.labels[rows], self.masks[rows], strict=True))
