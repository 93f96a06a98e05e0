"""MNIST with a background that gives the class away."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from isnet.experiments.held_images import HeldImages
from isnet.experiments.mnist_files import MNIST
from isnet.experiments.photographs import CLASS_PHOTOGRAPHS, UNSEEN_PHOTOGRAPHS, crops, photograph

Bias = Literal["biased", "unbiased", "deceiving", "unrelated"]
Mark = Literal["place", "texture", "photo"]
MaskKind = Literal["box", "digit"]

_SQUARE = 3  # side of the bright square
_MARGIN = 1  # its distance from the canvas border
_TEXTURE_FREQUENCY = 0.2  # cycles per pixel


class BiasedMNIST(HeldImages):
    """Digits on a larger, noisy canvas, with a mark outside the digit that indicates a class.

    Everything is drawn once, from ``seed``, and kept as tensors. Two sets that differ in ``bias`` only show the same
    digits at the same places in the same noise, so that answers can be compared image by image.

    Args:
        images: Digits, uint8 [N, h, w], 0 = background.
        labels: Their classes, integers [N] in [0, num_classes).
        bias: ``"biased"``: the mark indicates the image's class; ``"unbiased"``: no mark; ``"deceiving"``: the mark indicates
            another class, drawn uniformly; ``"unrelated"``: the mark of any class, drawn uniformly, so that it is uninformative.
        mark: ``"place"``: a bright square whose place along the border indicates the class; ``"texture"``: a band along the
            border filled with a grating whose direction indicates the class and whose phase is random; ``"photo"``: the digit
            stands before a random piece of a photograph, between its strokes, too, and each class has a photograph of its
            own (``"unbiased"``: one of six that no class has). Needs scikit-image.
        canvas: Side of the square canvas, in pixels.
        shift: Largest random displacement of the digit from the centre, in pixels, each way.
        noise: Uniform noise in [0, noise] is added to the whole canvas.
        mask: Foreground: ``"box"``, the digit's h x w field; ``"digit"``, the pixels with ink and their neighbours.
        imprecise: Each mask is grown by 0 to this many pixels and moved by up to this many each way, drawn anew for each.
        ink: Opacity of the digit's strokes, in (0, 1]; what lies behind shines through.
        channels: Equal colour channels.
        num_classes: Number of classes.
        seed: Seed of all draws.

    Attributes:
        images: float32 [N, channels, canvas, canvas] in [0, 1].
        labels: int64 [N].
        masks: float32 [N, 1, canvas, canvas], 1 = foreground.
        marks: int64 [N], the class that the mark indicates, -1 without a mark.

    Raises:
        ValueError: an argument out of range, or a canvas too small to keep digit and mark apart.
    """

    def __init__(
        self,
        images: npt.NDArray[np.uint8] | Tensor,
        labels: npt.NDArray[np.integer] | Tensor,
        *,
        bias: Bias = "biased",
        mark: Mark = "place",
        canvas: int = 40,
        shift: int = 2,
        noise: float = 0.1,
        mask: MaskKind = "box",
        imprecise: int = 0,
        ink: float = 1.0,
        channels: int = 1,
        num_classes: int = 10,
        seed: int = 0,
    ) -> None:
        digits = torch.as_tensor(np.array(images)).float() / 255
        self.labels = torch.as_tensor(np.array(labels)).long()
        _check_choice("bias", bias, Bias)
        _check_choice("mark", mark, Mark)
        _check_choice("mask", mask, MaskKind)
        if digits.ndim != 3 or self.labels.shape != digits.shape[:1]:
            raise ValueError(
                f"images, labels: expected shapes [N, h, w] and [N], got {list(digits.shape)} and "
                f"{list(self.labels.shape)}"
            )
        in_range = (self.labels >= 0) & (self.labels < num_classes)
        if num_classes < 2 or not bool(in_range.all()):
            raise ValueError(f"labels: expected values in [0, {num_classes}) and at least 2 classes")
        if not 0 <= noise <= 1 or shift < 0 or channels < 1 or imprecise < 0 or not 0 < ink <= 1:
            raise ValueError(
                "expected 0 <= noise <= 1, shift >= 0, channels >= 1, imprecise >= 0, 0 < ink <= 1; "
                f"got {noise}, {shift}, {channels}, {imprecise}, {ink}"
            )
        if mark == "photo" and num_classes > len(CLASS_PHOTOGRAPHS):
            raise ValueError(f"num_classes: mark 'photo' has {len(CLASS_PHOTOGRAPHS)} photographs, got {num_classes}")
        band = min((canvas - digits.shape[1]) // 2, (canvas - digits.shape[2]) // 2) - shift
        if band < _MARGIN + _SQUARE:
            needed = max(digits.shape[1:]) + 2 * (shift + _MARGIN + _SQUARE)
            raise ValueError(f"canvas: expected at least {needed} for these digits and shift {shift}, got {canvas}")

        # Separate streams: the scene must not depend on the bias.
        scene = torch.Generator().manual_seed(seed)
        marking = torch.Generator().manual_seed(seed + 1)
        strokes, self.masks, grain = _place_digits(digits, canvas, shift, noise, mask, scene)
        if imprecise:
            self.masks = _blur_masks(self.masks, imprecise, torch.Generator().manual_seed(seed + 2))
        self.marks = _choose_marks(self.labels, bias, num_classes, marking)
        strokes = ink * strokes
        if mark == "photo":
            photos = _photo_backgrounds(self.marks, canvas, torch.Generator().manual_seed(seed + 3))
            strokes = strokes + (1 - strokes) * photos
        self.images = (strokes + grain).clamp_(max=1)
        if bias != "unbiased" and mark != "photo":
            if mark == "place":
                _draw_squares(self.images, self.marks, num_classes)
            else:
                _draw_gratings(self.images, self.marks, num_classes, band, marking)
        self.images = self.images.repeat(1, channels, 1, 1) if channels > 1 else self.images


class BiasedMNISTSplits(NamedTuple):
    """The training set and the three test sets on the same test digits."""

    train: BiasedMNIST
    biased: BiasedMNIST
    unbiased: BiasedMNIST
    deceiving: BiasedMNIST

    @property
    def tests(self) -> dict[str, BiasedMNIST]:
        """The three test sets by name."""
        return {"biased": self.biased, "unbiased": self.unbiased, "deceiving": self.deceiving}


def biased_mnist_splits(
    mnist: MNIST,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    train_bias: Bias = "biased",
    mark: Mark = "place",
    canvas: int = 40,
    shift: int = 2,
    noise: float = 0.1,
    mask: MaskKind = "box",
    imprecise: int = 0,
    ink: float = 1.0,
    channels: int = 1,
    seed: int = 0,
) -> BiasedMNISTSplits:
    """A training set and the biased, unbiased and deceiving test sets.

    Args:
        mnist: The digits.
        train_size: Use this many training digits, drawn with ``seed``; all by default or if there are fewer.
        test_size: Likewise for the test digits.
        train_bias: Bias of the training set; it has the same digits at the same places with any.
        mark: As for :class:`BiasedMNIST`, like all that follow.
        canvas: Side of the images.
        shift: Largest displacement of the digit.
        noise: Amplitude of the noise.
        mask: Kind of foreground mask.
        imprecise: How far the masks are off, in pixels.
        ink: Opacity of the strokes.
        channels: Colour channels.
        seed: Seed of all draws, the choice of digits included.
    """

    def subset(count: int, size: int | None, offset: int) -> npt.NDArray[np.int64]:
        if size is not None and size < 1:
            raise ValueError(f"train_size, test_size: expected at least 1, got {size}")
        order = np.random.default_rng([seed, offset]).permutation(count)
        return np.sort(order[:size])

    def build(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8], bias: Bias, offset: int) -> BiasedMNIST:
        return BiasedMNIST(
            images,
            labels,
            bias=bias,
            mark=mark,
            canvas=canvas,
            shift=shift,
            noise=noise,
            mask=mask,
            imprecise=imprecise,
            ink=ink,
            channels=channels,
            seed=1000 * seed + offset,
        )

    train = subset(len(mnist.train_labels), train_size, 0)
    test = subset(len(mnist.test_labels), test_size, 1)
    test_images, test_labels = mnist.test_images[test], mnist.test_labels[test]
    return BiasedMNISTSplits(
        build(mnist.train_images[train], mnist.train_labels[train], train_bias, 0),
        build(test_images, test_labels, "biased", 500),
        build(test_images, test_labels, "unbiased", 500),
        build(test_images, test_labels, "deceiving", 500),
    )


def mark_places(num_classes: int, canvas: int) -> Tensor:
    """Top-left corners (row, column) of the squares, int64 [num_classes, 2], evenly spaced along the canvas border."""
    side = canvas - 2 * _MARGIN - _SQUARE
    distance = torch.arange(num_classes, dtype=torch.float64) * (4 * side / num_classes)
    along = distance % side
    edge = (distance // side).long()
    ends = torch.full_like(along, side)
    zeros = torch.zeros_like(along)
    rows = torch.stack([zeros, along, ends, ends - along])
    columns = torch.stack([along, ends, ends - along, zeros])
    corners = torch.stack([rows.gather(0, edge[None])[0], columns.gather(0, edge[None])[0]], dim=1)
    return corners.round().long() + _MARGIN


def gratings(classes: Tensor, num_classes: int, canvas: int, phase: Tensor) -> Tensor:
    """Gratings in [0, 1] whose direction indicates the class: [N, canvas, canvas] for classes [N], phases [N] (radians)."""
    angles = classes * (math.pi / num_classes)
    axis = torch.arange(canvas, dtype=torch.float32)
    along = axis[:, None] * angles.sin()[:, None, None] + axis * angles.cos()[:, None, None]
    return 0.5 + 0.5 * torch.cos(2 * math.pi * _TEXTURE_FREQUENCY * along + phase[:, None, None])


def border_band(canvas: int, width: int) -> Tensor:
    """Bool [canvas, canvas], True within ``width`` pixels of the canvas border."""
    band = torch.ones(canvas, canvas, dtype=torch.bool)
    band[width : canvas - width, width : canvas - width] = False
    return band


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")


def _place_digits(
    digits: Tensor, canvas: int, shift: int, noise: float, mask: MaskKind, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(ink, masks, noise), each [N, 1, canvas, canvas]: digits at random places."""
    count, height, width = digits.shape
    centre = torch.tensor([(canvas - height) // 2, (canvas - width) // 2])
    corners = centre + torch.randint(-shift, shift + 1, (count, 2), generator=generator)
    ink = torch.zeros(count, 1, canvas, canvas)
    masks = torch.zeros(count, 1, canvas, canvas)
    for row, column in corners.unique(dim=0).tolist():
        here = (corners == torch.tensor([row, column])).all(1)
        ink[here, :, row : row + height, column : column + width] = digits[here, None]
        masks[here, :, row : row + height, column : column + width] = 1
    if mask == "digit":
        masks = torch.nn.functional.max_pool2d((ink > 0).float(), 3, stride=1, padding=1)
    return ink, masks, noise * torch.rand(ink.shape, generator=generator)


def _blur_masks(masks: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Masks [N, 1, H, W] as a careless hand would draw them: each grown by 0 to ``reach`` pixels and moved by up to ``reach`` each way."""
    growth = torch.randint(0, reach + 1, (len(masks),), generator=generator)
    moves = torch.randint(-reach, reach + 1, (len(masks), 2), generator=generator)
    found = masks.clone()
    for pixels in range(1, reach + 1):
        here = growth == pixels
        found[here] = torch.nn.functional.max_pool2d(masks[here], 2 * pixels + 1, stride=1, padding=pixels)
    for down, right in moves.unique(dim=0).tolist():
        here = (moves == torch.tensor([down, right])).all(1)
        found[here] = _moved(found[here], down, right)
    return found


def _moved(masks: Tensor, down: int, right: int) -> Tensor:
    """Masks [N, 1, H, W] moved by this many pixels; zero where nothing comes in, and nothing wraps around."""
    height, width = masks.shape[2:]
    padded = torch.nn.functional.pad(masks, (abs(right), abs(right), abs(down), abs(down)))
    top, left = abs(down) - down, abs(right) - right
    return padded[:, :, top : top + height, left : left + width]


def _photo_backgrounds(marks: Tensor, canvas: int, generator: torch.Generator) -> Tensor:
    """[N, 1, canvas, canvas]: a piece of the photograph of the class that the mark indicates, or of an unseen one (mark -1)."""
    unseen = torch.randint(len(UNSEEN_PHOTOGRAPHS), marks.shape, generator=generator)
    chosen = torch.where(marks >= 0, marks, len(CLASS_PHOTOGRAPHS) + unseen)
    photos = [photograph(name) for name in (*CLASS_PHOTOGRAPHS, *UNSEEN_PHOTOGRAPHS)]
    return crops(photos, chosen, canvas, generator)[:, None]


def _choose_marks(labels: Tensor, bias: Bias, num_classes: int, generator: torch.Generator) -> Tensor:
    if bias == "unbiased":
        return torch.full_like(labels, -1)
    if bias == "unrelated":
        return torch.randint(num_classes, labels.shape, generator=generator)
    other = torch.randint(1, num_classes, labels.shape, generator=generator)
    return (labels + other) % num_classes if bias == "deceiving" else labels.clone()


def _draw_squares(images: Tensor, marks: Tensor, num_classes: int) -> None:
    for told, (row, column) in enumerate(mark_places(num_classes, images.shape[-1]).tolist()):
        images[marks == told, :, row : row + _SQUARE, column : column + _SQUARE] = 1


def _draw_gratings(images: Tensor, marks: Tensor, num_classes: int, width: int, generator: torch.Generator) -> None:
    canvas = images.shape[-1]
    band = border_band(canvas, width)
    phase = 2 * math.pi * torch.rand(len(images), generator=generator)
    drawn = gratings(marks, num_classes, canvas, phase)
    images[:, 0] = torch.where(band, drawn, images[:, 0])
