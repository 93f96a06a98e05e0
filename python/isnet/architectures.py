"""Classifiers from the field's libraries, named on the command line: ``library:name`` with keyword arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from isnet.factories import FactoryError, find_network

# The libraries' names for the sizes that follow from the data.
_CHANNEL_NAMES = ("in_channels", "n_input_channels", "in_chans", "num_channels")
_CLASS_NAMES = ("num_classes", "out_channels", "n_classes")


class ArchitectureError(ValueError):
    """An architecture that cannot be found, built, or run on the data."""


def build_architecture(
    name: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> nn.Module:
    """Builds a classifier and runs it once on zeros, so that a mismatch shows here and not in training.

    The number of input channels, of classes and of spatial dimensions are filled in under the names that the
    constructor uses for them, unless ``arguments`` gives them.

    Args:
        name: ``monai:ResNet``, ``torchvision:resnet18``, ``timm:resnet18``, or ``package.module:callable``.
        arguments: Keyword arguments of the constructor.
        image_shape: (channels, height, width) of the images.
        num_classes: Length of the logits.

    Raises:
        ArchitectureError: unknown name, missing package, wrong arguments, or logits of another shape.
    """
    try:
        constructor, first = find_network(name)
    except FactoryError as error:
        raise ArchitectureError(f"architecture: {error}") from error
    given = dict(arguments or {})
    keywords = {**_sizes(constructor, given, name, image_shape[0], num_classes), **given}
    try:
        model = constructor(*first, **keywords)
    except ImportError as error:
        raise ArchitectureError(f"{name}: {error}") from error
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        described = ", ".join(f"{key}={value!r}" for key, value in keywords.items())
        raise ArchitectureError(f"{name} cannot be built with ({described}): {error}") from error
    if not isinstance(model, nn.Module):
        raise ArchitectureError(f"{name}: expected a torch.nn.Module, got {type(model).__name__}")
    _try(model, name, image_shape, num_classes)
    return model


def _sizes(
    constructor: Callable[..., Any], given: Mapping[str, Any], name: str, channels: int, num_classes: int
) -> dict[str, Any]:
    """The arguments that follow from the data, under the constructor's own names."""
    if name.startswith("timm:"):
        return {"in_chans": channels, "num_classes": num_classes}
    try:
        parameters = inspect.signature(constructor).parameters
    except (TypeError, ValueError):
        return {}
    names = set(parameters)
    if inspect.isclass(constructor) and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # MONAI's DenseNet121 and the like pass most keywords on to their base class.
        for base in constructor.__mro__[1:]:
            if base is nn.Module:
                break
            names |= set(inspect.signature(base).parameters)
    sizes: dict[str, Any] = {}
    if "spatial_dims" in names:
        sizes["spatial_dims"] = 2
    for candidates, value in ((_CHANNEL_NAMES, channels), (_CLASS_NAMES, num_classes)):
        found = next((candidate for candidate in candidates if candidate in names), None)
        if found and not any(candidate in given for candidate in candidates):
            sizes[found] = value
    if name.startswith("torchvision:"):
        sizes["num_classes"] = num_classes  # accepted by all, named in few signatures
    return sizes


def _try(model: nn.Module, name: str, image_shape: tuple[int, int, int], num_classes: int) -> None:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(1, *image_shape))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ArchitectureError(f"{name} does not run on images of shape {list(image_shape)}: {error}") from error
    finally:
        model.train(training)
    shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != [1, num_classes]:
        raise ArchitectureError(f"{name}: expected logits of shape [1, {num_classes}] for one image, got {shape}")
