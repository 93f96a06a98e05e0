"""What commands on runs tell: the next step, what was kept, other data, folders of others; and that they stop in one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from run_files import squares
from tiny_run import ARCH, invoke, tiny  # noqa: F401

from isnet.cli import train as command
from isnet.runs import load_run
from isnet.runs.tables import Row, confusion_rows, markdown
from isnet.scoring.cautions import cautions
from isnet.training import loop
from isnet.training.display import Display
from isnet.training.stop import Interrupted, StopSignals, on_signals

Tiny = tuple[Path, Path]
SHORT = ("--arch", ARCH, "--size", 16, "--channels", 1, "--batch-size", 8, "--epochs", 1)


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISNET_TRUST", ARCH)


def test_training_ends_with_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    told = invoke("train", "run", "--data", "set", *SHORT, "--warmup", 1, "--tune", 1)
    assert "epoch 1/2 (warm-up)" in told and "epoch 2/2 (training)" in told and "epoch 1/1 (warm" not in told
    last = told.splitlines()[-1]
    assert last.startswith("Next: ") and last.endswith(f"report run --trust {ARCH}")
    words = last.removeprefix("Next: ").removeprefix("python -m ").removeprefix("isnet ").split()
    assert "Report:" in invoke(*words, "--out", "r.html") and Path("r.html").stat().st_size


def test_tuning_ends_with_the_ranges_and_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    told = invoke("tune", "run", "--data", "set", *SHORT, "--tune", 1).splitlines()
    assert told[-2].startswith("C1 and C2: ") and "(measured)" in told[-2] and "{" not in told[-2]
    assert told[-1].endswith(f"train run --resume --trust {ARCH}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--arch", "resnet18"), "isnet archs resnet18"),
        (("--arch", "monai:Nothing"), "monai:Nothing"),
        (("--arch", ARCH, "--epochs", 0), "expected at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_images_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], text: str
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(command, "load_run_data", read)
    squares(tmp_path / "set")
    assert text in invoke("train", tmp_path / "run", "--data", tmp_path / "set", *arguments, code=1)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    told = invoke("train", tmp_path / "old", "--data", tmp_path / "set", *SHORT, code=1)
    assert "holds a run" in told and not (tmp_path / "run").exists()


def test_a_resumed_run_is_planned_without_the_weights_that_it_began_with(
    tiny: Tiny, tmp_path: Path, trusted: None
) -> None:
    run, data = tiny
    weights = tmp_path / "begin.pt"
    torch.save(load_run(run).model.state_dict(), weights)
    invoke("train", tmp_path / "run", "--data", data, *SHORT, "--weights", weights, "--c1", 1, "--c2", 25)
    weights.unlink()
    assert "steps:" in invoke("train", tmp_path / "run", "--resume", "--epochs", 2, "--dry-run")


def test_scores_on_other_data_know_the_run(tiny: Tiny, tmp_path: Path, trusted: None) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny[0], run)
    (tmp_path / "other").mkdir()
    shutil.copytree(tiny[1] / "images" / "test", tmp_path / "other", dirs_exist_ok=True)
    told = invoke("evaluate", run, "--data", tmp_path / "other", "--resamples", 0, "--no-sensitivity")
    assert "epoch 1 of 1" in told and "no log says" not in told
    assert load_run(run).home == run
    assert "--data: nowhere does not exist" in invoke("evaluate", run, "--data", "nowhere", code=1)
    assert "--masks: nowhere is no folder" in invoke("evaluate", run, "--masks", "nowhere", code=1)


@pytest.fixture
def foreign(tiny: Tiny, tmp_path: Path) -> Iterator[Path]:
    """A run in a folder where this process may not write."""
    run = tmp_path / "share" / "run"
    shutil.copytree(tiny[0], run)
    before = {path: path.stat().st_mode for path in (run, *run.rglob("*"))}
    for path, mode in before.items():
        path.chmod(mode & ~0o222)
    # Root may write everywhere; its own view of the files is put back at the end.
    user = os.geteuid()
    for parent in tmp_path.parents:
        if user == 0 and parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    if user == 0:
        os.seteuid(65534)
    yield run
    os.seteuid(user)
    for path, mode in before.items():
        path.chmod(mode)


def test_a_run_that_may_only_be_read(foreign: Path, tmp_path: Path, trusted: None) -> None:
    image = tmp_path / "a.png"
    Image.new("L", (16, 16), 90).save(image)
    files = {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()}
    assert "1 image, " in invoke(
        "predict", foreign, image, "--out", tmp_path / "p.csv", "--heatmaps", tmp_path / "maps"
    )
    assert "Picture" in invoke("explain", foreign, image, "--out", tmp_path / "e.png")
    for arguments, text in (
        (("evaluate", foreign), "copy the run to a folder of yours"),
        (("predict", foreign, image, "--out", foreign / "p.csv"), "--out: "),
    ):
        told = invoke(*arguments, code=1)
        assert text in told and "cannot be written" in told and ".part" not in told
    assert files == {path: path.read_bytes() for path in foreign.rglob("*") if path.is_file()}


def test_the_gravest_caution_of_an_epoch_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    entry: dict[str, Any] = {"step": 1, "epoch": 1, "phase": "training", "seconds": 1.0, "warnings": []}
    for kinds, told in ((["inverted", "few images"], "caution: inverted"), (["few images"], ""), ([], "")):
        entry["warnings"] = [{"kind": kind, "text": "..."} for kind in kinds]
        Display("x", epochs=1, steps_per_epoch=1, batch_size=1).epoch(entry)
        assert ("caution" in (line := capsys.readouterr().out)) == bool(told) and told in line


def test_losses_are_told_apart() -> None:
    logits = torch.tensor([[0.0001, 0.0], [0.0, 0.0001]]).repeat(20, 1)
    texts = [c.text for c in cautions(logits, torch.tensor([1, 0]).repeat(20), "ab") if "class shares" in c.kind]
    assert texts and "0.6932, is worse" in texts[0] and "0.6931" in texts[0]


def test_cells_of_tables() -> None:
    classes = [{"class": "true class"}, {"class": "a|b\\"}]
    found = confusion_rows(Row("r", {}, {}, {"classes": {"t": classes}, "confusion": {"t": [[1, 2], [3, 4]]}}), "t")
    assert found is not None and [list(row.values()) for row in found] == [
        ["true class", "1", "2"],
        ["a|b\\", "3", "4"],
    ]
    lines = markdown(found).splitlines()
    assert lines[3] == "| a\\|b\\\\ | 3 | 4 |" and len(lines) == 4


def test_signals_outside_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: None) -> None:
    squares(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    for number, where in (
        (signal.SIGTERM, "load_run_data"),
        (signal.SIGUSR1, "evaluate_run"),
        (signal.SIGINT, "print_scores"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(command, where, lambda *_, number=number, **__: os.kill(os.getpid(), number))
            told = invoke(
                "train",
                "run",
                "--data",
                "set",
                *SHORT,
                "--overwrite" if Path("run").exists() else "--quiet",
                code=128 + number,
            )
        assert number.name in told
        began = where != "load_run_data"
        assert ("train run --resume" in told) == began and ("before the run began" in told) != began
    # Interrupted before it replaced the earlier run, whose --resume would go on with something else.
    monkeypatch.setattr(command, "load_run_data", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    assert "before the run began" in invoke("train", "run", "--data", "set", *SHORT, "--overwrite", code=130)


def test_a_second_interrupt_stops_at_once() -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt) as caught, StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append(stop.signum)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        steps.append("not stopped")
    assert steps == [signal.SIGINT] and not isinstance(caught.value, Interrupted)


def test_a_second_interrupt_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: None
) -> None:
    squares(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    save, saved = loop.save_checkpoint, []

    def interrupted(path: Path, *rest: Any) -> None:
        if len(saved) == 2:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        saved.append(path)
        save(path, *rest)

    monkeypatch.setattr(loop, "save_checkpoint", interrupted)
    told = invoke("train", "run", "--data", "set", *SHORT[:-1], 4, "--c1", 1, "--c2", 25, code=130)
    assert "stopped at once (SIGINT)" in told and "train run --resume" in told and len(saved) == 2
    monkeypatch.setattr(loop, "save_checkpoint", save)
    assert "epoch 3/4" in (told := invoke("train", "run", "--resume")) and "epoch 2/4" not in told


def test_handlers_are_put_back_and_stay_out_of_other_threads() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    came: list[int] = []
    with on_signals(came.append, "SIGTERM", "SIGINT", "SIGNOTHING"):
        os.kill(os.getpid(), signal.SIGTERM)
        thread = threading.Thread(target=lambda: on_signals(came.append, "SIGINT").__enter__())
        thread.start()
        thread.join()
    assert came == [signal.SIGTERM]
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_sigterm_ends_any_command_with_one_line(tiny: Tiny) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import os, signal, isnet.cli as c; c.app = lambda: os.kill(os.getpid(), signal.SIGTERM); c.main()",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.communicate()[1] == "isnet: stopped (SIGTERM)\n" and process.returncode == 143
