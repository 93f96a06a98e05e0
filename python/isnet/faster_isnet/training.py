"""``ISNetFlexLgt`` and ``ISNetLgt``: Lightning modules by the arguments of the public FasterISNet code (extra ``lightning``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isnet.faster_isnet.flex import _NORMS, given, stages
from isnet.lightning import ISNetModule
from isnet.loss import ISNetLoss
from isnet.model import ISNet


class _PublicModule(ISNetModule):
    """Batches are (images, masks, labels), the optimizer is SGD (or Adam), gradients are clipped, P may follow the epoch.

    Args:
        network, criterion: see :class:`isnet.lightning.ISNetModule`.
        heat: whether there is a heatmap loss.
        P: its share, or {epoch: share}.
        optim, LR, momentum, WD, nesterov, dropLr, clip: the optimizer, the epochs at which its rate falls by 10, the gradients' norm.
    """

    def __init__(
        self, network: ISNet, criterion: ISNetLoss, heat: bool, P: float | Mapping[int, float], optim: str, LR: float, momentum: float,
        WD: float, nesterov: bool, dropLr: Sequence[int] | None, clip: float | None,
    ) -> None:  # fmt: skip
        super().__init__(network, criterion, lr=LR, weight_decay=WD)
        if optim not in ("SGD", "Adam"):
            raise ValueError(f"optim: expected 'SGD' or 'Adam', got {optim!r}")
        self.heat, self.shares, self.clip = heat, dict(P) if isinstance(P, Mapping) else {0: P}, clip
        self.optim, self.momentum, self.nesterov, self.dropLr = optim, momentum, nesterov, dropLr

    def on_train_epoch_start(self) -> None:
        """Takes P of the epoch."""
        super().on_train_epoch_start()
        passed = [epoch for epoch in self.shares if epoch <= self.current_epoch]
        self.criterion.p = float(self.shares[max(passed)]) if self.heat and passed else 0.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, masks, labels = batch
        if self.heat:
            return super().training_step((images, labels, masks), batch_idx)
        terms = self.criterion(self.network(images, heatmaps=False), labels)
        self.log("train_loss", terms.classification, prog_bar=True)
        return terms.classification

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        images, masks, labels = batch if len(batch) == 3 else (batch[0], batch[0], batch[1])  # masks play no part
        super().validation_step((images, labels, masks), batch_idx)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clips to ``clip``, unless the Trainer has a value of its own."""
        value = gradient_clip_val if gradient_clip_val is not None else self.clip or None
        self.clip_gradients(optimizer, value, gradient_clip_algorithm or "norm")

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer = torch.optim.Adam(parameters, lr=self.lr)
        if self.optim == "SGD":
            optimizer = torch.optim.SGD(
                parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
            )
        if not self.dropLr:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, list(self.dropLr))]


def ISNetFlexLgt(
    model: nn.Module | None = None,
    architecture: str = "densenet121",
    heat: bool = True,
    P: float | Mapping[int, float] = 0.7,
    d: float = 0,
    optim: str = "SGD",
    nesterov: bool = False,
    LR: float = 1e-3,
    momentum: float = 0.99,
    WD: float = 0,
    dropLr: Sequence[int] | None = None,
    clip: float | None = 1,
    classes: int = 1,
    dropout: bool = False,
    HiddenLayerPenalization: bool = False,
    dLoss: float = 1,
    cut: Any = 1,
    cut2: Any = 25,
    selective: bool = False,
    selectiveEps: float = 1e-7,
    Zb: bool = True,
    e: float = 0.01,
    multiple: bool = False,
    randomLogit: bool = False,
    pretrained: bool = False,
    A: float = 1,
    B: float = 1,
    E: float = 1,
    VGGRemoveLastMaxpool: bool = False,
    alternativeForeground: str = "hybrid",
    norm: Any = "absRoIMean",
    val: str = "ISNet",
    explainLabels: bool = False,
) -> ISNetModule:
    """A Selective, Stochastic or Original ISNet by LRP-Flex, as a Lightning module for batches (images, masks, labels).

    Args:
        model: the classifier.
        selectiveEps: accepted; the log-odds are those of :class:`isnet.variants.Selective`, stabilized by 1e-2.
        val: accepted; the validation loss is that of classification.
        architecture, heat, P, d, optim, nesterov, LR, momentum, WD, dropLr, clip, classes, dropout, HiddenLayerPenalization, dLoss, cut,
            cut2, Zb, e, multiple, randomLogit, pretrained, A, B, E, VGGRemoveLastMaxpool, alternativeForeground, norm, explainLabels: see
            :class:`isnet.faster_isnet.ISNetFlex`, :func:`isnet.faster_isnet.CompoundLoss` and the public code.

    Raises:
        ValueError: see there.
    """
    network = ISNet(
        given(model, architecture),
        variant_of(selective, multiple, randomLogit, "e", explainLabels),
        eps=e,
        input_range=(0.0, 1.0) if Zb else None,
        layers=stages(given(model, architecture)) if HiddenLayerPenalization else (),
    )
    criterion = _loss(P, d, E, cut, cut2, A, B, alternativeForeground, dLoss, norm)
    return _PublicModule(network, criterion, heat, P, optim, LR, momentum, WD, nesterov, dropLr, clip)


def ISNetLgt(
    baseModel: nn.Module | None = None,
    architecture: str = "densenet121",
    classes: int = 1000,
    multiLabel: bool = False,
    e: float = 1e-2,
    heat: bool = True,
    Zb: bool = True,
    LR: float = 1e-3,
    P: float | Mapping[int, float] = 0.7,
    E: float = 10,
    A: float = 1,
    B: float = 3,
    d: float = 0.996,
    cut: Any = 1,
    cut2: Any = 25,
    norm: Any = True,
    optim: str = "SGD",
    rule: str = "e",
    multiple: bool = True,
    dropLr: Sequence[int] | None = None,
    selective: bool = False,
    highest: bool = False,
    momentum: float = 0.99,
    WD: float = 0,
    penalizeAll: bool = False,
    dLoss: float = 1,
    randomLogit: bool = False,
    nesterov: bool = False,
    alternativeForeground: str = "hybrid",
    clip: float | None = None,
) -> ISNetModule:
    """An ISNet by LRP-Block (``rule="z+e"``: Dual), as a Lightning module for batches (images, masks, labels).

    Args:
        baseModel: the classifier.
        highest: accepted; Selective takes the lowest logit, Stochastic draws.
        rule: "e", or "z+e" for the Dual ISNet.
        architecture, classes, multiLabel, e, heat, Zb, LR, P, E, A, B, d, cut, cut2, norm, optim, multiple, dropLr, selective, momentum,
            WD, penalizeAll, dLoss, randomLogit, nesterov, alternativeForeground, clip: see :func:`ISNetFlexLgt` and the public code.

    Raises:
        ValueError: see there.
    """
    network = ISNet(
        given(baseModel, architecture),
        variant_of(selective, multiple, randomLogit, rule),
        eps=e,
        input_range=(0.0, 1.0) if Zb else None,
        layers=stages(given(baseModel, architecture)) if penalizeAll else (),
        form="layerwise",
    )
    criterion = _loss(P, d, E, cut, cut2, A, B, alternativeForeground, dLoss, norm)
    return _PublicModule(network, criterion, heat, P, optim, LR, momentum, WD, nesterov, dropLr, clip)


def variant_of(selective: bool, multiple: bool, randomLogit: bool, rule: str = "e", explainLabels: bool = False) -> str:
    """The variant that the public code's flags mean.

    Raises:
        ValueError: none, several, or a rule of pictures only.
    """
    if explainLabels:
        raise ValueError(
            "explainLabels: explains, and trains nothing; use isnet.faster_isnet.ISNetFlex or isnet.ISNet.explain"
        )
    if rule == "z+e":
        if selective or multiple:
            raise ValueError(
                "rule: 'z+e', the Dual ISNet, explains the sum of the logits; leave selective and multiple False"
            )
        return "dual"
    if rule != "e":
        raise ValueError(f"rule: expected 'e' or 'z+e', got {rule!r}")
    flags = {"selective": selective, "original": multiple, "stochastic": randomLogit}
    chosen = [name for name, flag in flags.items() if flag]
    if len(chosen) != 1:
        got = f"selective={selective}, multiple={multiple}, randomLogit={randomLogit}"
        raise ValueError(f"expected one of selective, multiple and randomLogit to be True, got {got}")
    return chosen[0]


def _loss(
    P: float | Mapping[int, float], d: float, E: float, cut: Any, cut2: Any, A: float, B: float, foreground: Any, dLoss: float, norm: Any
) -> ISNetLoss:  # fmt: skip
    share = float(P[min(P)]) if isinstance(P, Mapping) else float(P)
    if norm not in _NORMS:
        raise ValueError(f"norm: expected 'absRoIMean', 'RoIMean' or False, got {norm!r}")
    return ISNetLoss(share, d, E, cut, cut2, A, B, foreground or "L2", dLoss, _NORMS[norm])
