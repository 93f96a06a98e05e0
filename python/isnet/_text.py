"""Names that users chose (classes, files, splits, runs) in texts: shown as they are, whatever they hold.

Everything that a command prints goes through :func:`say` or a :class:`Screen`, so that no name is taken for markup, moves the cursor,
breaks a line or turns the reading direction.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

# Control characters, formats without a shape (zero-width, direction), halves of surrogate pairs, and what ends a line or paragraph.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: str, keep: str = "") -> str:
    r"""The text with every character that has no shape of its own as its Python escape: ``\n``, ``\x1b``, ``\u202e``, ``\udcff``.

    Args:
        text: Any.
        keep: Characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _UNSEEN and char not in keep else char
        for char in text
    )


def figure_text(text: str) -> str:
    """The text for Matplotlib, where a pair of dollars would begin a formula."""
    return visible(text, keep="\n").replace("$", r"\$")


def say(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Prints a text, which may have several lines."""
    typer.echo(visible(text, keep="\n\t"), nl=nl, err=err)


class Screen(Console):
    """A console that takes every string as it is: no markup, no emoji codes, no highlighting; styles come as :class:`rich.text.Text`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, "soft_wrap": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as text, of one line."""
        return super().render_str(visible(text), **options)
