"""From the name of an architecture to its constructor."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

# Where each library keeps its classifiers; any other prefix is a module to import, or a file.
LIBRARIES = {"monai": "monai.networks.nets", "torchvision": "torchvision.models", "timm": "timm"}


class ArchitectureError(ValueError):
    """An architecture that cannot be found, built, or run on the data."""


def is_own_code(name: str) -> bool:
    """Whether the name stands for a module or file of the user's, and not for one of :data:`LIBRARIES`."""
    return split_name(name)[0] not in LIBRARIES


def find(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The constructor that a name stands for, and its positional arguments.

    Args:
        name: ``monai:NAME``, ``torchvision:NAME``, ``timm:NAME``; ``package.module:CALLABLE``, of the installed packages or the current
            folder; or ``file.py:CALLABLE``.

    Raises:
        ArchitectureError: there is none.
    """
    place, attribute = split_name(name)
    module = _file(place) if place.endswith(".py") else _module(name, place)
    if place == "timm":
        return module.create_model, (attribute,)
    constructor: Any = module
    for part in attribute.split("."):
        constructor = getattr(constructor, part, None)
    if not callable(constructor):
        near = difflib.get_close_matches(attribute, [key for key in vars(module) if not key.startswith("_")], n=2)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ArchitectureError(f"{name}: {LIBRARIES.get(place, place)} has no callable {attribute!r}{meant}")
    return constructor, ()


def split_name(name: str) -> tuple[str, str]:
    """(library, module or file; attribute) of the name of an architecture. A file's path may hold colons of its own."""
    place, separator, attribute = name.rpartition(":") if ".py:" in name else name.partition(":")
    if not separator or not place or not attribute:
        raise ArchitectureError(
            f"architecture: expected monai:NAME, torchvision:NAME, timm:NAME, package.module:CALLABLE or file.py:CALLABLE, got {name!r}"
        )
    return place, attribute


def _module(name: str, place: str) -> ModuleType:
    module = LIBRARIES.get(place, place)
    try:
        with _importable(Path.cwd()):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise ArchitectureError(f"{name}: importing {module} failed: {error}") from error
        if package in LIBRARIES:
            raise ArchitectureError(
                f"{name} needs the package {package}, which is not installed: pip install {package}"
            ) from error
        # A stranger may own that name in the package index: what to install is not ours to guess.
        raise ArchitectureError(
            f"{name}: no module {error.name!r} in the current folder or among the installed packages; `isnet archs` lists what can be built"
        ) from error
    except (Exception, SystemExit) as error:  # it is not ours: errors of every kind
        raise ArchitectureError(f"{name}: importing {module} failed: {_told(error)}") from error


def _file(place: str) -> ModuleType:
    """The module in a file; changed since it was imported, it is imported anew."""
    path = Path(place).resolve()
    if not path.is_file():
        raise ArchitectureError(f"architecture: no file {place} (from {Path.cwd()})")
    mark = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"isnet_architecture_{mark}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is not ours: errors of every kind
        del sys.modules[name]
        raise ArchitectureError(f"{place}: importing it failed: {_told(error)}") from error
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of ``folder`` can be imported, after those that are installed, which a file there must not replace."""
    known = any(os.path.abspath(path or os.curdir) == str(folder) for path in sys.path)
    if not known:
        sys.path.append(str(folder))
        importlib.invalidate_caches()
    try:
        yield
    finally:
        if not known and str(folder) in sys.path:
            sys.path.remove(str(folder))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
