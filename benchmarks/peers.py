"""Heatmaps of zennit, captum and autograd beside ours: how many times longer they take, each network in one alternating run.

    python -m benchmarks.peers
    python -m benchmarks.peers --networks resnet50 --size 224 --json peers.json

Each is used as its own documentation shows, with its hooks placed once and kept where it allows that. Our heatmap is the baseline:
a ratio of 2 means that the peer takes twice as long. zennit and captum are installed by ``pip install --no-deps zennit captum``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from benchmarks import command_line
from benchmarks.heatmap import heatmap, input_gradient
from benchmarks.networks import NETWORKS
from benchmarks.timing import Ratio, alternate, as_rows
from benchmarks.zennit_import import import_zennit

OURS: dict[str, lrp.Composite | lrp.Rule] = {
    "epsilon": lrp.Epsilon(1e-2),
    "EpsilonPlus": lrp.EpsilonPlus(),
    "EpsilonGammaBox": lrp.EpsilonGammaBox(0.0, 1.0),
}


def _plain(model: nn.Module) -> nn.Module:
    """A copy that peers can work on: no ReLU in place, and in place of identities something that captum has a rule for."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Identity):
                setattr(parent, name, nn.Dropout())
    for module in model.eval().modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def zennit_heatmap(model: nn.Module, x: Tensor, name: str, stack: ExitStack) -> Callable[[], Tensor]:
    """zennit's heatmap of the highest logit; batch norms merged beforehand where it can, hooks kept."""
    zennit = import_zennit()
    merge = [zennit.canonizers.SequentialMergeBatchNorm()]
    box = {"low": torch.zeros_like(x), "high": torch.ones_like(x)}
    if name == "epsilon":
        layers = [
            (zennit.types.Activation, zennit.rules.Pass()),
            (zennit.types.Linear, zennit.rules.Epsilon(epsilon=1e-2)),
        ]
        composite = zennit.composites.LayerMapComposite(layer_map=layers, canonizers=merge)
    elif name == "EpsilonPlus":
        composite = zennit.composites.EpsilonPlus(canonizers=merge)
    else:
        composite = zennit.composites.EpsilonGammaBox(**box, canonizers=merge)
    net = _plain(model)
    try:
        modified = stack.enter_context(composite.context(net))
    except (
        RuntimeError
    ):  # pre-activation networks: the canonizer takes a convolution and the next layer's batch norm for a pair
        composite.canonizers = []
        net = _plain(model)
        modified = stack.enter_context(composite.context(net))

    def run() -> Tensor:
        image = x.detach().requires_grad_()
        logits = modified(image)
        start = torch.zeros_like(logits).scatter_(
            1, logits.argmax(1, keepdim=True), logits.amax(1, keepdim=True).detach()
        )
        return torch.autograd.grad(logits, image, start)[0]

    return run


def captum_heatmap(model: nn.Module, x: Tensor, name: str) -> Callable[[], Tensor]:
    """captum's heatmap: its epsilon rule, or z+ (alpha 1, beta 0) for convolutions. It places its hooks anew in every call."""
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule

    net = _plain(model)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            plus = name == "EpsilonPlus" and isinstance(module, nn.Conv2d)
            module.rule = Alpha1_Beta0_Rule() if plus else EpsilonRule(1e-2)
    target = net(x).argmax(1)

    def run() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return LRP(net).attribute(x.clone().requires_grad_(), target=target).detach()

    return run


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "resnet50", "vgg16", "densenet121"], repeats=7)
    parser.add_argument("--heatmaps", nargs="+", default=list(OURS), choices=list(OURS))
    options = parser.parse_args(arguments)
    command_line.begin(options)
    rows: list[dict[str, Any]] = []
    print(f"{'network':<12} {'heatmap':<16} {'by':<26} {'seconds':>9} {'x ours':>7}   10 % - 90 %")
    for network in options.networks:
        torch.manual_seed(0)
        model = NETWORKS[network](10).to(options.device).eval().requires_grad_(False)
        x = torch.rand(options.batch, 3, options.size, options.size, device=options.device)
        for name in options.heatmaps:
            with ExitStack() as stack:
                runs: dict[str, Callable[[], object]] = {"ours": heatmap(model, x, OURS[name])}
                runs["zennit"] = zennit_heatmap(model, x, name, stack)
                if name != "EpsilonGammaBox":  # captum has neither gamma for both signs nor a box rule
                    runs["captum"] = captum_heatmap(model, x, name)
                runs["forward + input gradient"] = input_gradient(model, x)
                for row in as_rows(_measured(runs, options.repeats, options.wall), network=network, heatmap=name):
                    rows.append(row)
                    print(
                        f"{network:<12} {name:<16} {row['name']:<26} {row['seconds']:9.4f} {row['ratio']:7.2f}   "
                        f"{row['low']:.2f} - {row['high']:.2f}"
                    )
    return command_line.finish(options, rows)


def _measured(runs: dict[str, Callable[[], object]], repeats: int, wall: bool) -> list[Ratio]:
    """The runs that work, in turn; a peer that cannot explain the network is named with its error."""
    able = {}
    for name, run in runs.items():
        try:
            run()
            able[name] = run
        except Exception as error:  # whatever a peer raises
            print(f"  {name} fails: {type(error).__name__}: {str(error).splitlines()[0][:90]}")
    return alternate(able, repeats, warmup=1, wall=wall)


if __name__ == "__main__":
    main()
