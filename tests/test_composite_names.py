"""Names in composites: those that no layer has, and those of batch norms and ReLUs that would merge into the layer ahead."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import Residual, build
from torch import nn

import lrpkernels as lrp

D = torch.float64


def test_names_that_no_layer_has_are_refused_with_near_ones() -> None:
    net, x = build(Residual), torch.rand(1, 3, 12, 12, dtype=D)
    for composite, text in (
        (lrp.Composite({"layer1.0.conv3": lrp.ZPlus()}), r"no module 'layer1.0.conv3'.*near matches: .*layer1.0.conv"),
        (lrp.Composite({"layer9.*": lrp.ZPlus(), "fc": lrp.ZPlus()}), r"no module 'layer9\.\*'.*near matches: .*layer"),
        (lrp.Composite({"layer1": lrp.ZPlus()}), r"'layer1' names a module that only calls others.*'layer1\.\*'"),
    ):
        for run in (
            lambda c: lrp.LRP(net, c)(x, 1),
            lambda c: lrp.LRP(net, c, static=True)(x, 1),
            lambda c: lrp.LRP(net, c).explain(x),
        ):
            with pytest.raises(ValueError, match=text):
                run(composite)
    for fine in (
        {"layer1": lrp.ZPlus(), "layer1.*": lrp.ZPlus()},  # a module and all that is inside
        {"fc": lrp.ZPlus(), "fc.*": lrp.ZPlus()},
        {"layer1.0": lrp.ZPlus()},  # its sum
        {nn.Conv3d: lrp.ZPlus(), lambda name, module: False: lrp.Flat()},  # kinds that a model may lack
        {"(model)": lrp.ZPlus(), "relu": lrp.ZPlus(), "*": lrp.ZPlus()},
    ):
        lrp.LRP(net, lrp.Composite(fine))(x, 1)


def test_a_named_batch_norm_or_relu_is_a_layer_of_its_own() -> None:
    net, x = build(Residual), torch.rand(2, 3, 12, 12, dtype=D)
    merged = lrp.LRP(net, lrp.Epsilon()).explain(x)
    assert "conv -> batch_norm -> relu" in merged
    alone = lrp.LRP(net, lrp.Composite({"bn1": lrp.ZPlus(0.1)})).explain(x).splitlines()
    assert any(line.startswith("bn1 ") and "batch_norm -> relu" in line and "ZPlus" in line for line in alone)
    assert any(line.startswith("conv1 ") and "Epsilon" in line and "batch_norm" not in line for line in alone)
    relu = lrp.LRP(net, lrp.Composite({"relu": lrp.Epsilon(5.0)})).explain(x).splitlines()
    assert any(line.startswith("relu ") and "eps=5.0" in line for line in relu)
    for same in (
        {"bn1": lrp.Epsilon()},
        {"conv1": lrp.ZPlus(), "bn1": lrp.ZPlus()},
        {"*": lrp.ZPlus()},
        {nn.BatchNorm2d: lrp.ZPlus()},
    ):
        assert "conv -> batch_norm -> relu" in lrp.LRP(net, lrp.Composite(same)).explain(x)


def test_a_named_batch_norm_follows_its_rule_in_every_form_of_a_pass() -> None:
    torch.manual_seed(7)
    net = (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    )
    for p in net[1].parameters():
        p.data.normal_()
    net[1].running_mean.normal_()
    x = torch.randn(2, 2, 4, 4, dtype=D)
    z = net[0](x)
    k = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    c = net[1].bias - k * net[1].running_mean
    k, c = k.view(-1, 1, 1), c.view(-1, 1, 1)
    u = (k * z + c).clamp(min=0)
    R = u * net[4].weight[1].view(3, 2, 2)
    up = (k * z).clamp(min=0)
    Rz = up * R / (up + c.clamp(min=0) + 0.1)
    G = Rz / z
    zero = torch.zeros(2 * 4 * 4, dtype=D)
    W = torch.autograd.functional.jacobian(lambda v: F.conv2d(v.view(1, 2, 4, 4), net[0].weight).flatten(), zero)
    expected = (x.flatten(1) * (G.flatten(1) @ W)).view_as(x)
    composite = lrp.Composite({"1": lrp.ZPlus(0.1)}, default=lrp.Epsilon(0.0))
    for options in ({}, {"static": True}, {"checkpoint": True}):
        attribution = lrp.LRP(net, composite, **options)
        for _ in range(2):
            torch.testing.assert_close(attribution(x, 1)[1], expected)
    both = (lrp.Epsilon(0.0), composite)  # what one reads is there for the other as well
    with torch.no_grad(), lrp.record(net, x, composite=both) as tape:
        torch.testing.assert_close(tape.relevance(1, both[1]), expected.detach())
        torch.testing.assert_close(tape.relevance(1, both[0]), lrp.LRP(net, both[0])(x, 1)[1])
