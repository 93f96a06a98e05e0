"""A trained run in Python: ``net = isnet.load("runs/guarded")``."""

from __future__ import annotations

import html
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from isnet.config import RunConfig
from isnet.explanation import evaluation_mode, heatmaps
from isnet.runs.answers import answered, probabilities
from isnet.runs.build import best_device
from isnet.runs.folder import load_run
from isnet.runs.pixels import images_config, preprocess
from isnet.runs.predict import batch_of


class Prediction(NamedTuple):
    """What the network says of an image.

    Attributes:
        answer: The likeliest class; of several labels those above 0.5, separated by commas.
        probabilities: Of each class, in [0, 1].
    """

    answer: str
    probabilities: dict[str, float]


class Explanation(NamedTuple):
    """What an answer rests on.

    Attributes:
        prediction: The answer.
        target: The class that is explained.
        heatmap: R [C, H, W], float32: positive relevance speaks for the class, negative against it.
        image: The image as the network got it, [C, H, W].
    """

    prediction: Prediction
    target: str
    heatmap: Tensor
    image: Tensor


class Trained:
    """A trained classifier with what it needs to be used; made by :func:`load`.

    Attributes:
        model: The classifier, from preprocessed images [B, C, H, W] to logits [B, K], in evaluation mode.
        classes: Names of the classes, in the order of the logits.
        config: All settings of the run.
        folder: Of the run.
    """

    def __init__(self, folder: Path, config: RunConfig, model: nn.Module) -> None:
        self.folder, self.config, self.model = folder, config, model
        self.classes: tuple[str, ...] = tuple(config.data.classes)
        self._images = images_config(config)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def preprocess(self, image: Any) -> Tensor:
        """An image as the network gets it: float32 [1, C, H, W], on the CPU.

        Args:
            image: A file (PNG, JPEG, TIFF, DICOM, NIfTI, ...); a NumPy array or PIL image [H, W] or [H, W, C]; or a tensor [H, W] or
                [C, H, W]. Whole numbers of 8 or 16 bits are divided by their largest value; floating-point numbers must lie in [0, 1].

        Raises:
            isnet.data.UnreadableFileError: the file cannot be read.
            ValueError: an array that is no image.
        """
        return preprocess(self._images, image)

    def predict(self, images: Any) -> Any:
        """The answer to an image, or a list of answers to a list of images or to a preprocessed batch [B, C, H, W].

        Args:
            images: What :meth:`preprocess` takes, a sequence of that, or a tensor [B, C, H, W] that is preprocessed already.

        Returns:
            :class:`Prediction`, or a list of them.
        """
        several, batch = self._batch(images)
        size = batch_of(self.config)
        with evaluation_mode(self.model), torch.no_grad():
            parts = [self.model(part.to(self.device)).float().cpu() for part in batch.split(size)]
        found = [self._prediction(logits) for part in parts for logits in part]
        return found if several else found[0]

    def explain(self, image: Any, target: str | None = None) -> Explanation:
        """The LRP heatmap of an image, as ``isnet explain`` draws it.

        Args:
            image: What :meth:`preprocess` takes, or a preprocessed image [1, C, H, W].
            target: Name of the class to explain; None: the likeliest.

        Raises:
            ValueError: an unknown class, or several images.
        """
        index = None if target is None else class_index(target, self.classes, "target")
        _, batch = self._batch(image)
        if len(batch) != 1:
            raise ValueError(f"image: expected one, got {len(batch)}")
        logits, found = heatmaps(
            self.model,
            batch.to(self.device),
            target=index,
            eps=self.config.network.eps,
            input_range=self.config.data.pixel_range,
        )
        explained = int(logits[0].argmax()) if index is None else index
        return Explanation(self._prediction(logits[0].float().cpu()), self.classes[explained], found[0].cpu(), batch[0])

    def _batch(self, images: Any) -> tuple[bool, Tensor]:
        """Whether there may be several images, and all of them, [B, C, H, W]."""
        if isinstance(images, Tensor) and images.dim() == 4:
            expected = self.config.data.image_shape
            if tuple(images.shape[1:]) != expected or not len(images) or not images.is_floating_point():
                raise ValueError(
                    f"images: expected a preprocessed batch of floating-point numbers [B, {', '.join(map(str, expected))}], "
                    f"got {images.dtype} {list(images.shape)}"
                )
            return True, images.float()
        if isinstance(images, list | tuple):
            if not images:
                raise ValueError("images: expected at least one")
            return True, torch.cat([self.preprocess(image) for image in images])
        return False, self.preprocess(images)

    def _prediction(self, logits: Tensor) -> Prediction:
        several = self.config.data.multi_label
        chances = probabilities(logits, several)
        return Prediction(
            answered(chances, self.classes, several), dict(zip(self.classes, chances.tolist(), strict=True))
        )

    def _facts(self) -> dict[str, str]:
        shape = "x".join(str(side) for side in self.config.data.image_shape)
        count = sum(parameter.numel() for parameter in self.model.parameters())
        names = ", ".join(self.classes[:8]) + (f" and {len(self.classes) - 8} more" if len(self.classes) > 8 else "")
        return {
            "run": str(self.folder),
            "network": f"{self.config.network.arch}, {count:,} parameters",
            "variant": self.config.network.variant,
            "images": shape,
            "labels" if self.config.data.multi_label else "classes": names,
            "device": str(self.device),
        }

    def __repr__(self) -> str:
        facts = self._facts()
        return f"isnet.load({facts.pop('run')!r}): " + "; ".join(f"{key} {value}" for key, value in facts.items())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(key)}</th><td style='text-align:left'>{html.escape(value)}</td></tr>"
            for key, value in self._facts().items()
        )
        return f"<table>{rows}</table>"


def class_index(name: str, classes: Sequence[str], argument: str) -> int:
    """The number of a class.

    Raises:
        ValueError: there is none of this name; the text begins with ``argument``.
    """
    if name not in classes:
        shown = ", ".join(classes[:20]) + (" ..." if len(classes) > 20 else "")
        raise ValueError(f"{argument}: expected the name of a class, one of {shown}, got {name!r}")
    return list(classes).index(name)


def load(folder: str | os.PathLike[str], *, device: str = "auto", trust: str | Collection[str] = ()) -> Trained:
    """The trained network of a run, ready to use: its best checkpoint, if a validation score chose one, else its last.

    Nothing is downloaded, and weights that training began with are not needed.

    Args:
        folder: Of the run, as ``isnet train`` left it.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``"auto"``: a GPU, if there is one.
        trust: Code of yours that the run may use: ``package.module:CALLABLE``, ``file.py:CALLABLE``, or a package or module.

    Raises:
        FileNotFoundError: no run, or none that has reached its first checkpoint.
        isnet.factories.FactoryError: its settings name code that is not trusted.
        ValueError: a run that cannot be read, or an architecture that cannot be built here.

    Example:
        >>> net = isnet.load("runs/guarded")
        >>> net.predict("scan.png").answer
        >>> net.explain("scan.png", target="pneumonia").heatmap       # [C, H, W]
        >>> net.model(net.preprocess("scan.png"))                    # logits [1, K]
    """
    run = load_run(folder, device=best_device(device), trust=trust)
    return Trained(run.folder, run.config, run.model)
