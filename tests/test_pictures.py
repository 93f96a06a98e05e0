"""Pictures of heatmaps: what they show, and that what makes no picture is refused by name."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels import pictures


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    convolution, dense = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
    return nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), dense).eval()


def panels(figure: Figure) -> list[Any]:
    """The axes that show an image or a map, colour bars left out."""
    return [axes for axes in figure.axes if axes.images]


def pixels_of(figure: Figure, number: int = 0) -> np.ndarray:
    return np.asarray(panels(figure)[number].images[0].get_array())


def bars(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def drawn(figure: Figure) -> np.ndarray:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=40)
    return np.asarray(Image.open(written).convert("RGB"))


def heat(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("shape", "count"), [((6, 7), 1), ((3, 6, 7), 1), ((4, 3, 6, 7), 4), ((2, 5, 3, 6, 7), 10), ((1, 1, 1, 1), 1)]
)
def test_every_form_of_heatmap_has_its_panels(shape: tuple[int, ...], count: int) -> None:
    figure = lrp.show(heat(*shape))
    assert len(panels(figure)) == len(bars(figure)) == count
    map_ = heat(*shape).double().reshape(-1, *shape[-3:])[0] if len(shape) > 2 else heat(*shape).double()[None]
    np.testing.assert_allclose(pixels_of(figure), map_.sum(0), atol=1e-12)  # summed over channels
    assert drawn(figure).std() > 0


@pytest.mark.parametrize(
    "made",
    [
        lambda x: x.bfloat16().requires_grad_(),
        lambda x: x.double()[:, :, ::1].transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.numpy().astype(np.float16),
        lambda x: x.expand(3, 6, 7),
        lambda x: x.numpy()[:, ::-1],
    ],
)
def test_tensors_and_arrays_of_any_kind(made: Any) -> None:
    given = made(heat(3, 6, 7))
    expected = given.detach().double().numpy() if isinstance(given, Tensor) else given.astype(np.float64)
    np.testing.assert_allclose(pixels_of(lrp.show(given)), expected.sum(0))


def test_scales_are_each_maps_own_or_shared_or_given() -> None:
    maps = torch.stack([heat(1, 8, 8), 10 * heat(1, 8, 8)])
    each, shared, given = lrp.show(maps, clip=1), lrp.show(maps, clip=1, scale="shared"), lrp.show(maps, scale=0.5)
    top = float(heat(1, 8, 8).abs().max())
    limits = [[axes.images[0].norm.vmax for axes in panels(figure)] for figure in (each, shared, given)]
    np.testing.assert_allclose(limits, [[top, 10 * top], [10 * top, 10 * top], [0.5, 0.5]], rtol=1e-6)
    assert [len(bars(figure)) for figure in (each, shared, given)] == [2, 1, 1]
    assert all(axes.images[0].norm.vmin == -axes.images[0].norm.vmax for axes in panels(each))
    assert not bars(lrp.show(maps, colorbar=False))


def test_the_scale_ends_at_a_quantile_and_the_bar_says_so() -> None:
    map_ = torch.ones(1, 10, 100)
    map_[0, 0, 0] = 1000
    assert panels(lrp.show(map_))[0].images[0].norm.vmax == pytest.approx(1.0)
    assert panels(lrp.show(map_, clip=1))[0].images[0].norm.vmax == 1000
    extended = [figure.axes[1]._colorbar.extend for figure in (lrp.show(map_), lrp.show(map_, clip=1))]
    assert extended == ["both", "neither"]


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-30, 1e30])
def test_constant_maps(value: float) -> None:
    figure = lrp.show(torch.full((1, 5, 5), value))
    assert panels(figure)[0].images[0].norm.vmax == (abs(torch.tensor(value).item()) or 1.0)
    assert drawn(figure).shape[2] == 3


def test_zero_is_white_and_both_signs_are_told_apart_by_everyone() -> None:
    colors = pictures.relevance_colors()
    assert colors(0.5)[:3] == (1, 1, 1)
    positive, negative = colors(np.linspace(0.5, 1, 9))[:, :3], colors(np.linspace(0.5, 0, 9))[:, :3]
    luma = np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(positive @ luma) < 0).all() and (np.diff(negative @ luma) < 0).all()
    # Deuteranopia and protanopia: Machado, Oliveira and Fernandes 2009, severity 1.
    deuteranopia = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    protanopia = [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    for seen in (deuteranopia, protanopia):
        difference = positive[2:] @ np.transpose(seen) - negative[2:] @ np.transpose(seen)
        assert (np.linalg.norm(difference, axis=1) > 0.25).all()


def test_an_overlay_shows_the_grey_image_where_there_is_no_relevance() -> None:
    map_, image = torch.zeros(1, 4, 4), torch.rand(3, 4, 4)
    map_[0, 1, 1], map_[0, 2, 2] = 1, -1
    shown = pixels_of(lrp.show(map_, image, clip=1))
    assert np.ptp(shown[0, 0]) < 1e-12 and shown[1, 1, 0] > shown[1, 1, 2] and shown[2, 2, 2] > shown[2, 2, 0]
    np.testing.assert_allclose(shown[1, 1], pictures.relevance_colors()(1.0)[:3])
    brightness = (image.permute(1, 2, 0).double().numpy() @ [0.299, 0.587, 0.114])[0]
    assert (np.argsort(shown[0, :, 0]) == np.argsort(brightness)).all()


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda x: x, {}),
        (lambda x: (255 * x).round().byte(), {}),
        (lambda x: (255 * x).round().byte().numpy(), {}),
        (lambda x: 255 * x, {"pixels": (0, 255)}),
        (lambda x: (x - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.2, {"mean": (0.4, 0.5, 0.6), "std": 0.2}),
        (lambda x: (255 * x - 127) / 128, {"mean": 127.0, "std": 128.0, "pixels": (0, 255)}),
        (lambda x: x.bfloat16(), {}),
        (lambda x: x.requires_grad_(), {}),
    ],
)
def test_images_of_every_range_look_the_same(make: Any, options: dict[str, Any]) -> None:
    image = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(1))
    figure = lrp.show(heat(3, 6, 7), make(image.clone()), method="side", **options)
    np.testing.assert_allclose(pixels_of(figure), image.permute(1, 2, 0), atol=0.005)


def test_grids_have_a_row_for_each_image_and_a_column_for_each_explanation() -> None:
    image = torch.rand(2, 1, 6, 7)
    figure = lrp.show({"a": heat(2, 3, 6, 7), "b": heat(2, 1, 6, 7)}, image, labels=["first", "second"], method="side")
    assert [axes.get_title() for axes in panels(figure)] == ["image", "a", "b", "", "", ""]
    assert [axes.get_ylabel() for axes in panels(figure)] == ["first", "", "", "second", "", ""]
    figure = lrp.show(heat(1, 3, 1, 6, 7), names=["cat", "$dog$", "bird"])
    assert [axes.get_title() for axes in panels(figure)] == ["cat", r"\$dog\$", "bird"]
    assert drawn(figure).size
    figure = lrp.show(heat(5, 1, 6, 7), columns=2)
    assert len(panels(figure)) == 5 and len(figure.axes) == 5 + 1 + 5


def test_the_share_outside_of_the_mask_is_that_of_the_library() -> None:
    mask = torch.zeros(2, 1, 6, 7)
    mask[..., 2:4, 2:5] = 1
    figure = lrp.show(heat(2, 3, 6, 7), mask=mask)
    shares = lrp.heatmap.background_share(heat(2, 3, 6, 7), mask)
    assert [axes.get_xlabel() for axes in panels(figure)] == [f"{float(share):.1%} outside" for share in shares]
    for form in (mask[0, 0].bool(), mask[0], mask[:, 0], mask[:1].numpy()):
        assert panels(lrp.show(heat(2, 3, 6, 7), mask=form))[0].get_xlabel() == f"{float(shares[0]):.1%} outside"
    assert lrp.show(heat(1, 6, 7), mask=torch.zeros(6, 7)).axes[0].get_xlabel() == "100.0% outside"


def test_volumes_are_slices_with_one_scale_for_each_volume() -> None:
    volume = heat(2, 1, 8, 6, 7)
    figure = lrp.show(volume, torch.rand(2, 1, 8, 6, 7), volume > 1, dims=3, slices=[0, -1], labels=["a", "b"])
    assert [axes.get_title() for axes in panels(figure)] == ["a slice 0", "a slice 7", "b slice 0", "b slice 7"]
    figure = lrp.show(volume, dims=3, slices=[0, -1])
    np.testing.assert_allclose(pixels_of(figure, 1), volume[0, 0, -1], atol=1e-12)
    limits = [axes.images[0].norm.vmax for axes in panels(figure)]
    assert limits[0] == limits[1] != limits[2] == limits[3]
    assert [axes.get_title() for axes in panels(lrp.show(volume[:1], dims=3, slices=3))] == [
        "slice 2",
        "slice 4",
        "slice 5",
    ]
    assert len(panels(lrp.show(volume, dims=3, slices=99))) == 16


NAN = torch.tensor([[[0.0, float("nan")], [float("inf"), 1.0]]])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"heatmap": NAN}, "heatmap: 2 of its 4 values are NaN or infinite"),
        ({"image": torch.full((3, 6, 7), float("nan"))}, "image: 126 of its 126 values are NaN"),
        ({"image": 255 * torch.rand(3, 6, 7) + 2}, r"image: values from .* outside of \[0, 1\]; give pixels=\(0, 255\)"),
        ({"image": torch.rand(6, 7, 3)}, r"image: size 7x3, expected the heatmap's 6x7; its channels come last"),
        ({"image": torch.rand(4, 6, 7)}, "image: 4 channels make no picture"),
        ({"image": torch.rand(2, 3, 6, 7)}, "image: 2 of them, expected 1"),
        ({"image": torch.rand(3, 6, 7), "mean": (0.1, 0.2)}, r"mean: expected one number or 3, got \[0.1, 0.2\]"),
        ({"image": torch.rand(3, 6, 7), "std": 0}, "std: expected one positive number"),
        ({"image": torch.rand(3, 6, 7), "pixels": (1, 0)}, "pixels: expected .* black < white"),
        ({"image": torch.rand(3, 6, 7), "pixels": 255}, "pixels: expected .* two numbers, got 255"),
        ({"mask": 255 * torch.ones(6, 7)}, "mask: values from 255 to 255, expected 0 to 1"),
        ({"mask": torch.ones(3, 6, 7)}, "mask: shape 3x6x7, expected"),
        ({"mask": torch.ones(7, 6)}, "mask: shape 7x6, expected"),
        ({"method": "overlay"}, "method: 'overlay' needs an image"),
        ({"method": "beside"}, 'method: expected "overlay", "map" or "side"'),
        ({"scale": "all"}, "scale: expected"),
        ({"scale": -1}, "scale: expected"),
        ({"clip": 0}, "clip: expected a quantile"),
        ({"clip": 99.8}, "clip: expected a quantile"),
        ({"cmap": "rainbows"}, "cmap: matplotlib knows no 'rainbows'"),
        ({"labels": "a"}, "labels: 1 texts are expected, one for each image of heatmap, got one text"),
        ({"labels": ["a", "b"]}, "labels: 1 texts .* got 2"),
        ({"names": ["a"]}, "names: heatmap of shape 3x6x7 has no targets"),
        ({"heatmap": heat(1, 2, 1, 6, 7), "names": ["a"]}, "names: 2 texts are expected"),
        ({"heatmap": {}}, "heatmap: the mapping is empty"),
        ({"heatmap": {"a": heat(1, 6, 7), "b": heat(1, 7, 6)}}, r"heatmap\['b'\]: 1x7x6 .* differs from .* 1x6x7"),
        ({"heatmap": {"a": heat(2, 1, 6, 7)[None]}}, r"heatmap\['a'\]: expected .*volumes: dims=3.*, got shape 1x2x1x6x7"),
        ({"heatmap": heat(7)}, "heatmap: expected .* got shape 7"),
        ({"heatmap": heat(1, 1, 1, 1, 6, 7)}, "heatmap: expected"),
        ({"heatmap": torch.zeros(0, 3, 6, 7)}, "heatmap: shape .* holds no values"),
        ({"heatmap": heat(200, 1, 2, 2)}, "heatmap: 200 pictures in one figure, at most 150"),
        ({"columns": 0}, "columns: expected"),
        ({"dims": 4}, "dims must be 2"),
        ({"heatmap": heat(1, 4, 6, 7), "dims": 3, "slices": [4]}, "slices: expected .* the depth 4"),
        ({"heatmap": heat(1, 4, 6, 7), "dims": 3, "slices": 0}, "slices: expected"),
        ({"heatmap": heat(4, 6, 7), "dims": 3}, r"heatmap: expected \[C, D, H, W\]"),
    ],
)  # fmt: skip
def test_what_makes_no_picture_is_refused_by_name(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text) as raised:
        lrp.show(**{"heatmap": heat(3, 6, 7), **arguments})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "given", [None, "heatmap.png", 3, torch.zeros(1, 2, 2, dtype=torch.complex64), np.array(["a"]), object()]
)
def test_what_holds_no_real_numbers(given: Any) -> None:
    with pytest.raises(TypeError, match=r"heatmap: .* real numbers"):
        lrp.show(given)


def test_a_figure_shows_itself_and_leaves_pyplot_alone() -> None:
    code = (
        "import sys, torch, lrpkernels as lrp\n"
        "assert 'matplotlib' not in sys.modules\n"
        "figure = lrp.show(torch.randn(1, 4, 4))\n"
        "assert figure._repr_png_()[1:4] == b'PNG' and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    figure = pickle.loads(pickle.dumps(lrp.show(heat(1, 4, 4))))
    assert figure._repr_png_()[1:4] == b"PNG"


def test_saving(tmp_path: Path) -> None:
    assert lrp.save(tmp_path / "a.png", heat(1, 4, 4), dpi=50) == tmp_path / "a.png"
    assert Image.open(tmp_path / "a.png").size[0] == 155
    lrp.save(str(tmp_path / "b.PDF"), lrp.show(heat(1, 4, 4)))
    assert (tmp_path / "b.PDF").read_bytes()[:4] == b"%PDF"
    with pytest.raises(ValueError, match=r"path: .*ends in '.npy', expected one of .*\.png"):
        lrp.save(tmp_path / "a.npy", heat(1, 4, 4))
    with pytest.raises(ValueError, match="a figure is written as it is"):
        lrp.save(tmp_path / "a.png", lrp.show(heat(1, 4, 4)), cmap="gray")
    with pytest.raises(FileNotFoundError, match=r"path: the folder .* does not exist"):
        lrp.save(tmp_path / "no" / "a.png", heat(1, 4, 4))


def test_without_matplotlib_one_line_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\nimport torch, lrpkernels as lrp\nlrp.show(torch.ones(1, 2, 2))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines()[-1].endswith(
        "pictures need matplotlib, which is not installed: pip install matplotlib"
    )


def test_a_picture_of_a_model(model: nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8)
    figure = lrp.picture(model, x, 1, labels=["a", "b"], clip=1)
    with torch.no_grad():
        _, expected = lrp.LRP(model, pictures.preset(0.0, 1.0))(x, 1)
    limits = [float(map_.sum(0).abs().max()) for map_ in expected]
    assert [bar._colorbar.vmax for bar in bars(figure)] == pytest.approx(limits)
    assert len(panels(lrp.picture(model, x, [0, 1], composite=lrp.Epsilon(), names=["cat", "dog"]))) == 6
    with pytest.raises(ValueError, match=r"image: values from .*mean= and std="):
        lrp.picture(model, 5 * x, 1)
    normalized = {"mean": (0.4, 0.5, 0.6), "std": 0.2}
    bounds = [(value - torch.tensor(normalized["mean"])[:, None, None]) / 0.2 for value in (0.0, 1.0)]
    shown = lrp.picture(model, bounds[0] + x * (bounds[1] - bounds[0]), 1, clip=1, **normalized)
    with torch.no_grad():
        _, expected = lrp.LRP(model, pictures.preset(*bounds))(bounds[0] + x * (bounds[1] - bounds[0]), 1)
    assert bars(shown)[0]._colorbar.vmax == pytest.approx(float(expected[0].sum(0).abs().max()), rel=1e-4)
    with pytest.raises(ValueError, match=r"x: expected images \[B, C, H, W\].*got shape \(3, 8, 8\)"):
        lrp.picture(model, x[0], 1)
    four = nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(72, 2)).eval().bfloat16()
    assert len(panels(lrp.picture(four, torch.rand(1, 4, 8, 8).bfloat16(), method="map"))) == 1
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        lrp.picture(nn.Sequential(nn.Conv2d(3, 4, 3)), x)


def test_the_flow_of_relevance_adds_up(model: nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad(), lrp.record(model, x) as tape:
        amounts = pictures.flow(tape, 1, lrp.EpsilonPlus(), at=["0", "4"])
        found = tape.relevance(1, lrp.EpsilonPlus(), at=["0", "4"])
        figure = lrp.show_flow(tape, 1, title="flow")
    assert [amount.place for amount in amounts] == ["input", "0", "4"] and pictures.flow(found) == amounts
    for amount in amounts:
        values = found[amount.place].double()
        assert amount.net == pytest.approx(float(values.sum()) / 2) and amount.negative <= 0 <= amount.positive
        assert amount.absolute == pytest.approx(float(values.abs().sum()) / 2)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["input", "0", "1", "2", "3", "4"] and drawn(figure).size
    for given, error in ((tape.model, TypeError), ({}, ValueError), ({"input": NAN}, ValueError)):
        with pytest.raises(error, match=r"source: expected a Tape|empty|relevance at input: 2 of its 4"):
            pictures.flow(given)
    with pytest.raises(ValueError, match="belong to a recording"):
        pictures.flow(found, target=1)


def test_notebooks_show_tables_and_text_stays_text(model: nn.Module) -> None:
    attribution = lrp.LRP(
        model, lrp.Composite({"<b>": lrp.Gamma()}, first=lrp.ZBox(torch.zeros(3, 1, 1), 1.0)), static=True
    )
    assert repr(attribution).startswith(
        "LRP(Sequential, composite=Composite(layers={'<b>': Gamma("
    ) and "\n" not in repr(attribution)
    shown = attribution._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown and "<tensor" not in shown and "static" in shown
    table = lrp.LRP(model).explain(torch.rand(1, 3, 8, 8))
    assert table == str(table) and table.splitlines()[1].startswith("0       conv -> relu")
    assert table._repr_html_().count("<tr>") == 1 + len(table.rows) and "conv -&gt; relu" in table._repr_html_()
    assert pickle.loads(pickle.dumps(table)).rows == table.rows


def test_other_programs_can_draw_on_their_own_axes() -> None:
    figure = Figure()
    axes = figure.subplots(1, 2)
    pictures.draw_image(axes[0], np.zeros((1, 4, 4)), np.eye(4)[None])
    mappable = pictures.draw_map(axes[1], np.eye(4), 2.0, image=np.ones((3, 4, 4)), cmap="RdBu_r")
    assert figure.colorbar(mappable, ax=axes[1]).vmax == 2.0 and axes[0].collections and matplotlib.__version__
