"""The pictures of docs/pictures.md: a trained network's heatmaps over photographs, rule by rule, class by class and layer by layer.

python examples/pictures.py [FOLDER]

Needs what examples/pretrained.py needs.
"""

import sys
from pathlib import Path

import torch

import lrpkernels as lrp

sys.path.insert(0, str(Path(__file__).parent))  # where a notebook or a test runs this file from elsewhere
from pretrained import CLASSES, HIGH, LOW, MEAN, PHOTOGRAPHS, STD, load_model, load_photograph

SCALE = {"mean": MEAN, "std": STD, "pixels": (0, 255)}  # what the network's input means


def main(folder: Path) -> None:
    model = load_model()
    x = torch.cat([load_photograph(name) for name in PHOTOGRAPHS])
    with torch.no_grad():
        probabilities, best = model(x).softmax(1).max(1)
    labels = [f"{CLASSES.get(int(k), k)} {float(p):.0%}" for k, p in zip(best, probabilities, strict=True)]

    # One line: the preset for pictures, over the images.
    figure = lrp.picture(model, x, labels=labels, **SCALE)
    print(lrp.save(folder / "picture.png", figure, dpi=80))

    # Several rules, one column each.
    rules = {
        "Epsilon(1e-2)": lrp.Epsilon(1e-2),
        "EpsilonGammaBox(gamma=1)": lrp.EpsilonGammaBox(LOW, HIGH, gamma=1.0),
        "EpsilonAlpha2Beta1Flat()": lrp.EpsilonAlpha2Beta1Flat(),
        "EpsilonPlusFlat()": lrp.EpsilonPlusFlat(),
        "lrp.pictures.preset": lrp.pictures.preset(LOW, HIGH),
    }
    with torch.no_grad():
        maps = {name: lrp.LRP(model, rule)(x)[1] for name, rule in rules.items()}
    print(
        lrp.save(folder / "picture-rules.png", maps, x, labels=labels, method="side", colorbar=False, dpi=50, **SCALE)
    )

    # Where the relevance goes: each layer's amount, with two rules.
    for name, rule in (("EpsilonPlus()", lrp.EpsilonPlus()), ("Epsilon(1e-2)", lrp.Epsilon(1e-2))):
        with torch.no_grad(), lrp.record(model, x[:1]) as tape:
            figure = lrp.show_flow(
                tape, int(best[0]), rule, at=["_bn0", *(f"_blocks.{i}" for i in range(16)), "_bn1"], title=name
            )
        print(lrp.save(folder / f"picture-flow-{name.partition('(')[0].lower()}.png", figure, dpi=60))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
