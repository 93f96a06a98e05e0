"""Killed with SIGKILL at a moment of chance and taken up again, a training ends with the weights of one that was let run.

Of several processes those that outlive another one say how to go on, and what all of them have to say is told once.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_files import assert_same_file
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
MODEL = """
from torch import nn

def small(in_channels=1, num_classes=2):
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(36, num_classes),
    )
"""
OPTIONS = (
    "--arch small_network:small --channels 1 --size 12 --variant stochastic --epochs 3 --batch-size 4 --tune 1 --warmup 1 "
    "--heatmap-every 2 --balance auto --ema 0.9 --save-every 1"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of each of two classes with masks, and a small network."""
    rng = np.random.default_rng(0)
    for label in ("dark", "light"):
        for number in range(7):
            pixels = rng.integers(0, 90, (12, 12), dtype=np.uint8)
            pixels[4:8, 4:8] = 240 if label == "light" else 120
            mask = np.zeros((12, 12), np.uint8)
            mask[3:9, 3:9] = 255
            for kind, content in (("images", pixels), ("masks", mask)):
                path = tmp_path / "set" / kind / "train" / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(path)
    (tmp_path / "small_network.py").write_text(MODEL)
    return tmp_path


def popen(folder: Path, *command: str) -> subprocess.Popen[str]:
    paths = [str(folder), str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )


def start(folder: Path, run: str, *options: str, processes: int = 1) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return popen(folder, *(launcher if processes > 1 else []), "-m", "isnet", "train", str(folder / run), *options)


def forked(folder: Path, *jobs: tuple[object, ...]) -> list[str]:
    """What (processes, run, *options) print, one after the other; see forked.py."""
    words = [[processes, "train", str(folder / str(run)), *options] for processes, run, *options in jobs]
    job = popen(folder, str(Path(__file__).with_name("forked.py")), json.dumps(words))
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    return re.findall(r".*?^exit: [^\n]*\n", output, re.MULTILINE | re.DOTALL)


def test_a_killed_training_goes_on_bit_for_bit(folder: Path) -> None:
    options = ["--data", str(folder / "set"), *OPTIONS.split()]
    killed = start(folder, "killed", *options)
    checkpoints = [folder / "killed" / part / "last.safetensors" for part in ("tuning", ".")]
    awaited = random.choice(checkpoints)  # in either phase: while C1 and C2 are measured, or after
    deadline = time.monotonic() + 120
    while not awaited.exists() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    delay = random.uniform(0, 0.15)
    time.sleep(delay)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL, f"it was over {delay:.3f} s after {awaited} had appeared"
    for output in forked(folder, (1, "killed", "--resume"), (1, "whole", *options)):
        assert output.endswith("exit: 0\n"), output
    for name in _weights(folder):
        one, other = (load_file(folder / run / name) for run in ("whole", "killed"))
        assert one.keys() == other.keys()
        for key in one:
            assert one[key].equal(other[key]), f"{key} differs, killed {delay:.3f} s after {awaited} had appeared"


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_training_killed_again_and_again_ends_with_the_same_weights(folder: Path, kills: int) -> None:
    """At moments that a seed draws, from the first import to the last write, each time in another part of the run."""
    draw = random.Random(kills)
    options = ["--data", str(folder / "set"), *OPTIONS.split(), "--epochs", str(kills)]
    begun = time.monotonic()
    whole = start(folder, "whole", *options, "--quiet")
    output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    duration = time.monotonic() - begun
    for number in range(kills):
        job = start(folder, "killed", *options, "--resume", "--quiet")
        try:
            output, _ = job.communicate(timeout=draw.uniform(0.3, 1.0) * duration)
            assert job.returncode == 0, (number, output)
        except subprocess.TimeoutExpired:
            job.kill()
            job.communicate()
    (last,) = forked(folder, (1, "killed", *options, "--resume"))
    assert last.endswith("exit: 0\n"), last
    assert not list((folder / "killed").rglob("*.part"))
    for name in _weights(folder):
        assert_same_file(*(folder / run / name for run in ("whole", "killed")))


def _weights(folder: Path) -> list[str]:
    """The files of weights, which both runs have: that of the best epoch if there is one that may be kept."""
    names = [sorted(path.name for path in (folder / run).glob("*.safetensors")) for run in ("whole", "killed")]
    assert names[0] == names[1] and "last.safetensors" in names[0]
    return names[0]


def ranks(job: subprocess.Popen[str]) -> dict[int, int]:
    """Rank -> id of the processes that torchrun has started."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    found = {}
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        found |= {int(entry[5:]): int(child) for entry in environment if entry.startswith("RANK=")}
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.slow)])  # 1: as in test_isnet_distributed.py
def test_the_survivor_of_a_killed_process_says_how_to_go_on(folder: Path, lost: int) -> None:
    endless = "--arch small_network:small --channels 1 --size 12 --epochs 1000000 --batch-size 4 --save-every 1"
    job = start(folder, "run", "--data", str(folder / "set"), *endless.split(), processes=2)
    checkpoint = folder / "run" / "last.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(ranks(job)[lost], signal.SIGKILL)
    output, _ = job.communicate(timeout=120)
    said = [line for line in output.splitlines() if line.startswith("isnet:")]
    assert len(said) == 1 and "another process of this training has ended" in said[0], output
    assert re.search(rf"; {re.escape(str(checkpoint))} holds step [1-9]\d*: go on with --resume$", said[0])
    assert job.returncode != 0 and "isnet/training.py" not in output  # a traceback


def test_errors_of_all_processes_are_told_once(folder: Path) -> None:
    (folder / "set" / "masks" / "train" / "dark" / "3.png").unlink()
    images = ["--data", str(folder / "set")]
    arguments = "--variant selective --arch small_network:small --channels 1 --size 12 --batch-size 4 --epochs 1"
    jobs = [(2, "a", "--no-such-option"), (2, "b", *images, "--p", "2"), (2, "c", *images, *arguments.split())]
    texts = ["No such option", "p: expected in [0, 1]", "3.png: no mask"]
    for output, text in zip(forked(folder, *jobs), texts, strict=True):
        assert "exit: 0" not in output and output.count(text) == 1, output


TRAININGS = """
import pathlib
import sys
import time
from isnet.experiments import trainings

def train(folder, job):
    for moment in range(3000):
        (pathlib.Path(folder) / f"at work {moment}").touch()
        time.sleep(0.1)

if __name__ == "__main__":
    trainings.train_missing(train, sys.argv[1], [0], lambda job: False, processes=1, progress=False)
"""


def test_trainings_end_with_a_killed_experiment(tmp_path: Path) -> None:
    (tmp_path / "experiment.py").write_text(TRAININGS)
    paths = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    job = subprocess.Popen([sys.executable, str(tmp_path / "experiment.py"), str(tmp_path)], env=environment)

    def moments() -> int:
        return len(list(tmp_path.glob("at work *")))

    deadline = time.monotonic() + 120
    while moments() < 3 and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    job.kill()
    job.wait()
    assert moments() >= 3
    for _ in range(20):
        before = moments()
        time.sleep(1)
        if moments() == before:
            return
    pytest.fail("the training outlived its experiment")
