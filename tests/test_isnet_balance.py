"""P from the losses themselves, and heatmaps on a part of each batch."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from test_isnet_loop import plain_model
from test_isnet_training import blobs, small_model, train
from torch import nn

from isnet import ISNet, ISNetLoss
from isnet._seeds import stream_seed
from isnet.balance import Balance
from isnet.train_config import TrainConfig

# ---- P from the losses


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
        TrainConfig(balance="auto", p_ramp=1.0)
    with pytest.raises(ValueError, match="balance: expected fixed or auto"):
        TrainConfig(balance="manual")  # type: ignore[arg-type]


def test_automatic_share_is_that_of_the_losses_before() -> None:
    config = TrainConfig(epochs=1, warmup=1, batch_size=16, balance="auto", log_every=1, p=0.6)
    steps = [entry for entry in train(small_model(), config, "selective", data=blobs(64)) if entry["kind"] == "step"]
    first = steps[4]
    share = first["heatmap"] / (first["heatmap"] + first["classification"])
    assert [entry["p"] for entry in steps[:6]] == [0, 0, 0, 0, 0.6, pytest.approx(share)]
    for entry in steps:
        p, heatmap = entry["p"], entry["heatmap"] or 0
        assert entry["loss"] == pytest.approx((1 - p) * entry["classification"] + p * heatmap, rel=1e-5)


# ---- heatmaps of a part of each batch


def test_heatmaps_of_the_first_images_only() -> None:
    torch.manual_seed(0)
    network, images = ISNet(plain_model(), "selective").train(), torch.rand(8, 1, 20, 20)
    every, some = network(images), network(images, first=3)
    torch.testing.assert_close(some.logits, every.logits)
    torch.testing.assert_close(some.heatmaps["input"], every.heatmaps["input"][:3])
    assert not network(images, heatmaps=False, first=3).heatmaps
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"first: expected a number of images from 1 to 8, got {count}"):
            network(images, first=count)


def test_heatmap_loss_on_a_part_of_each_batch() -> None:
    data = blobs(16)
    config = TrainConfig(epochs=1, batch_size=16, heatmap_fraction=0.3, log_every=1, clip_norm=None, seed=3)
    torch.manual_seed(0)
    model = plain_model()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(stream_seed(3, "order", 0)))
    images, labels, masks = (values[order] for values in (data.images, data.labels, data.masks))
    network = ISNet(copy.deepcopy(model), "selective").train()
    few = ISNetLoss()(network(images[:5]), labels[:5], masks[:5])
    expected = 0.3 * nn.functional.cross_entropy(network.model(images), labels) + 0.7 * few.heatmap
    log = train(model, config, "selective", data=data)
    assert log[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"heatmap_fraction: expected in \(0, 1\], got 0"):
        TrainConfig(heatmap_fraction=0)
