"""Random networks equal their reference (benchmarks/random_networks), and faults in the engine would be found and made small."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import lrpkernels as lrp
from benchmarks.random_networks import __main__ as command
from benchmarks.random_networks.case import Rules, draw_case
from benchmarks.random_networks.check import failure
from benchmarks.random_networks.formulas import RuleSpec
from benchmarks.random_networks.shrink import shrunk
from benchmarks.random_networks.steps import KINDS


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_random_networks_equal_the_reference(first: int, capsys: pytest.CaptureFixture[str]) -> None:
    failed = command.main(["--count", "25", "--seed", str(first)])
    assert not failed, capsys.readouterr().out


def test_every_kind_of_step_is_drawn() -> None:
    drawn = {s.kind for seed in range(150) for s in draw_case(seed, list(KINDS)).plan.steps}
    assert drawn == set(KINDS)


def test_a_wrong_rule_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in (draw_case(seed, list(KINDS)) for seed in range(50)) if len(c.plan.steps) > 5)
    case = replace(case, rules=Rules(RuleSpec("ZPlus")))
    assert failure(case) is None
    monkeypatch.setattr(
        lrp.ZPlus, "linear", lambda self, layer, g: layer.share(g, lrp.functional.WHOLE, self.eps, self.bias)
    )
    assert "R at" in (failure(case) or "")
    small = shrunk(case)
    assert failure(small) is not None and len(small.plan.steps) <= 1


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(draw_case(3, list(KINDS)), rules=Rules(RuleSpec("EpsilonLayerwise")))
    assert failure(case) is None
    real = lrp.EpsilonLayerwise.linear
    monkeypatch.setattr(lrp.EpsilonLayerwise, "linear", lambda self, layer, g: real(self, layer, g).detach())
    assert "gradient of" in (failure(case) or "")


@pytest.mark.parametrize("layout", ["transposed", "channels-last"])
def test_dropout_draws_what_an_unrecorded_run_draws(layout: str) -> None:
    """Found by a random network: the mask followed the order of the shape, not that of the memory."""
    net = torch.nn.Dropout(0.4)
    x = torch.rand(2, 3, 4, 5)
    x = x.mT if layout == "transposed" else x.contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    expected = net(x)
    torch.manual_seed(0)
    with lrp.record(net, x) as tape:
        assert torch.equal(tape.output, expected)


def test_a_printed_case_runs_again(capsys: pytest.CaptureFixture[str]) -> None:
    case = draw_case(5, list(KINDS))
    command.main(["--case", repr(case)])
    assert capsys.readouterr().out.strip() == str(failure(case))
    assert torch.get_num_threads() >= 1
