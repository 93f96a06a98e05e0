"""Which composite makes the maps that a picture should show: each preset, measured on trained networks.

python -m benchmarks.preset [--only photographs|digits] [--json FILE] [--mnist FOLDER]

- *grid*: four images in one, explained for the class of each; the share of positive relevance in that image's quarter (chance: 0.25). The
  grid pointing game: Boehle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021.
- *object*: the share of positive relevance inside an outline drawn by hand, divided by the outline's share of the picture (chance: 1).
- *coherence*: the share of a map's energy that a 7x7 mean keeps; white noise keeps 0.02, smooth maps nearly 1.
- *classes*: rank correlation of the maps of the first and second answer. 1: the map does not depend on what is explained.
- *random weights*: rank correlation with the map of the same network, its last layer drawn anew (Adebayo et al. 2018). Lower is better.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp

ROOT = Path(__file__).parent.parent
# (x, y) in the 224x224 crops of examples/pretrained.py
OUTLINES = {
    "cat": "0,20 30,0 195,0 215,50 217,90 205,130 180,200 165,224 0,224",
    "coffee": "41,50 45,25 75,11 130,12 165,30 172,55 168,95 160,125 140,150 90,170 60,172 45,95",
    "rocket": "106,80 112,66 118,80 123,215 105,215",
    "motorcycle": "0,90 10,70 70,85 125,68 170,35 190,45 205,90 224,120 224,195 175,145 95,185 15,165",
}


def presets(low: float, high: float) -> dict[str, Any]:
    """What is compared: name -> composite, for inputs in [low, high]."""
    box = lrp.ZBox(low, high, 1e-6, bias=False)
    return {
        "Epsilon(1e-2)": lrp.Epsilon(1e-2),
        "Epsilon(1e-2, first=ZBox)": lrp.Epsilon(1e-2, first=lrp.ZBox(low, high, 1e-2)),
        "EpsilonPlus()": lrp.EpsilonPlus(),
        "EpsilonPlus(first=ZBox)": lrp.EpsilonPlus(first=box),
        "EpsilonPlusFlat()": lrp.EpsilonPlusFlat(),
        "EpsilonGammaBox()": lrp.EpsilonGammaBox(low, high),
        "EpsilonGammaBox(gamma=1)": lrp.EpsilonGammaBox(low, high, gamma=1.0),
        "EpsilonAlpha2Beta1Flat()": lrp.EpsilonAlpha2Beta1Flat(),
        "GuidedBackprop()": lrp.GuidedBackprop(),
    }


def heatmap(model: nn.Module, composite: Any, x: Tensor, target: Any) -> Tensor:
    """Relevance per pixel, [B, H, W]."""
    with torch.no_grad():
        return lrp.heatmap.sum_channels(lrp.LRP(model, composite)(x, target)[1])


def grid_score(model: nn.Module, composite: Any, images: list[Tensor], classes: list[int], grids: list[Any]) -> float:
    """The mean share of positive relevance in the quarter of the explained image."""
    shares = []
    for order in grids:
        a, b, c, d = (images[index] for index in order)
        x = torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)
        height, width = a.shape[2:]
        for place, index in enumerate(order):
            positive = heatmap(model, composite, x, classes[index])[0].clamp(min=0)
            quarter = positive[place // 2 * height :, place % 2 * width :][:height, :width]
            shares.append(float(quarter.sum() / positive.sum().clamp(min=1e-30)))
    return fmean(shares)


def coherence(map_: Tensor) -> float:
    """The share of energy that a 7x7 mean keeps."""
    smooth = F.avg_pool2d(map_[None, None], 7, 1, 3)[0, 0]
    return float(smooth.square().sum() / map_.square().sum().clamp(min=1e-30))


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's, of two maps."""
    ranks = torch.stack([map_.flatten().argsort().argsort().double() for map_ in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


def randomized(model: nn.Module) -> nn.Module:
    """The model with its last dense layer drawn anew."""
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(last.weight, std=float(last.weight.detach().std()))
    return model


def scores(model: nn.Module, composite: Any, images: list[Tensor], grids: list[Any]) -> dict[str, float]:
    """What needs no outlines."""
    answers = [model(x).detach().topk(2).indices[0].tolist() for x in images]
    other = randomized(model)
    maps = [heatmap(model, composite, x, best)[0] for x, (best, _) in zip(images, answers, strict=True)]
    seconds = [heatmap(model, composite, x, second)[0] for x, (_, second) in zip(images, answers, strict=True)]
    random = [heatmap(other, composite, x, best)[0] for x, (best, _) in zip(images, answers, strict=True)]
    return {
        "grid": grid_score(model, composite, images, [best for best, _ in answers], grids),
        "coherence": fmean(map(coherence, maps)),
        "classes": fmean(map(rank_correlation, maps, seconds)),
        "random weights": fmean(map(rank_correlation, maps, random)),
    }


def outline_mask(name: str, size: int = 224) -> Tensor:
    """[size, size], 1 inside the outline of a photograph's object."""
    from skimage.draw import polygon2mask

    corners = [tuple(map(int, corner.split(",")))[::-1] for corner in OUTLINES[name].split()]
    return torch.from_numpy(polygon2mask((size, size), corners)).float()


def on_photographs() -> dict[str, dict[str, float]]:
    """EfficientNet-Lite0 with ImageNet weights."""
    spec = importlib.util.spec_from_file_location("pretrained", ROOT / "examples" / "pretrained.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model = example.load_model()
    images = {name: example.load_photograph(name) for name in example.PHOTOGRAPHS}
    masks = {name: outline_mask(name) for name in images}
    grids = list(itertools.permutations(range(4)))[::8]
    found = {}
    for name, composite in presets(example.LOW, example.HIGH).items():
        inside = []
        for key, x in images.items():
            positive = heatmap(model, composite, x, None)[0].clamp(min=0)
            inside.append(float((positive * masks[key]).sum() / positive.sum() / masks[key].mean()))
        found[name] = {"object": fmean(inside), **scores(model, composite, list(images.values()), grids)}
        print(f"photographs, {name}: {found[name]}", file=sys.stderr)
    return found


def small_network() -> nn.Sequential:
    """A plain convolutional network for digits of any canvas."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
        if outputs == inputs:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def on_digits(folder: Path) -> dict[str, dict[str, float]]:
    """A network trained on MNIST for three epochs; digits of one test batch, in grids of four classes."""
    from isnet.experiments.mnist_files import load_mnist

    digits = load_mnist(folder)
    torch.manual_seed(0)
    images = torch.from_numpy(digits.train_images.copy())[:, None].float() / 255
    labels = torch.from_numpy(digits.train_labels.copy()).long()
    model = small_network()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(3):
        for batch in torch.randperm(min(len(images), 20000)).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    model.eval()
    test = torch.from_numpy(digits.test_images.copy())[:, None].float() / 255
    with torch.no_grad():
        right = model(test).argmax(1) == torch.from_numpy(digits.test_labels.copy())
    print(f"digits: {digits.source}; accuracy {float(right.float().mean()):.3f}", file=sys.stderr)
    chosen = [
        test[i][None]
        for k in range(10)
        for i in (right & (torch.from_numpy(digits.test_labels.copy()) == k)).nonzero()[:2, 0]
    ]
    generator = torch.Generator().manual_seed(0)
    grids = []
    while len(grids) < 12:
        order = torch.randperm(20, generator=generator)[:4].tolist()
        if len({index // 2 for index in order}) == 4:
            grids.append(order)
    found = {}
    for name, composite in presets(0.0, 1.0).items():
        found[name] = scores(model, composite, chosen, grids)
        print(f"digits, {name}: {found[name]}", file=sys.stderr)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    heads = list(next(iter(found.values())))
    lines = [f"| preset | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    lines += [f"| `{name}` | {' | '.join(f'{row[head]:.2f}' for head in heads)} |" for name, row in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["photographs", "digits"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mnist", type=Path, default=Path("data/mnist"))
    arguments = parser.parse_args()
    studies: dict[str, Callable[[], Any]] = {
        "photographs": on_photographs,
        "digits": lambda: on_digits(arguments.mnist),
    }
    found = {name: study() for name, study in studies.items() if arguments.only in (None, name)}
    for name, rows in found.items():
        print(f"\n{name}\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
