"""A rule and a layer added by CONTRIBUTING.md's lists alone: one file each, nothing else is touched."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import lrpkernels as lrp

RULE = '''
"""Epsilon on absolute contributions: R_j = a_j sum_k |w_jk| R_k / (sum_i |a_i| |w_ik| + eps)."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrpkernels.functional import Scaled
from lrpkernels.rules.base import Rule
from lrpkernels.rules.views import Layer


@dataclass(frozen=True)
class Absolute(Rule):
    """See above."""

    eps: float = 1e-6
    reads = frozenset({"input", "output"})

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.pull(g.over(layer.value, layer.apply(layer.a.abs(), torch.abs), self.eps), torch.abs)
'''

LAYER = '''
"""Doubling, a function that PyTorch does not have: R is unchanged, so G meets 2."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lrpkernels.graph import Arrived, Multipliers, Node
from lrpkernels.layers.registry import Recorder, records
from lrpkernels.rules import Rule


def double(x: Tensor) -> Tensor:
    if torch.overrides.has_torch_function_unary(x) or torch.overrides._get_current_function_mode() is not None:
        return torch.overrides.handle_torch_function(double, (x,), x)
    return x.detach() * 2 + (x - x.detach()) * 2


class Double(Node):
    """y = 2 x."""

    kind = "double"
    reads_inputs = reads_outputs = False

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (multipliers[0] * 2,)


@records(double)
def _double(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    out = args[0] * 2
    rec.add(Double(rec.known(args[0])), out)
    return out
'''


def load(folder: Path, name: str, source: str) -> ModuleType:
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(source))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rule_is_one_file(tmp_path: Path) -> None:
    rule = load(tmp_path, "toy_rule", RULE).Absolute()
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    _, heatmap = lrp.LRP(net, rule)(x, 1)
    h, g = net[:2](x), torch.eye(3, dtype=torch.float64)[1].expand(2, 3)
    for layer, a, value in ((net[2], h, net(x)), (net[0], x, h)):
        w = layer.weight.abs()
        g = (g * value / (a.abs() @ w.t() + 1e-6)) @ w
    torch.testing.assert_close(heatmap, x * g, rtol=1e-10, atol=1e-12)
    heatmap.square().sum().backward()
    assert net[0].weight.grad is not None
    assert "Absolute" in lrp.LRP(net, lrp.Composite({"0": rule})).explain(x)


def test_a_layer_is_one_file(tmp_path: Path) -> None:
    toy = load(tmp_path, "toy_layer", LAYER)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(toy.double(self.first(x)).relu())

    net, x = Net().double(), torch.randn(2, 4, dtype=torch.float64)
    with lrp.record(net, x) as tape:
        assert [node.label() for node in tape.nodes] == ["linear", "double", "relu", "linear"]
        heatmap = tape.relevance(1, lrp.Epsilon(0.0))
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net.last((2 * net.first(x)).relu())[:, 1].sum(), x)
    torch.testing.assert_close(heatmap, x * gradient, rtol=1e-10, atol=1e-12)
