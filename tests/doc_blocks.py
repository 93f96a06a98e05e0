"""Code blocks of a Markdown page, run in order as its reader would: one namespace, a temporary folder.

A comment on the line above a block says how: ``<!-- no-run -->`` (it is compiled only), ``<!-- needs: quantus cv2 -->`` (it runs where
these packages are installed).
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<info>[^\n`]*)$")
_COMMENT = re.compile(r" *<!-- *(?P<text>.*?) *--> *")
ROOT = Path(__file__).parents[1]


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: number of its first line of code, from 1.
        language: what stands behind the fence.
        comment: the comment above it.
        code: its text, without the indentation of the fence.
    """

    line: int
    language: str
    comment: str
    code: str

    @property
    def runs(self) -> bool:
        needs = self.comment.removeprefix("needs:").split() if self.comment.startswith("needs:") else []
        return self.comment != "no-run" and all(importlib.util.find_spec(name) is not None for name in needs)


def blocks(page: Path, language: str | None = "python") -> list[Block]:
    """The fenced blocks of a page, those of one language or all (None)."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        number += 1
        if opened is None:
            continue
        above = _COMMENT.fullmatch(lines[number - 2]) if number > 1 else None
        indent, fence, start = len(opened["indent"]), opened["fence"], number
        while number < len(lines) and not re.fullmatch(rf" *{re.escape(fence[0])}{{{len(fence)},}} *", lines[number]):
            number += 1
        code = "".join(f"{line[indent:] if not line[:indent].strip() else line}\n" for line in lines[start:number])
        info = opened["info"].split()
        found.append(Block(start + 1, info[0].lower() if info else "", above["text"] if above else "", code))
        number += 1
    return [block for block in found if language is None or block.language == language]


def run(page: Path, folder: Path, given: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """Run the Python blocks of a page in order; errors name the page's own lines.

    Args:
        page: a Markdown file.
        folder: the current folder while they run.
        given: names that the page takes for granted ("your model").

    Returns:
        The namespace afterwards, and what was printed.
    """
    namespace: dict[str, Any] = {"__name__": f"blocks of {page.name}", **(given or {})}
    printed = io.StringIO()
    with _inside(folder), contextlib.redirect_stdout(printed):
        for block in blocks(page):
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            if block.runs:
                exec(code, namespace)
    return namespace, printed.getvalue()


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
