"""What a score of a classifier is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isnet.scoring.evaluation import right_answers

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Decisions = npt.NDArray[np.int64]


class Answers(NamedTuple):
    """What a classifier says of images, and what is true.

    Attributes:
        probabilities: [N, K].
        given: The answers: classes [N], or 0/1 numbers [N, K] (several labels per image).
        truth: Likewise.
        right: Share of right decisions per image, [N].
        log_odds: log p / (1 - p) of the probabilities, [N, K], from the logits: they also rank images whose probabilities are rounded to 1.
    """

    probabilities: FloatArray
    given: Decisions
    truth: Decisions
    right: FloatArray
    log_odds: FloatArray

    @property
    def binary(self) -> Decisions:
        """The truth as 0/1 numbers [N, K]: one class against the rest."""
        if self.truth.ndim == 2:
            return self.truth
        return (self.truth[:, None] == np.arange(self.probabilities.shape[1])).astype(np.int64)


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
    """Answers from logits [N, K] and labels, int64 [N] or 0/1 [N, K].

    Raises:
        ValueError: logits that are not finite, so that nothing can be ranked.
    """
    several = labels.dim() == 2
    logits, truth = logits.double().cpu(), labels.cpu()
    broken = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
    if broken:
        raise ValueError(f"logits: expected finite numbers, got NaN or infinity for {broken} of {len(logits)} images")
    probabilities = torch.sigmoid(logits) if several else torch.softmax(logits, 1)
    given = (logits > 0).long() if several else logits.argmax(1)
    right = right_answers(logits, truth).double().reshape(len(truth), -1).mean(1)
    log_odds = logits if several or logits.shape[1] == 1 else _log_odds(logits)
    return Answers(probabilities.numpy(), given.numpy(), truth.long().numpy(), right.numpy(), log_odds.numpy())


def _log_odds(logits: Tensor) -> Tensor:
    """log p / (1 - p) of the softmax of logits [N, K]; for the likeliest class 1 - p is the sum of the others', which rounds to 0 late."""
    log_p, top = torch.log_softmax(logits, 1), logits.argmax(1, keepdim=True)
    rest = torch.log1p(-log_p.exp().clamp(max=0.5))
    others = torch.logsumexp(log_p.scatter(1, top, -torch.inf), 1, keepdim=True)
    return log_p - rest.scatter(1, top, others)
