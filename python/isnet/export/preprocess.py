"""From an image file to the tensor that the network takes: needs PyTorch, NumPy and Pillow alone. Exports carry a copy of this file.

>>> images = torch.cat([preprocess(path) for path in paths])         # [B, C, H, W], float32
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

SETTINGS = pathlib.Path(__file__).with_name("preprocessing.json")


def preprocess(path: Any, settings: Any = None) -> torch.Tensor:
    """Reads an image.

    Args:
        path: PNG, JPEG, TIFF or the like, of 8 bits or 16 bits grey.
        settings: What preprocessing.json holds; by default the file beside this one is read.

    Returns:
        float32 [1, C, H, W].
    """
    settings = json.loads(SETTINGS.read_text(encoding="utf-8")) if settings is None else settings
    image = settings["image"]
    pixels = _read(path)
    if len(pixels) != image["channels"]:
        if image["channels"] == 3:
            pixels = pixels.expand(3, -1, -1)
        else:
            pixels = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    pixels = _resize(pixels, image["height"], image["width"], settings["resize"])
    if settings["mean"] is not None:
        mean, std = (torch.tensor(settings[name]).view(-1, 1, 1) for name in ("mean", "std"))
        pixels = (pixels - mean) / std
    return pixels[None].float().contiguous()


def _read(path: Any) -> torch.Tensor:
    """[1 or 3, H, W] in [0, 1]."""
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):
            return torch.from_numpy(np.asarray(image).astype(np.float32))[None] / 65535
        if image.mode == "F":
            return torch.from_numpy(np.array(image))[None]
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 255
    return pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)


def _resize(pixels: torch.Tensor, height: int, width: int, how: str) -> torch.Tensor:
    """To the size, or, to keep the aspect ratio, within it and zeros around."""
    inner = (height, width)
    if how == "pad":
        scale = min(height / pixels.shape[1], width / pixels.shape[2])
        inner = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[2] * scale)))
    if inner != tuple(pixels.shape[1:]):
        pixels = F.interpolate(pixels[None], inner, mode="bilinear", antialias=True, align_corners=False)[0].clamp(0, 1)
    rows, columns = height - inner[0], width - inner[1]
    return F.pad(pixels, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def answers(model: Any, paths: Iterable[Any]) -> Iterator[tuple[Any, dict[str, float]]]:
    """(path, {class: probability}) of each image."""
    settings = json.loads(SETTINGS.read_text(encoding="utf-8"))
    device = next((p.device for p in getattr(model, "parameters", lambda: [])()), torch.device("cpu"))
    with torch.no_grad():
        for path in paths:
            logits = model(preprocess(path, settings).to(device))[0].double().cpu()
            chances = logits.sigmoid() if settings["multi_label"] else logits.softmax(0)
            yield path, dict(zip(settings["classes"], chances.tolist(), strict=True))


def print_answers(model: Any, paths: Iterable[Any]) -> None:
    """Prints the answers, a line for each image."""
    for path, found in answers(model, paths):
        print(path, *(f"{name}={chance:.4f}" for name, chance in found.items()), sep="\t")
