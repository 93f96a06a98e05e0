"""Code that settings name: ``library:NAME`` of a known library, or other code, which needs the user's consent.

Other code is ``package.module:CALLABLE``, of an installed package or the current folder, or ``file.py:CALLABLE``.

A text in a file must not choose what runs. Known libraries are asked only for their networks. Anything else runs when the user has named
it: typed it as an option, passed it in Python, or listed it as trusted. What is found is checked before it is called.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

# Where each known library keeps its classifiers.
LIBRARIES = {"monai": "monai.networks.nets", "torchvision": "torchvision.models", "timm": "timm"}
TRUST_VARIABLE = "ISNET_TRUST"
_FILE_ARGUMENTS = {"timm": ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}
_NAME = re.compile(r"([^:\s]+|.+\.py):\w+(\.\w+)*")


class FactoryError(ValueError):
    """A name that stands for nothing, or for something that is not run; the text says why."""


def is_known(name: str) -> bool:
    """Whether a name is one of a known library's."""
    return name.partition(":")[0] in LIBRARIES


def trusted_names(trust: str | Collection[str] = ()) -> tuple[str, ...]:
    """What the user trusts: ``trust``, and the names in the environment variable ISNET_TRUST, separated by commas."""
    given = (trust,) if isinstance(trust, str) else tuple(trust)
    return (*given, *(name.strip() for name in os.environ.get(TRUST_VARIABLE, "").split(",") if name.strip()))


def require_trusted(named: Mapping[str, str], trust: str | Collection[str], where: object) -> None:
    """Checks that a file names no code but that of known libraries and what the user trusts; imports nothing.

    Args:
        named: Option -> the name that it has in the file.
        trust: ``package.module:CALLABLE``, or a package or module, all of which is then trusted; ISNET_TRUST counts, too.
        where: The file, for the error.

    Raises:
        FactoryError: it names other code.
    """
    trusted = trusted_names(trust)
    for option, name in named.items():
        module = name.rpartition(":")[0]
        # Known libraries are asked for networks, not for anything else that can be called.
        if (option == "network.arch" and is_known(name)) or any(
            name == t or module == t or module.startswith(f"{t}.") for t in trusted
        ):
            continue
        raise FactoryError(
            f"{where}: {option} names {name!r}, which is no part of {', '.join(LIBRARIES)}; if you know that code and trust it: "
            f"--trust {name}, or trust=... in Python, or {TRUST_VARIABLE} in the environment"
        )


def require_no_files(name: str, arguments: Mapping[str, Any], where: object) -> None:
    """Checks that arguments of a known library's network, read from a file, name no other files or addresses.

    Raises:
        FactoryError: they do.
    """
    library = name.partition(":")[0]
    for argument in _FILE_ARGUMENTS.get(library, ()):
        if argument in arguments:
            raise FactoryError(
                f"{where}: network.arch_args.{argument} names a file for {library} to load; leave it out"
            )


def find_network(name: str) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """The constructor of a classifier and its positional arguments: a class of ``nn.Module``, or a function that makes one.

    Raises:
        FactoryError: see the text.
    """
    library = name.partition(":")[0]
    found = find_callable(name)
    if library == "timm":
        attribute = name.partition(":")[2]
        module = sys.modules[LIBRARIES["timm"]]
        if not module.is_model(attribute):
            raise FactoryError(f"{name}: timm has no network {attribute!r}; it lists its own by timm.list_models()")
        return module.create_model, (attribute,)
    inner = inspect.unwrap(found.func if isinstance(found, functools.partial) else found)
    if inspect.isclass(inner):
        if not issubclass(inner, nn.Module):
            raise FactoryError(
                f"{name}: expected a torch.nn.Module or a function that makes one, got the class {inner.__qualname__}"
            )
        return found, ()
    if not (inspect.isfunction(inner) or inspect.ismethod(inner)):
        kind = type(inner).__name__
        raise FactoryError(f"{name}: expected a torch.nn.Module or a function that makes one, got an object of {kind}")
    made = _made_by(inner)
    if (made is None and library in LIBRARIES) or not (made is None or issubclass(made, nn.Module)):
        told = "something else" if made is None else made.__qualname__
        raise FactoryError(
            f"{name}: expected a torch.nn.Module or a function that makes one, got one that makes {told}"
        )
    return found, ()


def _made_by(function: Callable[..., Any]) -> type | None:
    """The class that a function says it returns; None if it says none."""
    try:
        made = typing.get_type_hints(function).get("return")
    except Exception:  # hints are expressions: errors of every kind
        return None
    return made if inspect.isclass(made) else None


def find_callable(name: str) -> Any:
    """What ``package.module:CALLABLE``, or a known library's name, stands for; it is imported, not called.

    Raises:
        FactoryError: no such name, a missing package, or code of the standard library, which makes neither networks nor masks.
    """
    if not _NAME.fullmatch(name):
        raise FactoryError(
            f"expected {', '.join(f'{key}:NAME' for key in LIBRARIES)}, package.module:CALLABLE or file.py:CALLABLE, got {name!r}"
        )
    library, attribute = split_name(name)
    module_name = LIBRARIES.get(library, library)
    if library.endswith(".py"):
        module = _file(name, Path(library))
    else:
        _refuse_standard(name, module_name)
        module = _module(name, module_name)
    if library == "timm":
        return module.create_model
    found: Any = module
    for part in attribute.split("."):
        found = None if is_known(name) and part.startswith("_") else getattr(found, part, None)
        if isinstance(found, ModuleType):
            raise FactoryError(f"{name}: expected a callable of {module_name} itself, got the module {found.__name__}")
    if not callable(found):
        raise FactoryError(f"{name}: {module_name} has no callable {attribute!r}")
    _refuse_standard(name, getattr(inspect.unwrap(getattr(found, "func", found)), "__module__", None) or "")
    return found


def split_name(name: str) -> tuple[str, str]:
    """(library, module or file; attribute); a file's path may hold colons of its own."""
    place, _, attribute = name.rpartition(":") if ".py:" in name else name.partition(":")
    return place, attribute


def _module(name: str, module: str) -> ModuleType:
    """An installed module, or one of the current folder."""
    try:
        with _importable(Path.cwd()):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise FactoryError(f"{name}: importing {module} failed: {error}") from error
        if package in LIBRARIES:
            raise FactoryError(
                f"{name} needs the package {package}, which is not installed: pip install {package}"
            ) from error
        # A stranger may own that name in the package index: what to install is not ours to guess.
        raise FactoryError(
            f"{name}: no module {error.name} in the current folder or among the installed packages"
        ) from error
    except (Exception, SystemExit) as error:  # it is not ours: errors of every kind
        raise FactoryError(f"{name}: importing {module} failed: {_said(error)}") from error


def _file(name: str, place: Path) -> ModuleType:
    """The module in a file; changed since it was imported, it is imported anew."""
    path = place.resolve()
    if not path.is_file():
        raise FactoryError(f"{name}: no file {path}")
    mark = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    known = f"isnet_architecture_{mark}"
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it is not ours: errors of every kind
        del sys.modules[known]
        raise FactoryError(f"{name}: importing {place} failed: {_said(error)}") from error
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


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _refuse_standard(name: str, module: str) -> None:
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise FactoryError(f"{name}: code of Python's standard library, which makes neither networks nor masks")
