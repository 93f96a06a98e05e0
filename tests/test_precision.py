"""Mixed and half precision on the CPU: heatmaps close to float64, gradients of the right dtype, no silent upcast of the model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, build
from torch import Tensor, nn

import lrpkernels as lrp
from isnet import ISNet, ISNetLoss

X = torch.rand(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
COMPOSITES = {
    "epsilon": lrp.Epsilon(1e-2),
    "box": lrp.Epsilon(1e-2, first=lrp.ZBox(0.0, 1.0)),
    "z+": lrp.ZPlus(1e-2),
    "EpsilonGammaBox": lrp.EpsilonGammaBox(0.0, 1.0, stabilizer=1e-2),
}


def _error(low: Tensor, exact: Tensor) -> float:
    """Mean absolute difference as a share of the mean magnitude: single elements may fall on the other side of a ReLU."""
    return float((low.double() - exact).abs().mean() / exact.abs().mean())


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_heatmaps_under_autocast_and_in_half_precision(name: str, composite: str) -> None:
    net = build(NETWORKS[name])
    rule = COMPOSITES[composite]
    with torch.no_grad():
        exact = lrp.LRP(net, rule)(X, 1)[1]
        single = lrp.LRP(copy.deepcopy(net).float(), rule)(X.float(), 1)[1]
        assert single.dtype == torch.float32 and _error(single, exact) < 1e-4
        with torch.autocast("cpu", torch.bfloat16):
            mixed = lrp.LRP(copy.deepcopy(net).float(), rule)(X.float(), 1)[1]
        assert mixed.dtype == torch.float32 and _error(mixed, exact) < 0.2
        half = lrp.LRP(copy.deepcopy(net).bfloat16(), rule)(X.bfloat16(), 1)[1]
        assert half.dtype == torch.bfloat16 and _error(half, exact) < 0.3


@pytest.mark.parametrize("name", NETWORKS)
def test_an_isnet_step_under_autocast_has_the_gradients_of_full_precision(name: str) -> None:
    labels, masks = torch.tensor([0, 3, 1, 4]), torch.zeros(4, 1, 12, 12)
    masks[..., 3:9, 3:9] = 1

    def gradients(dtype: torch.dtype, autocast: bool) -> list[Tensor]:
        model = build(NETWORKS[name]).to(dtype)
        net = ISNet(model, "selective")
        net.training = True  # the classifier stays in evaluation mode: no dropout, running statistics
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = net(X.to(dtype))
        terms = ISNetLoss()(out, labels, masks)
        terms.total.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    exact, mixed = gradients(torch.float64, False), gradients(torch.float32, True)
    assert all(g.dtype == torch.float32 and bool(torch.isfinite(g).all()) for g in mixed)
    a, b = (torch.cat([g.double().flatten() for g in gs]) for gs in (exact, mixed))
    cosine = float(nn.functional.cosine_similarity(a, b, dim=0))
    assert cosine > 0.97, cosine


class _Attention(nn.Module):
    """Softmax gives float32 under autocast, the values are bfloat16: their product mixes dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Linear(6, 18)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.maps(x).chunk(3, -1)
        return self.head((torch.softmax(q @ k.transpose(1, 2), -1) @ v).mean(1))


def test_products_of_mixed_dtypes_under_autocast() -> None:
    torch.manual_seed(0)
    net, x = _Attention().double(), torch.rand(2, 5, 6, dtype=torch.float64)
    exact = lrp.LRP(net)(x, 1)[1].detach()
    net.float()
    with torch.autocast("cpu", torch.bfloat16):
        _, heatmap = lrp.LRP(net)(x.float(), 1)
    assert heatmap.dtype == torch.float32 and _error(heatmap.detach(), exact) < 0.1
    heatmap.abs().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in (net.maps.weight, net.head.weight))


@pytest.mark.parametrize("mask", ["float", "bool", None])
@pytest.mark.parametrize("rule", [lrp.Epsilon(1e-2), lrp.ZPlus(), lrp.Gradient()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("mixed", [False, True])
def test_fused_attention_of_mixed_dtypes_under_autocast(mask: str | None, rule: lrp.Rule, mixed: bool) -> None:
    """Autocast brings masks and operands of float32 to bfloat16 inside the call, where a recording sees float32."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.q, self.k, self.v, self.head = (nn.Linear(8, 8) for _ in range(4))
            masks = {"float": torch.randn(4, 4), "bool": torch.ones(4, 4, dtype=torch.bool).tril(), None: None}
            self.mask = masks[mask]

        def forward(self, x: Tensor) -> Tensor:
            q, k = self.q(x), self.k(x)
            q, k = (q.float(), k.float()) if mixed else (q, k)
            return self.head(F.scaled_dot_product_attention(q, k, self.v(x), attn_mask=self.mask)).mean(1)

    net, x = Attends(), torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(4))
    _, expected = lrp.LRP(net, rule)(x, [1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        _, heatmap = lrp.LRP(net, rule)(x, [1, 2])
        heatmap.square().sum().backward()
    assert float((heatmap - expected).abs().max()) < 0.1 * float(expected.abs().max())
