"""Heatmaps of zennit, captum, autoLRP, lxt and autograd beside ours: how many times longer they take, in one alternating run.

    python -m benchmarks.peers
    python -m benchmarks.peers --networks resnet50 --size 224 --json peers.json
    python -m benchmarks.peers --steps                   # training steps with a loss on the heatmap: benchmarks.peer_steps

Each is used as its own documentation shows, with its hooks placed once and kept where it allows that. Our heatmap is the baseline:
a ratio of 2 means that the peer takes twice as long. They are installed by ``make peers``.
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
from benchmarks.networks import NETWORKS
from benchmarks.peer_lxt import lxt_heatmap
from benchmarks.timing import Ratio, alternate, as_rows
from benchmarks.zennit_import import import_zennit
from lrpkernels.tools.bench import heatmap, input_gradient

OURS: dict[str, lrp.Composite | lrp.Rule] = {
    "epsilon": lrp.Epsilon(1e-2),
    "EpsilonPlus": lrp.EpsilonPlus(),
    "EpsilonGammaBox": lrp.EpsilonGammaBox(0.0, 1.0),
}


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy that peers can work on: no ReLU in place, and in place of identities a module that captum has a rule for."""
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
    net = plain_copy(model)
    try:
        modified = stack.enter_context(composite.context(net))
    except (
        RuntimeError
    ):  # pre-activation networks: the canonizer mistakes a convolution and the next layer's batch norm for a pair
        composite.canonizers = []
        net = plain_copy(model)
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

    net = plain_copy(model)
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


def autolrp_heatmap(model: nn.Module, x: Tensor, name: str) -> Callable[[], Tensor]:
    """autoLRP's heatmap of the highest logit, from the autograd graph: epsilon, or its composite with z+ for convolutions."""
    import autolrp

    net = plain_copy(model)
    config = autolrp.LRPConfig.composite() if name == "EpsilonPlus" else autolrp.LRPConfig(eps=1e-2)

    def run() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = autolrp.tensor(x)
            net(image).amax(1).sum().lrp(config=config)
            return image.relevance

    return run


def _peers(model: nn.Module, x: Tensor, name: str, stack: ExitStack) -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes each peer's heatmap; captum has neither gamma for both signs nor a box rule, lxt only the epsilon rule."""
    found: dict[str, Callable[[], Callable[[], object]]] = {"zennit": lambda: zennit_heatmap(model, x, name, stack)}
    if name != "EpsilonGammaBox":
        found["captum"] = lambda: captum_heatmap(model, x, name)
        found["autoLRP"] = lambda: autolrp_heatmap(model, x, name)
    if name == "epsilon":
        found["lxt"] = lambda: lxt_heatmap(model, x)
    return found


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = command_line.parser(__doc__, ["resnet18", "resnet50", "vgg16", "densenet121"], repeats=7)
    parser.add_argument("--heatmaps", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--steps", action="store_true", help="training steps on resnet18 and vgg16 instead of heatmaps")
    options = parser.parse_args(arguments)
    command_line.begin(options)
    if options.steps:
        from benchmarks import peer_steps

        networks = [name for name in options.networks if name in peer_steps.NETWORKS]
        return command_line.finish(options, peer_steps.measure(networks, options))
    rows: list[dict[str, Any]] = []
    print(f"{'network':<12} {'heatmap':<16} {'by':<26} {'seconds':>9} {'x ours':>7}   10 % - 90 %")
    for network in options.networks:
        torch.manual_seed(0)
        model = NETWORKS[network](10).to(options.device).eval().requires_grad_(False)
        x = torch.rand(options.batch, 3, options.size, options.size, device=options.device)
        for name in options.heatmaps:
            with ExitStack() as stack:
                runs: dict[str, Callable[[], object]] = {"ours": heatmap(model, x, OURS[name])}
                runs["ours, static calls"] = heatmap(model, x, OURS[name], static=True)
                runs |= made_by(_peers(model, x, name, stack))
                runs["forward + input gradient"] = input_gradient(model, x)
                for row in as_rows(measured(runs, options.repeats, options.wall), network=network, heatmap=name):
                    rows.append(row)
                    print(
                        f"{network:<12} {name:<16} {row['name']:<26} {row['seconds']:9.4f} {row['ratio']:7.2f}   "
                        f"{row['low']:.2f} - {row['high']:.2f}"
                    )
    return command_line.finish(options, rows)


def made_by(makers: dict[str, Callable[[], Callable[[], object]]]) -> dict[str, Callable[[], object]]:
    """The runs of the peers that are installed and take the network; the others are named with their error."""
    found = {}
    for name, make in makers.items():
        try:
            found[name] = make()
        except Exception as error:  # whatever a peer raises
            _complain(name, error)
    return found


def measured(runs: dict[str, Callable[[], object]], repeats: int, wall: bool) -> list[Ratio]:
    """The runs that work, in turn; a peer that cannot explain the network is named with its error."""
    able = {}
    for name, run in runs.items():
        try:
            run()
            able[name] = run
        except Exception as error:  # whatever a peer raises
            _complain(name, error)
    return alternate(able, repeats, warmup=1, wall=wall)


def _complain(name: str, error: Exception) -> None:
    print(f"  {name} fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}")


if __name__ == "__main__":
    main()
