"""Which models have been verified, and on what form of input: each is once, at first use."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from math import isnan
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import RelevanceError, VerificationError
from ..functional import is_capturing
from ..layers.registry import leaves, map_leaves
from .adapters import FromEmbeddings, of_positional_numbers
from .locate import Departure
from .own_pass import Inputs, copy_of
from .sharding import is_sharded
from .tape_pass import Taken
from .verify import Checked, check

Check = bool | Literal["always"]
# Images that a check takes: two, since a model may squeeze a batch of one; in training mode enough for batch statistics.
_IMAGES, _IMAGES_IN_TRAINING = 2, 8
_SIZES = 16  # of one kind of input, for example lengths of a text; further ones are taken as verified
_COMMUNICATES = ("SyncBatchNorm", "DistributedDataParallel")


class _Known:
    """What is known of one model: valid while its modules are the same objects."""

    def __init__(self, model: nn.Module, modules: Sequence[nn.Module]) -> None:
        key, pop = id(model), _MODELS.pop
        self.model = weakref.ref(model, lambda _: pop(key, None))
        self._modules = [weakref.ref(module) for module in modules]
        self.sizes: dict[Any, set[Any]] = {}

    def is_of(self, model: nn.Module, modules: Sequence[nn.Module]) -> bool:
        same = len(modules) == len(self._modules) and self.model() is model
        return same and all(ref() is module for ref, module in zip(self._modules, modules, strict=True))


_MODELS: dict[int, _Known] = {}


def ensure(
    model: nn.Module,
    inputs: Inputs,
    kwargs: Mapping[str, Any],
    take: Callable[..., Taken],
    how: Check,
    static: bool = False,
    names: tuple[str, ...] | None = None,
) -> None:
    """Verify a model, unless it has been on this form of input.

    The form is shape without batch, dtype and device of inputs and keyword tensors, plain keyword arguments, the modules' modes and hooks,
    grad mode, autocast, and ``static``.

    Args:
        model, inputs, kwargs: as they are to be recorded.
        names: keywords of the inputs, if they are given by keyword.
        take, static: see :func:`on_few_images`.
        how: False: nothing is done; "always": whatever is known.

    Raises:
        VerificationError: the recording is not what the model does.
    """
    if how is False or not _can_run(inputs):
        return
    if how is not True and how != "always":
        raise ValueError(f'check must be True, False or "always", got {how!r}')
    modules, state = _modules_of(model)
    kind, sizes = _form(inputs, kwargs, (*state, static, names))
    known = _MODELS.get(id(model))
    if known is None or not known.is_of(model, modules):
        known = _MODELS[id(model)] = _Known(model, modules)
    done = known.sizes.setdefault(kind, set())
    if how is True and (sizes in done or len(done) >= _SIZES):
        return
    communicates = _is_distributed() and any(type(module).__name__ in _COMMUNICATES for module in modules)
    if communicates or is_sharded(model):
        return  # its processes would wait for each other, or weights that are compared have been freed
    found = on_few_images(model, inputs, kwargs, take, static, names)
    if found.departures:
        raise VerificationError(
            f"{found.departures[0]}. The heatmap would be wrong (lrpkernels.verify tells more); check=False skips this test"
        )
    if not isnan(found.error):
        done.add(sizes)


def on_few_images(
    model: nn.Module,
    inputs: Inputs,
    kwargs: Mapping[str, Any],
    take: Callable[..., Taken],
    static: bool = False,
    names: tuple[str, ...] | None = None,
) -> Checked:
    """:func:`lrpkernels.engine.verify.check` on as few images as suffice, or on all if the model does not run on few.

    Without autocast where the inputs are float32, so that rounding hides nothing.

    Args:
        model, inputs, kwargs: as they are to be recorded.
        take: records a model, from the model, inputs, keyword arguments and whether calls are replayed.
        static: whether they are.
        names: keywords of the inputs, if they are given by keyword.
    """
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        with torch.inference_mode(False):  # autograd takes none of these
            model = copy.deepcopy(model)
    tries: list[tuple[Inputs, dict[str, Any], Callable[[], Any]]] = [(inputs, dict(kwargs), nullcontext)]
    device = inputs[0].device.type
    if torch.is_autocast_enabled(device) and all(x.dtype in (torch.float32, torch.float64) for x in inputs):
        tries.insert(0, (inputs, dict(kwargs), lambda: torch.autocast(device, enabled=False)))
    training = any(module.training for module in model.modules())
    part = _first(_IMAGES_IN_TRAINING if training else _IMAGES, inputs, kwargs)
    if part is not None:
        tries.insert(0, (*part, tries[0][2]))
    for given, options, context in tries[:-1]:
        try:
            with context():
                adapted, numbers = _if_it_runs(of_positional_numbers, model, given, names, options)
                replays = static and not isinstance(adapted, FromEmbeddings)  # whose own rows are no calls of the model
                return _explained(adapted, numbers, options, partial(_if_it_runs, take), replays)
        except _DoesNotRun:  # a model for batches of one size, or for autocast, alone
            continue
    given, options, _ = tries[-1]
    adapted, numbers = of_positional_numbers(model, given, names, options)
    return _explained(adapted, numbers, options, take, static and not isinstance(adapted, FromEmbeddings))


class _DoesNotRun(Exception):
    """The model raises on inputs of this kind."""


def _if_it_runs(take: Callable[..., Any], *args: Any) -> Any:
    try:
        return take(*args)
    except (RelevanceError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _DoesNotRun from error


def _explained(
    model: nn.Module, inputs: Inputs, kwargs: dict[str, Any], take: Callable[..., Taken], static: bool
) -> Checked:
    found = check(model, inputs, kwargs, lambda xs: take(model, xs, map_leaves(copy_of, kwargs), static))
    if not found.departures or not static:
        return found
    plain = check(model, inputs, kwargs, lambda xs: take(model, xs, map_leaves(copy_of, kwargs), False))
    reason = "the model's calls, noted on one input, give other results on another; leave `static` out"
    return plain if plain.departures else Checked(found.error, (Departure("(model)", "static", reason, found.error),))


def _first(images: int, inputs: Inputs, kwargs: Mapping[str, Any]) -> tuple[Inputs, dict[str, Any]] | None:
    """The first images of inputs and keyword tensors; None: there are no more than these."""
    batch = inputs[0].shape[0] if inputs[0].dim() else 0
    if batch <= images or not all(x.dim() and x.shape[0] == batch for x in inputs):
        return None

    def first(leaf: Any) -> Any:
        return leaf[:images] if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch else leaf

    return tuple(map(first, inputs)), map_leaves(first, dict(kwargs))


def _modules_of(model: nn.Module) -> tuple[list[nn.Module], list[Any]]:
    """All modules, and what of their state the calls of a pass depend on."""
    pending: list[nn.Module | None] = [model]
    modules: list[nn.Module] = []
    state: list[Any] = []
    while pending:
        module = pending.pop()
        if module is None:
            continue
        modules.append(module)
        state.append((module.training, len(module._forward_hooks), len(module._forward_pre_hooks)))
        if module._modules:
            pending += module._modules.values()
    return modules, state


def _form(inputs: Inputs, kwargs: Mapping[str, Any], state: tuple[Any, ...]) -> tuple[Any, Any]:
    """The kind of input, and its sizes."""
    tensors = [*inputs, *(leaf for leaf in leaves(dict(kwargs)) if isinstance(leaf, Tensor))]
    device = inputs[0].device.type
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    plain = [(name, _plain(value)) for name, value in sorted(kwargs.items())]
    mode = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast)
    kind = (*state, *mode, *plain, *((x.dim(), x.dtype, x.device) for x in tensors))
    return kind, (inputs[0].shape[:1] == (1,), *(x.shape[1:] for x in tensors))


def _plain(value: Any) -> Any:
    """What stands for a keyword argument."""
    return value if value is None or isinstance(value, (int, float, bool, str)) else type(value)


def _can_run(inputs: Inputs) -> bool:
    """Whether numbers can be read now, and there are some."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return all(
        x.numel() and x.device.type != "meta" and not is_capturing(x.device) and _is_plain_tensor(x) for x in inputs
    )


def _is_plain_tensor(x: Tensor) -> bool:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return type(x) in (Tensor, nn.Parameter) and not wrapped


def _is_distributed() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
