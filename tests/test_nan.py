"""NaN in, NaN out: on CPU tensors, in the emulated CUDA kernels and in the references, no NaN becomes a finite number."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from test_emulated_ops import load_emulated_ops
from torch import Tensor

from lrpkernels.testing import POINTWISE_OPS, reference, samples

NAN = float("nan")
RULE_OPS = ("affine", "affine_backward", "sum_zplus", "sum_zplus_backward")
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
IMPLEMENTATIONS = ("lrpkernels", "lrpkernels_emulated", "reference")


def run(implementation: str, op: str, *arguments: Any) -> tuple[Tensor, ...]:
    if implementation == "reference":
        return reference(op, arguments)
    load_emulated_ops()
    result = getattr(getattr(torch.ops, implementation), op)(*arguments)
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", [*POINTWISE_OPS, *RULE_OPS])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[:2])
def test_kernels_spread_it_at_least_as_far_as_the_formulas(implementation: str, op: str, dtype: torch.dtype) -> None:
    """Into each tensor, per-channel ones included, in turn."""
    generator = torch.Generator().manual_seed(1)
    for sample in samples(op, dtype, "contiguous", 2, shapes=[(2, 3, 5, 7)]):
        for place, tensor in enumerate(sample.arguments):
            if not isinstance(tensor, Tensor) or not tensor.numel():
                continue
            if "epsilons" in sample.label and place == len(sample.arguments) - 1:
                continue  # stabilizers are no data: the rules refuse those that are not finite
            spoiled = tensor.clone()
            spoiled[torch.rand(tensor.shape, generator=generator) < 0.3] = NAN
            arguments = (*sample.arguments[:place], spoiled, *sample.arguments[place + 1 :])
            results = run(implementation, op, *arguments)
            for i, (actual, exact) in enumerate(zip(results, reference(op, arguments), strict=True)):
                assert bool((actual.isnan() | ~exact.isnan()).all()), f"{sample.label}, argument {place}, result {i}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_both_summands_of_a_sum_get_it(implementation: str) -> None:
    """From the multiplier or from either summand, whatever the sign of the other."""
    values = (NAN, -1.0, -0.0, 0.0, 2.0)
    places = [p for p in itertools.product(values, repeat=3) if NAN in p]
    g, a, b = (torch.tensor(column) for column in zip(*places, strict=True))
    for result in run(implementation, "sum_zplus", g, a, b, 0.5):
        assert result.isnan().all()
    ones = torch.ones_like(g)
    grad_multiplier, grad_a, grad_b = run(implementation, "sum_zplus_backward", ones, ones, g, a, b, 0.5)
    assert torch.equal(grad_multiplier.isnan(), a.isnan() | b.isnan())  # G does not occur in it
    assert grad_a.isnan().all() and grad_b.isnan().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_incoming_gradient_cannot_hide_behind_a_negative_summand(implementation: str) -> None:
    ones, minus = torch.ones(4), -torch.ones(4)
    for grads in ((ones * NAN, ones), (ones, ones * NAN)):
        results = run(implementation, "sum_zplus_backward", *grads, ones, minus, minus, 0.5)
        assert all(result.isnan().all() for result in results)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("part", [3, 4])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS[1:])
def test_an_input_whose_sign_picks_the_weights(implementation: str, part: int, groups: int) -> None:
    g, weight, input = torch.ones(2, 4, 3, 3), torch.ones(4, 4 // groups, 1, 1), torch.ones(1, 4, 3, 3)
    input[0, 1, 2] = NAN
    slide = ([3, 3], [1, 1], [0, 0], [1, 1], groups)
    arguments = (g, *(None,) * 5, weight, part, input, None, None, *slide, 0.0, False)
    (result,) = run(implementation, "conv_relevance", *arguments)
    assert torch.equal(result.isnan(), input.isnan().repeat(2, 1, 1, 1))


def test_a_mask_of_the_emulated_heatmap_scores() -> None:
    heatmap, mask = torch.ones(1, 2, 1, 8), torch.zeros(1, 1, 8)
    mask[0, 0, 3] = NAN
    foreground, signed, _, order = run("lrpkernels_emulated", "heatmap_scores", heatmap, mask, 2, 0.5)
    assert foreground.isnan().all() and signed.isnan().all()
    grads = (torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2, 1))
    (grad,) = run("lrpkernels_emulated", "heatmap_scores_backward", heatmap, mask, order, *grads, 0.5)
    assert grad[..., 3].isnan().all() and not grad[..., :3].isnan().any()
