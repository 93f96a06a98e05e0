"""Which code made a result."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path
from typing import Any

import torch

import lrpkernels

_ROOTS = {"isnet": Path(__file__).resolve().parents[1], "lrpkernels": Path(lrpkernels.__file__).resolve().parent}


@functools.cache
def code_version() -> dict[str, Any]:
    """The code of this process.

    Returns:
        ``"version"`` of the package, ``"sources"``, a hash of its Python files (the compiled kernels are tested against each other and
        left out), ``"commit"`` where they are tracked by git (with ``"changed": True`` if a tracked file of the repository differs from it)
        and ``"torch"``.
    """
    found = {"version": lrpkernels.__version__, "sources": _sources(), "torch": str(torch.__version__)}
    return {**found, **_commit(_ROOTS["isnet"])}


def _sources() -> str:
    digest = hashlib.sha256()
    for name, root in _ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def _commit(folder: Path) -> dict[str, Any]:
    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # not the repository of an environment that lies inside one
        found = {"commit": git("rev-parse", "HEAD")}
        return {**found, "changed": True} if git("status", "--porcelain", "--untracked-files=no") else found
    except (OSError, subprocess.CalledProcessError):
        return {}
