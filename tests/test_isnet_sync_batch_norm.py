"""Synchronised batch norm against PyTorch's own on the whole batch; in two processes: tests/test_isnet_distributed.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

import isnet.sync_batch_norm
import lrpkernels as lrp
from isnet import ISNet
from isnet.distributed import World
from isnet.sync_batch_norm import SynchronizedBatchNorm, synchronize_batch_norm


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as one of several, whose others hold no images."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    monkeypatch.setattr(isnet.sync_batch_norm, "current_world", lambda: World(0, 2))
    yield
    dist.destroy_process_group()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4, momentum=None),
        nn.Flatten(),
        nn.Linear(64, 6),
        nn.BatchNorm1d(6, affine=False),
        nn.Linear(6, 3),
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    return model


def test_it_is_batch_norm_with_its_gradients_and_running_statistics(group: None) -> None:
    plain = network()
    converted = copy.deepcopy(plain)
    synchronize_batch_norm(converted)
    assert [type(module) is SynchronizedBatchNorm for module in converted].count(True) == 3
    for step in range(3):
        images = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        weights = torch.arange(18.0, dtype=torch.float64).view(6, 3).cos()
        outputs, gradients = [], []
        for model in (plain, converted):
            x = images.clone().requires_grad_()
            outputs.append(model(x))
            gradients.append(torch.autograd.grad((outputs[-1] * weights).sum(), [x, *model.parameters()]))
        torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert plain.state_dict().keys() == converted.state_dict().keys()
    for one, other in zip(plain.state_dict().values(), converted.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(plain.eval()(images), converted.eval()(images))


def test_heatmaps_and_their_gradients_are_those_of_batch_norm(group: None) -> None:
    plain = network()
    converted = copy.deepcopy(plain)
    synchronize_batch_norm(converted)
    images = torch.rand(6, 1, 6, 6, dtype=torch.float64)
    found = []
    for model in (plain, converted):
        heatmaps = ISNet(model, "selective").train()(images).heatmaps["input"]
        found.append(
            (heatmaps, *torch.autograd.grad(heatmaps.abs().sum(), list(model.parameters()), allow_unused=True))
        )
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


class PyTorchs(nn.BatchNorm2d):
    """What nn.SyncBatchNorm does in training in several processes, once it has found its images on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return SyncBatchNorm.apply(input, self.weight, self.bias, *statistics, self.eps, 0.1, dist.group.WORLD, 1)


@pytest.fixture
def kernels() -> Iterator[None]:
    """CPU kernels of the operations that PyTorch has for GPUs only."""
    library = torch.library.Library("aten", "IMPL")

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        return mean, (variance + eps).rsqrt()

    def gathered(x: Tensor, mean: Tensor, invstd: Tensor, *others: object) -> tuple[Tensor, Tensor]:
        return mean[0].clone(), invstd[0].clone()

    def normalized(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
        return (x - mean[:, None, None]) * (invstd * weight)[:, None, None] + bias[:, None, None]

    library.impl("batch_norm_stats", stats, "CPU")
    library.impl("batch_norm_gather_stats_with_counts", gathered, "CPU")
    library.impl("batch_norm_elemt", normalized, "CPU")
    yield
    library._destroy()


def test_pytorchs_own_is_recorded_as_batch_norm(group: None, kernels: None) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    theirs = copy.deepcopy(plain)
    norm = PyTorchs(4).double()
    norm.load_state_dict(plain[1].state_dict())
    theirs[1] = norm
    images = torch.rand(6, 1, 6, 6, dtype=torch.float64)
    found = []
    for model in (plain, theirs):
        with lrp.record(model.train(), images) as tape:
            found.append((tape.output, tape.relevance("all", lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))))
            assert not any(op.kind in ("unknown", "replayed") for op in tape.ops)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_half_precision_and_no_running_statistics(group: None) -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(norm)
    synchronize_batch_norm(model)
    images = torch.rand(4, 3, 2, 2).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images)
    torch.testing.assert_close(out.float(), norm(images.float()), rtol=2e-2, atol=2e-2)
    out.float().square().sum().backward()
    assert images.grad is not None and images.grad.dtype == torch.bfloat16


def test_alone_it_is_ordinary_batch_norm_and_hooks_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    seen: list[Tensor] = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    expected = copy.deepcopy(model)
    parameters = list(model.parameters())
    synchronize_batch_norm(model)
    x = torch.rand(5, 4)
    torch.testing.assert_close(model(x), expected(x))
    assert len(seen) == 2 and all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"input: expected \[B, C, \.\.\.\], got shape \(3,\)"):
        model[1](torch.rand(3))


def test_what_cannot_be_converted_is_named() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="sync_batch_norm: cannot synchronise 1, a Own"):
        synchronize_batch_norm(nn.Sequential(nn.ReLU(), Own(3)))
    with pytest.raises(ValueError, match="cannot synchronise the model, a BatchNorm2d"):
        synchronize_batch_norm(nn.BatchNorm2d(3))
    model = nn.Sequential(nn.SyncBatchNorm(3))
    synchronize_batch_norm(model)
    assert type(model[0]) is SynchronizedBatchNorm
