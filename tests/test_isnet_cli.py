"""The command line on a handful of synthetic digits, and the demonstration's bookkeeping."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from memory_peak import peak_bytes
from safetensors.torch import load_file
from test_isnet_own_images import SHORT, SIDE, Tiny, folder  # noqa: F401
from torch.nn.functional import cross_entropy
from torch.utils.data import default_collate
from typer.testing import CliRunner

from isnet import cli, runs
from isnet.config import GROUPS, NOTES, ImagesConfig, RunConfig
from isnet.experiments import mnist_files as mnist
from isnet.experiments.digits import DigitsConfig, digits_run
from isnet.experiments.idx import CorruptDataError, encode_idx
from isnet.experiments.trainings import NARROW_RESNET
from isnet.runs import build_criterion, build_network, load_config, load_run
from isnet.runs.data import load_run_data, with_classes
from isnet.runs.plan import plan_run

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
