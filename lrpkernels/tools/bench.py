"""``lrpkernels bench``: what heatmaps and training through them cost on a model of your own, beside a forward pass and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from ..attribution import LRP
from ..engine.target import select_logits
from ..rules import Composite, Epsilon, EpsilonAlpha2Beta1, EpsilonGammaBox, EpsilonPlus, Rule
from .timing import Ratio, alternate

# Name -> floor of its heatmap in forward passes with input gradient, and what makes the composite.
COMPOSITES: dict[str, tuple[float, Callable[[], Composite | Rule]]] = {
    "epsilon": (1.0, lambda: Epsilon(1e-2)),
    "EpsilonPlus": (1.5, EpsilonPlus),
    "EpsilonGammaBox": (1.5, lambda: EpsilonGammaBox(0.0, 1.0)),
    "EpsilonAlpha2Beta1": (2.5, EpsilonAlpha2Beta1),
}
_NAMED = ("benchmarks.networks", "torchvision.models", "timm.models")


@dataclass(frozen=True)
class Row(Ratio):
    """One figure.

    Attributes:
        baseline: what the ratio is to.
        floor: the least that the ratio could be at equal precision and efficiency (docs/method.md).
    """

    baseline: str
    floor: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def load_model(name: str, classes: int = 10) -> nn.Module:
    """The model that a text names.

    Args:
        name: "package.module:factory", a callable without arguments that returns the model (or the model itself); or the name of a
            network of this project's benchmarks (in a checkout), of torchvision or of timm, where those are installed.
        classes: of networks of the benchmarks, which take it as their argument.

    Raises:
        ValueError: nothing has that name, or what has it makes no ``nn.Module``.
    """
    if ":" in name:
        path, _, attribute = name.partition(":")
        try:
            made = getattr(import_module(path), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"model: {name!r} cannot be imported ({error})") from error
        made = made() if callable(made) and not isinstance(made, nn.Module) else made
    else:
        made = _named(name, classes)
    if not isinstance(made, nn.Module):
        raise ValueError(f"model: {name!r} gave {type(made).__name__}, expected a torch.nn.Module")
    return made


def _named(name: str, classes: int) -> Any:
    tried = []
    for path in _NAMED:
        try:
            module = import_module(path)
        except Exception:  # a torchvision that does not fit this torch fails with errors of its own
            continue
        tried.append(path)
        networks = getattr(module, "NETWORKS", {})
        if name in networks:
            return networks[name](classes)
        if callable(getattr(module, name, None)):
            return getattr(module, name)()
    raise ValueError(
        f'model: no network {name!r} in {", ".join(tried) or "any known collection"}; give "package.module:factory" for one of your own'
    )


def parse_shape(text: str) -> tuple[int, ...]:
    """(1, 3, 112, 112) from "1x3x112x112".

    Raises:
        ValueError: not at least two positive numbers.
    """
    try:
        shape = tuple(int(part) for part in text.lower().split("x"))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"input: expected sizes such as 1x3x112x112, batch first, got {text!r}")
    return shape


def input_gradient(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Forward pass and gradient of the highest logits to the input: what a saliency map costs. The weights take no gradient."""
    frozen = [p for p in model.parameters() if p.requires_grad]

    def run() -> Tensor:
        for p in frozen:
            p.requires_grad_(False)
        try:
            image = x.detach().requires_grad_()
            return torch.autograd.grad(select_logits(model(image), None).flatten(1).amax(1).sum(), image)[0]
        finally:
            for p in frozen:
                p.requires_grad_(True)

    return run


def heatmap(model: nn.Module, x: Tensor, composite: Composite | Rule, static: bool = False) -> Callable[[], Tensor]:
    """A heatmap of the highest logits, without gradients."""
    attribution = LRP(model, composite, static=static, check=False)

    def run() -> Tensor:
        with torch.no_grad():
            return attribution(x)[1]

    return run


def training_steps(model: nn.Module, x: Tensor, static: bool = False) -> dict[str, Callable[[], Tensor]]:
    """A plain training step, and one that also penalises the epsilon heatmap of the highest logits outside the middle of the image."""
    with torch.no_grad():
        labels = select_logits(model(x), None).argmax(1)
    background = torch.ones_like(x[:1])
    middle: list[Any] = [slice(n // 4, max(3 * n // 4, n // 4 + 1)) for n in x.shape[2:]]
    background[(..., *middle)] = 0
    attribution = LRP(model, Epsilon(1e-2), static=static, check=False)

    def plain() -> Tensor:
        model.zero_grad()
        loss = F.cross_entropy(select_logits(model(x), None), labels)
        loss.backward()
        return loss.detach()

    def with_heatmap() -> Tensor:
        model.zero_grad()
        output, relevance = attribution(x, labels)
        loss = F.cross_entropy(select_logits(output, None), labels) + (relevance * background).abs().mean()
        loss.backward()
        return loss.detach()

    return {"plain training step": plain, "step with heatmap loss": with_heatmap}


def bench(
    model: nn.Module,
    x: Tensor,
    *,
    composites: Sequence[str] = ("epsilon", "EpsilonPlus"),
    repeats: int = 7,
    wall: bool = False,
    static: bool = False,
) -> list[Row]:
    """Heatmaps in turn with forward pass and input gradient, and a training step through a heatmap in turn with a plain one.

    The model is left unchanged except for its gradients: heatmaps are made in evaluation mode, steps in training mode.

    Args:
        model: a classifier, logits (B, K).
        x: images (B, C, ...).
        composites: names in :data:`COMPOSITES`.
        repeats: alternating runs of which the medians count, at least 3.
        wall: wall-clock instead of processor time (on a GPU always the wall's).
        static: as :class:`LRP` takes it.

    Raises:
        ValueError: repeats below 3, or an unknown composite.
        lrpkernels.errors.RelevanceError: a model that cannot be explained.
    """
    for name in composites:
        if name not in COMPOSITES:
            raise ValueError(f"composites must be among {', '.join(COMPOSITES)}, got {name!r}")
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        runs: dict[str, Callable[[], object]] = {"forward + input gradient": input_gradient(model, x)}
        runs |= {f"{name} heatmap": heatmap(model, x, COMPOSITES[name][1](), static) for name in composites}
        heatmaps = alternate(runs, repeats, wall=wall)
        model.train()
        steps = alternate(training_steps(model, x, static), repeats, wall=wall)
    finally:
        for module, mode in modes:
            module.training = mode
    floors = [1.0, *(COMPOSITES[name][0] for name in composites)]
    return [*_rows(heatmaps, floors), *_rows(steps, [1.0, 2.0])]


def _rows(ratios: list[Ratio], floors: list[float]) -> list[Row]:
    return [Row(**vars(r), baseline=ratios[0].name, floor=floor) for r, floor in zip(ratios, floors, strict=True)]


def table(rows: Sequence[Row]) -> Any:
    """A rich table; the baselines have ratio 1."""
    result = Table("what", "ms", "ratio", "10 % - 90 %", "floor", "beside")
    for row in rows:
        spread = f"{row.low:.2f} - {row.high:.2f}"
        result.add_row(
            row.name, f"{1e3 * row.seconds:.2f}", f"{row.ratio:.2f}", spread, f"{row.floor:.1f}", row.baseline
        )
    return result
