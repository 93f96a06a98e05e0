"""Hooks, which are rules, and how they modify a module that is called by itself; stabilizers and changes of parameters."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Stabilize = Callable[[Tensor], Tensor]
Names = str | Sequence[str] | None


def stabilize(
    input: Tensor,
    epsilon: float = 1e-6,
    clip: bool = False,
    norm_scale: bool = False,
    dim: int | tuple[int, ...] | None = None,
) -> Tensor:
    """A denominator kept away from zero.

    Args:
        input: the denominator, (B, ...).
        epsilon: added with the entry's sign, +1 for 0.
        clip: entries keep their value and are at least epsilon in size.
        norm_scale: epsilon is in units of the root mean square over ``dim``.
        dim: dimensions of that mean; None: all but the first.
    """
    scale: float | Tensor = epsilon
    if norm_scale:
        over = tuple(range(1, input.dim())) if dim is None else dim
        scale = epsilon * input.square().mean(dim=over, keepdim=True).sqrt()
    sign = torch.where(input < 0, -1.0, 1.0).to(input.dtype)
    if not clip:
        return input + sign * scale
    return sign * torch.maximum(input.abs(), torch.as_tensor(scale, dtype=input.dtype, device=input.device))


class Stabilizer:
    """:func:`stabilize` with its options, as one callable."""

    def __init__(
        self,
        epsilon: float = 1e-6,
        clip: bool = False,
        norm_scale: bool = False,
        dim: int | tuple[int, ...] | None = None,
    ) -> None:
        self.epsilon, self.clip, self.norm_scale, self.dim = epsilon, clip, norm_scale, dim

    def __call__(self, input: Tensor) -> Tensor:
        return stabilize(input, self.epsilon, self.clip, self.norm_scale, self.dim)

    @classmethod
    def ensure(cls, value: Any) -> Stabilize:
        """A stabilizer from a number, or a callable as it is.

        Raises:
            TypeError: neither.
        """
        if isinstance(value, (int, float)):
            return cls(float(value))
        if callable(value):
            return value
        raise TypeError(f"stabilizer must be a number or a callable, got {value!r}")


def expand(tensor: Any, shape: Sequence[int], cut_batch_dim: bool = False) -> Tensor:
    """A number or tensor in a given shape; dimensions that it lacks are added at its end.

    Args:
        tensor: a number, a list or a tensor.
        shape: the shape.
        cut_batch_dim: leave out what the first dimension has more than ``shape``.

    Raises:
        RuntimeError: it does not fit.
    """
    found = tensor if isinstance(tensor, Tensor) else torch.tensor(tensor)
    if found.dim():
        found = found.view(*found.shape, *(1,) * (len(shape) - found.dim()))
    if cut_batch_dim and found.dim() == len(shape) and found.dim() and found.shape[0] > shape[0]:
        found = found[: shape[0]]
    try:
        return found.expand(tuple(shape))
    except RuntimeError:
        got = tuple(getattr(tensor, "shape", ()))
        raise RuntimeError(f"expand: a tensor of shape {got} does not broadcast to {tuple(shape)}") from None


class ParamMod:
    """A change of a module's parameters, for as long as a context lasts.

    Args:
        modifier: (parameter, name) -> tensor of its shape.
        param_keys: names of the parameters to change; None: all of the module's own.
        zero_params: names of those that are zero instead.
        require_params: a module without one of ``param_keys`` is refused.
    """

    def __init__(
        self,
        modifier: Callable[[Tensor, str], Tensor],
        param_keys: Sequence[str] | None = None,
        zero_params: Names = None,
        require_params: bool = True,
    ) -> None:
        self.modifier, self.param_keys, self.zero_params, self.require_params = (
            modifier,
            param_keys,
            zero_params,
            require_params,
        )

    @classmethod
    def ensure(cls, modifier: Any) -> Any:
        """A ParamMod from one, or from a function.

        Raises:
            TypeError: neither.
        """
        if hasattr(modifier, "zero_params"):
            return modifier
        if callable(modifier):
            return cls(modifier)
        raise TypeError(f"param modifier must be a ParamMod or a function (parameter, name), got {modifier!r}")

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module with its parameters changed; the changed ones are differentiable in the old.

        Raises:
            RuntimeError: a parameter is missing.
        """
        own = module._parameters
        keys = list(own) if self.param_keys is None else list(self.param_keys)
        missing = [key for key in keys if not hasattr(module, key)]
        if missing and self.require_params:
            raise RuntimeError(f"{type(module).__name__} has no parameter {', '.join(map(repr, missing))}")
        before, made = dict(own), []
        try:
            for key in keys:
                parameter = own.get(key)
                if parameter is not None:
                    del own[key]
                    made.append(key)
                    module.__dict__[key] = modified(self, parameter, key)
            yield module
        finally:
            for key in made:
                module.__dict__.pop(key, None)
            own.clear()
            own.update(before)


def modified(change: Any, parameter: Tensor, name: str) -> Tensor:
    """A parameter as a :class:`ParamMod` (ours or zennit's) has it."""
    change = ParamMod.ensure(change)
    if change.param_keys is not None and name not in change.param_keys:
        return parameter
    zero = change.zero_params or ()
    if name in ((zero,) if isinstance(zero, str) else zero):
        return torch.zeros_like(parameter)
    return change.modifier(parameter, name)


def collect_leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules without children, in order; the module itself if it has none."""
    children = list(module.children())
    if not children:
        yield module
    for child in children:
        yield from collect_leaves(child)


class RemovableHandle:
    """Calls ``remove`` of an object that may be gone by then."""

    def __init__(self, instance: Any) -> None:
        self._instance = weakref.ref(instance)

    def remove(self) -> None:
        instance = self._instance()
        if instance is not None:
            instance.remove()


class RemovableHandleList(list[Any]):
    """Handles that are removed together."""

    def remove(self) -> None:  # type: ignore[override]
        for handle in self:
            handle.remove()
        self.clear()


class _Ruled(torch.autograd.Function):
    """A module's output whose gradient goes to the module's input by a hook's ``backward``."""

    @staticmethod
    def forward(ctx: Any, hook: Hook, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        ctx.hook, ctx.module, ctx.x, ctx.y = hook, module, x, y
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        hook, x, y = ctx.hook, ctx.x, ctx.y
        hook.stored_tensors["grad_output"] = grads
        if not (hook.active and hook.registered):
            return None, None, None, grads[0]
        own: tuple[Tensor | None, ...] = (None,)
        if hook.reads_gradient:
            own = torch.autograd.grad(
                y, x, grads[0], retain_graph=True, create_graph=torch.is_grad_enabled(), allow_unused=True
            )
        found = hook.backward(ctx.module, own, grads)
        if found is None:
            return None, None, None, grads[0]
        return None, None, found[0] if isinstance(found, tuple) else found, None


class Hook:
    """A rule: how a module hands relevance from its output to its input. Subclasses define ``backward``, and ``forward`` to store tensors.

    Attributes:
        active: False: the module's own gradient.
        registered: False once it was removed: likewise.
        stored_tensors: what ``forward`` keeps for ``backward``.
        quiet: asked for each call: whether the engine explains this call, so that the hook keeps still.
        reads_gradient: whether ``backward`` reads ``grad_input``.
    """

    reads_gradient = True
    active = registered = True

    def __init__(self) -> None:
        self.stored_tensors: dict[str, Any] = {}
        self.quiet: Callable[[], bool] = _never

    def forward(self, module: nn.Module, input: Any, output: Any) -> Any:
        """Called when the module has run, with its inputs as a tuple."""

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        """Relevance at the input as a tuple, from that at the output, a tuple as well; None: the module's gradient."""

    def copy(self) -> Any:
        """A hook of the same kind, for another module."""
        other = copy.copy(self)
        other.stored_tensors, other.active, other.quiet = {}, True, _never
        return other

    def remove(self) -> None:
        """Let go of what was stored."""
        self.stored_tensors.clear()
        self.registered = False

    def register(self, module: nn.Module) -> RemovableHandleList:
        """Follow this rule when ``module`` runs; ``remove()`` of what is returned ends it."""
        self.registered = True
        return RemovableHandleList(
            [
                RemovableHandle(self),
                module.register_forward_pre_hook(self.pre_forward),
                module.register_forward_hook(self.post_forward),
            ]
        )

    def pre_forward(self, module: nn.Module, input: Any) -> Any:
        """Ahead of the module: it gets a copy, so that it may change its input in place."""
        first = input[0] if isinstance(input, tuple) else input
        if self.quiet() or not (torch.is_grad_enabled() and first.requires_grad):
            self.stored_tensors.pop("argument", None)
            return None
        self.stored_tensors["argument"] = first
        return (first.clone(), *input[1:]) if isinstance(input, tuple) else first.clone()

    def post_forward(self, module: nn.Module, input: Any, output: Any) -> Any:
        """Behind the module: its output gets the rule as its gradient."""
        if self.quiet():
            return None
        x = self.stored_tensors.pop("argument", None)
        given = input if x is None else (x, *input[1:])
        self.forward(module, given, output)
        first = output[0] if isinstance(output, tuple) else output
        if x is None or not first.requires_grad:
            return None
        ruled = _Ruled.apply(self, module, x, first)
        return (ruled, *output[1:]) if isinstance(output, tuple) and len(output) > 1 else ruled


def _never() -> bool:
    return False


def _as_it_is(tensor: Tensor, name: str | None = None) -> Tensor:
    return tensor


def _share(out_grad: Tensor, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(out_grad / stabilize(output) for output in outputs)


def _weighted(inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    return sum((x * g for x, g in zip(inputs, gradients, strict=True)), torch.zeros(()).to(inputs[0]))


class BasicHook(Hook):
    """A rule made of several runs of the layer, each with its own change of input, parameters and output.

    R_in = reducer(inputs, c), c_i = J_i^T s_i, with J_i the Jacobian of the i-th run and s = gradient_mapper(R_out, outputs).

    Args:
        input_modifiers: input -> input, one for each run; default: unchanged.
        param_modifiers: :class:`ParamMod` or (parameter, name) -> parameter.
        output_modifiers: output -> output.
        gradient_mapper: (R_out, outputs) -> s for each run; default: R_out over each stabilized output.
        reducer: (inputs, c) -> R_in; default: the sum of inputs times c.
    """

    reads_gradient = False

    def __init__(
        self,
        input_modifiers: Sequence[Callable[..., Tensor]] | None = None,
        param_modifiers: Sequence[Any] | None = None,
        output_modifiers: Sequence[Callable[..., Tensor]] | None = None,
        gradient_mapper: Callable[..., Any] | None = None,
        reducer: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__()
        given = (input_modifiers, param_modifiers, output_modifiers)
        runs = next((len(modifiers) for modifiers in given if modifiers is not None), 1)
        found = [[_as_it_is] * runs if modifiers is None else list(modifiers) for modifiers in given]
        self.input_modifiers, self.param_modifiers, self.output_modifiers = found
        self.gradient_mapper, self.reducer = gradient_mapper or _share, reducer or _weighted

    def forward(self, module: nn.Module, input: Any, output: Any) -> Any:
        self.stored_tensors["input"] = input

    def backward(self, module: nn.Module, grad_input: Any, grad_output: Any) -> Any:
        live = torch.is_grad_enabled()
        x = self.stored_tensors["input"][0]
        x = x if live else x.detach()
        inputs, outputs = [], []
        with torch.enable_grad():
            runs = zip(self.input_modifiers, self.param_modifiers, self.output_modifiers, strict=True)
            for change_input, change, change_output in runs:
                a = change_input(x)
                a = a.view_as(a) if live and a.requires_grad else a.detach().requires_grad_()
                with ParamMod.ensure(change)(module) as changed:
                    outputs.append(change_output(changed.forward(a)))
                inputs.append(a)
        s = self.gradient_mapper(grad_output[0], outputs)
        s = (s,) if isinstance(s, Tensor) else tuple(s)
        pulled = torch.autograd.grad(outputs, inputs, s, create_graph=live)
        return (self.reducer(inputs, pulled),)


ModuleMap = Callable[[dict[Any, Any], str, nn.Module], Any]
Assigned = list[tuple[str, nn.Module, Any]]


def assigned(module_map: ModuleMap, model: nn.Module) -> Assigned:
    """Which hook a composite chooses for which module: (name, module, hook) in order."""
    context: dict[Any, Any] = {}
    pairs = ((name, module, module_map(context, name, module)) for name, module in model.named_modules())
    return [(name, module, hook) for name, module, hook in pairs if hook is not None]


def is_mapping(value: Any) -> bool:
    """Whether a composite is one that maps modules to hooks: ours of this package, or zennit's."""
    return callable(getattr(value, "module_map", None))


__all__ = [
    "Assigned", "BasicHook", "Hook", "Mapping", "ModuleMap", "ParamMod", "RemovableHandle", "RemovableHandleList", "Stabilizer", "assigned",
    "collect_leaves", "expand", "is_mapping", "modified", "stabilize",
]  # fmt: skip
