"""What a GPU's first run measures: training steps and heatmaps, recorded, with static calls and as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from benchmarks.gpu_networks import NETWORKS, TINY
from benchmarks.gpu_timing import Run, captured
from lrpkernels.functional import tuner
from lrpkernels.tools.bench import COMPOSITES, input_gradient

CLASSES = 10


@dataclass
class Case:
    """One network with a batch: what the runs of one comparison share.

    Attributes:
        model: in training mode; heatmaps switch to evaluation mode.
        x: images in [0, 1].
        labels, masks: their classes and foregrounds.
        device: "cuda" or "cpu".
        bf16: forward passes under bfloat16 autocast, the plain ones too.
    """

    model: nn.Module
    x: Tensor
    labels: Tensor
    masks: Tensor
    device: str
    bf16: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Around forward passes."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


def make_case(network: str, device: str, bf16: bool = False, tiny: bool = False, batch: int = 32) -> Case:
    """The network with random weights, and the same random batch for all.

    Args:
        network: a name in :data:`benchmarks.gpu_networks.NETWORKS`.
        device: "cuda" or "cpu".
        bf16: forward passes under bfloat16 autocast.
        tiny: small networks and images, to try the logic.
        batch: images.
    """
    torch.manual_seed(0)
    side, batch = (32, 2) if tiny else (224, batch)
    model = (TINY if tiny else NETWORKS)[network](CLASSES).to(device).train()
    x, labels = torch.rand(batch, 3, side, side, device=device), torch.randint(0, CLASSES, (batch,), device=device)
    masks = torch.zeros(batch, 1, side, side, device=device)
    masks[..., side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 1
    return Case(model, x, labels, masks, device, bf16)


def plain_step(case: Case) -> Run:
    """Forward pass, cross-entropy, backward pass."""

    def run() -> Tensor:
        case.model.train().zero_grad()
        with case.autocast():
            logits = case.model(case.x)
        loss = F.cross_entropy(logits.float(), case.labels)
        loss.backward()
        return loss.detach()

    return run


def isnet_step(case: Case, static: bool = False) -> Run:
    """The Selective ISNet's step: the same with an epsilon heatmap (z^B at the input) and its loss."""
    net = isnet.ISNet(case.model, "selective", input_range=(0.0, 1.0), static=static)
    criterion = isnet.ISNetLoss()

    def run() -> Tensor:
        net.train().zero_grad()
        with case.autocast():
            out = net(case.x)
        loss = criterion(out, case.labels, case.masks).total
        loss.backward()
        return loss.detach()

    return run


def gradient_run(case: Case) -> Run:
    """Forward pass and gradient of the highest logits to the input."""
    inner = input_gradient(case.model.eval().requires_grad_(False), case.x)

    def run() -> object:
        with case.autocast():
            return inner()

    return run


def heatmap_run(case: Case, composite: str = "epsilon", static: bool = False) -> Callable[[], Tensor]:
    """A heatmap of the highest logits, in evaluation mode and without gradients."""
    attribution = lrp.LRP(case.model.eval().requires_grad_(False), COMPOSITES[composite][1](), static=static)

    def run() -> Tensor:
        with torch.no_grad(), case.autocast():
            return attribution(case.x)[1]

    return run


def step_runs(case: Case) -> dict[str, Run]:
    """The plain step, then ours."""
    case.model.train().requires_grad_(True)
    return {"plain": plain_step(case), "recorded": isnet_step(case), "static": isnet_step(case, static=True)}


def heatmap_runs(case: Case, composites: tuple[str, ...] = ("epsilon",)) -> dict[str, Run]:
    """Forward pass and input gradient, then ours."""
    runs: dict[str, Run] = {"forward + input gradient": gradient_run(case)}
    for name in composites:
        runs[f"{name}, recorded"] = heatmap_run(case, name)
        runs[f"{name}, static"] = heatmap_run(case, name, static=True)
    return runs


def with_tuner(run: Run, chosen: tuner.Tuner) -> Run:
    """The same run with this tuner deciding about convolutions."""

    def switched() -> object:
        before, tuner.current = tuner.current, chosen
        try:
            return run()
        finally:
            tuner.current = before

    return switched


def difference(ours: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest absolute value; infinite for NaN."""
    error = (ours.double() - expected.double()).abs().max().nan_to_num(float("inf"))
    return float(error / expected.double().abs().max().clamp(min=1e-300))


def graph_step(case: Case) -> tuple[Run, float]:
    """A static step as a CUDA graph, and how far its gradients are from the same step's without one."""
    case.model.train().requires_grad_(True)
    run = isnet_step(case, static=True)
    run()

    def gradients() -> list[Tensor]:
        run()
        return [p.grad for p in case.model.parameters() if p.grad is not None]

    expected = [grad.clone() for grad in gradients()]
    replay, found = captured(gradients, case.device)
    replay()
    return replay, difference(torch.cat([g.flatten() for g in found]), torch.cat([g.flatten() for g in expected]))


def graph_heatmap(case: Case) -> tuple[Run, float]:
    """A static heatmap as a CUDA graph, and how far it is from the same heatmap without one."""
    run = heatmap_run(case, static=True)
    expected = run().clone()
    replay, found = captured(run, case.device)
    replay()
    return replay, difference(found, expected)
