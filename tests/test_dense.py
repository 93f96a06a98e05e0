"""V^T s of dense layers: the numbers and gradients of a matrix product, whichever library makes it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lrpkernels.functional import dense, dense_pull

FORMS = [
    ((3, 5), 7),
    ((2, 4, 5), 7),
    ((64, 40), 50),
    ((2, 3, 4, 16), 1),
    ((0, 5), 7),
    ((5,), 3),
    ((1, 1), 1),
    ((300, 96), 64),
]


@pytest.fixture(params=[False, True], ids=["ATen", "oneDNN"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("PyTorch without oneDNN")
    monkeypatch.setattr(dense, "_FEW_PRODUCTS", 1)
    monkeypatch.setattr(dense, "prefers_onednn", lambda: request.param)


def _operands(form: tuple[tuple[int, ...], int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    shape, inputs = form
    return torch.randn(shape, dtype=dtype).requires_grad_(), torch.randn(
        shape[-1], inputs, dtype=dtype
    ).requires_grad_()


@pytest.mark.usefixtures("_library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_values_and_gradients_are_those_of_a_product(form: tuple[tuple[int, ...], int], dtype: torch.dtype) -> None:
    s, weight = _operands(form, dtype)
    found, reference = dense_pull(s, weight), s.double() @ weight.double()
    close = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(found.double(), reference, **close)
    for cotangent in (torch.randn_like(found), torch.ones((), dtype=dtype).expand(found.shape)):
        ours = torch.autograd.grad(found, (s, weight), cotangent, retain_graph=True)
        theirs = torch.autograd.grad(reference, (s, weight), cotangent.double(), retain_graph=True)
        for gradient, expected in zip(ours, theirs, strict=True):
            assert gradient.shape == expected.shape
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_library")
def test_any_layout_of_either_matrix() -> None:
    """Transposed, with gaps between rows, a view of one number, turned round."""
    x, y = torch.randn(70, 90), torch.randn(90, 80)
    lefts = [x, x.t().contiguous().t(), torch.randn(70, 180)[:, ::2], torch.randn(140, 90)[::2], x[:1].expand(70, 90)]
    rights = [
        y,
        y.t().contiguous().t(),
        torch.randn(90, 160)[:, ::2],
        torch.ones(()).expand(90, 80),
        torch.randn(90, 100)[:, 3:83],
    ]
    for left in lefts:
        for right in rights:
            torch.testing.assert_close(dense.product(left, right), left @ right, rtol=1e-4, atol=1e-4)


def test_a_second_derivative_is_refused() -> None:
    s, weight = _operands(((3, 5), 7), torch.float64)
    (grad,) = torch.autograd.grad(dense_pull(s, weight).square().sum(), s, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(grad.sum(), weight)


@pytest.mark.usefixtures("_library")
def test_shapes_without_numbers() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert dense_pull(torch.empty(6, 8, 64), torch.empty(64, 32)).shape == (6, 8, 32)
