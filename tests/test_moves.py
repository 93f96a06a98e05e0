"""Data movement and products that know their own way back, and networks on whose way nothing is replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.layers.moves import Padding, Permutation, Roll, Selection
from lrpkernels.layers.replayed import Replayed

Call = Callable[[Tensor], Any]

# Of (3, 4, 5, 6): the kind of node, and a call.
MOVES: list[tuple[type, Call]] = [
    (Permutation, lambda x: x.transpose(1, 3)),
    (Permutation, lambda x: x.transpose(-1, -2)),
    (Permutation, lambda x: x.transpose(dim0=1, dim1=2)),
    (Permutation, lambda x: x.permute(0, 3, 1, 2)),
    (Permutation, lambda x: x.permute((0, -1, 1, 2))),
    (Permutation, lambda x: torch.permute(x, [0, 2, 1, 3])),
    (Permutation, lambda x: torch.movedim(x, (1, 2), (3, 1))),
    (Permutation, lambda x: x.mT),
    (Roll, lambda x: torch.roll(x, shifts=(-2, 1), dims=(1, 2))),
    (Roll, lambda x: x.roll(7, -1)),
    (Selection, lambda x: x[:, 1]),
    (Selection, lambda x: x[:, -1, ..., 1::2]),
    (Selection, lambda x: x[..., None, 2]),
    (Selection, lambda x: x[:, 1:3, :, -2:]),
    (Selection, lambda x: x.split(2, 1)),
    (Selection, lambda x: torch.split(x, [1, 3], dim=1)),
    (Selection, lambda x: x.chunk(3, -1)),
    (Selection, lambda x: x.unbind(2)),
    (Selection, lambda x: x.tensor_split((1, 4), dim=2)),
    (Padding, lambda x: F.pad(x, (1, 2))),
    (Padding, lambda x: F.pad(x, [0, 1, 2, 0, 1, 1], value=-2.0)),
]
# What takes images apart, or numbers from elsewhere, goes on as before.
OTHERS: list[Call] = [
    lambda x: x.transpose(0, 1).transpose(0, 1),
    lambda x: x[1:][:, 0].repeat(2, 1, 1)[:3],
    lambda x: x.roll(1, 0),
    lambda x: x.roll(5),
    lambda x: F.pad(x, (-1, 2)),
    lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    lambda x: x[:, [2, 0]],
    lambda x: x[:, torch.tensor(1)],
    lambda x: torch.stack(x.split(1, 0), 1)[0],
]


class _Moved(nn.Module):
    """Numbers of one image each, behind and ahead of a movement."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        moved = self.call(x * 1.5)
        parts = moved if isinstance(moved, tuple) else (moved,)
        total: Tensor = sum(
            (place + 1) * (part * part.detach().cos()).flatten(1)[:, 1:].sum(1) for place, part in enumerate(parts)
        )
        return total[:, None] * torch.tensor([1.0, -2.0], dtype=x.dtype)


def _gradient(model: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    return found


@pytest.mark.parametrize(("kind", "call"), [*MOVES, *((None, call) for call in OTHERS)])
def test_multipliers_go_back_where_the_data_came_from(kind: type | None, call: Call) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(3, 4, 5, 6, dtype=torch.float64), _Moved(call)
    with lrp.record(model, x, check=False) as tape:
        kinds = {type(node) for node in tape.nodes}
        heatmaps = tape.relevance([0, 1], lrp.Gradient())
    assert kind is None or (kind in kinds and not any(issubclass(made, Replayed) for made in kinds))
    expected = _gradient(model, x) * x
    torch.testing.assert_close(heatmaps[:, 1], expected)
    torch.testing.assert_close(heatmaps[:, 0], -expected / 2)


@pytest.mark.parametrize(("kind", "call"), MOVES)
def test_losses_on_heatmaps_reach_what_stands_ahead(kind: type, call: Call) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(4, 4, 1, dtype=torch.float64)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moved = call(torch.relu(first(x)))
            parts = moved if isinstance(moved, tuple) else (moved,)
            return torch.stack([sum((part**2).flatten(1).sum(1) for part in parts)] * 2, 1)

    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)

    def loss() -> Tensor:
        with lrp.record(Model(), x, check=False) as tape:
            return tape.relevance(0, lrp.Epsilon(0.1)).cos().sum()

    assert torch.autograd.gradcheck(lambda w: _with(first, w, loss), first.weight.detach().clone().requires_grad_())


def _with(layer: nn.Module, weight: Tensor, run: Callable[[], Tensor]) -> Tensor:
    kept = layer._parameters.pop("weight")
    layer.weight = weight
    try:
        return run()
    finally:
        del layer.weight
        layer._parameters["weight"] = kept


@pytest.mark.parametrize(("kind", "call"), MOVES)
def test_padding_is_no_data_for_the_first_layer(kind: type, call: Call) -> None:
    """What z^B asks of movement ahead of it: where the layer's input holds data."""
    x = torch.rand(2, 4, 5, 6)
    with lrp.record(_Moved(call), x, check=False) as tape:
        node = next(node for node in tape.nodes if type(node) is kind)
        made, again = node.marks([torch.ones(2, 4, 5, 6)]), node.marks([None])
        for mark, none, value in zip(made, again, node.outputs, strict=True):
            expected = torch.ones(value.shape)
            if kind is Padding:
                expected = (value.tensor != value.tensor.flatten()[0]).to(x.dtype)
            torch.testing.assert_close(mark, expected)
            assert none is None or torch.equal(none, expected)


class _Attends(nn.Module):
    """Attention written out, by products of two branches and a softmax."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.product = (
            nn.Linear(6, 6, dtype=torch.float64),
            nn.Linear(6, 6, dtype=torch.float64),
            product,
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.product(self.q(x), self.k(x)).softmax(-1)
        return (weights @ x.tanh()).sum(1)[:, :3]


PRODUCTS: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda q, k: q @ k.transpose(1, 2),
    lambda q, k: torch.einsum("bqc,bkc->bqk", q, k),
    lambda q, k: torch.bmm(q, k.mT),
]


@pytest.mark.parametrize("product", PRODUCTS)
def test_products_of_branches_are_their_own_derivative(product: Callable[[Tensor, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(2, 5, 6, dtype=torch.float64), _Attends(product)
    with lrp.record(model, x, check=False) as tape:
        assert not [node for node in tape.nodes if isinstance(node, Replayed)]
        heatmaps = tape.relevance([1, 0], lrp.Gradient())
    torch.testing.assert_close(heatmaps[:, 0], _gradient(model, x) * x)

    def heatmap(weight: Tensor) -> Tensor:
        def run() -> Tensor:
            with lrp.record(model, x, check=False) as tape:
                return tape.relevance([0, 2], lrp.Composite(default=lrp.Epsilon(0.1)))

        return _with(model.q, weight, run)

    assert torch.autograd.gradcheck(heatmap, model.q.weight.detach().clone().requires_grad_())


def _vision(name: str) -> tuple[nn.Module, Tensor]:
    transformers = pytest.importorskip("transformers")
    options: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    if "Swin" in name:
        options = {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [2, 2],
            "num_heads": [1, 2],
            "window_size": 4,
        }
    if name == "ConvNext":
        options = {"hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1]}
    config = getattr(transformers, f"{name}Config")(**options, num_labels=3)
    model: nn.Module = getattr(transformers, f"{name}ForImageClassification")(config)
    size = 16 if "hidden_size" in options else 32
    return model.eval(), torch.rand(2, 3, size, size)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Beit", "Data2VecVision", "Dinov2", "Swin", "Swinv2", "ConvNext"])
def test_nothing_is_replayed_in_networks_for_images(name: str) -> None:
    torch.manual_seed(0)
    model, x = _vision(name)
    _refuse_replays(model, x)


def test_nothing_is_replayed_in_an_efficientnet() -> None:
    nets = pytest.importorskip("monai.networks.nets")
    model = nets.EfficientNetBN("efficientnet-b0", pretrained=False, spatial_dims=2, in_channels=3, num_classes=3)
    _refuse_replays(model.eval(), torch.rand(1, 3, 32, 32))


def _refuse_replays(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), lrp.record(model, x, check=False) as tape:
        replayed = [
            f"{node.label()} in {tape.module_path(node.module or model)}"
            for node in tape.nodes
            if isinstance(node, Replayed)
        ]
        assert not replayed
