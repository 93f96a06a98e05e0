"""Biased MNIST: what the mark tells, what the sets share, where the digit lies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isnet.experiments import mnist_files as mnist
from isnet.experiments.biased_mnist import BiasedMNIST, biased_mnist_splits, border_band, gratings, mark_places

RANDOM = np.random.default_rng(0)
COUNT = 400
IMAGES = RANDOM.integers(0, 256, (COUNT, 28, 28), dtype=np.uint8)
LABELS = RANDOM.integers(0, 10, COUNT, dtype=np.uint8)


@pytest.mark.parametrize("mark", ["place", "texture"])
def test_mark_alone_suffices_to_classify(mark: str) -> None:
    """With the foreground painted over, template matching reads the class off the background."""
    data = BiasedMNIST(IMAGES, LABELS, mark=mark, seed=3)
    background = (data.images * (1 - data.masks))[:, 0]
    canvas = background.shape[-1]
    if mark == "place":
        templates = torch.zeros(10, canvas, canvas)
        for told, (row, column) in enumerate(mark_places(10, canvas).tolist()):
            templates[told, row : row + 3, column : column + 3] = 1
        scores = torch.einsum("nhw,khw->nk", background, templates)
    else:  # the phase is random, so the energy in a quadrature pair of gratings counts
        classes, band = torch.arange(10), border_band(canvas, 4)
        pairs = [2 * gratings(classes, 10, canvas, torch.full((10,), phase)) - 1 for phase in (0.0, torch.pi / 2)]
        scores = sum(torch.einsum("nhw,khw->nk", (background - 0.5) * band, pair).square() for pair in pairs)
    assert (scores.argmax(1) == data.labels).float().mean() > 0.99


@pytest.mark.parametrize("mark", ["place", "texture"])
def test_sets_differ_in_the_mark_alone(mark: str) -> None:
    sets = {
        bias: BiasedMNIST(IMAGES, LABELS, bias=bias, mark=mark, seed=5) for bias in ("biased", "unbiased", "deceiving")
    }
    biased, unbiased, deceiving = sets.values()
    inside = unbiased.masks == 1
    for data in sets.values():
        assert torch.equal(data.labels, torch.as_tensor(LABELS).long())
        assert torch.equal(data.masks, unbiased.masks)
        assert torch.equal(data.images[inside], unbiased.images[inside])
        assert data.images.min() >= 0 and data.images.max() <= 1
    assert torch.equal(biased.marks, biased.labels)
    assert (unbiased.marks == -1).all()
    assert (deceiving.marks != deceiving.labels).all()
    other = (deceiving.marks - deceiving.labels) % 10
    assert other.unique().tolist() == list(range(1, 10))
    assert not torch.equal(biased.images, unbiased.images)
    assert unbiased.images[~inside].max() <= 0.1


def test_digit_lies_in_the_box_mask_at_its_own_place() -> None:
    data = BiasedMNIST(IMAGES, LABELS, noise=0.0, shift=2)
    assert (data.masks.sum((1, 2, 3)) == 28 * 28).all()
    inside = data.images[data.masks == 1].view(COUNT, 28, 28)
    torch.testing.assert_close(inside, torch.as_tensor(IMAGES).float() / 255)
    assert len(data.masks.unique(dim=0)) > 20
    centred = BiasedMNIST(IMAGES, LABELS, shift=0)
    assert len(centred.masks.unique(dim=0)) == 1


def test_digit_mask_covers_the_ink() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 10, 12] = 200
    data = BiasedMNIST(image, np.array([1]), mask="digit", noise=0.0, shift=0, bias="unbiased")
    assert data.masks[0, 0].nonzero().tolist() == [[15 + i, 17 + j] for i in range(3) for j in range(3)]


def test_places_lie_apart_inside_the_border() -> None:
    for classes in (2, 10, 16):
        corners = mark_places(classes, 40)
        assert corners.min() >= 1 and corners.max() <= 36
        distance = (corners[:, None] - corners).abs().amax(-1) + 99 * torch.eye(classes, dtype=torch.long)
        assert distance.min() > 3


def test_seed_decides_everything() -> None:
    one, same, other = (BiasedMNIST(IMAGES, LABELS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    BiasedMNIST(IMAGES, LABELS, mark="texture")
    assert torch.equal(before, torch.get_rng_state())


def test_items_and_batches_agree() -> None:
    data = BiasedMNIST(IMAGES, LABELS, channels=3)
    batch = next(iter(torch.utils.data.DataLoader(data, batch_size=5)))
    assert [list(part.shape) for part in batch] == [[5, 3, 40, 40], [5], [5, 1, 40, 40]]
    for row in range(5):
        assert all(torch.equal(part[row], item) for part, item in zip(batch, data[row], strict=True))
    assert len(data) == COUNT


def test_splits_share_the_test_digits() -> None:
    source = mnist.MNIST(IMAGES[:300], LABELS[:300], IMAGES[300:], LABELS[300:], source="test")
    splits = biased_mnist_splits(source, train_size=120, test_size=50, seed=1)
    assert [len(data) for data in splits] == [120, 50, 50, 50]
    assert torch.equal(splits.biased.labels, splits.deceiving.labels)
    assert torch.equal(splits.train.marks, splits.train.labels)
    assert list(splits.tests) == ["biased", "unbiased", "deceiving"]
    assert len(biased_mnist_splits(source).train) == 300


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bias": "none"}, "bias: expected one of biased, unbiased, deceiving, unrelated, got 'none'"),
        ({"mark": "colour"}, "mark: expected one of"),
        ({"mask": "none"}, "mask: expected one of"),
        ({"canvas": 39}, "canvas: expected at least 40"),
        ({"noise": 1.5}, "noise"),
        ({"num_classes": 5}, r"labels: expected values in \[0, 5\)"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BiasedMNIST(IMAGES, LABELS, **arguments)  # type: ignore[arg-type]
