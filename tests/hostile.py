"""Files of image sets as bytes, and tables in a form to compare: for the suites of hostile sets."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from isnet.data import ImageTable

SIDE = 8
Told = set[tuple[str, str, str]]  # (split, class, image name), and the like


def png(seed: object = 0, side: int = SIDE) -> bytes:
    """A noisy image that no other seed gives."""
    draw = np.random.default_rng(zlib.crc32(repr(seed).encode()))
    return encoded(draw.integers(0, 200, (side, side), dtype=np.uint8))


def mask(side: int = SIDE) -> bytes:
    pixels = np.zeros((side, side), np.uint8)
    pixels[2:6, 2:6] = 255
    return encoded(pixels)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def lay(root: Path, files: Mapping[str, bytes | str | None]) -> Path:
    """Writes files below a folder: bytes; ``"-> x"`` is a link to x; None is a folder. Names below a folder masks get a mask by default."""
    for name, content in files.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and content.startswith("-> "):
            os.symlink(content[3:], path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def images(*names: str) -> dict[str, bytes]:
    """A mask for every name that has one in it, an image for the others."""
    return {name: mask() if "mask" in name.casefold() else png(name) for name in names}


def pairs(table: ImageTable, root: Path) -> dict[str, tuple[str, str, str | None]]:
    """Image -> (split, class, mask), with names relative to a folder."""
    told = {}
    for record in table.records:
        assert isinstance(record.label, int)
        found = None if record.mask is None else os.path.relpath(record.mask.path, root)
        told[os.path.relpath(record.image.path, root)] = (record.split, table.classes[record.label], found)
    return told


def codes(table: ImageTable) -> dict[str, int]:
    """What the reading told: code -> number of examples."""
    return {finding.code: len(finding.examples) for finding in table.findings}


def shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
