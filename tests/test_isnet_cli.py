"""The command line on a handful of synthetic digits, and the demonstration's bookkeeping."""

from __future__ import annotations

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
import torch.distributed.run
import typer
import yaml
from matplotlib.figure import Figure
from memory_peak import peak_bytes
from rich.console import Console
from safetensors.torch import load_file
from test_isnet_own_images import SHORT, SIDE, Tiny, folder  # noqa: F401
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate
from typer.testing import CliRunner

from isnet import architectures, cli, runs
from isnet.config import GROUPS, NOTES, ImagesConfig, RunConfig, flag
from isnet.config.files import to_markdown
from isnet.config.option import options_of
from isnet.config.texts import pairs
from isnet.experiments import demo
from isnet.experiments import mnist_files as mnist
from isnet.experiments.digits import DigitsConfig, digits_run
from isnet.experiments.idx import CorruptDataError, encode_idx
from isnet.experiments.trainings import NARROW_RESNET
from isnet.runs import build_criterion, build_network, load_config, load_run
from isnet.runs.data import load_run_data, with_classes
from isnet.runs.plan import plan_run
from isnet.runs.tables import Row
from isnet.variants import VARIANTS

SMALL = {"batch_size": 16, "epochs": 1, "arch_args": {**NARROW_RESNET.arch_args, "block_inplanes": [4, 4, 8, 8]}}


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


def train_on_digits(
    folder: Path, data_folder: Path, *, mark: str = "place", train_size: int | None = None, **options: Any
) -> None:
    data = DigitsConfig(str(data_folder), train_size=train_size, mark=mark)
    name = options.pop("name", "")
    run_ = runs.train_run(folder, digits_run(data, name, **{**SMALL, **options}), progress=False)
    runs.evaluate_run(run_, progress=False)


def test_runs_of_the_experiments_can_be_evaluated_explained_and_reported(tmp_path: Path, data_folder: Path) -> None:
    standard, guarded = tmp_path / "standard", tmp_path / "guarded"
    train_on_digits(standard, data_folder)
    train_on_digits(guarded, data_folder, variant="selective", warmup=1, heatmap_every=2, name="guarded net")
    table = run("evaluate", standard, guarded, "--resamples", "20")
    assert re.search(
        r"\| guarded net \| deceiving (\| [\d.]+ \([\d.]+ to [\d.]+\) ){2}(\| [\d.]+ % \([\d.]+ to [\d.]+\) ){2}\|",
        table,
    )
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
    assert "A &lt;report&gt;" in text and "guarded net" in text and "carries a mark in its background" in text
    assert text.count("data:image/png;base64,") == 8 * 3 and text.count("<svg") > 6
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)


def test_compare_needs_the_same_digits_and_marks(
    tmp_path: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_on_digits(tmp_path / "a", data_folder)
    train_on_digits(tmp_path / "b", data_folder, train_size=40)
    train_on_digits(tmp_path / "texture", data_folder, mark="texture")
    assert "deceiving test: McNemar" in run("compare", tmp_path / "a", tmp_path / "b", "--resamples", "5")
    assert "images are not the same" in run_main(monkeypatch, capsys, "compare", tmp_path / "a", tmp_path / "texture")


def test_static_and_less_memory(tmp_path: Path, data_folder: Path) -> None:
    for name, options in (("plain", {}), ("static", {"static": True}), ("small", {"less_memory": True})):
        train_on_digits(tmp_path / name, data_folder, variant="selective", **options)
    plain, static, small = (load_run(tmp_path / name).model.state_dict() for name in ("plain", "static", "small"))
    for name, tensor in plain.items():
        assert torch.equal(static[name], tensor), name
        # To rounding, which AdamW enlarges where gradients are small; the numbers themselves: tests/test_checkpoint.py.
        torch.testing.assert_close(small[name], tensor, rtol=0.1, atol=5e-3)


def test_train_resumes_with_the_runs_own_settings(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed, straight = tmp_path / "run", tmp_path / "straight"
    options = ["--data", folder, *SHORT, "--lr", "0.01"]
    run("train", resumed, *options)
    assert "holds a run: go on with --resume" in run_main(monkeypatch, capsys, "train", resumed, *options)
    run("train", resumed, "--resume", "--epochs", "2")
    run("train", straight, *options, "--epochs", "2")
    assert load_config(resumed) == load_config(straight)
    found, whole = load_run(resumed).model.state_dict(), load_run(straight).model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in found.items())
    assert "train.lr: 0.01 there, 0.5 now" in run_main(monkeypatch, capsys, "train", resumed, "--resume", "--lr", "0.5")
    refused = run_main(monkeypatch, capsys, "train", resumed, "--resume", "--resize", "pad")
    assert "data.resize: 'stretch' there, 'pad' now" in refused
    assert load_config(resumed) == load_config(straight)
    run("train", resumed, *options, "--epochs", "1", "--overwrite")
    assert load_config(resumed).schedule.epochs == 1


def test_a_config_file_says_all_that_the_command_line_says(tmp_path: Path, folder: Path) -> None:
    """--print-config, --config, GROUP.OPTION=VALUE and a run's config.yaml: the same weights to the bit."""
    options = ["--data", folder, *SHORT, "--variant", "stochastic", "--c1", "1", "--c2", "25", "--augment", "flip=0.5"]
    run("train", tmp_path / "typed", *options, "--lr", "0.003", "--warmup", "1")
    printed = tmp_path / "run.yaml"
    printed.write_text(run("train", *options, "train.lr=3e-3", "--warmup", "2", "--print-config"))
    run("train", tmp_path / "filed", "--config", printed, "schedule.warmup=1", "--quiet")
    assert load_config(tmp_path / "filed") == load_config(tmp_path / "typed")
    again = tmp_path / "typed" / "config.yaml"
    assert run("train", tmp_path / "again", "--config", again, "--quiet") == ""
    states = [load_file(tmp_path / name / "last.safetensors") for name in ("typed", "filed", "again")]
    for state in states[1:]:
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())
    # The baseline from the same file: what the command line switches off may stand there.
    assert "variant: standard" in run("train", "--config", printed, "--variant", "standard", "--print-config")
    only = yaml.safe_load(printed.read_text())
    assert set(only) == {*NOTES, *GROUPS} and only["train"]["lr"] == 0.003 and "classes" not in only["data"]


def test_a_dry_run_tells_what_would_be_done_and_does_nothing(tmp_path: Path, folder: Path) -> None:
    options = ["--data", folder, *SHORT, "--variant", "selective", "--epochs", "3", "--warmup", "1"]
    told = run("train", tmp_path / "run", *options, "--dry-run")
    assert re.search(r"device: +cpu", told) and "20 train, 4 validation, 12 test; 1x16x16; classes dark, light" in told
    # 20 images in batches of 8: two steps an epoch.
    assert "8 of 8 images (2 an epoch), and 4 before to measure C1 and C2" in told
    parameters = sum(p.numel() for p in Tiny().parameters())
    assert f"{parameters:,} parameters; selective" in told and re.search(r"memory: +about [\d,]+ MiB", told)
    assert not (tmp_path / "run").exists()


def test_memory_is_foreseen(tmp_path: Path, folder: Path) -> None:
    """As measured in steps of the whole batch: what they allocate grows with it, and the optimizer's averages do not."""
    data = with_classes(ImagesConfig(str(folder), size=(64, 64), channels=1))
    wide = {**NARROW_RESNET.arch_args, "block_inplanes": [32, 32, 64, 64]}
    base = RunConfig(data=data).replaced(arch=NARROW_RESNET.arch, arch_args=wide, c1=1, c2=25)
    sets = load_run_data(base, progress=False)
    weights = sum(4 * p.numel() for p in build_network(base).parameters())

    def planned(**options: Any) -> int:
        return plan_run(base.replaced(**options), sets).memory

    def measured(config: RunConfig) -> int:
        images, labels, masks = default_collate([sets.train[row] for row in range(config.train.batch_size)])
        network, criterion = build_network(config), build_criterion(config)

        def step() -> None:
            network.zero_grad()
            found = network(images)
            loss = criterion(found, labels, masks).total if config.is_isnet else cross_entropy(found, labels)
            loss.backward()
            network.zero_grad()

        return 3 * weights + peak_bytes(step)[0]

    for options in ({"batch_size": 4}, {"batch_size": 8}, {"batch_size": 8, "variant": "dual", "static": True}):
        expected = measured(base.replaced(**options))
        assert abs(planned(**options) - expected) < 0.2 * expected, options
    assert planned(batch_size=8, optimizer="sgd") == planned(batch_size=8) - weights
    assert planned(batch_size=8, accumulate=2) == planned(batch_size=4) < planned(batch_size=8)


def test_overwriting_removes_nothing_but_runs(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years")
    told = run_main(monkeypatch, capsys, "train", precious, "--data", folder, *SHORT, "--overwrite")
    assert "is no run, and is left as it is" in told and (precious / "thesis.tex").read_text() == "years"
    told = run_main(monkeypatch, capsys, "train", precious, "--data", folder, "--overwrite", "--resume")
    assert "--resume, --overwrite: the one goes on with what the other removes" in told
    begun = tmp_path / "run"
    run("train", begun, "--data", folder, *SHORT, "--quiet")
    before = {path.name: path.read_bytes() for path in begun.iterdir()}
    (begun / "notes").mkdir()
    (begun / "notes" / "text").write_text("mine")
    # What cannot be trained leaves the earlier run as it is.
    for options in (["--arch", "no:Net"], ["--batch-size", "400"], ["--variant", "dual", "--layer", "no"]):
        run_main(monkeypatch, capsys, "train", begun, "--data", folder, *SHORT, *options, "--overwrite")
        assert all((begun / name).read_bytes() == content for name, content in before.items())
    run(
        "train",
        begun,
        "--data",
        folder,
        *SHORT,
        "--seed",
        "1",
        "--save-every",
        "1",
        "--keep-last",
        "1",
        "--overwrite",
        "--quiet",
    )
    assert load_config(begun).train.seed == 1 and (begun / "notes" / "text").read_text() == "mine"
    assert list(begun.glob("epoch-*"))
    run("train", begun, "--config", begun / "config.yaml", "--keep-last", "0", "--overwrite", "--quiet")
    assert not list(begun.glob("epoch-*"))


def test_what_cannot_be_trained_is_refused_by_dry_runs_too_and_makes_no_folder(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--quiet")
    (tmp_path / "file").write_text("x")
    for command, name, options, text in (
        ("train", "run", [], "holds a run: go on with --resume"),
        ("train", "run", ["--resume", "--lr", "1"], "is a run with other settings (train.lr: "),
        ("train", "file", [], "is a file; name a folder"),
        ("train", "new", ["--batch-size", "400"], "do not fill one batch of 400"),
        ("tune", "new", ["--variant", "standard"], "a standard run has no heatmaps, and nothing to measure"),
        ("tune", "new", ["--variant", "dual", "--c1", "1", "--c2", "2"], "nothing to measure"),
        ("tune", "new", ["--variant", "dual", "--batch-size", "400"], "do not fill one batch of 400"),
    ):
        for more in ([], ["--dry-run"]):
            told = run_main(monkeypatch, capsys, command, tmp_path / name, "--data", folder, *SHORT, *options, *more)
            assert text in told and not (tmp_path / "new").exists(), (command, name, options, more)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--variant", "fast"],
            "--variant: expected auto or standard or selective or stochastic or original or dual or",
        ),
        (["--p", "2"], "--p: expected in [0, 1], got '2'"),
        (["loss.p=2"], "--p: expected in [0, 1], got '2'"),
        (["--lr", "fast"], "--lr: expected a valid number, unable to parse string as a number, got 'fast'"),
        (["--channels", "2"], "--channels: expected 1 or 3, got '2'"),
        (
            ["--balance", "auto", "--variant", "standard"],
            "--balance: to be used with an ISNet (--variant selective, say)",
        ),
        (["--milestone", "3"], "--milestone: to be used with --schedule step"),
        (["--schedule", "step"], "--schedule: step needs milestones (--milestone EPOCH)"),
        (["--lr-after-warmup", "1"], "--lr-after-warmup: to be used with --warmup"),
        (["--warmup-background", "smooth"], "to be used with --warmup or --keep-replacing"),
        (["--variant", "dual", "--foreground", "L3"], "--foreground: expected hybrid, L2 or L1, got 'L3'"),
        (["--form", "block"], "--form: expected flex or layerwise, got 'block'"),
        (["--variant", "dual", "--p-schedule", "3:0.5"], "--p-schedule: expected EPOCH=P, got ['3:0.5']"),
        (["--variant", "dual", "--arch", "resnet"], "architecture: expected monai:NAME"),
        (["--arch-arg", "width"], "--arch-arg: expected KEY=VALUE, got ['width']"),
        (["trian.lr=1"], "trian.lr=1: no such group of options; did you mean train?"),
        (["train.lrr=1"], "train.lrr: no such option; did you mean lr?"),
        (["other"], "RUN: expected one folder, got "),
        (["--device", "gpu"], "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--config", "{tmp}/no.yaml"], "--config: no file "),
        (["--config", "{tmp}/group.yaml"], "group.yaml: optimiser: no such group of options"),
        (["--config", "{tmp}/option.yaml"], "train.learning_rate: no such option"),
        (["--config", "{tmp}/value.yaml"], "value.yaml: train.lr: expected > 0, got -1"),
        (["--config", "{tmp}/list.yaml"], "list.yaml: expected groups of options (data, network,"),
        (["--config", "{tmp}/broken.yaml"], "broken.yaml: no YAML"),
        (["--config", "{tmp}/idle.yaml"], "idle.yaml: --decay: to be used with an ISNet"),
        (["--config", "{tmp}/twice.yaml"], "twice.yaml: no YAML (train stands there twice"),
        (["--config", "{tmp}/nested.yaml"], "nested.yaml: no YAML (lr stands there twice"),
        (["--config", "{tmp}/set.yaml"], "set.yaml: network.arch_args: expected values that JSON has"),
        (["--config", "{tmp}/name.yaml"], "name.yaml: name: expected a text, got False"),
        (
            ["--config", "{tmp}/ends.yaml", "--variant", "dual"],
            "ends.yaml: loss.c1, c2: expected c1 < c2, got 5.0 and 1.0",
        ),
        (["--c1", "5", "--c2", "1", "--variant", "dual"], "--c1, --c2: expected c1 < c2, got 5.0 and 1.0"),
        (["--seed", "4294967296"], "--seed: expected in [0, 4.29497e+09], got '4294967296'"),
        (["--lr", "inf"], "--lr: expected a finite number, got 'inf'"),
        (["--config", "{tmp}/old.json"], "old.json: an older version's run"),
    ],
)
@pytest.mark.parametrize("command", ["train", "tune"])
def test_errors_are_one_line(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    text: str,
) -> None:
    for name, content in (
        ("group", "optimiser: {lr: 1}"),
        ("option", "train: {learning_rate: 1}"),
        ("value", "train: {lr: -1}"),
        ("list", "[1, 2]"),
        ("broken", "train: ["),
        ("idle", "network: {variant: standard}\nloss: {d: 0.3}"),
        ("twice", "train: {lr: 1}\ntrain: {seed: 3}"),
        ("nested", "train: {lr: 1, lr: 2}"),
        ("set", "network: {arch_args: {x: !!set {1, 2}}}"),
        ("name", "name: no"),
        ("ends", "loss: {c1: 5, c2: 1}"),
    ):
        (tmp_path / f"{name}.yaml").write_text(content)
    (tmp_path / "old.json").write_text('{"variant": "standard", "heatmap": {}}')
    words = [argument.format(tmp=tmp_path) for argument in arguments]
    error = run_main(monkeypatch, capsys, command, tmp_path / "run", "--data", folder, *words)
    assert text in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "{tmp}/run"], "data: name the image folder, manifest or shards to train on (--data PATH)"),
        (["train"], "RUN: name the folder of the run"),
        (["train", "", "--data", "{data}", "--dry-run"], "RUN: name the folder of the run"),
        (
            ["tune", "{tmp}/run", "--data", "{data}", "--variant", "dual", "--c1", "1", "--c2", "2"],
            "nothing to measure",
        ),
        (["evaluate", "{tmp}/nothing"], "is not a run: it has no config.json"),
        (["explain", "{tmp}/nothing"], "is not a run"),
        (["evaluate", "{tmp}/old"], "old/config.json: an older version's run"),
        (["train", "{tmp}/old", "--resume"], "old/config.json: an older version's run"),
        (["train", "{tmp}/rnu", "--resume"], "--resume: {tmp}/rnu holds no run"),
        (["tune", "{tmp}/rnu", "--resume", "--variant", "dual"], "--resume: {tmp}/rnu holds no run"),
    ],
)
def test_other_errors_are_one_line(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(
        json.dumps({"variant": "standard", "data": {"path": "x"}, "heatmap": {}, "train": {}})
    )
    error = run_main(monkeypatch, capsys, *(word.format(tmp=tmp_path, data=folder) for word in arguments))
    assert text.format(tmp=tmp_path) in error and "Traceback" not in error
    assert not (tmp_path / "rnu").exists()


def test_a_run_begins_under_resume_too(tmp_path: Path, folder: Path) -> None:
    run("train", tmp_path / "run", "--data", folder, *SHORT, "--resume")  # as a scheduler would


def test_a_damaged_digit_file_is_named(tmp_path: Path, data_folder: Path) -> None:
    labels = data_folder / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:20])
    with pytest.raises(CorruptDataError, match="t10k-labels-idx1-ubyte: truncated"):
        train_on_digits(tmp_path / "run", data_folder)


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


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard"),
            "'tensorboard': pip install tensorboard",
        ),
        (
            ModuleNotFoundError("No module named 'monai.x'", name="monai.x"),
            "'monai.x': pip install monai",
        ),
        (ModuleNotFoundError("No module named 'yaml'", name="yaml"), "'yaml': pip install PyYAML"),
        (ModuleNotFoundError("No module named 'stranger'", name="stranger"), "No module named 'stranger'"),
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


def test_a_missing_module_is_named() -> None:
    with pytest.raises(
        architectures.ArchitectureError, match="no module no_such_package in the current folder or among"
    ):
        architectures.build_architecture("no_such_package.nets:net", image_shape=SHAPE, num_classes=2)


def test_arguments_are_json_or_text() -> None:
    assert pairs(["a=1", "b=[1, 2]", "c=basic", "d=true", "e=x=y"]) == {
        "a": 1,
        "b": [1, 2],
        "c": "basic",
        "d": True,
        "e": "x=y",
    }
    for wrong in ("=1", "a", {"a": object()}, {"a": float("nan")}):
        with pytest.raises(ValueError, match=r"KEY=VALUE|values that JSON has"):
            pairs(wrong)


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
