"""What a format of exported networks is."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

Answering = Callable[[Tensor], Tensor]  # images [B, C, H, W] -> logits [B, K]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps what PyTorch's exporters and loaders print and warn of away from the terminal; errors still come."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


class ExportError(ValueError):
    """A network that cannot be exported in a format, or an export that answers otherwise; the text says which."""


@dataclass(frozen=True)
class Exported:
    """What is exported.

    Attributes:
        model: The classifier, on the CPU in evaluation mode.
        example: Some images, [B, C, H, W], B > 1.
        title: Of the run.
        classes: Their names, in the order of the logits.
        preprocessing: What ``preprocessing.json`` holds.
        target: Where the constructor is imported from, as ``monai.networks.nets.DenseNet121``; None: it is in a file.
        arguments: Its keyword arguments, without weights.
        source: Name under which the user gave the architecture.
    """

    model: nn.Module
    example: Tensor
    title: str
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any]
    target: str | None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


class ExportFormat(ABC):
    """A format.

    Attributes:
        extra: Packages that it needs beside PyTorch, as ``pip install`` takes them.
        usage: Python that loads an export in its folder and answers a batch ``images``; goes into the model card.
        card, preprocessing, code: Where the files that all exports have go in the folder.
    """

    extra: ClassVar[str] = ""
    usage: ClassVar[str]
    card: ClassVar[str] = "model_card.md"
    preprocessing: ClassVar[str] = "preprocessing.json"
    code: ClassVar[str] = "preprocess.py"

    @abstractmethod
    def write(self, what: Exported, folder: Path) -> None:
        """Writes the network into ``folder``.

        Raises:
            ExportError: the format cannot hold it.
            ModuleNotFoundError: a package is missing.
        """

    @abstractmethod
    def load(self, what: Exported, folder: Path) -> Answering:
        """The network in ``folder``, as anybody would load it, for any number of images at a time."""
