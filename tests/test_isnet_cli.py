"""The command line on a handful of synthetic digits, and the demonstration's bookkeeping."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
import typer
from matplotlib.figure import Figure
from rich.console import Console
from typer.testing import CliRunner

from isnet import architectures, cli
from isnet.cli import options
from isnet.config import RunConfig
from isnet.data import mnist
from isnet.experiments import demo
from isnet.experiments.idx import encode_idx
from isnet.runs import load_config, load_run
from isnet.runs.report import Row
from isnet.scoring.pictures import curves_figure

SMALL = ["--canvas", "40", "--batch-size", "16", "--arch-arg", "block_inplanes=[4,4,8,8]", "--epochs", "1"]


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of synthetic digits that stand for MNIST: a bright row whose height tells the class."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "mnist"
    folder.mkdir()
    specs = {}
    for part, count in (("train", 48), ("t10k", 24)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = draw.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6] = 250
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = encode_idx(values)
            (folder / f"{part}-{kind}-ubyte").write_bytes(content)
            specs[f"{part}-{kind}-ubyte"] = mnist.FileSpec(values.shape, hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(mnist, "FILES", specs)
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The text of a run that is expected to end with an error."""
    monkeypatch.setattr("sys.argv", ["isnet", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    return " ".join(capsys.readouterr().err.split())


def test_train_evaluate_explain_report(tmp_path: Path, data_folder: Path) -> None:
    standard, guarded = tmp_path / "standard", tmp_path / "guarded"
    output = run("train", standard, "--data-folder", data_folder, *SMALL)
    assert "| standard |" in output
    run(
        "train", guarded, "--data-folder", data_folder, *SMALL, "--variant", "selective", "--warmup", "1",
        "--heatmap-every", "2", "--name", "guarded net", "--warmup-background", "smooth",
    )  # fmt: skip
    config = load_config(guarded)
    assert (config.variant, config.train.warmup, config.train.heatmap_every) == ("selective", 1, 2)
    assert (config.train.warmup_background, config.train.keep_replacing) == ("smooth", False)
    assert config.arch_arguments["block_inplanes"] == [4, 4, 8, 8]

    table = run("evaluate", standard, guarded, "--resamples", "20")
    assert re.search(r"\| guarded net \| +[\d.]+ % \| +[\d.]+ % \| +[\d.]+ % \| +[\d.]+ % \|", table)
    assert json.loads((guarded / "evaluation.json").read_text())["accuracy"].keys() == {
        "biased",
        "unbiased",
        "deceiving",
    }

    picture = tmp_path / "figures" / "one.png"
    assert "image 3: 3 with the mark of" in run("explain", guarded, "--index", "3", "--out", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    run("explain", guarded, "--split", "unbiased", "--target", "7", "--out", tmp_path / "two.svg")
    assert "<svg" in (tmp_path / "two.svg").read_text()

    page = tmp_path / "report.html"
    run("report", standard, guarded, "--out", page, "--title", "A <report>")
    text = page.read_text()
    assert "A &lt;report&gt;" in text and "guarded net" in text
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_compare_needs_the_same_digits_and_marks(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, more in (("a", []), ("b", ["--train-size", "40"]), ("texture", ["--mark", "texture"])):
        run("train", tmp_path / name, "--data-folder", data_folder, *SMALL, *more)
    assert "deceiving test: McNemar" in run("compare", tmp_path / "a", tmp_path / "b", "--resamples", "5")
    assert "images are not the same" in run_main(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "texture")


def test_static_and_less_memory(tmp_path: Path, data_folder: Path) -> None:
    options = ["--data-folder", data_folder, *SMALL, "--variant", "selective"]
    run("train", tmp_path / "plain", *options)
    run("train", tmp_path / "static", *options, "--static")
    run("train", tmp_path / "small", *options, "--less-memory")
    plain, static, small = (load_run(tmp_path / name).model.state_dict() for name in ("plain", "static", "small"))
    assert load_config(tmp_path / "static").heatmap.static and load_config(tmp_path / "small").heatmap.checkpoint
    for name, tensor in plain.items():
        assert torch.equal(static[name], tensor), name
        # To rounding, which AdamW enlarges where gradients are small; the numbers themselves: tests/test_checkpoint.py.
        torch.testing.assert_close(small[name], tensor, rtol=0.1, atol=5e-3)


def test_train_resumes_with_the_runs_own_settings(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, straight = tmp_path / "run", tmp_path / "straight"
    options = ["--data-folder", data_folder, *SMALL, "--lr", "0.01"]
    run("train", folder, *options)
    assert "holds a run" in run_main(monkeypatch, capsys, "train", folder, *options)
    run("train", folder, "--resume", "--epochs", "2")
    run("train", straight, *options, "--epochs", "2")
    assert load_config(folder) == load_config(straight)
    resumed, whole = load_run(folder).model.state_dict(), load_run(straight).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
    assert "lr: 0.01 there, 0.5 now" in run_main(monkeypatch, capsys, "train", folder, "--resume", "--lr", "0.5")
    assert "'mark': 'place'" in run_main(monkeypatch, capsys, "train", folder, "--resume", "--mark", "texture")
    assert load_config(folder) == load_config(straight)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["train", "{tmp}/run", "--variant", "fast"],
            "variant: expected one of standard, selective, stochastic, original, dual",
        ),
        (["train", "{tmp}/run", "--p", "2"], "p: expected in [0, 1], got 2.0"),
        (["train", "{tmp}/run", "--balance", "auto"], "--balance: to be used with an ISNet (--variant selective, say)"),
        (["train", "{tmp}/run", "--milestone", "3"], "--milestone: to be used with --schedule step"),
        (["train", "{tmp}/run", "--schedule", "step"], "--schedule step: to be used with --milestone"),
        (["train", "{tmp}/run", "--lr-after-warmup", "1"], "--lr-after-warmup: to be used with --warmup"),
        (["train", "{tmp}/run", "--warmup-background", "smooth"], "to be used with --warmup or --keep-replacing"),
        (["train", "{tmp}/run", "--monitor", "loss"], "monitor: biased MNIST has no validation images"),
        (["tune", "{tmp}/run", "--variant", "dual", "--c1", "1", "--c2", "2"], "--c1, --c2: isnet tune measures them"),
        (
            ["train", "{tmp}/run", "--variant", "dual", "--foreground", "L3"],
            "foreground must be one of ('hybrid', 'L2', 'L1')",
        ),
        (["train", "{tmp}/run", "--form", "block"], "form must be one of flex, layerwise, got 'block'"),
        (["train", "{tmp}/run", "--p-schedule", "3:0.5"], "--p-schedule: expected EPOCH=P, got '3:0.5'"),
        (["train", "{tmp}/run", "--arch", "resnet"], "architecture: expected monai:NAME"),
        (["train", "{tmp}/run", "--arch-arg", "width"], "expected key=value, got 'width'"),
        (["evaluate", "{tmp}/nothing"], "is not a run: it has no config.json"),
        (["explain", "{tmp}/nothing"], "is not a run"),
        (["train", "{tmp}/run", "--data-folder", "{tmp}/damaged"], "damaged/t10k-labels-idx1-ubyte: truncated"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    data_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in data_folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes()[: 20 if "t10k-labels" in path.name else None])
    if "--data-folder" not in arguments and arguments[0] in ("train", "tune"):
        arguments = [*arguments, "--data-folder", str(data_folder)]
    error = run_main(monkeypatch, capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert text in error
    assert "Traceback" not in error


def test_resuming_a_run_that_is_not_there(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "tune"):
        error = run_main(monkeypatch, capsys, command, tmp_path / "rnu", "--resume", "--variant", "selective")
        assert f"--resume: {tmp_path}/rnu holds no run" in error and not (tmp_path / "rnu").exists()
    run("train", tmp_path / "run", "--data-folder", data_folder, *SMALL, "--resume")  # as a scheduler would


def test_settings_survive_json() -> None:
    config = RunConfig(variant="stochastic", name="x")
    assert RunConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(ValueError, match="do not fit this version"):
        RunConfig.from_json({"train": {"warp": 9}})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard"), "'.[tensorboard]'"),
        (
            ModuleNotFoundError("No module named 'monai.x'", name="monai.x"),
            "'monai.x'. In the folder of the sources: pip install --no-build-isolation '.[isnet]'",
        ),
        (ModuleNotFoundError("the mark needs: pip install 'it'"), "needs: pip install 'it'"),
    ],
)
def test_missing_extras_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: ModuleNotFoundError, text: str
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    assert run_main(monkeypatch, capsys).endswith(text)


SETTINGS = (
    "--variant dual --foreground L2 --w-background 2 --w-foreground 0.5 --e 3 --decay 0.8 --layer-decay 0.6 --form layerwise "
    "--log-every 7 --optimizer sgd --momentum 0.8 --schedule step --milestone 2 --gamma 0.3 --p-schedule 4=0.9 --p-schedule 2=0.8"
)


def test_every_setting_of_loss_and_schedule_is_an_option(tmp_path: Path) -> None:
    configured = []
    app = typer.Typer()
    app.command()(functools.wraps(options.configure)(lambda **given: configured.append(options.configure(**given))))
    assert CliRunner().invoke(app, [str(tmp_path / "run"), *SETTINGS.split()]).exit_code == 0
    heatmap, train = configured[0].config.heatmap, configured[0].config.train
    assert (heatmap.foreground, heatmap.w_background, heatmap.w_foreground) == ("L2", 2, 0.5)
    assert (heatmap.e, heatmap.d, heatmap.layer_decay, heatmap.form) == (3, 0.8, 0.6, "layerwise")
    assert (train.log_every, train.momentum, train.gamma) == (7, 0.8, 0.3)
    assert train.p_schedule == ((2, 0.8), (4, 0.9))
    assert RunConfig.from_json(json.loads(json.dumps(configured[0].config.to_json()))) == configured[0].config


def test_torchrun_lets_every_option_pass_under_one_of_its_names() -> None:
    """Its parser looks at all that follows and refuses what may stand for several of its own options."""
    parser = torch.distributed.run.get_args_parser()
    for option in typer.main.get_command(cli.app).commands["train"].params:
        for name in {*option.opts[-1:], *option.secondary_opts}:
            parsed = parser.parse_args(["--nproc-per-node", "2", "-m", "isnet", "train", "RUN", name, "1"])
            assert parsed.training_script_args[-2:] == [name, "1"]


def test_help_names_the_defaults() -> None:
    found = {option.name: option for option in typer.main.get_command(cli.app).commands["train"].params}
    config = RunConfig()
    checked = 0
    for part in (config.data, config.heatmap, config.train):
        for field in dataclasses.fields(part):
            shown = getattr(found.get(field.name), "show_default", None)
            value = getattr(part, field.name)
            if isinstance(shown, str) and value is not None and not isinstance(value, bool):
                shown = shown.split("; ")[-1].removesuffix(" for biased MNIST")
                assert type(value)(shown) == value, field.name
                checked += 1
    assert checked > 15


def test_curves_of_many_runs_and_of_runs_with_other_tests() -> None:
    logs = {str(i): [{"kind": "epoch", "epoch": 1, "accuracy": {"easy": 0.5}}] for i in range(12)}
    figure = curves_figure({**logs, "other": [{"kind": "epoch", "epoch": 1, "accuracy": {"hard": 0.5}}]})
    easy, hard = figure.axes[:2]
    looks = {(line.get_color(), line.get_linestyle()) for line in easy.get_lines()}
    assert len(looks) == len(easy.get_lines()) == 12 and len(hard.get_lines()) == 1
    assert len(figure.legends[0].get_texts()) == 13


# ---- architectures

SHAPE = (1, 40, 40)


def test_sizes_are_filled_in_under_the_librarys_names() -> None:
    model = architectures.build_architecture(
        "monai:DenseNet121",
        {"init_features": 8, "growth_rate": 4, "block_config": [1, 1, 1, 1]},
        image_shape=SHAPE,
        num_classes=7,
    )
    assert list(model.eval()(torch.zeros(2, *SHAPE)).shape) == [2, 7]


def test_any_callable_is_an_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def tiny(width, num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(width, num_classes))\n"
        "def nothing():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = architectures.build_architecture("my_nets:tiny", {"width": 5}, image_shape=SHAPE, num_classes=4)
    assert model[3].out_features == 4
    for name, arguments, text in (
        ("my_nets:nothing", {}, "expected a torch.nn.Module, got int"),
        ("my_nets:other", {}, "has no callable 'other'"),
        ("my_nets:tiny", {"depth": 2}, r"cannot be built with \(num_classes=4, depth=2\)"),
        ("my_nets:tiny", {"width": 5, "num_classes": 3}, r"expected logits of shape \[1, 4\]"),
    ):
        with pytest.raises(architectures.ArchitectureError, match=text):
            architectures.build_architecture(name, arguments, image_shape=SHAPE, num_classes=4)
    with pytest.raises(architectures.ArchitectureError, match=r"does not run on images of shape \[3, 40, 40\]"):
        architectures.build_architecture("my_nets:tiny", {"width": 5}, image_shape=(3, 40, 40), num_classes=4)


def test_missing_package_is_named() -> None:
    with pytest.raises(architectures.ArchitectureError, match=r"needs the package 'no_such_package'.*pip install"):
        architectures.build_architecture("no_such_package.nets:net", image_shape=SHAPE, num_classes=2)


def test_arguments_are_json_or_text() -> None:
    parsed = architectures.parse_arguments(["a=1", "b=[1, 2]", "c=basic", "d=true", "e=x=y"])
    assert parsed == {"a": 1, "b": [1, 2], "c": "basic", "d": True, "e": "x=y"}
    with pytest.raises(architectures.ArchitectureError):
        architectures.parse_arguments(["=1"])


# ---- the demonstration


def test_demo_writes_everything_and_resumes(tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One thread in this process: the synthetic digits are known to it alone.
    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    config = demo.DemoConfig(
        folder=str(tmp_path / "demo"),
        data_folder=str(data_folder),
        standard_epochs=1,
        warmup=1,
        epochs=1,
        batch_size=16,
    )
    console = Console(record=True, width=120)
    result = demo.run_demo(config, console=console)
    text = console.export_text()
    assert set(result.rows) == {"standard", "control", "selective", "stochastic"}
    assert all(name in text for name in ("standard", "Selective ISNet", "Stochastic ISNet", "control"))
    assert len(result.claims) == 3 and result.complete
    for name in ("report.html", "table.md", "demo.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 100
    # The three that share the warm-up started from the very same network.
    warm = (tmp_path / "demo" / "warm-up" / "log.jsonl").read_text()
    for name in ("control", "selective", "stochastic"):
        assert (tmp_path / "demo" / name / "log.jsonl").read_text().startswith(warm)

    # Taken up again, nothing is trained anew.
    monkeypatch.setattr(demo, "gallery", lambda *_, **__: Figure())
    monkeypatch.setattr(demo, "write_report", lambda *_, **__: None)
    stamp = (tmp_path / "demo" / "control" / "last.safetensors").stat().st_mtime_ns
    assert demo.run_demo(config, resume=True, console=console).rows == result.rows
    assert (tmp_path / "demo" / "control" / "last.safetensors").stat().st_mtime_ns == stamp


def row(title: str, biased: float, unbiased: float, deceiving: float) -> Row:
    accuracy = {"biased": biased, "unbiased": unbiased, "deceiving": deceiving}
    return Row(title, accuracy, dict.fromkeys(accuracy, 0.0), {})


def test_claims_are_checked() -> None:
    good = {
        "standard": row("standard", 100, 50, 3),
        "control": row("control", 99, 97, 90),
        "selective": row("Selective ISNet", 97, 96.5, 96),
        "stochastic": row("Stochastic ISNet", 96, 96, 95.5),
    }
    assert all(claim.holds for claim in demo.check_claims(good))
    for name, bad in (
        ("standard", row("standard", 98.5, 50, 3)),
        ("standard", row("standard", 100, 50, 30)),
        ("selective", row("Selective ISNet", 97.6, 96.5, 96)),
        ("stochastic", row("Stochastic ISNet", 95, 94.9, 95)),
        ("control", row("control", 99, 97, 95.2)),
    ):
        assert sum(not claim.holds for claim in demo.check_claims({**good, name: bad})) >= 1
