"""A segmenter for the images that have no mask: MONAI's U-Net, trained on those that have one, then used by isnet train.

python examples/segmenter.py DATA      (without DATA: on made-up images)
isnet train runs/mine --data DATA --segmenter examples/segmenter.py:Mine
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from isnet.data import MaskedImages, read_table
from isnet.experiments.segmenter import Segmenter, train_segmenter

WEIGHTS, SIZE, CHANNELS = Path("segmenter.pt"), 64, 3


class Mine(Segmenter):
    """What isnet train makes, without arguments, and calls on each image that has no mask."""

    def __init__(self) -> None:
        found = Segmenter.load(WEIGHTS)
        super().__init__(found.network, found.size)


def images_and_masks(data: str) -> tuple[torch.Tensor, torch.Tensor]:
    table = read_table(data)
    masked = tuple(record for record in table.records if record.split == "train" and record.mask is not None)
    images, _, masks = zip(*MaskedImages(replace(table, records=masked), SIZE, channels=CHANNELS), strict=True)
    return torch.stack(images), torch.stack(masks)


def made_up(folder: Path) -> str:
    """Bright squares on noise in two classes, a third of them with a mask."""
    rows, generator = ["image,label,mask"], torch.Generator().manual_seed(0)
    folder.mkdir(exist_ok=True)
    for number in range(24):
        pixels, mask = torch.randint(90, (48, 48, 3), generator=generator), torch.zeros(48, 48)
        top, left = torch.randint(4, 24, (2,), generator=generator).tolist()
        pixels[top : top + 20, left : left + 20, number % 2] += 150
        mask[top : top + 20, left : left + 20] = 255
        for name, values in ((f"{number}.png", pixels), (f"{number}-mask.png", mask)):
            Image.fromarray(values.to(torch.uint8).numpy()).save(folder / name)
        rows.append(
            f"{number}.png,{'red' if number % 2 == 0 else 'green'},{'' if number % 3 else f'{number}-mask.png'}"
        )
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return str(folder / "manifest.csv")


if __name__ == "__main__":
    data = sys.argv[1] if len(sys.argv) > 1 else made_up(Path("squares"))
    images, masks = images_and_masks(data)
    held_out = max(1, len(images) // 5)  # to see how good it is before you train with it
    segmenter = train_segmenter(images[held_out:], masks[held_out:], steps=40 if len(images) < 20 else 400)
    found = (segmenter.probabilities(images[:held_out]) > 0.5).float()
    dice = 2 * (found * masks[:held_out]).sum() / (found + masks[:held_out]).sum()
    segmenter.save(WEIGHTS)
    print(f"{WEIGHTS}: trained on {len(images) - held_out} masks of {data}; Dice on {held_out} others {dice:.2f}")
