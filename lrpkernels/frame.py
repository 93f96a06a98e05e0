"""The operations and values of a pass, used again by the next one with the same calls: making them anew is most of what recording costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .demand import Demand

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .layers.base import Op
    from .tape import Tape
    from .value import Value


class Frame:
    """Operations that can all be repeated (:meth:`lrpkernels.layers.base.Op.repeat`); one tape at a time has it.

    Args:
        tape: a recorded pass.
        kept: for each operation's output, whether it is to be held; None: all are.

    Attributes:
        ops, input_values: of the tape.
        blocks: the fused operations, by the places of the values that must stay visible.
    """

    def __init__(self, tape: Tape, kept: Sequence[bool] | None) -> None:
        self.ops = [*tape.ops]
        self.input_values = tape.input_values
        self.blocks: dict[tuple[int, ...], list[Op]] = {}
        self._kept = [True] * len(self.ops) if kept is None else kept

    def run(self, place: int, func: Any, args: Any, kwargs: Any) -> Tensor:
        """An operation on new tensors."""
        op = self.ops[place]
        out = op.repeat(func, args, kwargs)
        op.outputs[0].refill(out, op, self._kept[place])
        return out

    def empty(self) -> None:
        """Lets all tensors of the pass go."""
        for value in self.input_values:
            value.release()
        for op in self.ops:
            for value in op.outputs:
                value.release()
            op.forget()


class Kept(Demand):
    """What is kept of a pass is what was kept of the one that was traced."""

    def __init__(self, kept: Sequence[bool]) -> None:
        self._kept = iter(kept)

    def note(self, op: Op) -> None:
        for value in op.outputs:
            if next(self._kept):
                value.hold()

    def module_left(self, module: nn.Module, value: Value) -> None: ...
