"""What can be built with the installed packages."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from isnet.architectures.build import build_architecture, sizes
from isnet.architectures.find import ArchitectureError
from isnet.factories import LIBRARIES

# The modules of MONAI that hold classifiers; the others segment, register, generate.
_MONAI = ("densenet", "efficientnet", "resnet", "senet")
_NO_CLASSIFIER = ("Features", "Encoder")  # endings of names
_SHAPE, _CLASSES = (3, 224, 224), 2  # of the models whose parameters are counted


class Entry(NamedTuple):
    """An architecture.

    Attributes:
        name: As ``--arch`` takes it.
        needs: Arguments (``--arch-arg``) that it cannot be built without.
        source: The package and its version.
    """

    name: str
    needs: tuple[str, ...]
    source: str


def catalogue(pattern: str = "*") -> tuple[list[Entry], list[str]]:
    """The architectures whose names fit, in the order of libraries and names, and why others are left out. Builds none.

    Args:
        pattern: A part of the name, or one with ``*`` and ``?`` for all of it; upper and lower case are the same.

    Raises:
        ArchitectureError: nothing fits.
    """
    found, absent = list[Entry](), list[str]()
    for library, lister in _LISTERS.items():
        if importlib.util.find_spec(library) is None:
            absent.append(f"{library} is not installed (pip install {library})")
            continue
        try:
            version = importlib.import_module(library).__version__
            found += [Entry(f"{library}:{name}", needs, f"{library} {version}") for name, needs in lister()]
        except Exception as error:  # of a library that does not go together with the others: errors of every kind
            absent.append(f"{library} cannot be imported ({' '.join(str(error).split())})")
    wanted = pattern.lower() if any(sign in pattern for sign in "*?[") else f"*{pattern.lower()}*"
    fitting = [
        e
        for e in found
        if any(fnmatch.fnmatchcase(text.lower(), wanted) for text in (e.name, e.name.partition(":")[2]))
    ]
    if not fitting:
        near = difflib.get_close_matches(pattern, [entry.name.partition(":")[2] for entry in found], n=3, cutoff=0.4)
        more = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ArchitectureError("; ".join([f"PATTERN: no architecture fits {pattern!r}{more}", *absent]))
    return fitting, absent


def count_parameters(name: str) -> int | None:
    """Numbers in the parameters, for images [3, 224, 224] and two classes; None if it cannot be told without data.

    Built on PyTorch's meta device: takes no memory for them.
    """
    try:
        with torch.device("meta"):
            model = build_architecture(name, image_shape=_SHAPE, num_classes=_CLASSES, pretrained=False)
    except ArchitectureError:
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def _monai() -> list[tuple[str, tuple[str, ...]]]:
    nets = importlib.import_module(LIBRARIES["monai"])
    found = {}
    for key, value in vars(nets).items():
        module = getattr(value, "__module__", "").rpartition(".")[2]
        if key.endswith(_NO_CLASSIFIER):
            continue
        if module in _MONAI and callable(value) and key == getattr(value, "__name__", None) and _makes_model(value):
            filled = sizes(value, {}, f"monai:{key}", _SHAPE, _CLASSES)
            if "num_classes" in filled or "out_channels" in filled:
                found[key] = _required(value, filled)
    return sorted(found.items())


def _makes_model(value: Callable[..., Any]) -> bool:
    returned = inspect.signature(value).return_annotation if inspect.isfunction(value) else None
    return (inspect.isclass(value) and issubclass(value, torch.nn.Module)) or "Net" in str(returned)


def _required(value: Callable[..., Any], filled: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        key
        for key, parameter in inspect.signature(value).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and key not in filled
    )


def _torchvision() -> list[tuple[str, tuple[str, ...]]]:
    models = importlib.import_module(LIBRARIES["torchvision"])
    return [(name, ()) for name in models.list_models(module=models)]


def _timm() -> list[tuple[str, tuple[str, ...]]]:
    return [(name, ()) for name in importlib.import_module("timm").list_models()]


_LISTERS: dict[str, Callable[[], list[tuple[str, tuple[str, ...]]]]] = {
    "monai": _monai,
    "torchvision": _torchvision,
    "timm": _timm,
}
