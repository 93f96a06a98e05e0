"""One process, killed with SIGKILL at a moment of chance and taken up again, ends with the weights of a training that was let run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
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
    "--heatmap-every 2 --heatmap-fraction 0.5 --balance auto --leak 0.1 --ema 0.9 --save-every 1"
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


def start(folder: Path, run: str, *options: str) -> subprocess.Popen[str]:
    paths = [str(folder), str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-m", "isnet", "train", str(folder / run), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )


def test_a_killed_training_goes_on_bit_for_bit(folder: Path) -> None:
    options = ["--data", str(folder / "set"), *OPTIONS.split()]
    whole, killed = start(folder, "whole", *options), start(folder, "killed", *options)
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
    resumed = start(folder, "killed", "--resume")
    for job in (resumed, whole):
        output, _ = job.communicate(timeout=120)
        assert job.returncode == 0, output
    for name in ("last", "best"):
        one, other = (load_file(folder / run / f"{name}.safetensors") for run in ("whole", "killed"))
        assert one.keys() == other.keys() and any(key.startswith("ema.") for key in one)
        for key in one:
            assert one[key].equal(other[key]), f"{key} differs, killed {delay:.3f} s after {awaited} had appeared"
