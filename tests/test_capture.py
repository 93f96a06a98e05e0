"""Under CUDA graph capture nothing waits for the device, copies from the host or is timed: checked operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from test_emulated_ops import load_emulated_ops
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lrpkernels as lrp
from lrpkernels._extension import ops
from lrpkernels.functional.tuner import Tuner
from lrpkernels.testing import emulated_cuda

# What waits for a result, and what makes a tensor of numbers on the host.
FORBIDDEN = {
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::lift_fresh",
    "aten::item",
}
X = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(5))


class AsCaptured(TorchDispatchMode):
    """Raises on every operation that a captured stream would refuse."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().split(".")[0] in FORBIDDEN:
            raise RuntimeError(f"{func.name()} while capturing")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    load_emulated_ops()
    monkeypatch.setattr(ops, "backend", ops.backend._replace(capturing=True))
    yield


TARGETS: dict[str, Any] = {
    "int": 1,
    "list": [0, 2],
    "all": "all",
    "tensor": torch.tensor([0, 1]),
    "highest": None,
    "callable": lambda logits: logits[:, 0] - logits[:, 1],
}
COMPOSITES: dict[str, Any] = {
    "epsilon, z^B": lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)),
    "z^B per channel": lrp.Epsilon(1e-2, first=lrp.ZBox((-1.0, -2.0, 0.0), (1.0, 2.0, 3.0))),
    "z+": lrp.ZPlus(1e-2),
    "alpha-beta": lrp.AlphaBeta(2.0, 1.0, 1e-2),
    "layer-wise": lrp.EpsilonLayerwise(1e-2),
    "gamma": lrp.Gamma(0.25),
}


NET = build(NETWORKS["residual"]).float()


def step(composite: Any, target: Any) -> list[Tensor]:
    """Heatmap and gradients."""
    NET.zero_grad()
    logits, heatmap = lrp.LRP(NET, composite)(X, target)
    (logits.square().sum() + heatmap.square().sum()).backward()
    return [heatmap.detach(), *(p.grad for p in NET.parameters() if p.grad is not None)]


def compare(run: Callable[[], list[Tensor]], capturing_mode: str) -> None:
    expected = run()
    with emulated_cuda(capturing_mode), AsCaptured():  # type: ignore[arg-type]
        captured = run()
    assert len(captured) == len(expected)
    for a, b in zip(captured, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_targets(target: Any, capturing: None) -> None:
    compare(lambda: step(lrp.Epsilon(1e-2), target), "vendor")


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("mode", ["fused", "vendor"])
def test_rules(mode: str, composite: Any, capturing: None) -> None:
    compare(lambda: step(composite, 1), mode)


@pytest.mark.parametrize("mode", ["fused", "vendor"])
def test_static_calls(mode: str, capturing: None) -> None:
    attribution = lrp.LRP(NET, lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)), static=True)

    def run() -> list[Tensor]:
        NET.zero_grad()
        logits, heatmap = attribution(X, 1)
        (logits.square().sum() + heatmap.square().sum()).backward()
        return [heatmap.detach(), *(p.grad for p in NET.parameters() if p.grad is not None)]

    run()  # notes the calls
    compare(run, mode)


def test_nothing_is_timed_and_known_choices_are_taken(capturing: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def timer(call: Callable[[], object], device: torch.device) -> float:
        raise AssertionError("timed while capturing")

    with monkeypatch.context() as before:
        before.setattr(ops, "backend", ops.backend._replace(capturing=False))
        with emulated_cuda(Tuner("auto", lambda call, device: 1.0)) as warm:
            step(lrp.Epsilon(1e-2), 1)
    paths = {key: choice.path for key, choice in warm.choices.items()}
    assert paths
    for known in ({}, warm.choices):
        tuner = Tuner("auto", timer)
        tuner.choices = dict(known)
        with emulated_cuda(tuner), AsCaptured():
            step(lrp.Epsilon(1e-2), 1)
        assert tuner.choices == known


def test_the_mode_sees_a_wait() -> None:
    with AsCaptured(), pytest.raises(RuntimeError, match="while capturing"):
        bool(X.sum() > 0)
    with AsCaptured(), pytest.raises(RuntimeError, match="while capturing"):
        torch.tensor([1.0])


def test_outside_of_captures_the_checks_are_made() -> None:
    with pytest.raises(ValueError, match="class 7 is out of range"):
        step(lrp.Epsilon(1e-2), 7)
    with pytest.raises(ValueError, match="class -1 is out of range"):
        step(lrp.Epsilon(1e-2), torch.tensor([0, -1]))
