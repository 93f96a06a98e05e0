"""Operations on the tape, and the table from PyTorch functions to their recorders."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InPlaceError, UnsupportedOperationError
from .nested import leaves, map_leaves

if TYPE_CHECKING:
    from ..rules.base import Rule
    from ..tape import Tape, Value

Multipliers = tuple["Tensor | None", ...]
Arrived = Sequence[
    Any
]  # one multiplier per output; None where nothing arrived (only operations with several outputs see it)


def writes_in_place(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a call changes its argument, by its name or a keyword."""
    name = getattr(func, "__name__", "")
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i") or bool(kwargs.get("inplace"))


class Op(ABC):
    """One recorded operation.

    Subclasses say how the multiplier G (R = a * G) at the outputs goes to the inputs. Multipliers may carry T targets: their first
    dimension is then T times that of the forward value, target-major.
    """

    kind = "op"
    is_linear = False  # a LinearMap; isinstance of abstract classes is slow for a question that every recorded operation is asked
    repeats = (
        False  # it keeps nothing of a pass: calling its function again, out of place, is all there is to a new one
    )
    # Whether the relevance pass reads these tensors: always, never, or if the rule's `reads` has one of the names.
    reads_inputs: bool | frozenset[str] = True
    reads_outputs: bool | frozenset[str] = True
    module_type: type[nn.Module] | None = None  # the module that does the same, for composites that go by type

    def __init__(self, *inputs: Value) -> None:
        self.inputs: tuple[Value, ...] = inputs
        self.outputs: tuple[Value, ...] = ()
        self.module: nn.Module | None = None

    @property
    def output(self) -> Value:
        return self.outputs[0]

    def label(self) -> str:
        """What this operation is called in tables."""
        return self.kind

    def can_repeat(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether :meth:`repeat` does what recording this call did."""
        return self.repeats and not writes_in_place(func, kwargs)

    def repeat(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Runs the call that was recorded as this operation on other tensors of the same form, and returns its output.

        What the operation itself keeps of a pass is of the new one then. Inputs and outputs are the caller's business.
        """
        return func(*args, **kwargs)

    def forget(self) -> None:  # noqa: B027 (few operations keep any)
        """Lets go of large tensors that the operation itself keeps of a pass."""

    @abstractmethod
    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        """Multipliers at the inputs, given those at the outputs (None: nothing arrives there).

        Raises:
            UnsupportedOperationError: this operation has no rule.
        """

    def propagate_relevance(self, relevance: Tensor) -> Multipliers:
        """Relevance R itself at the inputs, for operations ahead of a first-layer rule.

        Raises:
            UnsupportedOperationError: R cannot follow the data through this operation.
        """
        raise UnsupportedOperationError(
            f"{self.kind}: a first-layer rule yields relevance behind this operation, which cannot be taken through it; move the "
            "operation out of the model, or use a rule without `first`"
        )


Recorder = Callable[["Tape", Any, tuple[Any, ...], dict[str, Any]], Any]
_RECORDERS: dict[Any, Recorder] = {}
F = TypeVar("F", bound=Recorder)

is_grad_enabled = torch.is_grad_enabled  # one lookup less for every operation


def records(*functions: Any) -> Callable[[F], F]:
    """Register the decorated recorder for PyTorch functions. It runs the function and adds its operation to the tape."""

    def register(recorder: F) -> F:
        for function in functions:
            _RECORDERS[function] = recorder
        return recorder

    return register


def bind(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str, **defaults: Any) -> list[Any]:
    """Arguments in the order of ``names``, from positional and keyword ones and the defaults (None if there is none)."""
    values = list(args)
    for name in names[len(args) :]:
        values.append(kwargs.get(name, defaults.get(name)))
    return values


def dispatch(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``func`` and record it if it reads a recorded tensor.

    Raises:
        InPlaceError: an argument is a view of a tensor that was changed in place.
    """
    if tape.live and not is_grad_enabled() and in_custom_function():
        # A custom autograd.Function runs its forward without gradients and puts its own backward on the result. What happens inside
        # is recorded, so the relevance pass needs the inner tensors' gradients, too.
        with torch.enable_grad():
            return _dispatch(tape, func, args, kwargs)
    return _dispatch(tape, func, args, kwargs)


def in_custom_function() -> bool:
    """Whether this runs inside the ``forward`` of a custom ``torch.autograd.Function``."""
    frame, forwards = sys._getframe(1), None
    while frame is not None:
        if frame.f_code.co_name == "forward":
            forwards = _custom_forwards() if forwards is None else forwards
            if frame.f_code in forwards:
                return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _custom_forwards() -> set[Any]:
    """The code of every ``forward`` of a custom function; ``Function.apply`` itself leaves no frame in newer versions of PyTorch."""
    codes: set[Any] = set()
    pending: list[Any] = [torch.autograd.Function]
    while pending:
        pending += pending.pop().__subclasses__()
        codes.update(getattr(cls.forward, "__code__", None) for cls in pending)
    return codes - {None}


def _dispatch(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if tape._replaced:
        args, kwargs = map_leaves(tape.current, args), map_leaves(tape.current, kwargs)
    recorder = _RECORDERS.get(func)
    if recorder is not None:
        read = _reads_recorded(tape, args)
        if kwargs:
            read |= _reads_recorded(tape, kwargs.values())
        return recorder(tape, func, args, kwargs) if read else func(*args, **kwargs)
    return _run_unknown(tape, func, args, kwargs)


def _run_unknown(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    out = func(*args, **kwargs)
    return out if type(out) in _PLAIN else _record_unknown(tape, func, args, kwargs, out)


def recorder_of(func: Any) -> Recorder:
    """What records a call of ``func`` that reads a recorded tensor."""
    return _RECORDERS.get(func, _run_unknown)


def _reads_recorded(tape: Tape, args: Iterable[Any]) -> bool:
    """Whether a recorded tensor is among the arguments; constants with a history are noted on the way."""
    values, live, found = tape._values, tape.live, False
    for arg in args:
        kind = type(arg)
        if kind in _NO_TENSORS:
            continue
        if id(arg) in values:
            found = True
        elif kind is list or kind is tuple:
            found |= _reads_recorded(tape, arg)
        elif live and isinstance(arg, Tensor) and arg.grad_fn is not None:
            tape.constants.append((arg, tape._modules[-1] if tape._modules else tape.model))
    return found


_NO_TENSORS = frozenset((int, float, bool, str, type(None)))
_PLAIN = (int, float, bool, str, torch.Size, torch.dtype, torch.device, type(None), torch.layout, torch.memory_format)


def _record_unknown(tape: Tape, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    from .fallback import Unknown

    given = leaves((args, kwargs))
    inputs = [value for value in map(tape.value, given) if value is not None]
    if not inputs:
        return out
    outputs = [t for t in leaves(out) if isinstance(t, Tensor)]
    if not any(t.is_floating_point() for t in outputs):
        return out  # comparisons, indices, sizes: constants, as for gradients
    if any(tape.value(t) is not None for t in outputs):
        if getattr(func, "__name__", "").endswith("_") and given[0] is outputs[0]:
            raise InPlaceError(
                f"{tape.path()}: {func.__name__} changes a recorded tensor in place and has no recorder; "
                "use the out-of-place form in the model"
            )
        return out  # the function returned its argument
    tape.add(Unknown(inputs, func, args, kwargs, tape.path()), *outputs)
    return out
