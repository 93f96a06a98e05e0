"""One writer per run: a lock in its folder, which outlives no process.

The lock names host, process and the process's start. On the same host that tells whether the writer lives. Of another host, on a shared
file system, it is the lock itself that tells: its writer changes it every few seconds, and one that stays as it is for longer is left over.
No clock of one host is compared with that of another.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isnet._files import sweep_parts
from isnet._text import say
from isnet.training.distributed import current_world

LOCK_NAME = "lock.json"
_BEAT = 5.0  # seconds between two changes of a lock
_SILENCE = 30.0  # seconds without a change after which a lock of another host is left over


class RunLockedError(RuntimeError):
    """Another process is writing to the folder."""


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Keeps all other writers off ``folder``, which is made if needed; processes that train together count as one.

    Parts that killed writes have left are removed first.

    Raises:
        RunLockedError: another process writes to it.
    """
    world, lock, trouble = current_world(), None, None
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _Lock(folder / LOCK_NAME)
            for part in (folder, *(path for path in folder.glob("*") if path.is_dir() and not path.is_symlink())):
                sweep_parts(part)
        except (RunLockedError, OSError) as error:
            trouble = error
    trouble = world.from_main(trouble)
    if trouble is not None:
        raise trouble
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """A lock that this process holds."""

    def __init__(self, path: Path) -> None:
        self.path, self.token = path, uuid.uuid4().hex
        self._content = {**_this_process(), "token": self.token, "since": _now()}
        self._over = threading.Event()
        for _ in range(3):  # another one may take a lock that is left over at the same moment
            with contextlib.suppress(FileExistsError):
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                os.close(handle)
                self._write(0)
                break
            _remove_if_left_over(path)
        else:
            raise RunLockedError(f"{path.parent}: another process has just begun to write to it")
        self._thread = threading.Thread(target=self._beat, daemon=True, name="isnet lock")
        self._thread.start()

    def _write(self, beat: int) -> None:
        self.path.write_text(json.dumps({**self._content, "beat": beat}) + "\n")

    def _beat(self) -> None:
        beat = 0
        while not self._over.wait(_BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # a full disk ends no training here
                if (_read(self.path) or {}).get("token", self.token) != self.token:
                    return  # another process has taken it for left over
                if self.path.exists():
                    self._write(beat)

    def release(self) -> None:
        """Lets others write."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if (_read(self.path) or {}).get("token", self.token) == self.token:
                self.path.unlink()


def _remove_if_left_over(path: Path) -> None:
    """Removes a lock whose writer is gone.

    Raises:
        RunLockedError: it is not gone.
    """
    if not path.is_file():
        if path.exists():
            raise RunLockedError(f"{path}: expected a file, got a folder or device; remove it")
        return
    found = _read(path)
    if not _is_left_over(path, found):
        found = found or {}
        raise RunLockedError(
            f"{path.parent} is being written to by process {found.get('pid')} on {found.get('host')}, since {found.get('since')}: "
            "wait for it, stop it, or name another folder"
        )
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with contextlib.suppress(FileNotFoundError):  # another one was faster
        path.rename(aside)
        if _read(aside) != found and not path.exists():  # it is another one's by now
            aside.rename(path)
        else:
            aside.unlink()


def _is_left_over(path: Path, found: dict[str, Any] | None) -> bool:
    ours = _this_process()
    if found is not None and all(found.get(key) == ours[key] for key in ("host", "boot", "space")):
        pid = found.get("pid")
        return not (isinstance(pid, int) and _start_of(pid) == found.get("started") and _lives(pid))
    # Another host's, or damaged by a crash while it was written.
    host = (found or {}).get("host", "an unknown host")
    say(f"{path}: looking for {_SILENCE:.0f} s whether the process on {host} still lives", err=True)
    end = time.monotonic() + _SILENCE
    while time.monotonic() < end:
        time.sleep(min(_BEAT, _SILENCE) / 5)
        if _read(path) != found:
            return False
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """A lock's content; None where there is none to read."""
    try:
        with path.open("rb") as file:  # opened anew: network file systems then ask their server
            found = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _this_process() -> dict[str, Any]:
    """What tells this process from others: its host, the host's start, its space of process numbers, number and start."""
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "space": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _start_of(os.getpid()),
    }


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return _stat(pid)[:1] not in (["Z"], ["X"])


def _start_of(pid: int) -> str:
    """When a process began, in ticks of its host; empty where the system does not tell."""
    found = _stat(pid)
    return found[19] if len(found) > 19 else ""


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: the name before them may hold blanks."""
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
