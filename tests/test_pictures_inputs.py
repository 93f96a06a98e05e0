"""lrp.show, save, show_flow and draw_*: inputs of every kind that a picture can be asked of, and what they are refused with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

import lrpkernels as lrp

H = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
IMAGE = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(1))


def _drawn(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=40)
    return written.getvalue()


FORMS: dict[str, Any] = {
    "float64": H.double(), "bfloat16": H.bfloat16(), "half": H.half(), "gradient": H.clone().requires_grad_(), "parameter": nn.Parameter(H),
    "fortran": np.asfortranarray(H.numpy()), "strided": H.permute(0, 2, 1).contiguous().permute(0, 2, 1), "list": H.tolist(),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_same_heatmap(form: str) -> None:
    figure = lrp.show(FORMS[form])
    drawn = figure.axes[0].images[0].get_array()
    assert np.allclose(drawn, H.sum(0), atol=0.1)


@pytest.mark.parametrize(
    "heatmap",
    [torch.zeros(6, 8), torch.full((6, 8), -3.0), torch.ones(1, 1), torch.ones(3, 1, 1), H * 1e-38, H.double() * 1e300,
     torch.randn(512, 4, 4),
     torch.randn(1, 50), torch.randn(50, 1), H > 0, (H * 9).long(), (IMAGE * 255).byte()],
    ids=str,
)  # fmt: skip
def test_extremes_are_drawn(heatmap: torch.Tensor) -> None:
    assert _drawn(lrp.show(heatmap)).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("heatmap", "text"),
    [
        (H + 0j, "dense real numbers are expected, got a tensor of torch.complex64"),
        (H.to_sparse(), "dense real numbers are expected, got a tensor of torch.float32, torch.sparse_coo"),
        (H.to("meta"), "dense real numbers are expected, got a tensor of torch.float32, torch.strided, on meta"),
        (torch.nested.nested_tensor([torch.ones(2, 2)]), "dense real numbers are expected, got a nested tensor"),
        (torch.nested.nested_tensor([torch.ones(2, 2)], layout=torch.jagged), "dense real numbers are expected"),
        (np.array([["a"]]), "real numbers is expected, got an array of <U1"),
        (None, "got NoneType"),
    ],
    ids=["complex", "sparse", "meta", "nested", "jagged", "texts", "none"],
)
def test_what_holds_no_real_numbers_is_refused(heatmap: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text) as error:
        lrp.show(heatmap)
    assert str(error.value).startswith("heatmap: ") and "\n" not in str(error.value)


def test_numbers_of_numpy_are_numbers() -> None:
    figure = lrp.show(H, scale=np.float32(2), clip=np.float32(1), columns=np.int64(2))
    assert figure.axes[0].images[0].get_clim() == (-2.0, 2.0)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"cmap": 3}, TypeError, "cmap: expected a colour map of matplotlib, or its name, got int"),
        ({"cmap": "nope"}, ValueError, "cmap: matplotlib knows no 'nope'"),
        ({"clip": True}, ValueError, "clip: expected a quantile"),
        ({"columns": True}, ValueError, "columns: expected a positive whole number, got True"),
        ({"scale": float("inf")}, ValueError, "scale: expected"),
        ({"scale": "Each"}, ValueError, "scale: expected"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as error:
        lrp.show(H, **options)
    assert "\n" not in str(error.value)


def test_images_of_other_channels_are_told_what_to_do() -> None:
    for channels in (2, 4, 13):
        with pytest.raises(ValueError, match=f'image: {channels} channels make no picture.*method="map"'):
            lrp.show(H, torch.rand(channels, 6, 8))


def test_titles_of_any_kind_stay_inside_of_the_figure() -> None:
    for title in ("$unbalanced", 5, "e" * 300, "many words " * 30):
        figure = lrp.show(H, title=title)  # type: ignore[arg-type]
        figure.draw_without_rendering()
        box = figure._suptitle.get_window_extent()  # type: ignore[attr-defined]
        assert box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1
        axes = figure.axes[0].get_window_extent()
        assert axes.y1 <= box.y0 and axes.height > 100  # points
    assert lrp.show(H, title="")._suptitle is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("scale", ["each", "shared"])
@pytest.mark.parametrize("size", [(8, 8), (40, 8), (8, 40)])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_scales_are_of_one_width_and_overlap_nothing(count: int, size: tuple[int, int], scale: Any) -> None:
    figure = lrp.show(torch.randn(count, 1, *size), scale=scale)
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [axes.get_tightbbox(renderer) for axes in figure.axes if axes.axison]
    assert len(boxes) == (2 * count if scale == "each" else count + 1)
    for i, one in enumerate(boxes):
        assert not any(one.shrunk(0.98, 0.98).overlaps(other.shrunk(0.98, 0.98)) for other in boxes[:i])
    bars = [axes.get_window_extent() for axes in figure.axes if axes.axison and not axes.images]
    assert all(6 <= bar.width / figure.dpi * 72 <= 15 for bar in bars)  # points


@pytest.mark.parametrize("path", [None, 3, H, io.BytesIO()], ids=["none", "int", "tensor", "file"])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(TypeError, match=r"path: expected a path such as 'heatmap.png', got .*; it comes first"):
        lrp.save(path, H)


@pytest.mark.parametrize("dpi", [0, -1, "a", None, True, float("nan"), float("inf"), 10**6])
def test_resolutions_that_do_not_fit(dpi: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dpi: expected a positive number, below"):
        lrp.save(tmp_path / "a.png", H, dpi=dpi)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "PNG", "svg", "pdf", "jpg", "webp", "tif", "gif"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    assert lrp.save(tmp_path / f"a.{suffix}", H, dpi=40).stat().st_size > 100


def test_a_single_place_of_a_flow() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 6, 3)).eval()
    with torch.no_grad(), lrp.record(model, IMAGE[None]) as tape:
        amounts = lrp.pictures.flow(tape, target=1, at="0")
        assert [amount.place for amount in amounts] == ["input", "0"] and _drawn(
            lrp.show_flow(tape, target=1, at=lrp.input_of("3"))
        )
        assert amounts == lrp.pictures.flow(tape, target=1, at=["0"])


def test_drawing_on_axes_of_ones_own_takes_tensors_and_says_what_does_not_fit() -> None:
    axes = matplotlib.figure.Figure().subplots()
    lrp.pictures.draw_map(axes, H.sum(0).requires_grad_(), 1.0, image=IMAGE, mask=torch.ones(1, 6, 8))
    lrp.pictures.draw_image(axes, IMAGE, IMAGE[:1] > 0.5)
    for relevance, limit, text in (
        (H, 1.0, "relevance: expected"),
        (H[0], 0.0, "limit: expected a positive"),
        (H[0], float("nan"), "limit"),
    ):
        with pytest.raises(ValueError, match=text):
            lrp.pictures.draw_map(axes, relevance, limit)
    with pytest.raises(ValueError, match=r"image: expected \[1, H, W\] or \[3, H, W\]"):
        lrp.pictures.draw_image(axes, IMAGE.permute(1, 2, 0))
