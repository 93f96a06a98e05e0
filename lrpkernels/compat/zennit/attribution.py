"""Attributors: a model, a composite and what is explained, as one callable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .core import as_registrable

if TYPE_CHECKING:
    from typing_extensions import Self

AttrOutput = Tensor | Callable[[Tensor], Tensor] | None
OutputFunction = Callable[[Tensor], Tensor]


def identity(obj: Any) -> Any:
    """What it is given."""
    return obj


def constant(obj: Any) -> Callable[..., Any]:
    """A function that returns ``obj``, whatever it is given."""
    return lambda *args, **kwargs: obj


def occlude_independent(
    input: Tensor, mask: Tensor, fill_fn: Callable[[Tensor], Tensor] = torch.zeros_like, invert: bool = False
) -> Tensor:
    """The input where a mask is true, other values elsewhere.

    Args:
        input: (B, ...).
        mask: bool, of its shape.
        fill_fn: what stands elsewhere, from the input.
        invert: the other way round.
    """
    return torch.where(~mask if invert else mask, input, fill_fn(input))


class Attributor:
    """Base of attributors: as a context it registers its composite to the model, else each call does.

    Args:
        model: what is explained.
        composite: of this package, of the installed zennit, or a composite or rule of lrpkernels; None: gradients.
        attr_output: relevance at the output, (B, K), or a function of the output that returns it; None: the output itself.
    """

    def __init__(self, model: nn.Module, composite: Any = None, attr_output: AttrOutput = None) -> None:
        self.model = model
        self.composite = None if composite is None else as_registrable(composite)
        self.attr_output_fn = _function(attr_output)

    def __enter__(self) -> Self:
        if self.composite is not None:
            self.composite.register(self.model)
        return self

    def __exit__(self, *exc: object) -> None:
        if self.composite is not None:
            self.composite.remove()

    def __call__(self, input: Tensor, attr_output: AttrOutput = None) -> tuple[Tensor, Tensor]:
        """The model's output, and the attribution of the input.

        Args:
            input: what the model takes.
            attr_output: in place of the attributor's own.
        """
        function = self.attr_output_fn if attr_output is None else _function(attr_output)
        if self.composite is None or self.composite.handles:
            return self.forward(input, function)
        with self:
            return self.forward(input, function)

    @property
    def inactive(self) -> Any:
        """The composite's method of that name.

        Raises:
            RuntimeError: there is no composite.
        """
        if self.composite is None:
            raise RuntimeError("inactive: this attributor has no composite, its gradients are the model's own")
        return self.composite.inactive

    def forward(self, input: Tensor, attr_output_fn: OutputFunction) -> tuple[Tensor, Tensor]:
        """The call itself; subclasses define it."""
        raise NotImplementedError


class Gradient(Attributor):
    """The gradient, which is LRP with a composite of such rules.

    Args:
        model, composite, attr_output: see :class:`Attributor`.
        create_graph: the attribution is differentiable.
        retain_graph: keep what autograd has stored; None: as ``create_graph``.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: AttrOutput = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
    ) -> None:
        super().__init__(model, composite, attr_output)
        self.create_graph, self.retain_graph = create_graph, retain_graph

    def grad(self, input: Tensor, attr_output_fn: OutputFunction) -> tuple[Tensor, Tensor]:
        """The model's output and the (modified) gradient of the input.

        Raises:
            TypeError: an input of integers.
            ValueError: an output attribution of another shape than the output's, or not 0 where the output is.
        """
        if not input.is_floating_point():
            raise TypeError(f"input: gradients need a floating-point tensor, got {input.dtype}")
        with torch.inference_mode(False), torch.enable_grad():
            x = input.clone() if input.is_inference() else input
            x = x if x.requires_grad else x.detach().requires_grad_()
            output = self.model(x)
            start = attr_output_fn(output)
            if start.shape != output.shape:
                shapes = f"{tuple(output.shape)}, got {tuple(start.shape)}"
                raise ValueError(
                    f"attr_output: expected a tensor of the output's shape {shapes}; give a row for each image"
                )
            (gradient,) = torch.autograd.grad(
                output,
                x,
                grad_outputs=start,
                create_graph=self.create_graph,
                retain_graph=self.retain_graph,
            )
        return output, gradient

    def forward(self, input: Tensor, attr_output_fn: OutputFunction) -> tuple[Tensor, Tensor]:
        return self.grad(input, attr_output_fn)


class SmoothGrad(Gradient):
    """The mean of (modified) gradients at noisy inputs, the last of which has no noise.

    Args:
        model, composite, attr_output, create_graph, retain_graph: see :class:`Gradient`.
        noise_level: standard deviation of the noise, in units of each sample's range.
        n_iter: how many.

    Source: Smilkov et al. 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: AttrOutput = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
        noise_level: float = 0.1,
        n_iter: int = 20,
    ) -> None:
        super().__init__(model, composite, attr_output, create_graph, retain_graph)
        self.noise_level, self.n_iter = noise_level, n_iter

    def forward(self, input: Tensor, attr_output_fn: OutputFunction) -> tuple[Tensor, Tensor]:
        dims = tuple(range(1, input.dim()))
        deviation = self.noise_level * (input.amax(dims, keepdim=True) - input.amin(dims, keepdim=True))
        total = torch.zeros_like(input)
        for _ in range(self.n_iter - 1):
            total = total + self.grad(input + torch.randn_like(input) * deviation, attr_output_fn)[1] / self.n_iter
        output, gradient = self.grad(input + torch.zeros_like(input), attr_output_fn)
        return output, total + gradient / self.n_iter


class IntegratedGradients(Gradient):
    """The mean of (modified) gradients on the straight way from a baseline to the input, times their difference.

    Args:
        model, composite, attr_output, create_graph, retain_graph: see :class:`Gradient`.
        baseline_fn: baseline from input; None: zeros.
        n_iter: steps; the last one is the input.

    Source: Sundararajan et al. 2017.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: AttrOutput = None,
        create_graph: bool = False,
        retain_graph: bool | None = None,
        baseline_fn: Callable[[Tensor], Tensor] | None = None,
        n_iter: int = 20,
    ) -> None:
        super().__init__(model, composite, attr_output, create_graph, retain_graph)
        self.baseline_fn, self.n_iter = baseline_fn or torch.zeros_like, n_iter

    def forward(self, input: Tensor, attr_output_fn: OutputFunction) -> tuple[Tensor, Tensor]:
        baseline = self.baseline_fn(input)
        total, output = torch.zeros_like(input), input
        for step in range(1, self.n_iter + 1):
            output, gradient = self.grad(baseline + step / self.n_iter * (input - baseline), attr_output_fn)
            total = total + gradient / self.n_iter
        return output, total * (input - baseline)


class Occlusion(Attributor):
    """The score of the input with all but a window occluded, summed over the windows that hold a pixel.

    Args:
        model, composite, attr_output: see :class:`Attributor`; the composite plays no part.
        occlusion_fn: (input, mask of the window) -> occluded input; None: zeros outside of the window.
        window: its size, the same in all dimensions but the first, or one for each of the last dimensions.
        stride: likewise.

    Raises:
        TypeError: a window or stride of another type.
    """

    def __init__(
        self,
        model: nn.Module,
        composite: Any = None,
        attr_output: AttrOutput = None,
        occlusion_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        window: int | tuple[int, ...] = 8,
        stride: int | tuple[int, ...] = 8,
    ) -> None:
        super().__init__(model, composite, attr_output)
        for name, value in (("window", window), ("stride", stride)):
            if not (isinstance(value, int) or (isinstance(value, tuple) and all(isinstance(v, int) for v in value))):
                raise TypeError(f"{name} must be an int or a tuple of ints, got {value!r}")
        self.occlusion_fn = occlusion_fn or partial(occlude_independent, fill_fn=torch.zeros_like)
        self.window, self.stride = window, stride

    def _sizes(self, shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Window and stride in every dimension; the window covers the dimensions that were not named."""

        def full(value: int | tuple[int, ...], rest: tuple[int, ...]) -> tuple[int, ...]:
            given = tuple(min(value, size) for size in shape[1:]) if isinstance(value, int) else tuple(value)
            return (*rest[: len(shape) - len(given)], *given)

        window = full(self.window, tuple(shape))
        return window, full(self.stride, window)

    def forward(self, input: Tensor, attr_output_fn: OutputFunction) -> tuple[Tensor, Tensor]:
        window, stride = self._sizes(input.shape)
        corner = torch.zeros_like(input, dtype=torch.bool)
        corner[tuple(slice(0, size) for size in window)] = True
        total = torch.zeros_like(input)
        dims = tuple(range(input.dim()))
        for offset in product(*(range(0, size, step) for size, step in zip(input.shape, stride, strict=True))):
            mask = corner.roll(offset, dims)
            with torch.no_grad():
                output = self.model(self.occlusion_fn(input, mask))
            score = attr_output_fn(output).flatten(1).sum(1)
            total = total + mask * score.view(-1, *(1,) * (input.dim() - 1))
        return self.model(input), total


def _function(attr_output: AttrOutput) -> OutputFunction:
    if attr_output is None:
        return identity
    return attr_output if callable(attr_output) else constant(attr_output)
