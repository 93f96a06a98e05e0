"""lrpkernels.compat.captum: warnings that are given once, texts of the objects, small helpers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lrpkernels.compat.captum import LRP, GammaRule, LayerLRP


def test_a_rule_of_a_container_is_told_of_once() -> None:
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.Sequential(inner, nn.Linear(4, 2)).eval()
    inner.rule = GammaRule()  # type: ignore[assignment]
    attribution = LRP(model)
    with pytest.warns(UserWarning, match=r"'0' \(Sequential\) contains other modules") as told:
        for _ in range(3):
            attribution.attribute(torch.rand(2, 4), target=1)
    assert len(told) == 1
    assert repr(attribution) == "LRP(Sequential, rules={0: GammaRule(gamma=0.25, set_bias_to_zero=False)})"
    assert repr(LayerLRP(model, [inner, model])) == "LayerLRP(Sequential, 0, (model))"
    assert repr(LayerLRP(model, inner)) == "LayerLRP(Sequential, 0)"
    assert repr(LayerLRP(model, None)) == "LayerLRP(Sequential, all)"


def test_layers_can_be_resized_to_images() -> None:
    relevance = torch.rand(2, 3, 4, 4)
    assert LayerLRP.interpolate(relevance, (8, 12)).shape == (2, 3, 8, 12)
    expected = torch.nn.functional.interpolate(relevance, (8, 8), mode="bilinear")
    assert torch.equal(LayerLRP.interpolate(relevance, (8, 8), "bilinear"), expected)
