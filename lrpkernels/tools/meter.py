"""Reading a meter (a clock, a count of bytes) around every function of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from .traffic import tensors

Reading = Callable[[], float]


class MeteredFunctions(TorchFunctionMode):
    """Reads the meter around every function that the recorder runs, and notes the difference with its results."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        self.spent: dict[int, float] = {}
        self._kept: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        start = self.reading()
        out = func(*args, **(kwargs or {}))
        spent = self.reading() - start
        for tensor in tensors(out):
            if id(tensor) not in self.spent:  # otherwise it was there before: an argument, the base of a view
                self.spent[id(tensor)] = spent
                self._kept.append(tensor)  # so that no other tensor takes its id
        return out
