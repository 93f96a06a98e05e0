"""Heatmaps of the same few images as training goes, for the loggers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from isnet.config import TrainConfig
from isnet.config.groups import NetworkConfig
from isnet.data import Example
from isnet.explanation import heatmaps
from isnet.model import ISNet
from isnet.scoring.evaluation import background_share, masked_rows, spread_rows
from isnet.scoring.pictures import figure_pixels, overlay_figure

_IMAGES = 6


class Snapshots:
    """Validation images, spread over those with masks, under the heatmaps of the answer that a network gives.

    Args:
        config: How the network is trained, and when pictures are due.
        validation: Data sets, of which the first is shown.
        isnet: The ISNet in training, if it is one.
        input_range: Of the pixels.
    """

    def __init__(
        self,
        config: TrainConfig,
        validation: Mapping[str, Dataset[Example]],
        isnet: ISNet | None,
        input_range: tuple[Any, Any],
    ) -> None:
        self.dataset = next(iter(validation.values()), None)
        self.every = config.files.images_every if config.files.loggers else 0
        self.last = config.schedule.warmup + config.schedule.epochs
        self.eps = NetworkConfig().eps if isnet is None else isnet.eps
        self.classes, self.input_range = config.class_names, input_range
        self._batch: Any = None

    def is_due(self, epoch: int) -> bool:
        """Whether there is a picture after an epoch, counted from 1."""
        return self.dataset is not None and self.every > 0 and (epoch == self.last or epoch % self.every == 0)

    def draw(self, model: nn.Module) -> npt.NDArray[np.uint8]:
        """The picture [H, W, 3], for the network as it is; no random state is changed.

        Raises:
            ValueError: the data set has no images with masks.
        """
        with torch.random.fork_rng(devices=[]):
            if self._batch is None:
                assert self.dataset is not None
                rows = spread_rows(masked_rows(self.dataset), _IMAGES)
                if not rows:
                    raise ValueError("no validation image has a mask")
                self._batch = default_collate([self.dataset[row] for row in rows])
            images, labels, masks = self._batch
            device = next(model.parameters()).device
            logits, maps = heatmaps(model, images.to(device), eps=self.eps, input_range=self.input_range)
        logits, maps = logits.float().cpu(), maps.float().cpu()
        shares = background_share(maps, masks)
        captions = []
        for row, share in zip(logits, shares.tolist(), strict=True):
            told = "" if math.isnan(share) else f"\n{100 * share:.0f} % outside"
            captions.append(f"answer {self._name(int(row.argmax()))}{told}")
        truths = [self._names(label) for label in labels]
        low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in self.input_range)
        figure = overlay_figure((images - low) / (high - low), masks, maps, truths, captions)
        return figure_pixels(figure)

    def _names(self, label: Tensor) -> str:
        found = [int(label)] if label.dim() == 0 else label.nonzero().flatten().tolist()
        return f"label {' + '.join(map(self._name, found)) or 'none'}"

    def _name(self, number: int) -> str:
        return self.classes[number] if self.classes else str(number)
