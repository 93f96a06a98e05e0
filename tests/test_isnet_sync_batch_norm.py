"""``nn.SyncBatchNorm`` recorded and converted to; in two processes: tests/test_isnet_distributed.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import sync_batch_norm
import torch
import torch.distributed as dist
from settings import train_config
from test_isnet_training import blobs
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

import lrpkernels as lrp
from isnet import ISNet
from isnet.training import fit
from isnet.training.distributed import World
from isnet.training.steps import synchronize_batch_norm


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, and kernels for it."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    library = sync_batch_norm.on_cpu()
    yield
    library._destroy()
    dist.destroy_process_group()


class Synchronised(nn.BatchNorm2d):
    """What nn.SyncBatchNorm does in training in several processes, once it has found its images on a GPU."""

    def forward(self, input: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return SyncBatchNorm.apply(input, self.weight, self.bias, *statistics, self.eps, 0.1, dist.group.WORLD, 1)


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """With ordinary batch norm, and the same with a synchronised one."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter))
    theirs = copy.deepcopy(plain)
    norm = Synchronised(4).double()
    norm.load_state_dict(plain[1].state_dict())
    theirs[1] = norm
    return plain, theirs


def test_it_is_recorded_as_batch_norm(group: None) -> None:
    images = torch.rand(6, 1, 6, 6, dtype=torch.float64)
    found = []
    for model in networks():
        with lrp.record(model.train(), images) as tape:
            found.append((tape.output, tape.relevance("all", lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)))))
            assert not any(op.kind in ("unknown", "replayed") for op in tape.nodes)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("variant", ["selective", "dual"])
def test_heatmaps_and_their_gradients_are_those_of_batch_norm(group: None, variant: str, checkpoint: bool) -> None:
    images = torch.rand(6, 1, 6, 6, dtype=torch.float64)
    found = []
    for model in networks():
        output = ISNet(model, variant, checkpoint=checkpoint).train()(images)  # type: ignore[arg-type]
        loss = output.heatmaps["input"].abs().sum() + output.logits.square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append((output.heatmaps["input"], *gradients, model[1].running_mean, model[1].running_var))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_conversion_keeps_the_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    expected, parameters = copy.deepcopy(model), list(model.parameters())
    synchronize_batch_norm(model)
    assert type(model[1]) is nn.SyncBatchNorm
    x = torch.rand(5, 4)
    assert torch.equal(model(x), expected(x))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_what_cannot_be_converted_is_named() -> None:
    class Own(nn.BatchNorm2d):
        pass

    with pytest.raises(ValueError, match="sync_batch_norm: cannot synchronise 1, a Own"):
        synchronize_batch_norm(nn.Sequential(nn.ReLU(), Own(3)))
    with pytest.raises(ValueError, match="cannot synchronise the model, a BatchNorm2d"):
        synchronize_batch_norm(nn.BatchNorm2d(3))


def test_several_processes_on_the_cpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isnet.training.loop.current_world", lambda: World(0, 2))
    with pytest.raises(ValueError, match=r"sync_batch_norm: .* on GPUs only; leave it out on the CPU"):
        fit(nn.Linear(1, 1), blobs(), train_config(sync_batch_norm=True), progress=False)
