"""How far lrpkernels.compat.captum's heatmaps are from captum's own, and what README's one-liner comes to.

    python -m benchmarks.captum_agreement
    python -m benchmarks.captum_agreement --networks vgg11 --size 224 --json captum.json

Of each network, dtype and rule: the largest difference over the largest relevance. The networks are given captum's addition module and
pooling modules, without which its numbers are wrong. For single precision the deviation of both from double precision is printed, too:
small denominators amplify rounding in either. Then the cosine between captum's heatmap and those of ``lrp.LRP(model)`` with two rules.
captum is installed by ``make peers``.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp
from benchmarks import command_line
from benchmarks.networks import NETWORKS, VGG
from benchmarks.peers import plain_copy
from lrpkernels.compat import captum as ours

RULES = ("default", "gamma", "alpha1 beta0")
README: dict[str, lrp.Rule] = {
    "Epsilon(1e-2), the default": lrp.Epsilon(),
    "EpsilonLayerwise(1e-9)": lrp.EpsilonLayerwise(1e-9),
}


def _with_additions(model: nn.Module) -> nn.Module:
    """The network with captum's addition module in place of ``+``, and a pooling module for a mean, which captum does not see."""
    from captum.attr._utils.custom_modules import Addition_Module

    if isinstance(model, VGG):
        model.features.append(nn.AdaptiveAvgPool2d(1))
        model.forward = types.MethodType(lambda vgg, x: vgg.fc(torch.flatten(vgg.features(x), 1)), model)  # type: ignore[method-assign]
    for block in model.modules():
        if type(block).__name__ in ("_BasicBlock", "_Bottleneck"):
            block.total = Addition_Module()
            block.forward = types.MethodType(_forward, block)
    return model


def _forward(block: Any, x: Tensor) -> Tensor:
    out = block.conv2(block.relu(block.bn1(block.conv1(x))))
    out = block.bn3(block.conv3(block.relu(block.bn2(out)))) if hasattr(block, "conv3") else block.bn2(out)
    return block.relu(block.total(out, x if isinstance(block.downsample, nn.Dropout) else block.downsample(x)))


def _rules(model: nn.Module, name: str) -> None:
    from captum.attr._utils import lrp_rules

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and name != "default":
            module.rule = lrp_rules.GammaRule() if name == "gamma" else lrp_rules.Alpha1_Beta0_Rule()


def _captum(model: nn.Module, x: Tensor) -> Tensor:
    from captum.attr import LRP

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LRP(copy.deepcopy(model)).attribute(x.clone(), target=3).detach()


def _off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Run and print; returns the rows."""
    parser = command_line.parser(__doc__, ["vgg11", "resnet18"], batch=2, repeats=None)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    print("| network | rule | float64: ours - captum | float32: ours - captum | ours - float64 | captum - float64 |")
    print(f"{'| --- ' * 2}{'| ---: ' * 4}|")
    cosines = []
    for network in args.networks:
        torch.manual_seed(0)
        model = _with_additions(plain_copy(NETWORKS[network](10))).to(args.device)
        x = torch.rand(args.batch, 3, args.size, args.size, device=args.device)
        for rule in RULES:
            _rules(model, rule)
            single = ours.LRP(model.float()).attribute(x, 3), _captum(model, x)
            double = ours.LRP(model.double()).attribute(x.double(), 3), _captum(model, x.double())
            numbers = [_off(*double), _off(*single), _off(single[0], double[0]), _off(single[1], double[1])]
            print(f"| {network} | {rule} | " + " | ".join(f"{number:.0e}" for number in numbers) + " |")
            names = ("double", "single", "ours", "captum")
            rows.append({"network": network, "rule": rule, **dict(zip(names, numbers, strict=True))})
            if rule == "default":
                for name, own in README.items():
                    found = lrp.LRP(model, own).attribute(x.double(), 3).detach()
                    cosine = float(F.cosine_similarity(found.flatten(), double[1].flatten(), dim=0))
                    cosines.append({"network": network, "rule": name, "cosine": cosine})
    for row in cosines:
        print(f"{row['network']}: lrp.LRP(model, {row['rule']}) and captum: cosine {row['cosine']:.6f}")
    return command_line.finish(args, rows + cosines)


if __name__ == "__main__":
    main()
