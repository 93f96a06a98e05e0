"""Every op on the CPU against float64: dtypes, layouts, targets, tails, special values, determinism."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lrpkernels._extension import build_info
from lrpkernels.testing import CPU_OPS, LAYOUTS, POINTWISE_OPS, POOL_OPS, accuracies, error_ratio, lay_out, samples

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def run(op: str, arguments: tuple[object, ...]) -> tuple[Tensor, ...]:
    result = getattr(torch.ops.lrpkernels, op)(*arguments)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", CPU_OPS)
def test_agrees_with_float64(op: str, dtype: torch.dtype, layout: str, targets: int) -> None:
    for sample in samples(op, dtype, layout, targets):
        found = accuracies(op, sample.arguments, run(op, sample.arguments))
        assert found
        for i, accuracy in enumerate(found):
            assert accuracy.ratio <= 1, f"{sample.label}, result {i}"


@pytest.mark.parametrize("op", POINTWISE_OPS)
def test_results_lie_like_the_forward_value(op: str) -> None:
    for layout, memory_format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
        for sample in samples(op, layout=layout, targets=2, shapes=[(2, 3, 5, 7)]):
            for result in run(op, sample.arguments):
                if result.dim() == 4:
                    assert result.is_contiguous(memory_format=memory_format), sample.label


def test_mixed_layouts_are_brought_together() -> None:
    whole = [s for s in samples("epsilon_scale", shapes=[(2, 3, 5, 7)]) if "True" in s.label and "False" not in s.label]
    assert len(whole) == 2  # one stabilizer, and one for each image
    for sample in whole:
        multiplier, addend, output, *rest = sample.arguments
        mixed = (multiplier, lay_out(addend, "strided"), lay_out(output, "channels_last"), *rest)
        result = torch.ops.lrpkernels.epsilon_scale(*mixed)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(result, torch.ops.lrpkernels.epsilon_scale(*sample.arguments))


@pytest.mark.parametrize("op", (*POINTWISE_OPS, *POOL_OPS))
def test_bitwise_repeatable_and_independent_of_the_number_of_threads(op: str) -> None:
    shapes = [(2, 5, 97, 101), (3, 64, 31, 30)]
    for layout in ("contiguous", "channels_last"):
        for sample in samples(op, layout=layout, targets=2, shapes=shapes):
            first = run(op, sample.arguments)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for a, b in zip(first, run(op, sample.arguments), strict=True):
                    assert torch.equal(a, b), f"{sample.label}, {threads} threads"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_of_the_relu_output(dtype: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    output = torch.tensor([0.0, -0.0, -1.0, -inf, nan, 1.0], dtype=dtype)
    ones = torch.ones_like(output)
    scaled = torch.ops.lrpkernels.epsilon_scale(ones, None, output, None, 1.0)
    torch.testing.assert_close(scaled, ones.new_tensor([0.0, 0.0, 0.0, 0.0, nan, 0.5]), equal_nan=True, rtol=0, atol=0)
    grads = torch.ops.lrpkernels.epsilon_scale_backward(ones, ones, None, output, None, 1.0, False)
    torch.testing.assert_close(grads[0], scaled, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(grads[1], ones.new_tensor([0, 0, 0, 0, nan, 0.25]), equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epsilon_zero_is_the_ordinary_relu_derivative(dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    output = torch.tensor([0.0, tiny, 3.0, 1e30], dtype=dtype)
    multiplier = torch.randn(4).to(dtype)
    expected = torch.where(output > 0, multiplier, torch.zeros_like(multiplier))
    assert torch.equal(torch.ops.lrpkernels.epsilon_scale(multiplier, None, output, None, 0.0), expected)
    grads = torch.ops.lrpkernels.epsilon_scale_backward(multiplier, multiplier, None, output, None, 0.0, False)
    assert torch.equal(grads[0], expected)
    assert torch.equal(grads[1], torch.zeros_like(output))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sign_of_zero_is_plus_in_ratios(dtype: torch.dtype) -> None:
    denominator = torch.tensor([0.0, -0.0, 1.0, -1.0], dtype=dtype)
    ones = torch.ones_like(denominator)
    result = torch.ops.lrpkernels.ratio(ones, ones, denominator, 1.0)
    assert torch.equal(result, ones.new_tensor([1.0, 1.0, 0.5, -0.5]))


def test_bfloat16_rounds_like_torch() -> None:
    # Every float32 exponent, ties, overflow and NaN pass through the kernel's own rounding when G is scaled by 1.
    bits = torch.arange(0, 2**16, dtype=torch.int32).to(torch.int16)
    multiplier = bits.view(torch.bfloat16).view(256, 256)
    scale = torch.rand(256) + 0.5
    result = torch.ops.lrpkernels.epsilon_scale(multiplier, None, None, scale, 0.0)
    torch.testing.assert_close(result, (multiplier.float() * scale).bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_channel_sums_are_accurate() -> None:
    # Summed one after the other in float32, a million elements of this size would lose five digits.
    shape = (4, 2, 512, 256)
    grad, multiplier, scale = torch.rand(shape) + 1, torch.rand(shape), torch.ones(2)
    for layout in ("contiguous", "channels_last"):
        arguments = (lay_out(grad, layout), lay_out(multiplier, layout), None, None, scale, 0.0, True)
        sums = torch.ops.lrpkernels.epsilon_scale_backward(*arguments)[2]
        exact = (grad.double() * multiplier.double()).sum((0, 2, 3))
        torch.testing.assert_close(sums.double(), exact, rtol=1e-7, atol=0)


CAPABILITIES = ("default", "avx2", "avx512")


def _compute_everything() -> list[tuple[Tensor, ...]]:
    shapes = [(2, 3, 5, 7), (1, 2, 131, 130), (1, 1037, 2, 5)]
    return [
        run(op, sample.arguments)
        for op in CPU_OPS
        for dtype in DTYPES
        for layout in ("contiguous", "channels_last")
        for sample in samples(op, dtype, layout, 2, shapes)
    ]


def test_narrower_instruction_sets_agree(tmp_path: Path) -> None:
    """Every loop is compiled once per instruction set: this machine's widest against the narrower ones."""
    widest = build_info()["cpu_capability"]
    expected = _compute_everything()
    script = "import sys, torch, test_ops; torch.save(test_ops._compute_everything(), sys.argv[1])"
    for capability in CAPABILITIES[: CAPABILITIES.index(widest)]:
        environment = {**os.environ, "LRPKERNELS_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
        file = tmp_path / capability
        subprocess.run([sys.executable, "-c", script, file], env=environment, check=True, cwd=Path(__file__).parent)
        for ours, theirs in zip(expected, torch.load(file), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert error_ratio(b, a, a.double()) <= 8


class TestErrorRatio:
    """The comparison itself must be able to fail."""

    exact = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def test_accepts_a_rounded_result(self) -> None:
        rounded = (self.exact / 3).float()
        assert error_ratio(rounded, rounded, self.exact / 3) <= 1

    @pytest.mark.parametrize("wrong", [[1.0, -2.0, 3.00001], [1.0, 2.0, 3.0], [1.0, -2.0, float("nan")], [1.0, -2.0]])
    def test_rejects_a_wrong_result(self, wrong: list[float]) -> None:
        assert error_ratio(torch.tensor(wrong), self.exact.float(), self.exact) > 1

    def test_rejects_a_number_where_nan_is_due(self) -> None:
        exact = torch.tensor([1.0, float("nan")], dtype=torch.float64)
        assert error_ratio(torch.tensor([1.0, 0.0]), exact.float(), exact) > 1

    @pytest.mark.parametrize(("value", "right"), [("inf", True), ("-inf", False), ("65504", False), ("nan", False)])
    def test_a_result_beyond_the_dtype_must_be_infinite(self, value: str, right: bool) -> None:
        exact = torch.tensor([1.0, 1e5], dtype=torch.float64)
        actual = torch.tensor([1.0, float(value)], dtype=torch.float16)
        assert (error_ratio(actual, exact.half(), exact) <= 1) == right

    def test_where_eager_overflows_the_others_are_still_compared(self) -> None:
        exact = torch.tensor([1.0, 6e4], dtype=torch.float64)
        eager = torch.tensor([1.0, float("inf")], dtype=torch.float16)
        assert error_ratio(exact.half(), eager, exact) <= 1
        assert error_ratio(torch.tensor([1.0, 5e4], dtype=torch.float16), eager, exact) > 1


class TestAccuracies:
    """The bound of pointwise ops: wide enough for a sum that cancels in another order, and no wider."""

    elements = 20_000

    def _sum(self, seed: int) -> tuple[tuple[object, ...], Tensor]:
        """A call of epsilon_scale_backward whose scale's gradient is next to nothing beside its terms, and those."""
        half = torch.randn(1, 1, self.elements // 2, generator=torch.Generator().manual_seed(seed))
        grad = torch.cat([half, -half, torch.full((1, 1, 1), 0.25)], 2)
        return (grad, torch.ones_like(grad), None, None, torch.ones(1), 0.0, True), grad.flatten()

    def _ratio(self, arguments: tuple[object, ...], total: float, place: int | None = None) -> float:
        results = [r.clone() for r in run("epsilon_scale_backward", arguments)]
        results[2].fill_(total)
        if place is not None:
            results[0].flatten()[place] += 1e-4
        return max(accuracy.ratio for accuracy in accuracies("epsilon_scale_backward", arguments, results))

    @pytest.mark.parametrize("seed", range(3))
    def test_of_a_sum_that_cancels(self, seed: int) -> None:
        arguments, terms = self._sum(seed)
        one_by_one = float(np.add.accumulate(terms.numpy())[-1])  # torch adds up in float64
        assert one_by_one != 0.25 and self._ratio(arguments, one_by_one) <= 1
        assert self._ratio(arguments, one_by_one + float(terms[7])) > 1  # one counted twice
        assert self._ratio(arguments, 0.0) > 1  # the last one lost

    def test_every_number_has_its_own_bound(self) -> None:
        arguments, terms = self._sum(0)
        assert self._ratio(arguments, 0.25) <= 1
        assert self._ratio(arguments, 0.25, int(terms.abs().argmin())) > 1
