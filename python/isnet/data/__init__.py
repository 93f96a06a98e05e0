"""Data sets with background bias and foreground masks."""

from isnet.data.biased_mnist import BiasedMNIST, BiasedMNISTSplits, biased_mnist_splits
from isnet.data.idx import CorruptDataError
from isnet.data.mnist import MNIST, DataUnavailableError, load_mnist

__all__ = [
    "MNIST",
    "BiasedMNIST",
    "BiasedMNISTSplits",
    "CorruptDataError",
    "DataUnavailableError",
    "biased_mnist_splits",
    "load_mnist",
]
