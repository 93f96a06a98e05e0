"""``ISNetFlex`` and ``CompoundLoss`` by the arguments and results of the public FasterISNet code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from isnet.gwrp import gwrp
from isnet.loss import HeatmapLoss, classification_loss
from isnet.variants import selective_score, stochastic_target
from isnet.variants.base import first_rule

_NORMS: Mapping[Any, Any] = {
    True: "absolute", "absRoIMean": "absolute", "RoIMean": "signed", False: "none", "none": "none", None: "absolute",
}  # fmt: skip


class ISNetFlex(nn.Module):
    """A classifier with LRP-Flex heatmaps, called as the public code's class: ``net(x, runLRPFlex=True)``.

    Args:
        model: the classifier, used as it is: ReLUs may be functions, in place, or used twice.
        architecture, dropout, classes, pretrained, VGGRemoveLastMaxpool: of the public backbones, which are not part of isnet: left alone.
        e: LRP stabilizer.
        Zb: z^B at the input, for pixels in [0, 1].
        multiple: a heatmap for every class.
        randomLogit: of one random logit (the highest with probability 1/2).
        selective: of the log-odds of the lowest logit.
        selectiveEps: stabilizer of the log-odds.
        HiddenLayerPenalization: heatmaps at hidden layers, too: ``layers``, else the ends of the stages of a ResNet or DenseNet.
        explainLabels: of the classes that ``labels`` names in the call.
        layers: names of modules, where the public code would choose.

    Raises:
        ValueError: no model, none or several of the four choices of what is explained, or unknown hidden layers.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        architecture: str = "densenet121",
        dropout: bool = False,
        classes: int = 1,
        e: float = 1e-2,
        Zb: bool = True,
        multiple: bool = True,
        randomLogit: bool = False,
        selective: bool = False,
        selectiveEps: float = 1e-2,
        HiddenLayerPenalization: bool = False,
        pretrained: bool = False,
        VGGRemoveLastMaxpool: bool = False,
        explainLabels: bool = False,
        layers: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.model = given(model, architecture)
        chosen = {"multiple": multiple, "randomLogit": randomLogit, "selective": selective}
        names = [name for name, value in chosen.items() if value]
        if len(names) > 1 or (explainLabels and (multiple or randomLogit)) or not (names or explainLabels):
            raise ValueError(
                "expected one of multiple, randomLogit, selective (explainLabels: alone or with selective), got "
                f"{', '.join([*names, *(['explainLabels'] if explainLabels else [])]) or 'none'}"
            )
        self.multiple, self.randomLogit, self.selective = multiple, randomLogit, selective
        self.selectiveEps, self.explainLabels = selectiveEps, explainLabels
        self.layers = (tuple(layers) or stages(self.model)) if HiddenLayerPenalization else ()
        self.composite = lrp.Epsilon(e, first=first_rule(e, (0.0, 1.0) if Zb else None))

    def forward(self, x: Tensor, runLRPFlex: bool = False, labels: Tensor | None = None) -> dict[str, Any]:
        """``{"output": logits [B, K], "LRPFlex": {"input": R [B, M, C, H, W], layer: ...} or None}``, R of M maps.

        Heatmaps are differentiable in training mode.
        """
        if not runLRPFlex:
            return {"output": self.model(x), "LRPFlex": None}
        if self.explainLabels and labels is None:
            raise ValueError("labels: explainLabels explains the classes that they name, got None")
        with lrp.record(self.model, x, composite=self.composite, at=self.layers) as tape:
            logits = lrp.select_logits(tape.output)
            with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
                found = tape.relevance(self._target(logits, labels), self.composite, at=self.layers, release=True)
        return {
            "output": logits,
            "LRPFlex": {name: r if self.multiple else r.unsqueeze(1) for name, r in found.items()},
        }

    def returnBackbone(self) -> nn.Module:
        """The classifier."""
        return self.model

    def _target(self, logits: Tensor, labels: Tensor | None) -> Any:
        if self.multiple:
            return "all"
        if self.randomLogit:
            return stochastic_target(logits)
        if not self.explainLabels:
            return lambda z: selective_score(z, self.selectiveEps)
        assert labels is not None
        index = (
            (labels.argmax(-1) if labels.dim() == 2 and labels.shape[-1] > 1 else labels.flatten())
            .long()
            .to(logits.device)
        )
        if not self.selective:
            return index

        def log_odds(z: Tensor) -> Tensor:
            p = z.softmax(-1).gather(1, index.expand(len(z))[:, None])[:, 0]
            return torch.log(p + self.selectiveEps) - torch.log(1 - p + self.selectiveEps)

        return log_odds


def CompoundLoss(
    out: Mapping[str, Any],
    labels: Tensor,
    masks: Tensor | None = None,
    tuneCut: bool = False,
    d: float = 1,
    dLoss: float = 1,
    cutFlex: Any = None,
    cut2Flex: Any = None,
    A: float = 1,
    B: float = 1,
    E: float = 1,
    alternativeForeground: str | bool = False,
    norm: Any = True,
) -> dict[str, Any]:
    """``{"classification", "LRPFlex", "mapAbsFlex"}``: the losses of what :class:`ISNetFlex` returned (isnet's :class:`isnet.HeatmapLoss`).

    Args:
        out: ``output`` and ``LRPFlex``.
        labels: class indices [B], or 0/1 numbers [B, K].
        masks: foreground [B, 1, H, W] of 0 and 1.
        tuneCut: return the sums of absolute relevance, {layer: [B, M]}, as ``mapAbsFlex``, for choosing the cuts.
        d: GWRP decay.
        dLoss: GWRP decay over layers.
        cutFlex, cut2Flex: C1 and C2, numbers or {layer: number}; None: 1 and 25.
        A, B: weights of background and foreground.
        E: background scale.
        alternativeForeground: "hybrid", "L1", or "L2" (False).
        norm: "absRoIMean" (True), "RoIMean", or False.

    Raises:
        ValueError: heatmaps without masks, or an argument out of its range.
    """
    while labels.dim() > 1 and labels.shape[-1] == 1:
        labels = labels.squeeze(-1)
    result: dict[str, Any] = {
        "classification": classification_loss(out["output"], labels),
        "LRPFlex": None,
        "mapAbsFlex": None,
    }
    maps = out["LRPFlex"]
    if maps is None:
        return result
    if masks is None:
        raise ValueError("masks: the heatmap loss needs foreground masks, got None")
    if norm not in _NORMS:
        raise ValueError(f"norm: expected 'absRoIMean', 'RoIMean' or False, got {norm!r}")
    maps = maps if isinstance(maps, Mapping) else {"input": maps}
    losses = []
    for name, heatmap in maps.items():
        low, high = (bound.get(name) if isinstance(bound, Mapping) else bound for bound in (cutFlex, cut2Flex))
        foreground: Any = alternativeForeground or "L2"
        loss = HeatmapLoss(
            d, E, 1.0 if low is None else low, 25.0 if high is None else high, A, B, foreground, _NORMS[norm]
        )
        losses.append(loss(heatmap, masks).loss)
    result["LRPFlex"] = gwrp(torch.stack(losses), dLoss)
    if tuneCut:
        result["mapAbsFlex"] = {name: heatmap.detach().abs().flatten(2).sum(2) for name, heatmap in maps.items()}
    return result


def given(model: nn.Module | None, architecture: str) -> nn.Module:
    """The model.

    Raises:
        ValueError: there is none.
    """
    if model is None:
        raise ValueError(
            f"model: the public code's own {architecture!r} is no part of isnet; give the network (torchvision's DenseNets by "
            "isnet.faster_isnet.add_transition_relus)"
        )
    return model


def stages(model: nn.Module) -> tuple[str, ...]:
    """Where the public code supervises hidden layers: the stages of a ResNet, the transitions and the end of a DenseNet.

    Raises:
        ValueError: neither.
    """
    names = [name for name, _ in model.named_modules()]
    found = tuple(name for name in names if name in ("layer1", "layer2", "layer3", "layer4"))
    if not found:
        found = tuple(
            name
            for name in names
            if name.split(".")[-2:-1] and "transition" in name.split(".")[-2] and name.endswith(".relu")
        )
        found += tuple(name for name in names if found and name.split(".")[-1] in ("relu5", "final_relu"))
    if not found:
        raise ValueError(
            f"HiddenLayerPenalization: {type(model).__name__} is neither a ResNet nor a DenseNet; name its modules, layers=(...)"
        )
    return found
