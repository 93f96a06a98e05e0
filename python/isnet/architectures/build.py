"""Classifiers from the field's libraries, named on the command line: ``library:name`` with keyword arguments."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isnet.architectures.find import ArchitectureError, find
from isnet.architectures.weights import WeightsError, load_weights, read_weights, without_weights
from isnet.factories import LIBRARIES, split_name

# The libraries' names for the sizes that follow from the data.
CHANNEL_NAMES = ("in_channels", "n_input_channels", "in_chans", "num_channels")
CLASS_NAMES = ("num_classes", "out_channels", "n_classes")
_LOADING = ("weights", "weights_backbone", "pretrained", "checkpoint_path")  # arguments that ask for trained weights
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.", "aux_classifier.")  # heads that torchvision trains with and may leave out
_SCALES_INPUT = ("googlenet", "inception_v3")  # whose trained weights expect it


def build_architecture(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    pretrained: bool = True,
    tell: Callable[[str], None] | None = None,
) -> nn.Module:
    """Builds a classifier and runs it once on zeros, so that a mismatch shows here and not in training.

    The number of input channels, of classes and of spatial dimensions, and the size of the images, are filled in under the names that the
    constructor uses for them, unless ``arguments`` gives them.

    Args:
        name: ``monai:ResNet``, ``torchvision:resnet18``, ``timm:resnet18``, ``package.module:callable``, ``file.py:callable``.
        arguments: Keyword arguments of the constructor. For the three libraries ``weights`` may be ``DEFAULT``, another of the library's
            names, or a file: all but the head is loaded where the number of classes differs.
        image_shape: (channels, height, width) of the images.
        num_classes: Length of the logits.
        pretrained: Load the weights that the arguments ask for. False: the model gets its state afterwards; no weights are read or
            downloaded, and their files need not exist.
        tell: Gets a line on the parameters that such weights leave out.

    Raises:
        ArchitectureError: unknown name, missing package, wrong arguments, or logits of another shape.
        WeightsError: weights that do not fit.
    """
    constructor, first = find(name)
    library, attribute = split_name(name)
    given = dict(arguments or {})
    source = _source(library, attribute, given, constructor)
    keywords = {**sizes(constructor, given, name, image_shape, num_classes), **given}
    if isinstance(source, str) and library == "timm" and pretrained:
        first, keywords = (
            (f"{attribute}.{source}" if source != "DEFAULT" else attribute,),
            {**keywords, "pretrained": True},
        )
    elif source == "DEFAULT" and library == "monai" and pretrained:
        keywords["pretrained"] = True
    random = torch.get_rng_state()
    model = _made(name, constructor, first, keywords, pretrained)
    if source is not None and pretrained:
        if isinstance(source, Path):
            left = load_weights(model, read_weights(source), str(source), num_classes)
        elif library == "torchvision":
            left = _load_torchvision(attribute, model, source, num_classes)
        else:  # loaded by the library itself: what a model without weights has alike is not from them
            drawn = torch.get_rng_state()
            torch.set_rng_state(random)
            twin = dict(_made(name, constructor, first, {**keywords, "pretrained": False}, True).named_parameters())
            torch.set_rng_state(drawn)
            left = tuple(key for key, value in model.named_parameters() if torch.equal(value, twin[key]))
        tell_left_out(left, str(source), tell)
    _try(model, name, image_shape, num_classes)
    return model


def construction(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> tuple[str | None, dict[str, Any]]:
    """What :func:`build_architecture` calls for a model without weights, for those who build it themselves.

    Returns:
        Where the constructor is imported from, as ``monai.networks.nets.DenseNet121``; None: a file. And all of its keyword arguments.

    Raises:
        ArchitectureError: there is no such constructor.
    """
    constructor, first = find(name)
    place, attribute = split_name(name)
    given = dict(arguments or {})
    _source(place, attribute, given, constructor)
    keywords = {**sizes(constructor, given, name, image_shape, num_classes), **given}
    if first:
        return f"{place}.create_model", {"model_name": first[0], **keywords}
    return (None if place.endswith(".py") else f"{LIBRARIES.get(place, place)}.{attribute}"), keywords


def _source(library: str, attribute: str, given: dict[str, Any], constructor: Callable[..., Any]) -> str | Path | None:
    """What weights the arguments ask for: a file, a name of the library, or None; such arguments are taken out of ``given``."""
    if library not in ("monai", "torchvision", "timm"):
        return None
    asked = {key: given.pop(key) for key in _LOADING if key in given}
    takes = _parameter_names(constructor)
    if library == "monai" and "pretrained" in takes:
        given["pretrained"] = False  # some of them download unasked
    value = next((asked[key] for key in ("weights", "pretrained", "checkpoint_path") if asked.get(key)), None)
    if value is None or str(value).lower() == "none":
        return None
    if library == "torchvision" and attribute in _SCALES_INPUT:
        given.setdefault("transform_input", True)
    text = "DEFAULT" if value is True else str(value)
    return Path(text) if "/" in text or Path(text).suffix in (".pt", ".pth", ".ckpt", ".bin", ".safetensors") else text


def tell_left_out(names: Sequence[str], source: str, tell: Callable[[str], None] | None) -> None:
    """A line on the parameters that weights leave out."""
    if names and tell is not None:
        tell(
            f"Weights {source}: left out {', '.join(names)}, which do not fit this number of classes and begin at random"
        )


def _load_torchvision(attribute: str, model: nn.Module, source: str, num_classes: int) -> tuple[str, ...]:
    from torchvision.models import get_model_weights

    known = get_model_weights(attribute).__members__
    wanted = source.rpartition(".")[2]
    if wanted not in known and wanted != "DEFAULT":
        raise WeightsError(f"weights: torchvision:{attribute} has {', '.join(known) or 'none'}, got {source!r}")
    try:
        state = get_model_weights(attribute)[wanted].get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        raise WeightsError(f"weights: torchvision's {source} cannot be fetched ({error})") from error
    return load_weights(model, state, f"torchvision's {source}", num_classes, droppable=_AUXILIARY)


def _made(
    name: str, constructor: Callable[..., Any], first: tuple[str, ...], keywords: dict[str, Any], pretrained: bool
) -> nn.Module:
    try:
        model = (
            without_weights(lambda: constructor(*first, **keywords))
            if not pretrained
            else constructor(*first, **keywords)
        )
    except ImportError as error:
        raise ArchitectureError(f"{name}: {' '.join(str(error).split())}") from error
    except Exception as error:  # it is not ours: errors of every kind
        described = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        told = " ".join(str(error).split()) or type(error).__name__
        raise ArchitectureError(f"{name} cannot be built with ({described}): {told}") from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def sizes(
    constructor: Callable[..., Any],
    given: Mapping[str, Any],
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> dict[str, Any]:
    """The arguments that follow from the data, under the constructor's own names."""
    if name.startswith("timm:"):
        return {"in_chans": image_shape[0], "num_classes": num_classes}
    names = _parameter_names(constructor)
    found: dict[str, Any] = {"spatial_dims": 2} if "spatial_dims" in names else {}
    if "img_size" in names:
        found["img_size"] = image_shape[1:]
    for candidates, value in ((CHANNEL_NAMES, image_shape[0]), (CLASS_NAMES, num_classes)):
        known = next((candidate for candidate in candidates if candidate in names), None)
        if known and not any(candidate in given for candidate in candidates):
            found[known] = value
    if name.startswith("torchvision:"):
        found["num_classes"] = num_classes  # accepted by all, named in few signatures
    return found


def _parameter_names(constructor: Callable[..., Any]) -> set[str]:
    """Names of the keyword arguments, those included that ``**kwargs`` passes on to a base class or to the class that is returned."""
    try:
        parameters = inspect.signature(constructor).parameters
    except (TypeError, ValueError):
        return set()
    names = {key for key, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return names
    if inspect.isclass(constructor):  # MONAI's DenseNet121 and the like
        bases = constructor.__mro__[1:]
        classes = bases[: bases.index(nn.Module)] if nn.Module in bases else ()
    else:  # MONAI's resnet18 and the like, torchvision's resnet18
        made = _returned(constructor)
        classes = (made,) if inspect.isclass(made) and issubclass(made, nn.Module) and made is not nn.Module else ()
    return names.union(*(inspect.signature(base).parameters for base in classes))


def _returned(function: Callable[..., Any]) -> Any:
    """What a function says that it returns."""
    try:
        return typing.get_type_hints(function).get("return")
    except Exception:  # hints that cannot be looked up say nothing
        return None


def _try(model: nn.Module, name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *image_shape))
    except Exception as error:  # it is not ours: errors of every kind
        raise ArchitectureError(
            f"{name} does not run on images of shape {list(image_shape)}: {' '.join(str(error).split())}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [1, num_classes]:
        raise ArchitectureError(f"{name}: expected logits of shape [1, {num_classes}] for one image, got {shape}")
