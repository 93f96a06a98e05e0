"""Files that are either whole or absent: every write goes to a neighbour first and is then renamed. JSON is read with bounds."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

_LARGEST_JSON = 2**28  # bytes; the files of a run are far below


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it to ``path`` when the block ends without an error.

    The bytes are on the disk before the rename, so that a crash leaves the old file or the new one, never a part.
    On an error the temporary file is removed and ``path`` is left as it was. The file has the permissions that the user's umask gives,
    whatever wrote it: some libraries make private files.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.part"
    # Not made by mkstemp, whose files are private.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL, 0o666))
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if stat.S_IMODE(temporary.stat().st_mode) != mode:
            temporary.chmod(mode)
        temporary.replace(target)
        sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Brings the names in ``folder`` to the disk, where the system allows it."""
    with contextlib.suppress(OSError, AttributeError):  # not on Windows, nor on every network file system
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_parts(folder: Path) -> None:
    """Removes what writes that were killed have left in ``folder``; for its only writer."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Writes ``content`` to ``path`` as UTF-8, atomically."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes ``content`` to ``path`` as indented JSON, atomically. Not-a-number values are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder or a device, too large, or no UTF-8; the text names the file.
    """
    path = Path(path)
    if not path.is_file():  # a named pipe would never end
        if path.exists():
            raise ValueError(f"{path}: expected a file, got a {'folder' if path.is_dir() else 'device'}")
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(
            f"{path}: expected at most {_LARGEST_JSON / 2**20:.0f} MiB, got {path.stat().st_size / 2**20:.0f} MiB"
        )
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: no text ({error.reason} at byte {error.start})") from error


def parse_json(text: str) -> Any:
    """The value of a JSON text; a key that stands twice and a number that is not finite are refused.

    Raises:
        ValueError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: str | os.PathLike[str]) -> Any:
    """The value of a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or holds no JSON; the text names the file.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not finite")


def _finite(text: str) -> float:
    value = float(text)
    return _refuse(text) if value in (float("inf"), -float("inf")) else value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands there twice")
        found[name] = value
    return found
