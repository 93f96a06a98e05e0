"""Damaged, lying and hostile files in run folders: one line that names the file, nothing changed, and no code but the user's."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import header, rewritten, squares
from safetensors.torch import load_file, save_file
from test_isnet_own_images import ARCH
from typer.testing import CliRunner

from isnet import cli
from isnet.factories import FactoryError
from isnet.runs import load_run

Damage = Callable[[Path], None]
RESUME = ("train", "--resume", "--epochs", "3")
EVALUATE = ("evaluate", "--resamples", "0", "--no-sensitivity")
REPORT = ("report",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained and scored run, with measured ranges and a moving average, beside its images."""
    home = tmp_path_factory.mktemp("hostile")
    options = [
        "--variant",
        "stochastic",
        "--tune",
        "1",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--ema",
        "0.9",
        "--best-by",  # no epoch of so short a training is better than the classes' shares
        "none",
        "--quiet",
    ]
    words = ["train", str(home / "run"), "--data", str(squares(home / "set")), *ARCH, *options]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return home / "run"


def text(content: str) -> Damage:
    return lambda path: path.write_text(content)


def binary(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def in_folder(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def edited(*keys: str | int, value: Any) -> Damage:
    """A JSON file with another value at a place."""

    def damage(path: Path) -> None:
        found = at = json.loads(path.read_text())
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        path.write_text(json.dumps(found))

    return damage


def lined(number: int, line: str) -> Damage:
    """A log with another line."""

    def damage(path: Path) -> None:
        lines = path.read_text().splitlines()
        lines[number] = line
        path.write_text("\n".join(lines) + "\n")

    return damage


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """A safetensors file with another tensor of that name."""
    return lambda path: rewritten(path, tensors={name: change(load_file(path)[name])})


def stated(*keys: str, value: Any, within: str = "state") -> Damage:
    """A safetensors file with another value in its header's JSON."""

    def damage(path: Path) -> None:
        found = at = header(path)[within]
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        rewritten(path, **{within: json.dumps(found)})

    return damage


DEEP = "[" * 100_000 + "]" * 100_000
JUNK = bytes(range(256)) * 3
ANY = {
    "empty": text(""),
    "half": truncated,
    "junk": binary(JUNK),
    "nested": text(DEEP),
    "folder": in_folder,
    "pipe": piped,
    "list": text("[1, 2]"),
    "number": text("7"),
    "twice": text('{"a": 1, "a": 2}'),
    "utf-16": binary("{}".encode("utf-16")),
}
CASES: list[tuple[str, str, Damage, tuple[str, ...]]] = [
    *[("config.json", name, damage, EVALUATE) for name, damage in ANY.items()],
    *[("config.json", f"{name}, resumed", damage, RESUME) for name, damage in ANY.items()],
    *[("ranges.json", name, damage, RESUME) for name, damage in ANY.items()],
    *[("data.json", name, damage, RESUME) for name, damage in ANY.items()],
    *[("evaluation.json", name, damage, REPORT) for name, damage in ANY.items()],
    *[("log.jsonl", name, ANY[name], RESUME) for name in ("folder", "pipe", "junk")],
    *[("best.safetensors", name, ANY[name], EVALUATE) for name in ("empty", "half", "junk", "folder", "pipe", "nested")],
    *[("last.safetensors", name, ANY[name], RESUME) for name in ("empty", "half", "junk", "folder", "pipe", "nested")],
    ("config.json", "kind", edited("data", "kind", value=["images"]), EVALUATE),
    ("config.json", "size", edited("data", "size", value=[1e400, -3]), EVALUATE),
    ("config.json", "classes", edited("data", "classes", value={"a": 1}), EVALUATE),
    ("config.json", "another network", edited("network", "arch", value="monai:ResNet"), EVALUATE),
    ("config.json", "another network, resumed", edited("network", "arch", value="monai:ResNet"), RESUME),
    ("config.json", "arguments", edited("network", "arch_args", value={"in_channels": 3}), EVALUATE),
    ("config.json", "eps", edited("network", "eps", value=0.5), EVALUATE),
    ("config.json", "more classes", edited("data", "classes", value=["a", "b", "c"]), EVALUATE),
    ("config.json", "group", edited("more", value={}), EVALUATE),
    ("config.json", "from_run", edited("from_run", value={"path": 3}), EVALUATE),
    ("config.json", "from_run list", edited("from_run", value=["x"]), EVALUATE),
    ("config.json", "name", edited("name", value={"a": 1}), EVALUATE),
    ("config.json", "lr", edited("train", "lr", value="fast"), EVALUATE),
    ("config.json", "seed", edited("train", "seed", value=1), RESUME),
    ("ranges.json", "null", edited("input", value=None), RESUME),
    ("ranges.json", "text", edited("input", "c1", value="x"), RESUME),
    ("ranges.json", "texts", edited("input", "c1", value=["x"]), RESUME),
    ("ranges.json", "turned", edited("input", "c1", value=[1e30]), RESUME),
    ("ranges.json", "negative", edited("input", "c1", value=[-1.0]), RESUME),
    ("ranges.json", "several", edited("input", "c1", value=[1.0, 2.0]), RESUME),
    ("ranges.json", "layer", edited("hidden", value={}), RESUME),
    ("evaluation.json", "null", edited("accuracy", value=None), REPORT),
    ("evaluation.json", "text", edited("accuracy", value={"test": "high"}), REPORT),
    ("evaluation.json", "scores", edited("scores", value={"test": 3}), REPORT),
    ("evaluation.json", "masks", edited("masks", value={"test": {"missing": "x"}}), REPORT),
    ("log.jsonl", "no entry", lined(0, "[]"), RESUME),
    ("log.jsonl", "no JSON", lined(0, "{"), RESUME),
    ("log.jsonl", "nested", lined(0, DEEP), RESUME),
    ("log.jsonl", "step", lined(0, '{"kind": "step", "step": "one", "epoch": 1}'), RESUME),
    ("log.jsonl", "negative", lined(0, '{"kind": "step", "step": -1, "epoch": 1}'), RESUME),
    ("log.jsonl", "loss", lined(0, '{"kind": "step", "step": 1, "epoch": 1, "loss": "low"}'), REPORT),
    ("log.jsonl", "accuracy", lined(0, '{"kind": "epoch", "step": 1, "epoch": 1, "accuracy": [1]}'), REPORT),
    ("log.jsonl", "no epoch", lined(0, '{"kind": "epoch", "step": 1}'), REPORT),
    ("best.safetensors", "whole numbers", tensor("head.weight", lambda t: t.long()), EVALUATE),
    ("best.safetensors", "doubles", tensor("head.weight", lambda t: t.double()), EVALUATE),
    ("best.safetensors", "shape", tensor("head.weight", lambda t: t.T.contiguous()), EVALUATE),
    ("best.safetensors", "nan", tensor("head.weight", lambda t: t * float("nan")), EVALUATE),
    ("best.safetensors", "lacks one", tensor("head.weight", lambda t: None), EVALUATE),
    ("best.safetensors", "one more", lambda path: rewritten(path, tensors={"x": torch.ones(1)}), EVALUATE),
    ("best.safetensors", "no header", lambda path: save_file(load_file(path), path), EVALUATE),
    ("best.safetensors", "header", lambda path: rewritten(path, isnet="{"), EVALUATE),
    ("best.safetensors", "step", stated("step", value=-1, within="isnet"), EVALUATE),
    ("best.safetensors", "config", stated("config", value=3, within="isnet"), EVALUATE),
    ("best.safetensors", "a checkpoint", lambda path: shutil.copy(path.with_name("last.safetensors"), path), EVALUATE),
    ("last.safetensors", "weights", lambda path: shutil.copy(path.with_name("best.safetensors"), path), RESUME),
    ("last.safetensors", "format", lambda path: rewritten(path, format="isnet-checkpoint-9"), RESUME),
    ("last.safetensors", "header", lambda path: rewritten(path, state=DEEP), RESUME),
    ("last.safetensors", "step nan", lambda path: rewritten(path, state='{"step": NaN, "settings": {}}'), RESUME),
    ("last.safetensors", "step", stated("step", value=-3, within="state"), RESUME),
    ("last.safetensors", "step text", stated("step", value="6"), RESUME),
    ("last.safetensors", "step huge", stated("step", value=10**30), RESUME),
    ("last.safetensors", "later step", stated("step", value=10**6), RESUME),
    ("last.safetensors", "images", stated("settings", "images", value=0), RESUME),
    ("last.safetensors", "watch", stated("settings", "watch", value={"best": "x", "epochs_since": 0}), RESUME),
    ("last.safetensors", "config", stated("settings", "config", value=[]), RESUME),
    ("last.safetensors", "averaged", stated("settings", "averaged_steps", value=-1), RESUME),
    ("last.safetensors", "scaler", stated("settings", "scaler", value="x"), RESUME),
    ("last.safetensors", "scalars", stated("optimizer", "scalars", value=[1]), RESUME),
    ("last.safetensors", "index", stated("optimizer", "scalars", value={"x": {}}), RESUME),
    ("last.safetensors", "no memory", stated("optimizer", value=None), RESUME),
    ("last.safetensors", "shape", tensor("model.head.weight", lambda t: t[:1].contiguous()), RESUME),
    ("last.safetensors", "whole numbers", tensor("model.head.weight", lambda t: t.int()), RESUME),
    ("last.safetensors", "nan", tensor("model.head.bias", lambda t: t * float("nan")), RESUME),
    ("last.safetensors", "average", tensor("ema.head.bias", lambda t: None), RESUME),
    ("last.safetensors", "memory's shape", tensor("optimizer.0.exp_avg", lambda t: t[:1].contiguous()), RESUME),
    ("last.safetensors", "memory's kind", tensor("optimizer.0.exp_avg", lambda t: t.int()), RESUME),
    ("last.safetensors", "memory lacks one", tensor("optimizer.0.exp_avg", lambda t: None), RESUME),
    ("last.safetensors", "memory's step", tensor("optimizer.0.step", lambda t: t * float("nan")), RESUME),
    ("tuning/last.safetensors", "half", truncated, RESUME),
    ("tuning/log.jsonl", "junk", lined(0, "x"), RESUME),
]  # fmt: skip


def failure(command: tuple[str, ...], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> str:
    """What a command says that ends with status 1; any exception but SystemExit would be a traceback."""
    first, *options = command
    out = ["--out", str(run.parent / "report.html")] if first == "report" else []
    monkeypatch.setattr("sys.argv", ["isnet", first, str(run), *options, *out])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    told = capsys.readouterr().err
    assert caught.value.code == 1, told
    lines = [line for line in told.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("isnet: "), told
    return lines[0]


def contents(run: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(run)): path.read_bytes() if path.is_file() else None for path in sorted(run.rglob("*"))
    }


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "damage", "command"), [(n, d, c) for n, _, d, c in CASES], ids=[f"{n} {i}" for n, i, _, _ in CASES]
)
def test_damaged_and_lying_files_are_named(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str, damage: Damage, command: tuple[str, ...]
) -> None:
    damage(run / name)
    before = contents(run)
    told = failure(command, run, monkeypatch, capsys)
    # Where settings and checkpoint disagree, either may be named.
    names = (name, "last.safetensors") if name == "config.json" else (name,)
    assert any(f"{run}/{one}" in told for one in names), told
    assert contents(run) == before


def test_files_that_are_gone(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (run / "config.json").unlink()
    assert "it has no config.json" in failure(EVALUATE, run, monkeypatch, capsys)
    assert "no run" in failure(RESUME, run, monkeypatch, capsys)
    assert "not a run" in failure(EVALUATE, run.parent, monkeypatch, capsys)


ATTACKS = ["subprocess:call", "os:system", "evil:Net", "evil:run", "builtins:eval", "torch:load", "monai:os.system",
           "timm:hf-hub:evil/model", "/tmp/evil.py:Net", "torch.nn:Linear", "evil"]  # fmt: skip


@pytest.mark.parametrize("option", ["network.arch", "data.segmenter"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_settings_make_no_code_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, attack: str, option: str
) -> None:
    """Also where weights and settings agree: whoever sends a run can change both."""
    (run.parent / "evil.py").write_text(f"open({str(run.parent / 'evil ran')!r}, 'w')\nclass Net: pass\n")
    monkeypatch.chdir(run.parent)
    monkeypatch.syspath_prepend(run.parent)
    group, name = option.split(".")
    edited(group, name, value=attack)(run / "config.json")
    stated("config", group, name, value=attack, within="isnet")(run / "best.safetensors")
    stated("settings", "config", group, name, value=attack)(run / "last.safetensors")
    for command in (EVALUATE, RESUME, REPORT, ("explain",)):
        told = failure(command, run, monkeypatch, capsys)
        assert attack in told or "data" in told
    if option == "network.arch":
        with pytest.raises(ValueError):
            load_run(run)
    assert not (run.parent / "evil ran").exists()


def test_trust_is_what_lets_code_run(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.delenv("ISNET_TRUST")
    name = json.loads((run / "config.json").read_text())["network"]["arch"]
    assert f"--trust {name}" in failure(EVALUATE, run, monkeypatch, capsys)
    for trust in (name, name.partition(":")[0]):
        assert load_run(run, trust=trust).config.network.arch == name
    with pytest.raises(FactoryError):
        load_run(run, trust=f"{name}s")
    edited("network", "arch", value="subprocess:Popen")(run / "config.json")
    stated("config", "network", "arch", value="subprocess:Popen", within="isnet")(run / "best.safetensors")
    with pytest.raises(ValueError, match="standard library"):
        load_run(run, trust="subprocess")
