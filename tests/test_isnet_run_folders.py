"""Run folders: moved, shared, locked, stopped by signals, on a full disk, and with data that change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import assert_same_file, squares
from safetensors.torch import load_file
from test_isnet_killed import MODEL, ROOT
from test_isnet_own_images import SHORT, Tiny, run
from typer.testing import CliRunner

from isnet import _files, cli
from isnet.runs import load_config, load_run
from isnet.runs.lock import LOCK_NAME, RunLockedError, one_writer
from isnet.training import slurm


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return squares(tmp_path / "set")


def failure(*words: object) -> str:
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 1 and isinstance(result.exception, ValueError | OSError | RuntimeError), result.exception
    return str(result.exception)


def test_a_run_is_used_where_it_was_moved_with_its_data(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("train", "run", "--data", "set", *SHORT, "--quiet")  # relative paths
    assert load_config("run").data.path == str(images)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    run("evaluate", tmp_path / "run", "--resamples", "0", "--no-sensitivity")
    other = tmp_path / "elsewhere"
    shutil.move(tmp_path / "run", other / "run")
    shutil.move(images, other / "set")
    run("evaluate", other / "run", "--resamples", "0", "--no-sensitivity")
    run("train", other / "run", "--resume", "--epochs", "2", "--quiet")
    assert load_config(other / "run").data.path == str(other / "set")
    shutil.move(other / "set", other / "images")
    for command in (("evaluate", "--resamples", "0"), ("train", "--resume"), ("explain",)):
        told = failure(command[0], other / "run", *command[1:])
        assert f"its data are not at {other / 'set'}; say where they are (--data PATH)" in told
    run("evaluate", other / "run", "--data", other / "images", "--resamples", "0", "--no-sensitivity")
    run("train", other / "run", "--resume", "--epochs", "3", "--data", other / "images", "--quiet")


def test_files_follow_the_umask_and_weights_load_anywhere(tmp_path: Path, images: Path) -> None:
    for mask in (0o022, 0o027, 0o002):
        before = os.umask(mask)
        try:
            run("train", tmp_path / f"{mask}", "--data", images, *SHORT, "--keep-last", "1", "--quiet")
        finally:
            os.umask(before)
        for path in (tmp_path / f"{mask}").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~mask, path
    state = load_file(tmp_path / "18" / "best.safetensors")
    model = Tiny()
    assert list(state) and model.load_state_dict(state)
    loaded = load_run(tmp_path / "18").model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in state.items())
    assert any(key.startswith("optimizer.") for key in load_file(tmp_path / "18" / "last.safetensors"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: (s / "images/train/dark/3.png").write_bytes((s / "images/train/dark/4.png").read_bytes()), "1 changed"),
        (lambda s: (s / "masks/train/dark/3.png").write_bytes((s / "masks/train/dark/4.png").read_bytes() + b"x"), "1 changed"),
        (lambda s: shutil.copy(s / "images/train/dark/3.png", s / "images/train/dark/33.png"), "1 added"),
        (lambda s: (s / "images/train/dark/3.png").unlink(), "1 removed"),
        (lambda s: shutil.move(s / "images/train/dark/3.png", s / "images/train/light/33.png"), "1 added"),
        (lambda s: (s / "images/test/dark/3.png").unlink(), "1 removed"),
    ],
)  # fmt: skip
def test_changed_data_are_noticed(tmp_path: Path, images: Path, change: Callable[[Path], Any], text: str) -> None:
    run("train", tmp_path / "run", "--data", images, *SHORT, "--quiet")
    for path in images.rglob("*"):
        os.utime(path, (1, 1))  # times tell nothing
    run("train", tmp_path / "run", "--resume", "--quiet")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    change(images)
    told = failure("train", tmp_path / "run", "--resume", "--epochs", "2")
    assert text in told and ("3" in told) and "have changed since the run began" in told
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_fewer_epochs_than_were_trained(tmp_path: Path, images: Path) -> None:
    run("train", tmp_path / "run", "--data", images, *SHORT, "--epochs", "3", "--quiet")
    for epochs in ("0", "2"):
        assert "epochs: expected at least 3" in failure("train", tmp_path / "run", "--resume", "--epochs", epochs)
    assert load_config(tmp_path / "run").schedule.epochs == 3


# ---- one writer


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path: Path, images: Path) -> None:
    folder = tmp_path / "run"
    run("train", folder, "--data", images, *SHORT, "--quiet")
    with one_writer(folder):
        told = failure("train", folder, "--resume", "--epochs", "2")
        assert f"is being written to by process {os.getpid()}" in told
        assert "is being written to" in failure("train", folder, "--data", images, *SHORT, "--overwrite")
        run("evaluate", folder, "--resamples", "0", "--no-sensitivity")
    assert not (folder / LOCK_NAME).exists()
    run("train", folder, "--resume", "--epochs", "2", "--quiet")


def lock_of(folder: Path) -> dict[str, Any]:
    with one_writer(folder):
        return json.loads((folder / LOCK_NAME).read_text())


@pytest.mark.parametrize(
    "change", [{"pid": 2**22 + 1}, {"started": "1"}, {"host": "other"}, {"boot": "other"}, {"pid": "x"}, None]
)
def test_locks_that_are_left_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any] | None
) -> None:
    monkeypatch.setattr("isnet.runs.lock._SILENCE", 0.2)
    found = lock_of(tmp_path)
    (tmp_path / LOCK_NAME).write_text("junk" if change is None else json.dumps({**found, **change}))
    (tmp_path / ".last.safetensors.123.part").write_text("half")
    with one_writer(tmp_path):
        assert not list(tmp_path.glob("*.part"))
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_living_lock_of_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isnet.runs.lock._SILENCE", 5.0)
    monkeypatch.setattr("isnet.runs.lock._BEAT", 0.1)
    with one_writer(tmp_path):
        monkeypatch.setattr("isnet.runs.lock._this_process", lambda: {"host": "b", "boot": "", "space": "", "pid": 1})
        with pytest.raises(RunLockedError, match="is being written to by process"), one_writer(tmp_path):
            pass


# ---- writes that fail


class FullDiskError(OSError):
    pass


def test_a_disk_that_is_full_at_any_write_leaves_the_state_before(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [
        "--data",
        images,
        *SHORT,
        "--variant",
        "stochastic",
        "--c1",
        "1",
        "--c2",
        "9",
        "--epochs",
        "2",
        "--quiet",
    ]
    run("train", tmp_path / "whole", *options)
    real, count = _files.atomic_path, 0

    def failing(at: int) -> Callable[..., Any]:
        def opened(path: Path) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise FullDiskError(28, "No space left on device", str(path))
            return real(path)

        return opened

    for at in range(1, 40):
        folder, count = tmp_path / f"full {at}", 0
        with monkeypatch.context() as patch:
            for module in ("isnet._files", "isnet.training.checkpoints", "isnet.training.log"):
                patch.setattr(f"{module}.atomic_path", failing(at))
            result = CliRunner().invoke(cli.app, [str(word) for word in ("train", folder, *options)])
        if result.exit_code == 0:
            break
        assert isinstance(result.exception, FullDiskError)
        assert not list(folder.rglob("*.part")) and not (folder / LOCK_NAME).exists()
        run("train", folder, *options, *(["--resume"] if (folder / "config.json").exists() else []))
        for name in ("last", "best"):
            assert_same_file(tmp_path / "whole" / f"{name}.safetensors", folder / f"{name}.safetensors")
        shutil.rmtree(folder)
    assert at > 8


def test_a_file_that_disappears_leaves_the_others(tmp_path: Path, images: Path) -> None:
    options = ["--data", images, *SHORT, "--epochs", "2", "--quiet"]
    run("train", tmp_path / "whole", *options)
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.name != "config.json"]
    for name in names:
        shutil.copytree(tmp_path / "whole", tmp_path / "run")
        (tmp_path / "run" / name).unlink()
        run("train", tmp_path / "run", "--resume", "--quiet")
        if name != "best.safetensors":
            assert_same_file(tmp_path / "whole" / "best.safetensors", tmp_path / "run" / "best.safetensors")
        shutil.rmtree(tmp_path / "run")


# ---- signals and SLURM


@pytest.fixture
def home(tmp_path: Path, images: Path) -> Path:
    (tmp_path / "small_network.py").write_text(MODEL)
    return tmp_path


def started(home: Path, *options: str, **variables: str) -> subprocess.Popen[str]:
    paths = [str(home), str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    words = [
        "--data",
        str(home / "set"),
        *[
            "--arch",
            "small_network:small",
            "--channels",
            "1",
            "--size",
            "16",
            "--batch-size",
            "4",
            "--variant",
            "standard",
        ],
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "isnet", "train", str(home / "run"), *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths), **variables},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def awaited(path: Path, *jobs: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and all(job.poll() is None for job in jobs) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert path.exists()


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are killed if the test leaves them behind."""
    jobs: list[subprocess.Popen[str]] = []
    yield jobs
    for job in jobs:
        if job.poll() is None:
            job.kill()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_signal_saves_and_says_how_to_go_on(
    home: Path, ended: list[subprocess.Popen[str]], number: signal.Signals, status: int
) -> None:
    job = started(home, "--epochs", "100000")
    ended.append(job)
    awaited(home / "run" / "last.safetensors", job)
    job.send_signal(number)
    out, err = job.communicate(timeout=120)
    assert job.returncode == status and "Traceback" not in err, err
    line = err.strip().splitlines()[-1]
    command = f"python -m isnet train {home / 'run'} --resume --trust small_network:small"
    assert line.endswith(f"which is saved ({number.name}); go on with: {command}"), err
    assert "standard, epoch 1/100000 (training): loss " in out and "AUC" in out and "images/s" in out
    step = int(line.split("after step ")[1].split(",")[0])
    told = CliRunner().invoke(
        cli.app, ["train", str(home / "run"), "--resume", "--epochs", str(max(1, step // 5)), "--dry-run"]
    )
    assert not (home / "run" / LOCK_NAME).exists() and told is not None


def test_tasks_of_srun_are_one_training_and_stop_together(home: Path, ended: list[subprocess.Popen[str]]) -> None:
    with __import__("socket").socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    for rank in "01":
        ended.append(started(home, "--epochs", "100000", **common, SLURM_PROCID=rank, SLURM_LOCALID=rank))
    awaited(home / "run" / "last.safetensors", *ended)
    for job in ended:
        job.send_signal(signal.SIGUSR1)
    said = [job.communicate(timeout=120)[1] for job in ended]
    assert [job.returncode for job in ended] == [138, 138], said
    assert sum(text.count("go on with: srun python -m isnet train") for text in said) == 1


STEP = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12345", "SLURM_STEP_ID": "0"}


def test_ranks_from_slurm() -> None:
    for nodes, first in (
        ("node[03-05,7],login", "node03"),
        ("a1", "a1"),
        ("gpu-2.lab,gpu-3.lab", "gpu-2.lab"),
        ("n[1,3]-ib", "n1-ib"),
    ):
        found = {**STEP, "SLURM_STEP_NODELIST": nodes}
        slurm.adopt_slurm(found)
        assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("1", "4", "1")
        assert found["MASTER_ADDR"] == first and 15000 <= int(found["MASTER_PORT"]) < 35000
    for alone in ({}, {"SLURM_NTASKS": "4"}, {**STEP, "SLURM_NTASKS": "1"}, {**STEP, "WORLD_SIZE": "2"}):
        found = dict(alone)
        slurm.adopt_slurm(found)
        assert found == alone
    for change, text in (
        ({"SLURM_PROCID": "x"}, "SLURM_PROCID: expected a number"),
        ({"SLURM_PROCID": "4"}, "expected a process of 4"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID: expected a number"),
        ({"SLURM_STEP_NODELIST": ""}, "MASTER_ADDR: not set, and no host"),
    ):
        with pytest.raises(ValueError, match=text):
            slurm.adopt_slurm({**STEP, "MASTER_ADDR": "" if "NODELIST" in str(change) else "a", **change})
    batch = {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"} | {"SLURM_PROCID": "0"}
    with pytest.raises(ValueError, match="srun did not start this process"):
        slurm.adopt_slurm(batch)
