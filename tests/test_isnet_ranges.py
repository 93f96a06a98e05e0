"""Tuning of C1 and C2: the recorded formula, statistics across batches and processes, and the plain training phase."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_files import assert_same_file
from settings import train_config
from test_isnet_training import Dying, KilledError, blobs, small_model
from torch import Tensor

from isnet import ISNet, ISNetOutput, runs
from isnet.config import ImagesConfig, RunConfig
from isnet.runs.data import RunData
from isnet.training import CHECKPOINT_NAME, fit
from isnet.training.checkpoints import load_checkpoint
from isnet.training.log import read_log
from isnet.training.ranges import NaturalRange, RelevanceTotals, Welford, load_ranges, natural_range, save_ranges, tune

RECORDED = json.loads((Path(__file__).parent / "data" / "fasterisnet_unit_tunecut.json").read_text())


def heatmaps(totals: Tensor) -> Tensor:
    """Heatmaps [B, M, 2, 3, 3] whose absolute sums are ``totals`` [B, M], with both signs."""
    weights = torch.rand(*totals.shape, 2, 3, 3, dtype=torch.float64)
    weights = weights / weights.sum((2, 3, 4), keepdim=True) * torch.randn_like(weights).sign()
    return weights * totals[:, :, None, None, None]


def measured(values: Tensor, per_map: bool = False) -> NaturalRange:
    found = RelevanceTotals(per_map)
    for batch in heatmaps(values).split([1, 7, 20, 9]):
        found.observe(ISNetOutput(torch.zeros(len(batch), 2), {"input": batch}))
    return found.ranges()["input"]


@pytest.mark.parametrize("case", ["flex_1map", "block_dual"])
def test_ranges_equal_the_recorded_ones(case: str) -> None:
    recorded = RECORDED[case]
    ranges = measured(torch.tensor(recorded["values"], dtype=torch.float64), per_map=case == "block_dual")
    for ours, theirs in ((ranges.c1, "C1"), (ranges.c2, "C2"), (ranges.mean, "mean"), (ranges.std, "std")):
        assert ours == pytest.approx(recorded[theirs], rel=1e-12)
    assert ranges.images == 37


@pytest.mark.parametrize("case", ["flex_4maps", "block_4maps"])
def test_every_map_of_the_original_counts_and_the_mean_is_the_recorded_one(case: str) -> None:
    """The public code takes the deviation of the images' means over their maps, which is smaller; these give its numbers."""
    recorded = RECORDED[case]
    values = torch.tensor(recorded["values"], dtype=torch.float64)
    if case == "flex_4maps":  # the public code leaves the first half of the maps out there
        values = values[:, 2:]
    ranges, theirs = measured(values), measured(values.mean(1, keepdim=True))
    assert ranges.mean == pytest.approx(recorded["mean"], rel=1e-12)
    assert ranges.std == pytest.approx([statistics.stdev(values.flatten().tolist())], rel=1e-12)
    assert ranges.std > theirs.std and ranges.images == values.numel()
    assert (ranges.c1[0], ranges.c2[0]) == natural_range(ranges.mean[0], ranges.std[0])
    for ours, name in ((theirs.c1, "C1"), (theirs.c2, "C2"), (theirs.std, "std")):
        assert ours == pytest.approx(recorded[name], rel=1e-12)


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
    config = train_config(epochs=9, warmup=3, batch_size=16, p=0.9)
    found = tune(network, blobs(48), config, epochs=2, progress=False)
    assert list(found) == ["input", "2"]
    for layer in found.values():
        assert len(layer.c1) == len(layer.c2) == numbers
        assert layer.images == 48 * (3 if variant == "original" else 1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_tuning_sees_the_last_epoch_of_plain_training_only() -> None:
    network, data = isnet(), blobs(32)
    # A learning rate of nothing to speak of: the totals are those of the initial network, whatever the order.
    found = tune(network, data, train_config(batch_size=32, lr=1e-12, optimizer="sgd"), epochs=2, progress=False)
    network.train()
    totals = network(data.images).heatmaps["input"].double().abs().sum((1, 2, 3, 4))
    assert found["input"].images == 32
    assert found["input"].mean[0] == pytest.approx(totals.mean().item(), rel=1e-4)
    assert found["input"].std[0] == pytest.approx(totals.std().item(), rel=1e-4)


@pytest.mark.parametrize("given", [None, (2.0, 3.0)])
def test_backgrounds_stay_replaced_in_the_range_of_the_pixels(
    monkeypatch: pytest.MonkeyPatch, given: tuple[float, float] | None
) -> None:
    seen = []

    def spy(images: Tensor, masks: Tensor, generator: torch.Generator, low: float, high: float, **_: Any) -> Tensor:
        seen.append((low, high))
        return images

    monkeypatch.setattr("isnet.training.learner.replace_background", spy)
    network = ISNet(small_model(), "selective", input_range=(-2.0, 2.0))
    config = train_config(batch_size=16, warmup=2, keep_replacing=True)
    tune(network, blobs(32), config, epochs=1, input_range=given, progress=False)
    assert seen == [given or (-2.0, 2.0)] * 2


def test_killed_tuning_resumes_to_the_same_ranges(tmp_path: Path) -> None:
    data = blobs(64)
    config = train_config(batch_size=16, save_every=1)
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
    with pytest.raises(ValueError, match=r"ranges\.json: .*no natural ranges"):
        load_ranges(tmp_path / "ranges.json")


# ---- runs: warm-up, ranges of the network that it left, training


CONFIG = RunConfig(data=ImagesConfig("not read")).replaced(
    variant="selective", epochs=1, warmup=2, batch_size=16, lr=3e-2, save_every=1, ema=0.9, lr_schedule="cosine", tune=2
)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> RunData:
    for module in ("build", "train", "folder"):
        monkeypatch.setattr(f"isnet.runs.{module}.build_model", lambda config, **_: small_model(dropout=0.2))
    return RunData(blobs(48), {"held out": blobs(16, seed=1)}, {})


def assert_same_runs(one: Path, other: Path) -> None:
    timeless = {"seconds": 0, "cpu_seconds": 0}
    logs = [[{**entry, **timeless} for entry in read_log(folder / "log.jsonl")] for folder in (one, other)]
    assert logs[0] == logs[1]
    assert load_ranges(one / "ranges.json") == load_ranges(other / "ranges.json")
    for name in (CHECKPOINT_NAME, "best.safetensors", "tuning/last.safetensors"):
        assert_same_file(one / name, other / name)


def test_ranges_are_measured_on_what_the_warmup_left(data: RunData, tmp_path: Path) -> None:
    runs.train_run(tmp_path / "run", CONFIG, data=data, progress=False)
    # By hand: the warm-up alone, tuning of a copy at the learning rate after it, and a training of one piece with these ranges.
    network = runs.build_isnet(CONFIG, small_model(dropout=0.2))
    config = CONFIG
    fit(network, data.train, config.replaced(epochs=0, monitor=None), progress=False)
    found = tune(network, data.train, config.replaced(lr=0.3 * config.train.lr), epochs=2, progress=False)
    assert load_ranges(tmp_path / "run" / "ranges.json") == found
    assert found != tune(runs.build_isnet(CONFIG, small_model()), data.train, config, epochs=2, progress=False)
    straight = small_model(dropout=0.2)
    criterion = runs.build_criterion(CONFIG, tmp_path / "run")
    fit(
        runs.build_isnet(CONFIG, straight),
        data.train,
        config.replaced(monitor=None),
        criterion=criterion,
        progress=False,
    )
    trained = load_checkpoint(tmp_path / "run" / CHECKPOINT_NAME).model
    assert all(torch.equal(value, trained[key]) for key, value in straight.state_dict().items())
    log = [entry for entry in read_log(tmp_path / "run" / "log.jsonl") if entry["kind"] == "epoch"]
    assert [entry["phase"] for entry in log] == ["warm-up", "warm-up", "training"]


@pytest.mark.parametrize("moment", ["tune", "save_ranges", "build_criterion", "load_run", *range(10, 250, 40)])
def test_a_run_killed_in_or_between_its_phases_goes_on_bit_for_bit(
    data: RunData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str | int
) -> None:
    """Two epochs of warm-up, two of tuning, one of training with 48 images each: killed after some of them, or at a call."""
    runs.train_run(tmp_path / "whole", CONFIG, data=data, progress=False)
    with monkeypatch.context() as patch:
        dying = data
        if isinstance(moment, str):
            patch.setattr(f"isnet.runs.train.{moment}", raising)
        else:
            dying = data._replace(train=Dying(blobs(48), moment))
        with pytest.raises(KilledError):
            runs.train_run(tmp_path / "killed", CONFIG, data=dying, progress=False)
    runs.train_run(tmp_path / "killed", CONFIG, data=data, resume=True, progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def raising(*_: object, **__: object) -> None:
    raise KilledError


def test_tuning_alone_is_the_first_part_of_the_run(data: RunData, tmp_path: Path) -> None:
    runs.train_run(tmp_path / "whole", CONFIG, data=data, progress=False)
    path = runs.tune_run(tmp_path / "parts", CONFIG, data=data, progress=False)
    assert load_ranges(path) == load_ranges(tmp_path / "whole" / "ranges.json")
    runs.train_run(tmp_path / "parts", CONFIG, data=data, resume=True, progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "parts")


def test_without_validation_a_score_to_watch_is_refused_before_anything_is_trained(
    data: RunData, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="monitor: needs validation images"):
        runs.train_run(tmp_path / "run", CONFIG, data=data._replace(validation={}), progress=False)
    assert not (tmp_path / "run").exists()


def test_branched_run_is_left_alone_once_it_has_begun(data: RunData, tmp_path: Path) -> None:
    warmup = CONFIG.replaced(variant="standard", epochs=0)
    runs.train_run(tmp_path / "warm-up", warmup, data=data, progress=False)
    runs.train_run(tmp_path / "whole", CONFIG, data=data, progress=False)
    for _ in range(2):
        runs.branch_run(tmp_path / "branch", tmp_path / "warm-up")
        runs.train_run(tmp_path / "branch", CONFIG, data=data, resume=True, progress=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "branch")
