"""One forward pass of an unchanged model, recorded, and relevance through it: the interface of :mod:`lrpkernels.engine`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ._extension import ops
from .engine import verified
from .engine.assignment import assign
from .engine.conditions import Condition
from .engine.eager import eager, outside_inference_mode
from .engine.explain import Question, Start, relevance
from .engine.fusion import Fuse, fused
from .engine.liveness import Liveness
from .engine.own_pass import unchanged
from .engine.places import ModuleCall, Place, values_at
from .engine.recorder import Recording, RecordingMode
from .engine.replay import StaticCalls, TracingMode
from .engine.sharding import gather_in_backward, gathered, refuse_unreadable
from .engine.target import Target
from .engine.verified import Check
from .errors import UnusedInputError, VerificationError
from .graph import Node, Value
from .layers.registry import leaves
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
        self._recording = recording
        self.output = output
        self.inputs = recording.inputs
        self.model = recording.model
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
            keep: values across which nothing merges.
        """
        return assign(self._recording, self._fuse, as_composite(composite), keep)

    def values_at(self, place: str | Place) -> tuple[Value, ...]:
        """The recorded values at a place: what a module returns, or reads.

        Raises:
            ValueError: no such module or call, or no tensor there that depends on the model's input.
        """
        return values_at(self.model, self._recording.calls_of, place)

    def calls_of(self, module: nn.Module) -> list[ModuleCall]:
        """What a module read and returned, call by call; empty if it did not run.

        Raises:
            ValueError: that was not noted (``record(at=None)``).
        """
        return self._recording.calls_of(module)

    @eager
    def relevance(
        self,
        target: Target = None,
        composite: Composite | Rule | None = None,
        at: Sequence[str | Place] | None = None,
        output: Callable[[Any], Tensor] | None = None,
        memory_budget: int | None = None,
        release: bool = False,
        *,
        to_input: bool = True,
        start: Start | None = None,
        conditions: Sequence[Condition] | None = None,
        exclude_parallel: bool = True,
    ) -> Any:
        """Relevance at the model's input, and at the output or input of its modules.

        Args:
            target: what is explained, as in :class:`lrpkernels.LRP`.
            composite: which rule each layer follows; default :class:`lrpkernels.Epsilon` with eps 1e-2.
            at: places in the model: a module's name stands for its output, :func:`lrpkernels.input_of` for its input. What is asked
                for never changes the pass. Between a convolution and the batch norm merged with it, or ahead of the ReLU behind both,
                relevance is what the operations behind that place hand on by the block's rule. None: only the input's relevance is
                returned.
            output: picks the logits out of the model's output, if that is not a tensor.
            memory_budget: rough limit in bytes for the multipliers of the targets of one pass; the others follow in turn. None: all
                at once.
            release: let go of each forward value as soon as the pass has read it; there can be no further pass.
            to_input: False: the pass ends at the places of ``at``. Their relevance is the same, nothing ahead of them is computed, now or
                in backward, and the answer has no "input".
            start: relevance to start from, in place of a target: R at the output, of its shape, or {place: R there, ...}, each [B, ...]
                or [B, T, ...]; 0 where the value is 0.
            conditions: a list of T dicts from places to what relevance may pass there, each for a heatmap of its own: a channel or a
                list of channels (dimension 1), or a bool or float mask that broadcasts against the value. With one target for all,
                or a list of T targets, one for each.
            exclude_parallel: of relevance, only what passes the places of its condition counts; False: what goes by them in parallel
                branches, as a shortcut, counts as well.

        Returns:
            R at the input, the input's shape; with several targets or conditions [B, T, ...] (targets after the batch dimension). A
            tuple if the model has several inputs, a dict if they are keyword inputs; of token ids R per token. With ``at`` a dict:
            {"input": R, place: R there, ...}, a tuple for a place of several tensors; behind a condition's place, and at it, what it keeps.

        Source of conditions: Achtibat et al. 2023, "From attribution maps to human-understandable explanations through Concept
        Relevance Propagation"; they mask the same places as zennit-crp does.

        Raises:
            ValueError: a target or a place does not fit this model, or the rule there defines no relevance at that place.
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
        asked = Question(
            target,
            as_composite(composite),
            at,
            output,
            start,
            conditions,
            exclude_parallel,
            memory_budget,
            release,
            to_input,
        )
        self._released = release
        with outside_inference_mode(), gathered(self.model):
            found = relevance(self._recording, self._fuse, self.output, asked)
        gather_in_backward(self.model, found)
        return found

    def clear(self) -> None:
        """Release every recorded tensor, now and not when Python's garbage collector comes round."""
        self._recording.clear()
        self.output = None

    def __del__(self) -> None:
        if self._recording.nodes:
            self.clear()  # values and operations refer to each other

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.clear()


@eager
def record(
    model: nn.Module,
    x: Tensor | tuple[Tensor, ...] | Mapping[str, Tensor],
    *,
    composite: Composite | Rule | Sequence[Composite | Rule] | None = None,
    at: Sequence[str | Place] | None = (),
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
        x: a tensor, or a tuple of them for a model with several inputs, or a dict of them by the model's keywords
            ({"inputs_embeds": e}); relevance is attributed to them. Of an integer tensor (token ids), relevance is that of the rows of
            the embeddings that it looks up.
        composite: the rules that the relevance passes to come will follow, one composite or several: only what these read is kept of
            the forward pass. None: everything is.
        at: places that they will ask for or start from, as in :meth:`Tape.relevance`; counts beside ``composite``.
            None: no place at all, so that modules' inputs and outputs need not be noted.
        checkpoint: when gradients are on, save less for backward and make it again there (lrpkernels.engine.recompute); the same numbers.
        static: for models that always make the same PyTorch calls, see :class:`lrpkernels.StaticCalls`: the calls of the first pass
            are run again in later ones, without the model's Python code. None: the model runs.
        check: True: at its first use with this form of input the model is verified (docs/verify.md): on a few images, the recording's
            gradients must be autograd's on the model itself. "always": at every use; False: never.
        kwargs: passed on to the model, not explained.

    Returns:
        A :class:`Tape`. Use it in a ``with`` statement, so that its tensors are released.

    Raises:
        TypeError: an input is not a tensor of numbers, or float16 on the CPU.
        UnusedInputError: the model called no PyTorch function on its input.
        InPlaceError, UnsupportedOperationError: see lrpkernels.errors.
        VerificationError: a heatmap would be wrong; names the module.
        ValueError: ``static`` belongs to another model.
    """
    inputs, names = checked(model, x, kwargs)
    refuse_unreadable(model, static is not None)
    with outside_inference_mode():
        if check is not False:
            verified.ensure(model, inputs, kwargs, take, check, static is not None, names)
        return _recorded(model, _apart(inputs, kwargs), names, kwargs, composite, at, checkpoint, static)


def _recorded(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...] | None,
    kwargs: dict[str, Any],
    composite: Composite | Rule | Sequence[Composite | Rule] | None,
    at: Sequence[str | Place] | None,
    checkpoint: bool,
    static: StaticCalls | None,
) -> Tape:
    several = [composite] if isinstance(composite, (Composite, Rule)) else composite
    key = None if static is None else static.key(model, inputs, kwargs, several, at, checkpoint, names)
    known = None if static is None else static.find(key)
    composites = [as_composite(c) for c in several or ()]
    whole = several is None or any(composite.yields_in_hidden_layers for composite in composites)
    liveness = None if whole or known is not None else Liveness(model, composites, at or ())
    recording = Recording(model, inputs, liveness, checkpoint, names)
    recording.notes_calls = at is not None
    try:
        if known is not None:
            output, fuse = known.replay(recording), known.fused
        else:
            output, fuse = _run(recording, kwargs, static, key), fused
    except BaseException:
        recording.clear()  # now, and not when Python's garbage collector comes round
        raise
    recording.finish()
    return Tape(recording, output, fuse)


def _run(recording: Recording, kwargs: dict[str, Any], static: StaticCalls | None, key: Any) -> Any:
    """Run the model while it is recorded; returns its output."""
    model = recording.model
    mode = RecordingMode(recording) if static is None else TracingMode(recording)
    inputs, names = recording.inputs, recording.names
    with recording.running(mode):
        output = model(*inputs, **kwargs) if names is None else model(**dict(zip(names, inputs, strict=True)), **kwargs)
    if recording.aliases.replaced:
        current = recording.current
        output = current(output) if isinstance(output, Tensor) else _map_tensors(current, output)
    if not recording.nodes:
        raise UnusedInputError(
            f"{type(model).__name__}: the model called no PyTorch function on its input (exported and compiled-extension models hide "
            "theirs: pass the nn.Module they were made from)"
        )
    recording.refuse_hidden_branches()
    keeps_state = recording.settle()
    if static is not None and isinstance(mode, TracingMode):
        mode.trace.finish(recording, output, keeps_state)
        static.keep(key, mode.trace)
    return output


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


def checked(model: nn.Module, x: Any, kwargs: Mapping[str, Any]) -> tuple[tuple[Tensor, ...], tuple[str, ...] | None]:
    """The input tensors, and the keywords that they are given as, if they are.

    Raises:
        TypeError: one is not a tensor of numbers, or given twice.
    """
    names = tuple(x) if isinstance(x, Mapping) else None
    inputs = tuple(x.values()) if isinstance(x, Mapping) else x if isinstance(x, tuple) else (x,)
    if not inputs:
        raise TypeError(f"record: the model needs at least one input tensor, got an empty {type(x).__name__}")
    for index, tensor in enumerate(inputs):
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            continue
        got = f"dtype {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
        integers = isinstance(tensor, Tensor) and tensor.dtype in (torch.int64, torch.int32)
        if not integers or not any(isinstance(module, nn.Embedding) for module in model.modules()):
            remedy = "pass what is not explained as a keyword argument"
            if isinstance(tensor, np.ndarray):
                remedy = "torch.from_numpy(x) makes one"
            elif isinstance(tensor, Tensor) and tensor.dtype == torch.uint8:
                remedy = "x.float() / 255 makes pixels in [0, 1]; normalise them as in training"
            raise TypeError(
                f"record: input {index if names is None else repr(names[index])} must be a floating-point tensor, got {got}; {remedy} "
                "(integers, token ids, are explained through the nn.Embedding modules that look them up)"
            )
    for index, tensor in enumerate(inputs):
        if ops.lack(tensor):
            raise TypeError(
                f"record: input {index} has dtype float16 on the CPU, which has no kernels for it; use float32 or bfloat16"
            )
    twice = {*(names or ())} & {*kwargs}
    if twice:
        raise TypeError(
            f"record: {', '.join(sorted(twice))} is given both as an input to explain and as a keyword argument"
        )
    return inputs, names


def _apart(inputs: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The inputs as tensors of their own: one that is given twice has a share in each place."""
    seen = {id(leaf) for leaf in leaves(kwargs) if isinstance(leaf, Tensor)}
    found = []
    for tensor in inputs:
        if tensor.is_inference():
            tensor = tensor.clone()  # autograd, which replays functions, cannot save them
        elif id(tensor) in seen:
            tensor = tensor.view_as(tensor)  # an input of its own, with a share of its own
        seen.add(id(tensor))
        found.append(tensor)
    return tuple(found)


def _map_tensors(function: Callable[[Any], Any], output: Any) -> Any:
    """A model's output, of any registered structure, with each tensor replaced."""
    return torch.utils._pytree.tree_map_only(Tensor, function, output)
