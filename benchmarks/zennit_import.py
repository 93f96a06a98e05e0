"""zennit beside any torch: its canonizers import torchvision's ResNet and VGG classes, for which empty ones suffice."""

from __future__ import annotations

import sys
import types
from typing import Any

from torch import nn


def import_zennit() -> Any:
    """The package zennit with the modules that comparisons use."""
    try:
        import torchvision  # noqa: F401

        stand_ins = ()
    except Exception:  # a torchvision that does not fit this torch fails with errors of its own
        stand_ins = ("torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg")
        for name in stand_ins:
            sys.modules[name] = types.ModuleType(name)
        for name in ("Bottleneck", "BasicBlock"):
            setattr(sys.modules["torchvision.models.resnet"], name, type(name, (nn.Module,), {}))
    import zennit.attribution
    import zennit.canonizers
    import zennit.composites
    import zennit.layer
    import zennit.rules
    import zennit.types

    for name in stand_ins:  # no other code must mistake them for torchvision
        del sys.modules[name]
    return zennit
