"""Trains small ISNets in two gloo processes, each of which compares its gradients and weights with those of one process.

Prints a list in JSON: what each process has found, for each case the largest difference, or the text of the error.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import isnet
import lrpkernels as lrp

BATCH = 8
IMAGES = torch.rand(BATCH, 1, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.arange(BATCH) % 4
MASKS = F.pad(torch.ones(BATCH, 1, 6, 6, dtype=torch.float64), (2, 2, 2, 2))
Wrap = Callable[[isnet.ISNet], nn.Module]


class Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv, self.skip = nn.Conv2d(channels_in, channels, 3, padding=1), nn.Conv2d(channels_in, channels, 1)
        self.norm, self.relu = nn.BatchNorm2d(channels), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += self.skip(x)
        return self.relu(out)


class Dense(nn.Module):
    """A DenseNet's layer, whose concatenation ``checkpoint`` makes again in backward."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, -1)
        mixed = tokens + self.out(F.gelu(F.scaled_dot_product_attention(q, k, v)))
        return mixed.transpose(1, 2).view_as(x)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))
    stem = (nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    net = nn.Sequential(*stem, Residual(6, 8), nn.MaxPool2d(2), Dense(8), Attention(12), *head).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.eval()


PARTS = ("3", "5", "6")
EVERY_LAYER = ("0", "1", "3.conv", "3.norm", "3.skip", "5.norm", "5.conv", "6.norm", "6.qkv", "6.out", "9")


def train(
    wrap: Wrap,
    rank: int,
    world: int,
    *,
    variant: str = "selective",
    parts: int = 1,
    synchronised: Callable[[nn.Module, bool], Any] = lambda *_: nullcontext(),
    steps: int = 2,
    **options: Any,
) -> list[Tensor]:
    """The weights, whole, after a few steps; with ``parts`` each step adds up the gradients of so many."""
    net = isnet.ISNet(network(), variant, generator=torch.Generator().manual_seed(3), check=False, **options)
    call = wrap(net)
    net.training = True
    optimizer = torch.optim.SGD(call.parameters(), 0.05, momentum=0.9)
    criterion = isnet.ISNetLoss()
    size = BATCH // parts
    share = size // world
    for _ in range(steps):
        optimizer.zero_grad()
        for part in range(parts):
            mine = slice(part * size + rank * share, part * size + (rank + 1) * share)
            with synchronised(call, part == parts - 1):
                out = call(IMAGES[mine], place=(rank * share, size))
                (criterion(out, LABELS[mine], MASKS[mine]).total / parts).backward()
        optimizer.step()
    return [whole(parameter) for parameter in net.parameters()]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


def sharded(*names: str, around: str = "net", **options: Any) -> Wrap:
    """fully_shard of these modules and of the ISNet ("net"), its model ("model") or nothing else ("")."""

    def wrap(net: isnet.ISNet) -> nn.Module:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for name in names:
            fully_shard(net.model.get_submodule(name), mesh=mesh, **options)
        if around:
            fully_shard(net if around == "net" else net.model, mesh=mesh, **options)
        return net

    return wrap


def grouped(net: isnet.ISNet) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard([net.model[0], net.model[3]], mesh=mesh)
    return fully_shard(net, mesh=mesh)


def ddp(**options: Any) -> Wrap:
    return partial(DistributedDataParallel, **options)


def ddp_inside(**options: Any) -> Wrap:
    def wrap(net: isnet.ISNet) -> nn.Module:
        net.model = DistributedDataParallel(net.model, **options)
        return net

    return wrap


def fsdp_1_inside(net: isnet.ISNet) -> nn.Module:
    net.model[3] = FullyShardedDataParallel(net.model[3], device_id=torch.device("cpu"))
    return net


def without_sync(call: nn.Module, last: bool) -> Any:
    return nullcontext() if last else call.no_sync()


def without_reduction(call: nn.Module, last: bool) -> Any:
    call.set_requires_gradient_sync(last)
    return nullcontext()


CASES: dict[str, tuple[Wrap, dict[str, Any]]] = {
    **{
        f"sharded blocks, {variant}{', checkpoint' if checkpoint else ''}": (
            sharded(*PARTS),
            {"variant": variant, "checkpoint": checkpoint},
        )
        for variant in ("selective", "dual", "stochastic")
        for checkpoint in (False, True)
    },
    "sharded as one": (sharded(), {}),
    "sharded as one, freed": (sharded(around="model", reshard_after_forward=True), {}),
    "sharded blocks, model": (sharded(*PARTS, around="model"), {}),
    "sharded blocks, freed": (sharded(*PARTS, around="model", reshard_after_forward=True), {"checkpoint": True}),
    "sharded blocks, kept": (sharded(*PARTS, reshard_after_forward=False), {}),
    "sharded layers": (sharded(*EVERY_LAYER, around="model"), {}),
    "sharded layers, checkpoint": (sharded(*EVERY_LAYER), {"checkpoint": True}),
    "sharded layers, no root": (sharded(*EVERY_LAYER, around="", reshard_after_forward=True), {}),
    "sharded layers, layerwise": (sharded(*EVERY_LAYER), {"form": "layerwise", "variant": "dual"}),
    "sharded on two levels": (sharded("3.conv", "3", "6.qkv", "6", around="model"), {"checkpoint": True}),
    "sharded, original": (sharded(*PARTS, around="model"), {"variant": "original"}),
    "sharded, hidden layer": (sharded(*PARTS), {"layers": ["3"], "steps": 1}),
    "sharded group": (grouped, {}),
    "sharded, accumulated": (sharded(*PARTS), {"parts": 2, "synchronised": without_reduction}),
    "sharded, static": (sharded(), {"static": True, "steps": 3}),
    "sharded blocks, static": (sharded(*PARTS), {"static": True}),
    "ddp": (ddp(), {}),
    "ddp, static graph": (ddp(static_graph=True), {"steps": 3}),
    "ddp, unused parameters": (ddp(find_unused_parameters=True), {}),
    "ddp, accumulated": (ddp(), {"parts": 2, "synchronised": without_sync}),
    "ddp inside": (ddp_inside(), {}),
    "ddp inside, static graph": (ddp_inside(static_graph=True), {}),
    "FSDP 1 inside": (fsdp_1_inside, {}),
}


def heatmap_loss(rule: Any, checkpoint: bool) -> Callable[[int, int], float]:
    """The gradient of a heatmap alone, none of which need reach the logits."""

    def compare(rank: int, world: int) -> float:
        share = BATCH // world
        mine = slice(rank * share, (rank + 1) * share)
        results = []
        for images, parts, wrap in ((IMAGES, world, None), (IMAGES[mine], 1, sharded(*PARTS, around="model"))):
            net = isnet.ISNet(network())
            if wrap is not None:
                wrap(net)
            maps = lrp.LRP(net.model, rule, check=False, checkpoint=checkpoint)(images, target=3)[1]
            (maps.square().sum() / parts).backward()
            grads = [p.grad for p in net.parameters() if p.grad is not None]  # LRP knows no biases
            results.append([maps.detach()[mine] if wrap is None else maps.detach(), *map(whole, grads)])
        return difference(results[1], results[0])

    return compare


def mixed_precision(rank: int, world: int) -> float:
    """The relative difference of gradients between two processes and one, both with weights gathered in bfloat16."""
    alone = [dist.new_group([member]) for member in range(world)][rank]
    results = []
    for mesh, mine in (
        (DeviceMesh.from_group(alone, "cpu"), slice(BATCH)),
        (init_device_mesh("cpu", (world,)), slice(rank * BATCH // world, (rank + 1) * BATCH // world)),
    ):
        net = isnet.ISNet(network().float())
        for name in (
            "1",
            "3.norm",
            "5.norm",
        ):  # PyTorch has no batch norm of bfloat16 weights and float32 statistics on the CPU
            net.model.set_submodule(name, nn.Identity())
        for name in PARTS:
            fully_shard(
                net.model.get_submodule(name), mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)
            )
        fully_shard(net, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32))
        net.training = True
        out = net(IMAGES[mine].float())
        assert out.heatmaps["input"].dtype == out.logits.dtype == torch.float32
        isnet.ISNetLoss()(out, LABELS[mine], MASKS[mine].float()).total.backward()
        results.append([whole(p.grad) for p in net.parameters() if p.grad is not None])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*results, strict=True))


def without_gradients(rank: int, world: int) -> float:
    """Heatmaps in evaluation mode; what was freed is free again, so that the next forward pass sees the weights of its time."""
    net = isnet.ISNet(network())
    sharded(*PARTS, around="model")(net)
    with torch.no_grad():
        found = lrp.LRP(net.model)(IMAGES, target=1)[1]
        expected = lrp.LRP(network())(IMAGES, target=1)[1]
    assert all(isinstance(p, DTensor) for name in PARTS for p in net.model.get_submodule(name).parameters())
    return difference([found], [expected])


def after_an_error(rank: int, world: int) -> float:
    """A pass that raises leaves the weights as they were."""

    def wrap(net: isnet.ISNet) -> nn.Module:
        sharded(*PARTS, around="model")(net)
        try:
            lrp.LRP(net.model, check=False)(IMAGES, target=7)
        except ValueError:
            net.model.reshard()  # as after any forward pass of the outermost module without a backward pass
            return net
        raise AssertionError("class 7 of 4 was explained")

    return difference(train(wrap, rank, world), train(lambda net: net, 0, 1))


def sharded_from_outside(rank: int, world: int) -> float:
    net = isnet.ISNet(network())
    sharded()(net)
    return float(net.explain(IMAGES)[1].sum())


def verified(rank: int, world: int) -> float:
    net = isnet.ISNet(network())
    sharded(*PARTS)(net)
    net.unshard()
    return lrp.verify(net.model, IMAGES).error


OTHERS: dict[str, Callable[[int, int], float]] = {
    **{
        f"heatmap alone, {type(rule).__name__}{', checkpoint' if checkpoint else ''}": heatmap_loss(rule, checkpoint)
        for rule in (lrp.Epsilon(0.0), lrp.ZPlus())
        for checkpoint in (False, True)
    },
    "mixed precision": mixed_precision,
    "without gradients": without_gradients,
    "after an error": after_an_error,
    "sharded from outside": sharded_from_outside,
    "verified": verified,
}


def work(rank: int, world: int, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    expected: dict[str, list[Tensor]] = {}
    found: dict[str, float | str] = {}

    def compared(wrap: Wrap, options: dict[str, Any]) -> float:
        plain = {name: option for name, option in options.items() if name != "synchronised"}
        if str(plain) not in expected:
            expected[str(plain)] = train(lambda net: net, 0, 1, **plain)
        return difference(train(wrap, rank, world, **options), expected[str(plain)])

    runs = {name: partial(compared, *case) for name, case in CASES.items()}
    runs |= {name: partial(run, rank, world) for name, run in OTHERS.items()}
    for name, run in runs.items():
        try:
            found[name] = run()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, found)
    if rank == 0:
        print(json.dumps(gathered), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # imports as much again
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            status = 1
            try:
                work(rank, 2, port)
                status = 0
            finally:
                sys.stdout.flush()
                os._exit(status)
    failed = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(failed))
