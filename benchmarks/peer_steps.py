"""Training steps with a loss on the heatmap, by peers that can train through one: ``python -m benchmarks.peers --steps``.

Each step: forward pass, epsilon heatmap of the labels' logits, cross-entropy and heatmap loss (isnet.ISNetLoss), backward pass to the
weights; evaluation mode, so that batch norms are constant for all. Two forms of the rule: the stabilizer at the ReLUs (LRP-Flex), and
one in every layer (the peers' form). The gradients are compared with ours of the same form in float64: cosine over all weights with two
or more dimensions, of the heatmap loss alone.

Peers whose heatmap carries no usable gradient are listed with the result of training through it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from benchmarks import networks as known
from benchmarks.gradient_trick import autograd_heatmap, modified_relus, stabilized_layers
from benchmarks.networks import VGG
from benchmarks.peer_lxt import lxt_network
from benchmarks.peers import made_by, measured, plain_copy
from benchmarks.timing import as_rows
from benchmarks.zennit_import import import_zennit

NETWORKS = ("resnet18", "vgg16")
Heatmap = Callable[[], tuple[Tensor, Tensor]]


def _in_modules(model: nn.Module) -> nn.Module:
    """The same network with its mean over positions as a pooling module, which peers see."""
    if not isinstance(model, VGG):
        return model
    return nn.Sequential(*model.features, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), model.fc)


def _explained(net: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the result of a modified network's backward pass at the input, started from the labels' logits."""
    image = x.detach().requires_grad_()
    logits = net(image)
    start = torch.zeros_like(logits).scatter_(1, labels[:, None], logits.gather(1, labels[:, None]))
    return logits, torch.autograd.grad(logits, image, start, create_graph=True)[0]


def _zennit(net: nn.Module, x: Tensor, labels: Tensor, stack: ExitStack) -> Heatmap:
    zennit = import_zennit()
    layers = [
        (zennit.types.Activation, zennit.rules.Pass()), (zennit.types.AvgPool, zennit.rules.Norm()),
        (zennit.types.Linear, zennit.rules.Epsilon(epsilon=1e-2)),
    ]  # fmt: skip
    merge = [zennit.canonizers.SequentialMergeBatchNorm()]
    composite = zennit.composites.LayerMapComposite(layer_map=layers, canonizers=merge)
    modified = stack.enter_context(composite.context(net))
    return lambda: _explained(modified, x, labels)


def _captum(net: nn.Module, x: Tensor, labels: Tensor) -> Heatmap:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    for module in net.modules():
        if not list(module.children()) and not isinstance(module, (nn.ReLU, nn.Dropout)):
            module.rule = EpsilonRule(1e-2)

    def run() -> tuple[Tensor, Tensor]:
        image = x.clone().requires_grad_()
        return net(image), LRP(net).attribute(image, target=labels)

    return run


def _autolrp(net: nn.Module, x: Tensor, labels: Tensor) -> Heatmap:
    import autolrp

    def run() -> tuple[Tensor, Tensor]:
        image = autolrp.tensor(x)
        logits = net(image)
        logits.gather(1, labels[:, None]).sum().lrp(config=autolrp.LRPConfig(eps=1e-2))
        return logits, image.relevance

    return run


def _lxt(net: nn.Module, x: Tensor, labels: Tensor) -> Heatmap:
    modified = lxt_network(net, 1e-2)
    return lambda: _explained(modified, x, labels)


def heatmaps(
    model: nn.Module, x: Tensor, labels: Tensor, stack: ExitStack
) -> dict[str, tuple[nn.Module, Callable[[], Heatmap], str]]:
    """Peer -> the network whose weights take the gradient, what makes the run, and the form of the rule."""

    def fresh() -> nn.Module:
        return copy.deepcopy(model)

    def ours(net: nn.Module, rule: lrp.Rule) -> Callable[[], Heatmap]:
        return lambda: lambda: lrp.LRP(net, rule, check=False)(x, labels)

    flex, layered = fresh(), fresh()
    trick, stabilized = modified_relus(model), stabilized_layers(model)
    theirs = {name: plain_copy(model) for name in ("zennit", "captum", "autoLRP")}
    return {
        "ours": (flex, ours(flex, lrp.Epsilon(1e-2)), "ReLUs"),
        "gradient trick": (trick, lambda: lambda: autograd_heatmap(trick, x, labels), "ReLUs"),
        "ours, layer by layer": (layered, ours(layered, lrp.EpsilonLayerwise(1e-2, sums=False, pools=False)), "layers"),
        "autograd, layer by layer": (stabilized, lambda: lambda: autograd_heatmap(stabilized, x, labels), "layers"),
        "zennit": (theirs["zennit"], lambda: _zennit(theirs["zennit"], x, labels, stack), "layers"),
        "captum": (theirs["captum"], lambda: _captum(theirs["captum"], x, labels), "layers"),
        "autoLRP": (theirs["autoLRP"], lambda: _autolrp(theirs["autoLRP"], x, labels), "layers"),
        "lxt": (model, lambda: _lxt(model, x, labels), "layers"),
    }


def step_of(net: nn.Module, heatmap: Heatmap, labels: Tensor, masks: Tensor) -> Callable[[], Tensor]:
    """The training step around a heatmap; RuntimeError where the heatmap carries no gradient."""
    criterion = isnet.ISNetLoss()

    def step() -> Tensor:
        net.zero_grad()
        logits, relevance = heatmap()
        if not relevance.requires_grad:
            raise RuntimeError("its heatmap is cut off from the weights: no training through it")
        loss = criterion(isnet.ISNetOutput(logits, {"input": relevance.unsqueeze(1)}), labels, masks).total
        loss.backward()
        return loss.detach()

    return step


def gradients(model: nn.Module, x: Tensor, labels: Tensor, masks: Tensor) -> dict[str, tuple[float, float]]:
    """Cosine to ours of the same form, in float64: of the heatmap, and of the heatmap loss's gradient for the weights."""
    model, x, masks = copy.deepcopy(model).double(), x.double(), masks.double()
    loss_of = isnet.HeatmapLoss()
    found: dict[str, tuple[Tensor, Tensor]] = {}
    form: dict[str, str] = {}
    with ExitStack() as stack:
        for name, (net, make, rule) in heatmaps(model, x, labels, stack).items():
            try:
                net.zero_grad()
                _, relevance = make()()
                loss_of(relevance.unsqueeze(1), masks).loss.backward()
            except Exception:  # reported where it is timed
                continue
            weights = [p.grad for p in net.parameters() if p.dim() > 1]
            if all(grad is not None for grad in weights):
                found[name] = relevance.detach().flatten(), torch.cat([grad.flatten() for grad in weights])  # type: ignore[union-attr]
                form[name] = rule
    truth = {"ReLUs": found["ours"], "layers": found["ours, layer by layer"]}
    return {
        name: (_cosine(heatmap, truth[form[name]][0]), _cosine(gradient, truth[form[name]][1]))
        for name, (heatmap, gradient) in found.items()
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    return float((a / a.norm()) @ (b / b.norm()))  # PyTorch's own clamps small norms


def measure(networks: list[str], options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    print(f"{'network':<10} {'by':<26} {'seconds':>9} {'x plain':>8} {'x ours':>7}   cosine to ours: heatmap, gradient")
    for network in networks:
        torch.manual_seed(0)
        model = _in_modules(known.NETWORKS[network](10)).to(options.device).eval()
        x = torch.rand(options.batch, 3, options.size, options.size, device=options.device)
        labels = torch.randint(0, 10, (options.batch,), device=options.device)
        masks = torch.zeros(options.batch, 1, options.size, options.size, device=options.device)
        middle = slice(options.size // 4, 3 * options.size // 4)
        masks[..., middle, middle] = 1
        close = gradients(model, x[:2], labels[:2], masks[:2])
        with ExitStack() as stack:
            by = heatmaps(copy.deepcopy(model), x, labels, stack)
            made = made_by({name: make for name, (_, make, _) in by.items()})
            runs: dict[str, Callable[[], object]] = {"plain step": _plain_step(copy.deepcopy(model), x, labels)}
            runs |= {name: step_of(by[name][0], run, labels, masks) for name, run in made.items()}  # type: ignore[arg-type]
            found = as_rows(measured(runs, options.repeats, options.wall), network=network)
        ours = next(row["seconds"] for row in found if row["name"] == "ours")
        for row in found:
            row["by_ours"] = row["seconds"] / ours
            row["heatmap_cosine"], row["gradient_cosine"] = close.get(row["name"], (None, None))
            rows.append(row)
            shown = "" if row["name"] not in close else f"{row['heatmap_cosine']:.4f}, {row['gradient_cosine']:.4f}"
            print(
                f"{network:<10} {row['name']:<26} {row['seconds']:9.4f} {row['ratio']:8.2f} {row['by_ours']:7.2f}   {shown}"
            )
    return rows


def _plain_step(model: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], object]:
    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(x), labels).backward()

    return step
