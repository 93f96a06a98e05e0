"""Rivals that need more than run options."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isnet.experiments.baselines import RIVALS, Altered, InputGradients, segmented, with_mask
from isnet.runs import RunData


def test_input_gradients_are_penalised_outside_the_mask() -> None:
    torch.manual_seed(0)
    network = InputGradients(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)).double(), strength=2.0)
    images, labels, masks = torch.rand(2, 1, 3, 3).double(), torch.tensor([0, 2]), torch.zeros(2, 1, 3, 3).double()
    masks[:, :, 0] = 1
    given = torch.cat([images, masks], 1)
    loss = network.loss(network(given), labels)
    expected = nn.functional.cross_entropy(network.model(images), labels)
    for image, mask in zip(images, masks, strict=True):
        image = image[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(torch.log_softmax(network.model(image), 1).sum(), image)
        expected = expected + 2.0 / 2 * (gradient[0] * (1 - mask)).square().sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert network.model[1].weight.grad is not None
    assert torch.equal(network.eval()(given), network.model(images))


class Items(TensorDataset):
    """Two images with labels, masks, sources, and epochs that are told."""

    def __init__(self) -> None:
        masks = torch.zeros(2, 1, 2, 2)
        masks[:, :, 0] = 1
        super().__init__(torch.ones(2, 3, 2, 2), torch.tensor([4, 5]), masks)
        self.labels, self.sources, self.epoch = self.tensors[1], ["a", "b"], -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitems__(self, rows: list[int]) -> list[tuple[torch.Tensor, ...]]:
        return [self[row] for row in rows]


def test_altered_images_are_those_of_a_set_with_all_that_it_says() -> None:
    items = Items()
    for change, channels, total in ((segmented, 3, 6), (with_mask, 4, 14)):
        altered = Altered(items, change)
        altered.set_epoch(3)
        ((images, labels, _),) = DataLoader(altered, batch_size=2)  # not by the set's own __getitems__
        assert images.shape == (2, channels, 2, 2) and images[1].sum() == total and labels.tolist() == [4, 5]
        assert (len(altered), altered.sources, items.epoch) == (2, ["a", "b"], 3)


def test_what_rivals_see() -> None:
    data = RunData(Items(), {"validation": Items()}, {"test": Items()})
    sums = {
        name: [int(part[0][0].sum()) for part in (seen.train, seen.validation["validation"], seen.tests["test"])]
        for name, rival in RIVALS.items()
        if (seen := rival.data(data))
    }
    assert sums == {"": [12, 12, 12], "segmented": [6, 6, 6], "input gradients": [14, 12, 12]}
