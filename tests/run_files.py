"""Files of runs, compared and damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from PIL import Image
from safetensors.torch import load_file, save_file

SIDE = 16  # of the images


def squares(root: Path) -> Path:
    """A folder of images of two classes, with masks: a bright or dark square tells the class, and in training the corner does, too."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("dark", "light")):
            for number in range(count):
                pixels = rng.integers(0, 90, (SIDE, SIDE), dtype=np.uint8)
                pixels[5:11, 5:11] = 120 + 120 * label
                if split == "train":
                    pixels[:2, :2] = 255 * label
                mask = np.zeros((SIDE, SIDE), np.uint8)
                mask[4:12, 4:12] = 255
                for kind, content in (("images", pixels), ("masks", mask)):
                    path = root / kind / split / name / f"{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(content).save(path)
    return root


def header(path: Path) -> dict[str, Any]:
    """The texts in the header of a safetensors file, JSON parsed."""
    with safetensors.safe_open(path, framework="pt") as file:
        return {
            key: json.loads(value) if value.startswith("{") else value for key, value in (file.metadata() or {}).items()
        }


def assert_same_file(one: Path, other: Path) -> None:
    """Two safetensors files hold the same, bit for bit."""
    assert header(one) == header(other), (one, other)
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not value.equal(theirs[name])] == [], (one, other)


def rewritten(path: Path, *, tensors: dict[str, Any] | None = None, **texts: Any) -> None:
    """Writes a safetensors file anew, with other tensors (None: without one of that name) or texts in its header."""
    found = {**load_file(path), **(tensors or {})}
    told = {**header(path), **texts}
    save_file(
        {name: value for name, value in found.items() if value is not None},
        path,
        metadata={key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items()},
    )
