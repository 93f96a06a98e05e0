"""What is wrong with a set of images, or worth knowing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)  # the worst first
_NAMED = 3  # examples in a line


@dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes:
        code: Of the check, for programs.
        severity: ``"error"``: no training on it can be right; ``"warning"``: scores or training may suffer; ``"note"``: worth knowing.
        text: What was found, in one line, without the examples.
        examples: Files, groups or names that show it, all of them.
        remedy: What to do.
    """

    code: str
    severity: Severity
    text: str
    examples: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def line(self) -> str:
        """All of it in one line, with the first examples."""
        shown = some(self.examples, _NAMED)
        return f"{self.text}{f': {shown}' if shown else ''}{f'. {self.remedy}' if self.remedy else ''}"

    def to_json(self) -> dict[str, Any]:
        """As ``isnet data check --json`` writes it (docs/data.md)."""
        return {
            "code": self.code,
            "severity": self.severity,
            "text": self.text,
            "examples": list(self.examples),
            "remedy": self.remedy,
        }


def some(names: Iterable[object], most: int = _NAMED) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def counted(number: int, noun: str) -> str:
    """A number with its noun: ``1 image``, ``2 images``, ``2 classes``."""
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"
