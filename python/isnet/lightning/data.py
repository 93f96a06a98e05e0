"""Images and masks as ``isnet train`` reads them, for a Lightning trainer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sized
from typing import Any, cast

import lightning
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from isnet._seeds import stream_seed
from isnet.config import ImagesConfig
from isnet.data import Example
from isnet.data.table import TRAIN, VALIDATION
from isnet.lightning.module import tell_epoch
from isnet.runs.data import RunData, load_data, with_classes
from isnet.training.distributed import current_world


class EpochOrder(DistributedSampler[Any]):
    """The order in which :func:`isnet.training.fit` takes the images: another one in each epoch, by seed and epoch.

    Processes that train together share the images: with batches of one size each has every n-th image of the batch that they have together.

    Args:
        dataset: The images.
        seed: Of the run.
    """

    def __init__(self, dataset: Dataset[Any], seed: int = 0) -> None:
        # A DistributedSampler for Lightning, which would put its own order in place of others; who shares is looked up when it is known.
        super().__init__(dataset, num_replicas=1, rank=0, seed=seed, drop_last=True)

    def __iter__(self) -> Iterator[int]:
        world, images = current_world(), len(cast(Sized, self.dataset))
        generator = torch.Generator().manual_seed(stream_seed(self.seed, "order", self.epoch))
        order = torch.randperm(images, generator=generator).tolist()
        return iter(order[world.rank :: world.size][: len(self)])

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset)) // current_world().size


class ISNetDataModule(lightning.LightningDataModule):
    """The images and masks of a folder, manifest or shards, as ``isnet train`` reads them.

    Args:
        path: Where they are.
        batch_size: Images per process and step.
        workers: Processes that load them.
        seed: Of order, augmentation and validation split.
        options: Other options of the group ``data`` (docs/options.md): ``masks``, ``size``, ``channels``, ``augment``, ...

    Attributes:
        config: All options, with the classes found.

    Raises:
        ValueError: an option that does not fit.
        DataError: nothing usable.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, batch_size: int = 16, workers: int = 0, seed: int = 0, **options: Any
    ) -> None:
        super().__init__()
        self.config = with_classes(ImagesConfig(path=os.fspath(path), **options))
        self.batch_size, self.workers, self.seed = batch_size, workers, seed
        self.data: RunData | None = None

    @property
    def for_module(self) -> dict[str, Any]:
        """Arguments of an :class:`ISNetModule` with a named model for these images."""
        shape, classes = list(self.config.image_shape), len(self.config.classes)
        return {"image_shape": shape, "num_classes": classes, "isnet": {"input_range": self.config.pixel_range}}

    def setup(self, stage: str | None = None) -> None:
        if self.data is None:
            self.data = load_data(self.config, seed=self.seed, need_masks=(TRAIN, VALIDATION), progress=False)

    def train_dataloader(self) -> DataLoader[Example]:
        images, epoch = self._sets.train, 0 if self.trainer is None else self.trainer.current_epoch
        order = EpochOrder(images, self.seed)
        order.set_epoch(epoch)  # now, as for the images: a loader's processes start before the trainer tells the epoch
        tell_epoch(images, epoch)
        return DataLoader(images, self.batch_size, sampler=order, drop_last=True, num_workers=self.workers)

    def val_dataloader(self) -> list[DataLoader[Example]]:
        return [self._loader(images) for images in self._sets.validation.values()]

    def test_dataloader(self) -> list[DataLoader[Example]]:
        return [self._loader(images) for images in self._sets.tests.values()]

    def predict_dataloader(self) -> list[DataLoader[Example]]:
        return self.test_dataloader()

    def _loader(self, images: Dataset[Example]) -> DataLoader[Example]:
        return DataLoader(images, self.batch_size, num_workers=self.workers)

    @property
    def _sets(self) -> RunData:
        self.setup()
        assert self.data is not None
        return self.data
