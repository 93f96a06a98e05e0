"""ISNet training with Lightning (extra ``lightning``): a LightningModule, warm-up and tuning as callbacks, image folders as a data module.

For ``lightning`` (``import lightning``), not for the older package ``pytorch_lightning``: their trainers refuse each other's modules.
"""

from isnet.lightning.callbacks import MeasureRanges, WarmUp
from isnet.lightning.data import EpochOrder, ISNetDataModule
from isnet.lightning.module import ISNetModule

__all__ = ["EpochOrder", "ISNetDataModule", "ISNetModule", "MeasureRanges", "WarmUp"]
