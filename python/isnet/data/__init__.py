"""Data sets with foreground masks: the user's own images, and biased MNIST."""

from isnet.data.audit import Problem, apply_policy, audit, review
from isnet.data.augmentation import Augmentation, joint_transform
from isnet.data.biased_mnist import BiasedMNIST, BiasedMNISTSplits, biased_mnist_splits
from isnet.data.files import FileRef, UnreadableFileError, read_image, read_mask
from isnet.data.idx import CorruptDataError
from isnet.data.masked_images import MaskedImages, MaskError, pixel_range
from isnet.data.mnist import MNIST, DataUnavailableError, load_mnist
from isnet.data.records import DataError, ImageTable, Record, describe, read_table, with_validation
from isnet.data.shards import ShardError

__all__ = [
    "MNIST",
    "Augmentation",
    "BiasedMNIST",
    "BiasedMNISTSplits",
    "CorruptDataError",
    "DataError",
    "DataUnavailableError",
    "FileRef",
    "ImageTable",
    "MaskError",
    "MaskedImages",
    "Problem",
    "Record",
    "ShardError",
    "UnreadableFileError",
    "apply_policy",
    "audit",
    "biased_mnist_splits",
    "describe",
    "joint_transform",
    "load_mnist",
    "pixel_range",
    "read_image",
    "read_mask",
    "read_table",
    "review",
    "with_validation",
]
