"""The options of a run: in files, on the command line, in help and on the page of options."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import torch
import torch.distributed.run
import typer
import yaml
from test_isnet_cli import run

from isnet import cli
from isnet.config import GROUPS, ImagesConfig, RunConfig, flag
from isnet.config.files import to_markdown
from isnet.config.option import options_of
from isnet.variants import VARIANTS


def test_settings_survive_json() -> None:
    config = RunConfig(data=ImagesConfig("x", augment={"flip": 0.5}), name="x").replaced(
        variant="stochastic", milestones=(2, 4), lr_schedule="step", p_schedule=((0, 0.2),), clip_norm=None
    )
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    for values, text in (
        ({"train": {"warp": 9}}, r"train\.warp: no such option"),
        ({"data": {"kind": "sounds"}}, "data.kind: expected one of images, biased MNIST, coloured MNIST, got 'sounds'"),
        ({"train": 3}, "train: expected options with their values, got 3"),
        ({"train": []}, r"train: expected options with their values, got \[\]"),
        ({"data": "x"}, "data: expected options with their values, got 'x'"),
        ([1], "expected groups of options"),
    ):
        with pytest.raises(ValueError, match=text):
            RunConfig.from_json(values)


def test_runs_share_no_default() -> None:
    one, other = (RunConfig(data=ImagesConfig("x")) for _ in range(2))
    one.network.arch_args["width"] = 3
    assert other.network.arch_args == {} == RunConfig(data=ImagesConfig("x")).network.arch_args


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("schedule: {lr_schedule: step, milestones: 3}", {"lr_schedule": "step", "milestones": (3,)}),
        ("network: {variant: dual}\nloss: {p_schedule: 5=0.9}", {"variant": "dual", "p_schedule": ((5, 0.9),)}),
        (
            "network: {arch_args: {day: 2024-01-01, bad: 2024-99-01}}",
            {"arch_args": {"day": "2024-01-01", "bad": "2024-99-01"}},
        ),
        ("train: {lr: 1e-4, ema: none, deterministic: yes}", {"lr": 1e-4, "deterministic": True}),
        ('{"train": {"lr": 1e-4}}', {"lr": 1e-4}),
        ("", {}),
    ],
)
def test_what_yaml_means(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    (tmp_path / "run.yaml").write_text(text)
    printed = run("train", "--data", "x", "--config", tmp_path / "run.yaml", "--print-config")
    assert RunConfig.from_json(yaml.safe_load(printed)) == RunConfig(data=ImagesConfig("x")).replaced(**options)


GIVEN: dict[str, dict[str, Any]] = {
    "isnet": {
        **{
            "normalize": "0.5/0.2",
            "channels": 1,
            "size": (8, 9),
            "labels": ("a", "b"),
            "augment": {"flip": 0.5, "zoom": 0.1},
        },
        **{"foreground_values": ("1", "3-4", "#ff0000"), "void": 255, "resize_masks": True},
        **{"masks": "m", "mask_policy": "skip", "segmenter": "a:b", "resize": "pad", "validation": 0.2},
        **{
            "variant": "dual",
            "weights": "w.pt",
            "arch": "a:b",
            "arch_args": {"x": [1, 2], "y": "z"},
            "layers": ("one", "two"),
            "eps": 0.5,
        },
        **{
            "form": "layerwise",
            "static": True,
            "less_memory": True,
            "p": 0.4,
            "p_ramp": 0.0,
            "p_schedule": ((2, 0.8), (4, 0.9)),
        },
        **{
            "balance": "fixed",
            "heatmap_every": 3,
            "d": 0.8,
            "e": 3,
            "c1": 2,
            "c2": 3,
            "foreground": "L2",
            "w_foreground": 0.5,
        },
        **{"supervise": "three"},
        **{
            "share_goal": None,
            "w_background": 2,
            "layer_decay": 0.6,
            "batch_size": 6,
            "accumulate": 3,
            "optimizer": "sgd",
            "lr": 1e-4,
        },
        **{
            "momentum": 0.8,
            "weight_decay": 0.1,
            "clip_norm": None,
            "precision": "bfloat16",
            "ema": 0.9,
            "workers": 1,
            "seed": 5,
        },
        **{"sync_batch_norm": True, "channels_last": True, "deterministic": True, "epochs": 3, "warmup": 2},
        **{
            "warmup_background": "swap",
            "keep_replacing": True,
            "lr_rampup": 0.5,
            "lr_after_warmup": 0.4,
            "lr_schedule": "step",
        },
        **{"milestones": (1, 2), "gamma": 0.3, "monitor": "accuracy", "patience": 4, "log_every": 7, "save_every": 2},
        **{"keep_last": 1, "loggers": ("tensorboard", "mlflow"), "images_every": 2},
    },
    "teacher": {
        **{
            "teacher": "t",
            "view": "noise",
            "view_code": "a:b",
            "eps_low": -3,
            "eps_high": -2.5,
            "head": "free",
        },
        **{"match_layers": ("one", "two=three"), "start": "teacher", "less_memory": True},
    },
    "control": {"teacher": "t", "distill": "features"},
}


@pytest.mark.parametrize("kind", GIVEN)
def test_every_option_can_be_given_in_each_way(kind: str, tmp_path: Path) -> None:
    """By its name, in a file, and as GROUP.OPTION=VALUE; what is printed is read back to the same settings."""
    options = {name: (key, kind) for key, group in GROUPS.items() for name, (_, kind) in options_of(group).items()}
    tried = {name for found in GIVEN.values() for name in found}
    assert options.keys() - tried == {"path", "tune"}, "an option that is tried nowhere"
    given = GIVEN[kind]
    expected = RunConfig(data=ImagesConfig("x")).replaced(**given)
    typed, dotted = ["--data", "x"], ["--data", "x"]
    for name, value in given.items():
        texts = texts_of(value)
        typed += [flag(name)] if texts is True else [word for text in texts for word in (flag(name), text)]
        key = options[name][0]
        whole = isinstance(value, (tuple, dict)) and name != "size"
        dotted.append(f"{key}.{name}={json.dumps(texts) if whole else 'true' if texts is True else texts[0]}")
    pages = [run("train", *words, "--print-config") for words in (typed, dotted)]
    (tmp_path / "run.yaml").write_text(pages[0])
    pages.append(run("train", "--config", tmp_path / "run.yaml", "--print-config"))
    assert pages[0] == pages[1] == pages[2]
    assert RunConfig.from_json(yaml.safe_load(pages[0])) == expected


def texts_of(value: Any) -> Any:
    """How a value is typed: True for a flag, else the texts, one for each time that the option is given."""
    if value is True or value is None:
        return value or ["none"]
    if isinstance(value, dict):
        return [f"{name}={json.dumps(part)}" for name, part in value.items()]
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return [f"{epoch}={number}" for epoch, number in value]
    if value == (8, 9):
        return ["8x9"]
    return [str(part) for part in value] if isinstance(value, tuple) else [str(value)]


def train_command() -> Any:
    return typer.main.get_command(cli.app).commands["train"]


def test_torchrun_lets_every_option_pass() -> None:
    """Its parser looks at all that follows and refuses what may stand for several of its own options."""
    parser = torch.distributed.run.get_args_parser()
    for option in train_command().params:
        for name in (*option.opts, *option.secondary_opts):
            if name.startswith("-"):
                parsed = parser.parse_args(["--nproc-per-node", "2", "-m", "isnet", "train", "RUN", name, "1"])
                assert parsed.training_script_args[-2:] == [name, "1"]


def test_help_is_short_and_the_whole_of_it_names_every_option_and_default() -> None:
    short, whole = run("train", "--help"), run("train", "--help-all")
    assert len(short.splitlines()) <= 120
    for key, group in GROUPS.items():
        for name, (option, _) in options_of(group).items():
            assert flag(name) in whole and (flag(name) in short) == option.common, (key, name)
    for name, shown in (("lr", "0.0003"), ("epochs", "8"), ("arch", "monai:DenseNet121"), ("size", "224x224")):
        assert re.search(rf"{flag(name)}\b.*?Default: {re.escape(shown)}\.", re.sub(r"[│\s]+", " ", whole)), name
    for variant in ("standard", *VARIANTS):
        assert variant in short


def test_the_page_of_options_is_current() -> None:
    """Else: ``python -m isnet.config > docs/options.md``."""
    page = Path(__file__).parents[1] / "docs" / "options.md"
    assert page.read_text() == to_markdown()


def test_completion_knows_the_choices() -> None:
    found = {option.name: option for option in train_command().params}
    context = click.Context(train_command())
    assert [item.value for item in found["network__variant"].shell_complete(context, "s")] == [
        "standard",
        "selective",
        "stochastic",
    ]
    assert [item.value for item in found["train__optimizer"].shell_complete(context, "ad")] == ["adamw"]


# ---- architectures
