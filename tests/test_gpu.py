"""On a GPU: ops, heatmaps, training gradients, static calls and CUDA graphs against float64 on the CPU.

Each test runs on the CPU, too, where its logic is tried; ``pytest -m gpu`` runs those that need a GPU.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from torch import Tensor

import isnet
import lrpkernels as lrp
from benchmarks.gpu_cases import difference, graph_heatmap, graph_step, make_case
from benchmarks.gpu_timing import captured, precision
from lrpkernels.functional import tuner
from lrpkernels.functional.tuner import FusedKernelWarning, Tuner
from lrpkernels.testing import CPU_OPS, OPS, accuracies, samples

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
RULES: dict[str, Any] = {
    "epsilon, z^B": lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)),
    "z+": lrp.ZPlus(1e-2),
    "alpha-beta": lrp.AlphaBeta(2.0, 1.0, 1e-2),
    "layer-wise": lrp.EpsilonLayerwise(1e-2),
    "gamma": lrp.Gamma(0.25),
}
# Relative to the largest value of a float64 result; a float32 network may differ where rounding reaches a kink of a rule.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 2e-3}

HALF = (torch.bfloat16, torch.float16)
# What some tests run over, and which of it the CPU has kernels for.
CASES: dict[str, tuple[dict[str, list[Any]], Callable[..., bool]]] = {
    "test_ops_against_float64": (
        {"op": list(OPS), "dtype": [torch.float64, torch.float32, *HALF]},
        lambda op, dtype: op in CPU_OPS and dtype != torch.float16,
    ),
    "test_heatmaps_and_gradients": (
        {"name": list(NETWORKS), "rule": list(RULES), "mode": ["vendor", "fused"]},
        lambda mode, **_: mode == "vendor",
    ),
    "test_half_precision": (
        {"name": list(NETWORKS), "rule": ["epsilon", "epsilon, z^B"], "mode": ["vendor", "fused"], "dtype": [*HALF]},
        lambda mode, dtype, **_: mode == "vendor" and dtype == torch.bfloat16,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test runs on a GPU and, but for kernels that exist there alone, on the CPU."""
    axes, on_cpu = CASES.get(metafunc.function.__name__, ({}, lambda: True))
    cases = []
    for values in itertools.product(*axes.values()):
        name = "-".join(map(str, values))
        if on_cpu(**dict(zip(axes, values, strict=True))):
            cases.append(pytest.param("cpu", *values, id=f"{name}-cpu"))
        cases.append(pytest.param("cuda", *values, marks=[pytest.mark.gpu, NO_GPU], id=f"{name}-cuda"))
    metafunc.parametrize(["device", *axes], cases)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    with precision("fp32"):
        yield


def _explained(
    name: str, rule: Any, device: str, dtype: torch.dtype, target: Any = 1, static: bool = False, passes: int = 1
) -> list[Tensor]:
    """Heatmap and all gradients of a loss on it, on the CPU, of the last of some passes."""
    net = build(NETWORKS[name]).to(device, dtype)
    attribution = lrp.LRP(net, rule, static=static)
    target = target.to(device) if isinstance(target, Tensor) else target
    for _ in range(passes):
        net.zero_grad()
        logits, heatmap = attribution(X.to(device, dtype), target)
        (heatmap.float().square().sum() if dtype == torch.float16 else heatmap.square().sum()).backward()
    gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert heatmap.device.type == gradients.device.type == device and heatmap.dtype == dtype
    return [logits.detach().cpu(), heatmap.detach().cpu(), gradients.cpu()]


def _close(ours: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(expected)
    errors = [difference(a, b) for a, b in zip(ours, expected, strict=True)]
    assert max(errors) <= tolerance, errors


def test_ops_against_float64(device: str, op: str, dtype: torch.dtype) -> None:
    for sample in samples(op, dtype):
        given = (a.to(device) if isinstance(a, Tensor) else a for a in sample.arguments)
        results = getattr(torch.ops.lrpkernels, op)(*given)
        for accuracy in accuracies(op, sample.arguments, results):
            assert accuracy.ratio <= 1, sample.label


def test_heatmaps_and_gradients(device: str, name: str, rule: str, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _explained(name, RULES[rule], "cpu", torch.float64)
    monkeypatch.setattr(tuner, "current", Tuner(mode))
    for dtype, tolerance in TOLERANCES.items():
        _close([a.double() for a in _explained(name, RULES[rule], device, dtype)], expected, tolerance)


@pytest.mark.parametrize("target", [None, [0, 2], "all", torch.tensor([0, 1])], ids=str)
def test_targets(device: str, target: Any) -> None:
    rule = RULES["epsilon, z^B"]
    ours, expected = (_explained("residual", rule, where, torch.float64, target) for where in (device, "cpu"))
    _close(ours, expected, 1e-9)


def test_half_precision(
    device: str, name: str, rule: str, mode: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = lrp.Epsilon(1e-2) if rule == "epsilon" else RULES[rule]
    exact = _explained(name, chosen, "cpu", torch.float64)[1]
    monkeypatch.setattr(tuner, "current", Tuner(mode))
    _, heatmap, gradients = _explained(name, chosen, device, dtype)
    assert bool(torch.isfinite(gradients).all())
    error = float((heatmap.double() - exact).abs().mean() / exact.abs().mean())
    assert error < 0.3, error


@pytest.mark.parametrize("name", NETWORKS)
def test_static_calls(device: str, name: str) -> None:
    rule = RULES["epsilon, z^B"]
    expected = _explained(name, rule, "cpu", torch.float64, passes=3)
    _close(_explained(name, rule, device, torch.float64, static=True, passes=3), expected, 1e-9)


def _trained(device: str, variant: Any, static: bool) -> list[Tensor]:
    """Losses, weights and statistics after three steps of an ISNet."""
    net = isnet.ISNet(build(NETWORKS["residual"]).to(device), variant, static=static)
    criterion = isnet.ISNetLoss()
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    labels, masks = torch.tensor([0, 1], device=device), torch.zeros(2, 1, 12, 12, dtype=X.dtype, device=device)
    masks[..., 3:9, 3:9] = 1
    losses = []
    net.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss = criterion(net(X.to(device)), labels, masks).total
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    state = [value.flatten().double() for value in net.state_dict().values()]
    return [torch.stack(losses).cpu(), torch.cat(state).cpu()]


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("variant", ["selective", "original", "dual"])
def test_training_steps(device: str, variant: str, static: bool) -> None:
    _close(_trained(device, variant, static), _trained("cpu", variant, False), 1e-8)


def test_the_tuner_finds_every_fused_convolution_right(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Tuner("auto")
    monkeypatch.setattr(tuner, "current", found)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FusedKernelWarning)
        for name in NETWORKS:
            _explained(name, RULES["epsilon, z^B"], device, torch.float32)
    assert bool(found.choices) == (device == "cuda")


def test_another_stream(device: str) -> None:
    run: Callable[[], list[Tensor]] = lambda: _explained("residual", RULES["z+"], device, torch.float64)
    expected = run()
    if device == "cuda":
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            ours = run()
    else:
        ours = run()
    _close(ours, expected, 1e-10)


def test_a_captured_heatmap_follows_its_input(device: str) -> None:
    net = build(NETWORKS["residual"]).to(device).eval().requires_grad_(False)
    attribution = lrp.LRP(net, RULES["epsilon, z^B"], static=True)
    image = X.to(device).clone()

    def run() -> Tensor:
        with torch.no_grad():
            return attribution(image, 1)[1]

    replay, result = captured(run, device)
    image.copy_(X.flip(0).flip(-1))
    again = replay()
    found = result if device == "cuda" else again
    _close([found.cpu()], [lrp.LRP(net.cpu(), RULES["epsilon, z^B"])(X.flip(0).flip(-1), 1)[1].detach()], 1e-9)


@pytest.mark.parametrize("network", ["resnet18", "densenet121", "vit_b_16"])
def test_captured_passes_equal_those_without_a_graph(device: str, network: str) -> None:
    for graph in (graph_heatmap, graph_step):
        _, error = graph(make_case(network, device, tiny=True))
        assert error <= 1e-4
