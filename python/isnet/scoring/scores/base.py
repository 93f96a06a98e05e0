"""What a score of a classifier is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isnet.scoring.evaluation import right_answers

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Answers(NamedTuple):
    """What a classifier says of images, and what is true.

    Attributes:
        probabilities: [N, K].
        given: The answers: classes [N], or 0/1 numbers [N, K] (several labels per image).
        truth: Likewise.
        right: Share of right decisions per image, [N].
    """

    probabilities: FloatArray
    given: npt.NDArray[Any]
    truth: npt.NDArray[Any]
    right: FloatArray


class ClassificationScore(ABC):
    """A score in [0, 1].

    Attributes:
        title: What tables call it.
    """

    title: ClassVar[str]

    @abstractmethod
    def value(self, answers: Answers, counts: Counts) -> float:
        """The score, NaN where it is not defined.

        Args:
            answers: Of all images.
            counts: How often each image counts, [N]: a bootstrap's resample.
        """


def answers_of(logits: Tensor, labels: Tensor) -> Answers:
    """Answers from logits [N, K] and labels, int64 [N] or 0/1 [N, K]."""
    several = labels.dim() == 2
    logits, truth = logits.double().cpu(), labels.cpu()
    probabilities = torch.sigmoid(logits) if several else torch.softmax(logits, 1)
    given = (logits > 0).long() if several else logits.argmax(1)
    right = right_answers(logits, truth).double().reshape(len(truth), -1).mean(1)
    return Answers(probabilities.numpy(), given.numpy(), truth.numpy(), right.numpy())
