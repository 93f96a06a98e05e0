"""Long work in portions: shared among processes, each portion kept when it is done, taken up again where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from isnet._files import atomic_path, write_json, write_text
from isnet.training.distributed import World

_SETTINGS = "settings.json"
_LARGEST = 256  # items of a portion, about


class Portions:
    """The rows of a table, in portions that lie beside it until all are there.

    Args:
        out: The table to write; the portions lie in the folder ``out.parts``.
        count: Rows.
        at_a_time: Rows that are made together; a portion is a multiple.
        settings: What the rows depend on; portions that were made with others are refused.
        world: The processes that share the work.
        overwrite: Begin again, whatever is there.

    Raises:
        FileExistsError: the table is there.
        ValueError: portions of other settings are there.
    """

    def __init__(
        self,
        out: Path,
        count: int,
        at_a_time: int,
        settings: Mapping[str, Any],
        world: World,
        *,
        overwrite: bool = False,
    ) -> None:
        self.out, self.count, self.world = out, count, world
        self.folder = out.parent / f"{out.name}.parts"
        wanted = min(_LARGEST, count // 8) // at_a_time
        self.size = at_a_time * max(1, wanted)
        settings = {**settings, "rows": count, "portion": self.size}
        if out.is_dir():
            raise FileExistsError(f"--out: {out} is a folder; name a file")
        if out.exists() and not overwrite:
            raise FileExistsError(f"--out: {out} exists; name another file, or replace it (--overwrite)")
        world.barrier()
        if world.is_main:
            self._begin(settings, overwrite)
        world.barrier()
        found = json.loads((self.folder / _SETTINGS).read_text())
        others = [key for key in settings if found.get(key) != settings[key]]
        if others:
            raise ValueError(
                f"{self.folder} was begun with other settings ({', '.join(others)}): go on with those, or begin again (--overwrite)"
            )
        self.starts = range(0, count, self.size)
        self.todo = [start for start in self.starts if not self._path(start).exists()]
        self.done_before = count - sum(len(self.rows(start)) for start in self.todo)
        world.barrier()

    def _begin(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        if overwrite and self.folder.exists():
            shutil.rmtree(self.folder)
        if not (self.folder / _SETTINGS).exists():
            write_json(self.folder / _SETTINGS, settings)

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:09d}"

    def rows(self, start: int) -> range:
        """The numbers of the rows of a portion."""
        return range(start, min(start + self.size, self.count))

    def run(
        self, make: Callable[[range], str], progress: Callable[[Iterable[int]], Iterable[int]] = lambda rows: rows
    ) -> None:
        """Makes this process's share of what is missing; ``make`` gives the text of some rows."""
        for start in progress(self.todo[self.world.rank :: self.world.size]):
            write_text(self._path(start), make(self.rows(start)))

    def finish(self, header: str) -> None:
        """Waits for all processes, and puts the table together."""
        self.world.barrier()
        if self.world.is_main:
            with atomic_path(self.out) as temporary, temporary.open("wb") as file:
                file.write(header.encode())
                for start in self.starts:
                    file.write(self._path(start).read_bytes())
            shutil.rmtree(self.folder)
        self.world.barrier()


def fingerprint(texts: Iterable[str | bytes | memoryview]) -> str:
    """A short text that differs when any of these does."""
    digest = hashlib.sha256()
    for text in texts:
        part = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()[:16]
