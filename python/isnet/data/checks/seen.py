"""What a check may look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from isnet.data.facts import Facts
from isnet.data.names import TRAIN
from isnet.data.table import ImageTable, Record

_GAIN = 0.2  # of the answers, from which on a property is said to give the class away


@dataclass(frozen=True)
class Seen:
    """A set of images.

    Attributes:
        table: Its images.
        facts: What was noted about those that were read.
    """

    table: ImageTable
    facts: Sequence[Facts]

    @property
    def train(self) -> tuple[Record, ...]:
        """The training images."""
        return self.table.part(TRAIN).records

    def record(self, facts: Facts) -> Record:
        """The image that something was noted about."""
        return self.table.records[facts.row]

    def names(self, label: int | tuple[int, ...]) -> list[str]:
        """The class of an image, or the labels that it has."""
        if isinstance(label, int):
            return [self.table.classes[label]]
        return [name for name, value in zip(self.table.classes, label, strict=True) if value]

    def counts(self, records: Iterable[Record]) -> Counter[str]:
        """Images of each class, or with each label."""
        return Counter(name for record in records for name in self.names(record.label))


def gives_away(pairs: Sequence[tuple[Hashable, Hashable]]) -> tuple[float, float] | None:
    """Whether a property tells the class: how often it would be right, each image left out of its own vote, and the largest class's share.

    Args:
        pairs: (value, class) of each image.

    Returns:
        Both shares, if the first is larger by 0.2 or more.
    """
    if len(pairs) < 10:
        return None
    classes = Counter(label for _, label in pairs)
    largest, count = max(classes.items(), key=lambda item: item[1])
    by_value: dict[Hashable, Counter[Hashable]] = {}
    for value, label in pairs:
        by_value.setdefault(value, Counter())[label] += 1
    right = 0
    for value, label in pairs:
        votes = by_value[value] - Counter([label])
        right += (max(votes.items(), key=lambda item: item[1])[0] if votes else largest) == label
    told, prior = right / len(pairs), count / len(pairs)
    return (told, prior) if told - prior >= _GAIN else None
