"""The choice between fused and vendor convolutions: measured once, verified first, remembered, fixed where it must be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from test_emulated_ops import load_emulated_ops
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lrpkernels as lrp
from lrpkernels import functional
from lrpkernels.functional import ConvGeometry, ConvWeight, Scaled, Weights
from lrpkernels.functional import tuner as tuning
from lrpkernels.functional.tuner import Choice, FusedKernelWarning, Tuner
from lrpkernels.testing import emulated_cuda

X = torch.ones(3)
CPU = torch.device("cpu")


class Calls:
    """Two ways to the same tensor that count their calls, and a timer that knows what each costs."""

    def __init__(self, fused_ms: float, vendor_ms: float, wrong: float = 0.0) -> None:
        self.costs = {"fused": fused_ms, "vendor": vendor_ms}
        self.wrong = wrong
        self.fused_calls = self.vendor_calls = 0

    def fused(self) -> Tensor:
        self.fused_calls += 1
        return X * (1 + self.wrong)

    def vendor(self) -> Tensor:
        self.vendor_calls += 1
        return X.clone()

    def timer(self, call: Callable[[], object], device: torch.device) -> float:
        return self.costs["fused" if call == self.fused else "vendor"]


@pytest.mark.parametrize(("fused_ms", "vendor_ms", "expected"), [(1.0, 2.0, "fused"), (2.0, 1.0, "vendor")])
def test_keeps_the_faster_and_measures_once(fused_ms: float, vendor_ms: float, expected: str) -> None:
    calls = Calls(fused_ms, vendor_ms)
    tuner = Tuner("auto", calls.timer)
    result, path = tuner.run(("a", 1), X, calls.fused, calls.vendor)
    assert path == expected and torch.equal(result, X)
    assert (calls.fused_calls, calls.vendor_calls) == (1, 1)
    tuner.run(("a", 1), X, calls.fused, calls.vendor)
    assert (calls.fused_calls, calls.vendor_calls) == ((2, 1) if expected == "fused" else (1, 2))
    assert tuner.choices == {("a", 1): Choice(expected, fused_ms, vendor_ms, 0.0)}


@pytest.mark.parametrize("wrong", [1e-3, float("nan"), float("inf")])
def test_refuses_a_wrong_kernel_and_says_so_once(wrong: float) -> None:
    calls = Calls(1.0, 2.0, wrong)
    tuner = Tuner("auto", calls.timer)
    with pytest.warns(
        FusedKernelWarning, match=r"the fused kernel for cpu: relevance \(4, 3\) differs .* by"
    ) as warned:
        result, path = tuner.run(("relevance", torch.Size((4, 3))), X, calls.fused, calls.vendor)
    assert path == "vendor" and torch.equal(result, X) and len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tuner.run(("relevance", torch.Size((4, 3))), X, calls.fused, calls.vendor)[1] == "vendor"
    assert calls.fused_calls == 1


def test_accepts_rounding() -> None:
    calls = Calls(1.0, 2.0, 1e-5)
    assert Tuner("auto", calls.timer).run(("a",), X, calls.fused, calls.vendor)[1] == "fused"


def test_a_kernel_that_fails_is_refused() -> None:
    def fused() -> Tensor:
        raise RuntimeError("no kernel image is available")

    with pytest.warns(FusedKernelWarning, match="failed: no kernel image"):
        assert Tuner("auto").run(("a",), X, fused, X.clone)[1] == "vendor"


@pytest.mark.parametrize("mode", ["fused", "vendor"])
def test_a_fixed_mode_runs_nothing_else(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPKERNELS_CONV", mode.upper())
    calls = Calls(1.0, 2.0)
    assert Tuner().run(("a",), X, calls.fused, calls.vendor)[1] == mode
    assert (calls.fused_calls, calls.vendor_calls) == ((1, 0) if mode == "fused" else (0, 1))


@pytest.mark.parametrize("unset", [None, "", " "])
def test_the_default_is_the_vendor_s(unset: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LRPKERNELS_CONV", raising=False)
    if unset is not None:
        monkeypatch.setenv("LRPKERNELS_CONV", unset)
    calls = Calls(1.0, 2.0)
    assert Tuner().run(("a",), X, calls.fused, calls.vendor)[1] == "vendor"
    assert (calls.fused_calls, calls.vendor_calls) == (0, 1)


def test_an_unknown_mode_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRPKERNELS_CONV", "fastest")
    with pytest.raises(ValueError, match="LRPKERNELS_CONV must be auto, fused or vendor, got 'fastest'"):
        Tuner()


def test_deterministic_algorithms_fix_the_choice() -> None:
    calls = Calls(1.0, 2.0)
    tuner = Tuner("auto", calls.timer)
    assert tuner.run(("a",), X, calls.fused, calls.vendor)[1] == "fused"
    torch.use_deterministic_algorithms(True)
    try:
        assert tuner.run(("a",), X, calls.fused, calls.vendor)[1] == "vendor"
    finally:
        torch.use_deterministic_algorithms(False)
    assert tuner.run(("a",), X, calls.fused, calls.vendor)[1] == "fused"


def test_nothing_is_tuned_under_graph_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    calls = Calls(1.0, 2.0)
    tuner = Tuner("auto", calls.timer)

    class OnGpu:
        dtype, device = torch.float32, torch.device("cuda", 0)

    assert tuner.run(("a",), OnGpu(), calls.fused, calls.vendor)[1] == "vendor"  # type: ignore[arg-type]
    assert (calls.fused_calls, calls.vendor_calls, tuner.choices) == (0, 1, {})


class TestThroughTheEmulatedKernels:
    """The dispatch of real convolutions, with the CUDA sources on CPU tensors."""

    geometry = ConvGeometry((1, 1), (1, 1), (1, 1), False, (0, 0), 1)

    @pytest.fixture(autouse=True)
    def _kernels(self) -> None:
        load_emulated_ops()

    def _run(self) -> list[Tensor]:
        torch.manual_seed(3)
        g = torch.randn(4, 5, 6, 6, requires_grad=True)
        u = torch.randn(2, 5, 6, 6).relu().requires_grad_()
        k, w = torch.randn(5, requires_grad=True), torch.randn(5, 3, 3, 3, requires_grad=True)
        scaled = Scaled(g, output=u, scale=k, eps=0.1)
        result = functional.conv_pull(scaled, ConvWeight(w), torch.randn(2, 3, 6, 6), self.geometry)
        return [result, *torch.autograd.grad(result.square().sum(), (g, u, k, w))]

    def test_positive_weights_are_made_once_for_the_vendor_s(self) -> None:
        weight = torch.randn(5, 3, 3, 3)
        for mode, weights in (("vendor", Weights.ALL), ("fused", Weights.POSITIVE), ("auto", Weights.POSITIVE)):
            with emulated_cuda(mode):  # type: ignore[arg-type]
                found = functional.conv_weight(weight, None, functional.POSITIVE, self.geometry, torch.float32)
            assert found.weights == weights
            assert torch.equal(found.weight, weight.clamp(min=0) if mode == "vendor" else weight)

    @pytest.mark.parametrize("faster", ["fused", "vendor"])
    def test_every_path_gives_the_same_gradients(self, faster: str) -> None:
        expected = self._run()
        ticks = iter((1.0, 2.0) * 3 if faster == "fused" else (2.0, 1.0) * 3)
        with emulated_cuda(Tuner("auto", lambda call, device: next(ticks))) as tuner:
            tuned, remembered = self._run(), self._run()
        assert sorted(key[0] for key in tuner.choices) == ["apply", "relevance", "weight"]
        assert {choice.path for choice in tuner.choices.values()} == {faster}
        for a, b, c in zip(expected, tuned, remembered, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(c, a, rtol=1e-4, atol=1e-4)

    def test_mixed_paths_give_the_same_gradients(self) -> None:
        expected = self._run()
        ticks = iter((1.0, 2.0, 2.0, 1.0, 1.0, 2.0))  # relevance fused, weight gradient by the vendor, map fused
        with emulated_cuda(Tuner("auto", lambda call, device: next(ticks))) as tuner:
            tuned, remembered = self._run(), self._run()
        assert {key[0]: c.path for key, c in tuner.choices.items()} == {
            "relevance": "fused", "weight": "vendor", "apply": "fused"
        }  # fmt: skip
        for a, b, c in zip(expected, tuned, remembered, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(c, a, rtol=1e-4, atol=1e-4)

    def test_a_wrong_kernel_is_caught_and_the_result_is_right(self) -> None:
        expected = self._run()

        class Wrong(TorchDispatchMode):
            """A kernel with a fault of one per cent."""

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = func(*args, **(kwargs or {}))
                return out * 1.01 if func._opname == "conv_relevance" else out

        with emulated_cuda("auto"), Wrong(), pytest.warns(FusedKernelWarning, match="relevance"):
            results = self._run()
        for a, b in zip(expected, results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)

    def test_a_network_is_tuned_shape_by_shape(self) -> None:
        net = build(NETWORKS["residual"]).float()
        x = torch.rand(1, 3, 12, 12)
        expected = lrp.LRP(net, lrp.Epsilon(1e-2))(x, 1)[1]
        with emulated_cuda("auto") as tuner, torch.no_grad():
            heatmap = lrp.LRP(net, lrp.Epsilon(1e-2))(x, 1)[1]
        torch.testing.assert_close(heatmap, expected, rtol=1e-3, atol=1e-5)
        assert len(tuner.choices) >= 5 and all(key[0] == "relevance" for key in tuner.choices)


def test_on_the_cpu_nothing_is_tuned() -> None:
    before = dict(tuning.current.choices)
    lrp.LRP(build(NETWORKS["vgg"]), lrp.Epsilon(1e-2))(torch.rand(1, 3, 12, 12, dtype=torch.float64), 1)
    assert tuning.current.choices == before
