"""P from the losses themselves."""

from __future__ import annotations

import json

import pytest
import torch
from settings import train_config
from test_isnet_training import blobs, small_model, train

from isnet.training.balance import Balance


def test_balance_descends_the_distance_from_no_loss() -> None:
    """With P = L_h / (L_c + L_h) the weighted sum has the direction of the gradient of sqrt(L_c^2 + L_h^2)."""
    weights = torch.randn(4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    losses_now = weights[:2].square().sum(), (weights[1:] - 1).square().sum()
    balance = Balance()
    assert balance.share(0.6) == 0.6
    balance.see(*(loss.item() for loss in losses_now))
    p = balance.share(0.6)
    weighted, distance = (1 - p) * losses_now[0] + p * losses_now[1], torch.stack(losses_now).norm()
    one, other = (torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in (weighted, distance))
    torch.testing.assert_close(one / one.norm(), other / other.norm())


def test_balance_follows_the_running_means() -> None:
    balance = Balance()
    balance.see(1.0, 3.0)
    balance.see(0.0, 3.0)
    assert balance.share(0.5) == pytest.approx(3 / 3.9)
    again = Balance()
    again.restore(json.loads(json.dumps(balance.state())))
    assert again.share(0.5) == balance.share(0.5)
    silent = Balance()
    silent.see(0.0, 0.0)
    assert silent.share(0.5) == 0.5
    with pytest.raises(ValueError, match="balance: auto leaves no room"):
        train_config(balance="auto", p_ramp=1.0)
    with pytest.raises(ValueError, match="balance: expected fixed or auto"):
        train_config(balance="manual")  # type: ignore[arg-type]


def test_automatic_share_is_that_of_the_losses_before() -> None:
    config = train_config(epochs=1, warmup=1, batch_size=16, balance="auto", log_every=1, p=0.6)
    steps = [entry for entry in train(small_model(), config, "selective", data=blobs(64)) if entry["kind"] == "step"]
    first = steps[4]
    share = first["heatmap"] / (first["heatmap"] + first["classification"])
    assert [entry["p"] for entry in steps[:6]] == [0, 0, 0, 0, 0.6, pytest.approx(share)]
    for entry in steps:
        p, heatmap = entry["p"], entry["heatmap"] or 0
        assert entry["loss"] == pytest.approx((1 - p) * entry["classification"] + p * heatmap, rel=1e-5)
