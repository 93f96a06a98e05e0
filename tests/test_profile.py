"""``lrpkernels profile`` and ``lrpkernels bench``: what they count, not how fast anything is."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import lrpkernels as lrp
from lrpkernels.__main__ import app
from lrpkernels.tools import bench, profile
from lrpkernels.tools.traffic import Traffic

EPSILON_BOX = lrp.Composite(first=lrp.ZBox(0.0, 1.0, 1e-2), default=lrp.Epsilon(1e-2))


def small() -> nn.Module:
    """Two blocks, a pooling and a dense layer; also what the command line's tests import."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 4 * 4, 3),
    )


@pytest.fixture
def x() -> torch.Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_every_block_is_named_and_measured(x: torch.Tensor) -> None:
    found = profile.profile(small().eval(), x, EPSILON_BOX, repeats=2)
    assert [(b.module, b.operation, b.rule) for b in found.blocks] == [
        ("0", "conv -> batch_norm -> relu", "ZBox"),
        ("3", "max_pool", "Epsilon"),
        ("4", "conv -> relu", "Epsilon"),
        ("6", "reshape", ""),
        ("7", "linear", "Epsilon"),
    ]
    assert [b.shape for b in found.blocks][:3] == [(2, 4, 8, 8), (2, 4, 4, 4), (2, 5, 4, 4)]
    for blocks, whole in (
        ([b.forward for b in found.blocks], found.forward),
        ([b.relevance for b in found.blocks], found.relevance),
    ):
        assert min(blocks) >= 0 and 0 < sum(blocks) < 2 * whole  # medians of their own, so the sum may pass the whole


def test_bytes_are_those_of_the_tensors(x: torch.Tensor) -> None:
    block = profile.profile(small().eval(), x, repeats=1).blocks[2]
    image, map_in, map_out, weight, bias = 4, 2 * 4 * 16, 2 * 5 * 16, 20, 5
    assert block.forward_bytes == image * (map_in + weight + bias + map_out + 2 * map_out)
    assert block.forward_least == image * (map_in + weight + map_out)
    assert block.relevance_least == image * (map_in + weight + 2 * map_out)
    assert block.relevance_bytes >= block.relevance_least


@pytest.mark.parametrize(
    "rule, floor",
    [
        (lrp.Epsilon(), 1),
        (lrp.ZPlus(), 4),
        (lrp.AlphaBeta(2.0, 1.0), 8),
        (lrp.Gamma(), 4),
        (lrp.ZBox(0, 1), 3),
        (lrp.Flat(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_floors_of_the_first_layer(rule: lrp.Rule, floor: float, x: torch.Tensor) -> None:
    composite = lrp.Composite(default=lrp.Epsilon(), first=rule)
    assert profile.profile(small().eval(), x - 0.5, composite, repeats=1).blocks[0].floor == floor


def test_behind_a_relu_signs_are_known(x: torch.Tensor) -> None:
    assert profile.profile(small().eval(), x, lrp.ZPlus(), repeats=1).blocks[2].floor == 2


def test_ratio_without_time_is_infinite(x: torch.Tensor) -> None:
    block = profile.profile(small().eval(), x, repeats=1).blocks[0]
    assert profile.BlockProfile(**{**vars(block), "forward": 0.0}).ratio == float("inf")


@pytest.mark.parametrize(
    "run, expected",
    [
        (lambda a: a + a, 3 * 24),
        (lambda a: a.view(3, 2).t(), 0),
        (lambda a: torch.empty_like(a), 0),
        (lambda a: torch.zeros_like(a), 24),
        (lambda a: a.zero_(), 24),
        (lambda a: a[:1].expand(2, 3).clone(), 12 + 24),
    ],
    ids=["add", "view", "empty", "zeros", "zero_", "expand"],
)
def test_traffic(run: Callable[[torch.Tensor], object], expected: int) -> None:
    a = torch.ones(2, 3)
    with Traffic() as traffic:
        run(a)
    assert traffic.total == expected


def test_bench_compares_heatmaps_and_steps(x: torch.Tensor) -> None:
    model = small().train()
    model[0].weight.requires_grad_(False)
    rows = bench.bench(model, x, composites=list(bench.COMPOSITES), repeats=3)
    names = [f"{name} heatmap" for name in bench.COMPOSITES]
    assert [row.name for row in rows[1:5]] == names and [row.floor for row in rows[1:5]] == [1, 1.5, 1.5, 2.5]
    assert [(row.name, row.floor) for row in rows[5:]] == [("plain training step", 1), ("step with heatmap loss", 2)]
    assert rows[0].ratio == 1 and all(row.low <= row.ratio <= row.high and row.seconds > 0 for row in rows)
    assert model.training and [p.requires_grad for p in model.parameters()] == [False] + [True] * 6


def test_the_middle_of_the_image_costs_nothing(x: torch.Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2, bias=False))
    inside = torch.zeros(2, 3, 8, 8)
    inside[..., 2:6, 2:6] = model[1].weight.detach().view(2, 3, 8, 8)[..., 2:6, 2:6]
    model[1].weight.data = inside.flatten(1)
    losses = {name: float(run()) for name, run in bench.training_steps(model, x).items()}
    assert losses["plain training step"] == losses["step with heatmap loss"]


def test_models_by_name() -> None:
    assert isinstance(bench.load_model("vgg11"), nn.Module)
    assert isinstance(bench.load_model("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    "name, message",
    [
        ("torch.nn:Missing", "cannot be imported"),
        ("no_such_package:make", "cannot be imported"),
        ("torch:get_num_threads", "gave int, expected a torch.nn.Module"),
        ("resnet19", "no network 'resnet19'"),
    ],
)
def test_models_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bench.load_model(name)


@pytest.mark.parametrize("text", ["", "3", "1x0x2", "1xax2"])
def test_shapes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="input: expected sizes such as 1x3x112x112"):
        bench.parse_shape(text)


def test_arguments_are_checked(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        profile.profile(small(), x, repeats=0)
    with pytest.raises(ValueError, match="repeats must be at least 3, got 2"):
        bench.bench(small(), x, repeats=2)
    with pytest.raises(ValueError, match=r"composites must be among .* got 'z'"):
        bench.bench(small(), x, composites=["z"])


def test_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "load_model", lambda name: small())
    run = CliRunner().invoke
    shown = run(app, ["profile", "small", "--input", "2x3x8x8", "--repeats", "1"])
    assert shown.exit_code == 0 and "all blocks" in shown.stdout and "us per block" in shown.stdout
    data = json.loads(run(app, ["profile", "small", "--input", "2x3x8x8", "--repeats", "1", "--json"]).stdout)
    assert len(data["blocks"]) == 5 and data["blocks"][0]["ratio"] > 0
    rows = json.loads(run(app, ["bench", "--model", "small", "--input", "2x3x8x8", "--repeats", "3", "--json"]).stdout)
    assert [row["baseline"] for row in rows] == ["forward + input gradient"] * 3 + ["plain training step"] * 2
    assert "step with heatmap loss" in run(app, ["bench", "--model", "small", "--input", "2x3x8x8"]).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["profile", "no_such_network"],
        ["profile", "vgg11", "--composite", "z"],
        ["profile", "vgg11", "--input", "1x3"],
        ["bench", "--model", "vgg11", "--input", "112"],
    ],
    ids=" ".join,
)
def test_command_line_says_what_is_wrong(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code != 0
