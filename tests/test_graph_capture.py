"""What a CUDA graph needs of a training step, as far as it shows without a GPU: a fixed list of operations that never waits.

A whole step (forward pass, relevance pass, loss, backward pass, clipping, SGD) runs on the ``meta`` device, whose tensors hold no data:
whatever asks for a number, or brings one from the host, is seen, and so is every operation in its order.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import isnet
from benchmarks.networks import NETWORKS
from benchmarks.op_log import Finding, OpLog, log, meta_autocast
from lrpkernels._extension import Backend, ops
from lrpkernels.functional import tuner

# Checks of arguments that read a number, and draws on the host: what must go, or be switched off, before a step can be captured.
_CHECKED_SCORE = {("waits", "lrpkernels/engine/target.py", "_from_callable")}
KNOWN: dict[str, set[tuple[str, str, str]]] = {
    "selective": _CHECKED_SCORE,
    "dual": _CHECKED_SCORE,
    "stochastic": {
        ("waits", "lrpkernels/engine/target.py", "_index"),
        ("host work", "isnet/variants/stochastic.py", "stochastic_target"),
        ("host copy", "isnet/variants/stochastic.py", "stochastic_target"),
    },
    "original": set(),
}


@pytest.fixture(autouse=True)
def meta() -> Iterator[None]:
    with meta_autocast():
        yield


@pytest.fixture(params=["vendor", "fused"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Convolutions by ATen, or by the fused kernels that CUDA devices have."""
    if request.param == "fused":
        monkeypatch.setattr(ops, "backend", Backend("lrpkernels", "meta"))
        monkeypatch.setattr(tuner, "current", tuner.Tuner("fused"))
    return request.param


def training_step(variant: str, network: str = "resnet18", **loss: Any) -> Callable[[], None]:
    with torch.device("meta"):
        model = NETWORKS[network](10).train()
        images, labels = torch.rand(2, 3, 64, 64), torch.zeros(2, dtype=torch.int64)
        masks = torch.zeros(2, 1, 64, 64)
    net = isnet.ISNet(model, variant, layers=("layers.3",) if network == "resnet18" else ())  # type: ignore[arg-type]
    net._range_is_checked = True  # the first batch alone is held against the range, ahead of any capture
    criterion = isnet.ISNetLoss(**{"check_masks": False, **loss})
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        criterion(net(images), labels, masks).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def places(found: OpLog) -> set[tuple[str, str, str]]:
    return {(finding.kind, finding.file, finding.function) for finding in found.findings}


@pytest.mark.parametrize("variant", list(KNOWN))
def test_step_never_waits_and_repeats_itself(variant: str, route: str) -> None:
    step = training_step(variant)
    log(step)  # momentum and gradients appear in the first one
    first, second = log(step), log(step)
    assert places(second) <= KNOWN[variant]
    assert [(c.op, c.sizes) for c in first.calls] == [(c.op, c.sizes) for c in second.calls]
    own = {call.name for call in second.calls if call.op.startswith("lrpkernels.")}
    assert ("lrpkernels.conv_relevance" in own) == (route == "fused")


def test_biases_and_max_pooling_do_not_wait_either() -> None:
    assert places(log(training_step("original", "vgg11"))) == set()


def test_checking_masks_waits_once() -> None:
    found = places(log(training_step("original", check_masks=True)))
    assert found == {("waits", "isnet/masks.py", "check_values")}


def _item(x: torch.Tensor) -> object:
    return x.sum().item()


@pytest.mark.parametrize(
    "kind, op, run",
    [
        ("waits", "aten._local_scalar_dense", _item),
        ("waits", "aten._local_scalar_dense", lambda x: bool((x > 0).any())),
        ("host copy", "aten._to_copy", lambda x: torch.tensor(1.0).to(x.device)),
        ("host copy", "aten.copy_", lambda x: x.copy_(torch.zeros(3))),
        ("host work", "aten.rand", lambda x: torch.rand(3)),
    ],
    ids=["item", "bool", "host scalar", "host tensor", "host draw"],
)
def test_what_a_graph_cannot_hold_is_seen(kind: str, op: str, run: Callable[[torch.Tensor], object]) -> None:
    found = log(lambda: run(torch.empty(3, device="meta"))).findings
    assert (kind, op) in {(finding.kind, finding.op) for finding in found}
    assert all(isinstance(finding, Finding) and finding.file == "tests/test_graph_capture.py" for finding in found)


def test_scalars_as_arguments_are_no_copies() -> None:
    assert not log(lambda: 2.0 * torch.empty(3, device="meta") + 1).findings
