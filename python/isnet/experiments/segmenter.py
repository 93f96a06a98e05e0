"""A small segmenter, MONAI's U-Net, trained on the masks that there are to make those that are missing.

An object of :class:`Segmenter` is what the option ``segmenter`` asks for: image [C, H, W] -> mask [H, W]. examples/segmenter.py trains one
on your own images.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from isnet._files import atomic_path
from isnet._seeds import seeded

FEATURES = (16, 16, 32, 64, 64, 16)
_STEP = 16  # the sides of the U-Net's images are multiples of this


class Segmenter:
    """A U-Net as a function from an image to its mask.

    Args:
        network: From [B, C, h, w] to logits [B, 1, h, w].
        size: (h, w) to which images are resized for it, multiples of 16.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        self.network, self.size = network.eval(), size

    @torch.no_grad()
    def __call__(self, image: Tensor) -> Tensor:
        """Probability of the foreground, float32 [H, W], for an image [C, H, W] in [0, 1]."""
        return self.probabilities(image[None])[0, 0]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """As for one image, for [B, C, H, W]: [B, 1, H, W]."""
        logits = self.network(_resized(images, self.size))
        return torch.sigmoid(_resized(logits, (images.shape[2], images.shape[3])))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a file, atomically."""
        state = self.network.state_dict()
        first = next(iter(state.values()))
        with atomic_path(path) as temporary:
            torch.save({"size": list(self.size), "channels": first.shape[1], "state": state}, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Segmenter:
        """What :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file: train a segmenter first")
        try:
            found: Any = torch.load(path, weights_only=True)
            network = _network(found["channels"])
            network.load_state_dict(found["state"])
        except Exception as error:  # torch.load knows no common class of errors
            raise ValueError(f"{path}: no segmenter ({type(error).__name__}: {error})") from error
        return cls(network, (found["size"][0], found["size"][1]))


def train_segmenter(
    images: Tensor,
    masks: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 16,
    lr: float = 3e-3,
    size: tuple[int, int] | None = None,
    seed: int = 0,
) -> Segmenter:
    """Trains a segmenter by the sum of Dice loss and cross-entropy; images are mirrored at random.

    Args:
        images: [N, C, H, W] in [0, 1].
        masks: [N, 1, H, W] of 0 and 1.
        steps: Of the training, each on ``batch_size`` images.
        batch_size: Images per step.
        lr: Of AdamW, falling to 0 along a cosine.
        size: Side lengths of the network's images; None: the images' own, rounded up to multiples of 16.
        seed: Of weights and order.

    Raises:
        ValueError: no images, masks that do not fit them or are all empty.
    """
    if len(images) == 0 or masks.shape != (len(images), 1, *images.shape[2:]):
        raise ValueError(
            f"masks: expected one or more of shape [N, 1, H, W] for images {list(images.shape)}, got {list(masks.shape)}"
        )
    if not bool(masks.any()):
        raise ValueError("masks: no foreground in any of them")
    height, width = size or (images.shape[2], images.shape[3])
    fitted = (_STEP * -(-height // _STEP), _STEP * -(-width // _STEP))
    images, masks = _resized(images, fitted), (_resized(masks.float(), fitted) >= 0.5).float()
    with seeded(seed):
        network = _network(images.shape[1])
        optimizer = torch.optim.AdamW(network.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        criterion = DiceCELoss(sigmoid=True)
        for _ in range(steps):
            rows = torch.randint(len(images), (batch_size,))
            batch, truth = images[rows], masks[rows]
            mirrored = (torch.rand(batch_size) < 0.5)[:, None, None, None]
            batch, truth = (torch.where(mirrored, values.flip(3), values) for values in (batch, truth))
            optimizer.zero_grad()
            criterion(network(batch), truth).backward()
            optimizer.step()
            schedule.step()
    return Segmenter(network, fitted)


def _network(channels: int) -> nn.Module:
    network: nn.Module = BasicUNet(2, channels, 1, features=FEATURES)
    return network


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
