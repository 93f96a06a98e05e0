"""The compiled ops, ``torch.ops.lrpkernels``, by names that type checkers know (ops.pyi): ``lrpkernels.ops.ratio(...)``.

What each computes, and its conventions: docs/architecture.md. Most users need :mod:`lrpkernels.functional`, whose functions are
differentiable.
"""

from __future__ import annotations

from typing import Any

import torch

from . import _extension  # registers them


def __getattr__(name: str) -> Any:
    if name in __dir__():
        found = globals()[name] = getattr(getattr(torch.ops, _extension.NAMESPACE), name)  # the list is long: once
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the ops are {', '.join(__dir__())}")


def __dir__() -> list[str]:
    prefix = f"{_extension.NAMESPACE}::"
    return sorted(
        name.removeprefix(prefix) for name in torch._C._dispatch_get_all_op_names() if name.startswith(prefix)
    )
