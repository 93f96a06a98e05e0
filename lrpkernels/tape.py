"""One forward pass of an unchanged model, recorded, and relevance through it: the interface of :mod:`lrpkernels.engine`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .engine import propagate, verified
from .engine.fusion import Fuse, fused
from .engine.liveness import Liveness
from .engine.own_pass import unchanged
from .engine.recorder import Recording, RecordingMode
from .engine.replay import StaticCalls, TracingMode
from .engine.target import Target
from .engine.verified import Check
from .errors import UnusedInputError, VerificationError
from .graph import Node, Value
from .rules import Composite, Rule, as_composite

if TYPE_CHECKING:
    from typing_extensions import Self


class Tape:
    """The record of one forward pass. Made by :func:`record`; a context manager that releases its tensors on exit.

    Attributes:
        output: what the model returned, unchanged (part of the ordinary autograd graph when gradients are on).
        inputs: the tensors the model was called with.
        model: the one that was recorded.
    """

    def __init__(self, recording: Recording, output: Any, fuse: Fuse = fused) -> None:
        self.output = output
        self.inputs = recording.inputs
        self.model = recording.model
        self._recording = recording
        self._fuse = fuse
        self._released = False

    @property
    def nodes(self) -> list[Node]:
        """The recorded operations in the order they ran."""
        return self._recording.nodes

    @property
    def input_values(self) -> tuple[Value, ...]:
        """The recorded inputs."""
        return self._recording.input_values

    def value_of(self, tensor: Tensor) -> Value:
        """The recorded value that ``tensor`` is.

        Raises:
            UnusedInputError: it does not depend on the model's input through recorded operations.
        """
        value = self._recording.value(tensor)
        if value is None:
            raise UnusedInputError(
                f"{type(self.model).__name__}: its output does not depend on its input through recorded operations"
            )
        return value

    def module_path(self, module: nn.Module) -> str:
        """Dotted name of a module, '(model)' for the model itself."""
        return self._recording.module_path(module)

    def plan(self, composite: Composite | Rule | None = None, keep: Sequence[Value] = ()) -> list[tuple[Node, Rule]]:
        """The operations in order, layers merged into blocks, each with the rule that it would follow.

        Args:
            composite: as in :meth:`relevance`.
            keep: values that must stay visible, so that nothing merges across them.
        """
        return propagate.with_rules(self._recording, self._fuse(self.nodes, keep), as_composite(composite))

    def module_output(self, name: str) -> Value:
        """The recorded output of the submodule called ``name``.

        Raises:
            ValueError: no such module, or it did not run exactly once, or its output is not a recorded tensor.
        """
        modules = dict(self.model.named_modules())
        if name not in modules:
            near = difflib.get_close_matches(name, [n for n in modules if n], n=3, cutoff=0.3)
            raise ValueError(f"at: the model has no module {name!r}; near matches: {', '.join(near) or 'none'}")
        calls = self._recording.returned.get(id(modules[name]), [])
        if len(calls) != 1:
            raise ValueError(
                f"at: module {name!r} must give one recorded tensor in a forward pass, it gave {len(calls)}"
            )
        return calls[0]

    def relevance(
        self,
        target: Target = None,
        composite: Composite | Rule | None = None,
        at: Sequence[str] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        memory_budget: int | None = None,
        release: bool = False,
    ) -> Any:
        """Relevance at the model's input, and at the output of named modules.

        Args:
            target: what is explained, as in :class:`lrpkernels.LRP`.
            composite: which rule each layer follows; default :class:`lrpkernels.Epsilon` with eps 1e-2.
            at: module names. None: only the input's relevance is returned.
            output: picks the logits out of the model's output, if that is not a tensor.
            memory_budget: rough limit in bytes for the multipliers of the targets of one pass; the others follow in turn. None: all
                at once.
            release: let go of each forward value as soon as the pass has read it; there can be no further pass.

        Returns:
            R at the input, the input's shape; with several targets [B, T, ...] (targets after the batch dimension). A tuple if the
            model has several inputs. With ``at`` a dict: {"input": R, name: R at that module's output, ...}.

        Raises:
            ValueError: a target or a module name does not fit this model.
            UnusedInputError: the output does not depend on the input.
            UnsupportedOperationError: an operation on the way has no rule.
        """
        if self.output is None:
            raise RuntimeError(
                "tape: its tensors were released when the 'with' block ended; call relevance() inside it"
            )
        if self._released:
            raise RuntimeError(
                "tape: an earlier relevance(..., release=True) has let its values go; leave `release` out there"
            )
        hidden = None if at is None else {name: self.module_output(name) for name in at}
        release = release and not self._recording.recomputes  # whose backward reads the values again
        chosen = as_composite(composite)
        self._released = release
        return propagate.relevance(
            self._recording, self._fuse, self.output, hidden, target=target, composite=chosen, pick=output,
            memory_budget=memory_budget, release=release,
        )  # fmt: skip

    def clear(self) -> None:
        """Release every recorded tensor, now and not when Python's garbage collector comes round."""
        self._recording.clear()
        self.output = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()


def record(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    *,
    composite: Composite | Rule | Sequence[Composite | Rule] | None = None,
    at: Sequence[str] = (),
    checkpoint: bool = False,
    static: StaticCalls | None = None,
    check: Check = True,
    **kwargs: Any,
) -> Tape:
    """Run ``model(x, **kwargs)`` once, unchanged, and write down what it did.

    The model, its parameters, buffers, hooks and mode stay as they are (batch-norm statistics move once, as in any training-mode
    forward pass); gradients follow the caller's grad mode.

    Args:
        model: any ``nn.Module`` made of PyTorch functions.
        x: a floating-point tensor, or a tuple of them for a model with several inputs; relevance is attributed to them.
        composite: the rules that the relevance passes to come will follow, one composite or several: only what these read is kept of
            the forward pass. None: everything is.
        at: module names that they will ask for; counts beside ``composite``.
        checkpoint: when gradients are on, save less for backward and make it again there (lrpkernels.engine.recompute); the same numbers.
        static: for models that always make the same PyTorch calls, see :class:`lrpkernels.StaticCalls`: the calls of the first pass
            are run again in later ones, without the model's Python code. None: the model runs.
        check: True: at its first use with this form of input the model is verified (docs/verify.md): on a few images, the recording's
            gradients must be autograd's on the model itself. "always": at every use; False: never.
        kwargs: passed on to the model, not explained.

    Returns:
        A :class:`Tape`. Use it in a ``with`` statement, so that its tensors are released.

    Raises:
        TypeError: an input is not a floating-point tensor.
        UnusedInputError: the model called no PyTorch function on its input.
        InPlaceError, UnsupportedOperationError: see lrpkernels.errors.
        VerificationError: a heatmap would be wrong; names the module.
        ValueError: ``static`` belongs to another model.
    """
    inputs = checked(x)
    several = [composite] if isinstance(composite, (Composite, Rule)) else composite
    key = None if static is None else static.key(model, inputs, kwargs, several, at, checkpoint)
    if check is not False:
        verified.ensure(model, inputs, kwargs, take, check, static is not None)
    known = None if static is None else static.find(key)
    if known is not None:
        recording = Recording(model, inputs, None, checkpoint)
        output = known.replay(recording)
        recording.finish()
        return Tape(recording, output, known.fused)
    liveness = None if several is None else Liveness(model, [as_composite(c) for c in several], at)
    recording = Recording(model, inputs, liveness, checkpoint)
    mode = RecordingMode(recording) if static is None else TracingMode(recording)
    try:
        with recording.running(mode):
            output = model(*inputs, **kwargs)
    except BaseException:
        recording.clear()  # now, and not when Python's garbage collector comes round
        raise
    if recording.aliases.replaced:
        current = recording.current
        output = current(output) if isinstance(output, Tensor) else _map_tensors(current, output)
    if not recording.nodes:
        raise UnusedInputError(
            f"{type(model).__name__}: the model called no PyTorch function on its input (exported and compiled-extension models hide "
            "theirs: pass the nn.Module they were made from)"
        )
    recording.refuse_hidden_branches()
    if static is not None and isinstance(mode, TracingMode):
        mode.trace.finish(recording, output)
        static.keep(key, mode.trace)
    recording.finish()
    return Tape(recording, output)


def take(model: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any], static: bool) -> Tape:
    """A recording to be verified; with ``static`` calls noted on other images are run again on these.

    Raises:
        VerificationError: the calls cannot be run again.
    """
    if not static:
        return record(model, inputs, check=False, **kwargs)
    calls = StaticCalls()
    with unchanged(model, inputs[0].device):
        record(model, tuple(0.9 * x.flip(0) for x in inputs), static=calls, check=False, **kwargs).clear()
    try:
        return record(model, inputs, static=calls, check=False, **kwargs)
    except Exception as error:
        raise VerificationError(
            f"static: the model's calls, noted on one input, fail on another ({error}); leave `static` out"
        ) from error


def checked(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs of a recording.

    Raises:
        TypeError: one is not a floating-point tensor.
    """
    inputs = x if isinstance(x, tuple) else (x,)
    if not inputs:
        raise TypeError("record: the model needs at least one input tensor, got an empty tuple")
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(
                f"record: input {index} must be a floating-point tensor, got {got}; integer inputs (token ids) have no "
                "relevance of their own: start at their embedding, or pass them as keyword arguments"
            )
    return inputs


def _map_tensors(function: Callable[[Any], Any], output: Any) -> Any:
    """A model's output, of any registered structure, with each tensor replaced."""
    return torch.utils._pytree.tree_map_only(Tensor, function, output)
