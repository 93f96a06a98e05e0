"""Recording and relevance run as plain Python and eager PyTorch, also where ``torch.compile`` compiles the caller or the model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """The function with the compiler out of the way: a compiled caller breaks its graph here, compiled parts of the model run as they are.

    Costs a look-up where nothing has been compiled.
    """

    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    skipped = torch._disable_dynamo(uncompiled)

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return skipped(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    return cast(F, run)
