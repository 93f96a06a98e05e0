"""Tuning of C1 and C2: the recorded formula, statistics across batches and processes, and the plain training phase."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from test_isnet_training import Dying, KilledError, blobs, small_model
from torch import Tensor

from isnet import ISNet, ISNetOutput
from isnet.ranges import RelevanceTotals, Welford, load_ranges, natural_range, save_ranges, tune
from isnet.train_config import TrainConfig

RECORDED = json.loads((Path(__file__).parent / "data" / "fasterisnet_unit_tunecut.json").read_text())


def heatmaps(totals: Tensor) -> Tensor:
    """Heatmaps [B, M, 2, 3, 3] whose absolute sums are ``totals`` [B, M], with both signs."""
    weights = torch.rand(*totals.shape, 2, 3, 3, dtype=torch.float64)
    weights = weights / weights.sum((2, 3, 4), keepdim=True) * torch.randn_like(weights).sign()
    return weights * totals[:, :, None, None, None]


@pytest.mark.parametrize("case", ["flex_1map", "flex_4maps", "block_4maps", "block_dual"])
def test_ranges_equal_the_recorded_ones(case: str) -> None:
    recorded = RECORDED[case]
    values = torch.tensor(recorded["values"], dtype=torch.float64)
    if case == "flex_4maps":  # the public code leaves the first half of the maps out there
        values = values[:, 2:]
    found = RelevanceTotals(per_map=case == "block_dual")
    for batch in heatmaps(values).split([1, 7, 20, 9]):
        found.observe(ISNetOutput(torch.zeros(len(batch), 2), {"input": batch}))
    ranges = found.ranges()["input"]
    for ours, theirs in ((ranges.c1, "C1"), (ranges.c2, "C2"), (ranges.mean, "mean"), (ranges.std, "std")):
        assert ours == pytest.approx(recorded[theirs], rel=1e-12)
    assert ranges.images == 37


def test_natural_range_by_hand() -> None:
    assert natural_range(10.0, 1.0) == (7.0, 13.0)
    assert natural_range(10.0, 5.0) == (2.0, 25.0)
    assert natural_range(10.0, 40.0) == (2.0, 50.0)


def test_welford_is_exact_beside_a_large_mean_and_across_processes() -> None:
    rows = torch.rand(50, 2, dtype=torch.float64) + 1e6
    parts = [Welford() for _ in range(3)]
    for part, chunk in zip(parts, rows.split([11, 1, 38]), strict=True):
        for batch in chunk.split(4):
            part.add(batch)
    whole = Welford()
    for part in [*parts, Welford()]:
        whole.merge(json.loads(json.dumps(part.state())))
    assert whole.count == 50
    for column in range(2):
        numbers = rows[:, column].tolist()
        assert whole.mean[column].item() == pytest.approx(statistics.fmean(numbers), rel=1e-14)
        assert whole.std()[column].item() == pytest.approx(statistics.stdev(numbers), rel=1e-8)


@pytest.mark.parametrize("totals", [[[1.0]], [[2.0], [2.0]], [[0.0], [0.0]]])
def test_no_range_without_spread(totals: list[list[float]]) -> None:
    found = RelevanceTotals()
    found.observe(ISNetOutput(torch.zeros(1), {"input": heatmaps(torch.tensor(totals, dtype=torch.float64))}))
    with pytest.raises(ValueError, match="no natural range at 'input'"):
        found.ranges()
    with pytest.raises(FloatingPointError, match="'layer1' is not finite"):
        found.observe(ISNetOutput(torch.zeros(1), {"layer1": torch.full((1, 1, 1, 1, 1), np.inf)}))


def isnet(variant: str = "selective") -> ISNet:
    return ISNet(small_model(), variant, layers=["2"], generator=torch.Generator())  # type: ignore[arg-type]


@pytest.mark.parametrize(("variant", "numbers"), [("selective", 1), ("original", 1), ("dual", 2)])
def test_tuning_measures_each_layer_and_rule_and_leaves_the_network_alone(variant: str, numbers: int) -> None:
    network = isnet(variant)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = TrainConfig(epochs=9, warmup=3, batch_size=16, p=0.9)
    found = tune(network, blobs(48), config, epochs=2, progress=False)
    assert list(found) == ["input", "2"]
    for layer in found.values():
        assert len(layer.c1) == len(layer.c2) == numbers
        assert layer.images == 48
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_tuning_sees_the_last_epoch_of_plain_training_only() -> None:
    network, data = isnet(), blobs(32)
    # A learning rate of nothing to speak of: the totals are those of the initial network, whatever the order.
    found = tune(network, data, TrainConfig(batch_size=32, lr=1e-12, optimizer="sgd"), epochs=2, progress=False)
    network.train()
    totals = network(data.images).heatmaps["input"].double().abs().sum((1, 2, 3, 4))
    assert found["input"].images == 32
    assert found["input"].mean[0] == pytest.approx(totals.mean().item(), rel=1e-4)
    assert found["input"].std[0] == pytest.approx(totals.std().item(), rel=1e-4)


def test_killed_tuning_resumes_to_the_same_ranges(tmp_path: Path) -> None:
    data = blobs(64)
    config = TrainConfig(batch_size=16, save_every=1)
    expected = tune(isnet("stochastic"), data, config, epochs=2, progress=False)
    with pytest.raises(KilledError):
        tune(isnet("stochastic"), Dying(data, 16 * 6), config, epochs=2, run_dir=tmp_path, progress=False)
    assert tune(isnet("stochastic"), data, config, epochs=2, run_dir=tmp_path, resume=True, progress=False) == expected


def test_ranges_survive_the_disk(tmp_path: Path) -> None:
    found = RelevanceTotals(per_map=True)
    found.observe(
        ISNetOutput(torch.zeros(5), {"input": torch.rand(5, 2, 1, 4, 4), "layer2": torch.rand(5, 2, 3, 2, 2)})
    )
    save_ranges(tmp_path / "ranges.json", found.ranges())
    assert load_ranges(tmp_path / "ranges.json") == found.ranges()
    (tmp_path / "ranges.json").write_text('{"input": {"low": 1}}')
    with pytest.raises(ValueError, match=r"ranges\.json: not natural ranges"):
        load_ranges(tmp_path / "ranges.json")
