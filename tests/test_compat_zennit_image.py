"""lrpkernels.compat.zennit.image and cmap against the installed zennit: the same pixels; what it takes and refuses beyond."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import zennit
from PIL import Image

from lrpkernels.compat.zennit import cmap, image

SOURCES = [
    *image.CMAPS, "000,fff,", "0:f00,8:0f0,f:00f", "20:f00,0f0,d0:00f", "f00,0f0,00f,123456,fff", "f00,40:0f0,40:00f,fff",
    "1:f00,2:0f0", " 0 : F00 , 80:0f0", "ff:000,fff", "0:000,0:fff", "f00,0f0,7:00f,fff,000,e:123",
    "f00,40:0f0,40:abc,40:00f,fff",
]  # fmt: skip
WRONG = [
    "f00,a,",
    "",
    ",",
    "fff",
    "80:f00,40:0f0",
    "f00,00f,zz",
    "f00;0f0",
    "f00,,0f0",
    "100:f00,fff",
    "ffff,000",
    "f00:8,0f0",
]


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    own = zennit.image.palette  # Pillow 13 wants bytes, zennit 0.5.1 gives it an array
    monkeypatch.setattr(zennit.image, "palette", lambda *args: own(*args).tobytes())
    return zennit.image


@pytest.mark.parametrize("source", SOURCES)
def test_color_maps_equal_zennits(source: str) -> None:
    expected = zennit.image.get_cmap(source)
    found = image.get_cmap(source)
    for level in (0.0, 0.3, 1.0, 1.5, 2.0, -1.0):
        assert np.array_equal(found.palette(level), expected.palette(level))
        assert np.array_equal(image.palette(source, level), expected.palette(level))
    x = np.linspace(-0.2, 1.2, 29).reshape(1, 29)
    assert (
        np.allclose(found(x), expected(x), atol=1e-12, equal_nan=True) or "ff:000" in source
    )  # theirs divides by 0 there


@pytest.mark.parametrize("source", WRONG)
def test_texts_that_are_no_color_map(source: str) -> None:
    with pytest.raises(RuntimeError):
        zennit.cmap.ColorMap(source)
    with pytest.raises(cmap.ColorMapError, match="source: ") as error:
        cmap.ColorMap(source)
    assert isinstance(error.value, RuntimeError) and "\n" not in str(error.value)


def test_color_map_objects() -> None:
    colors = cmap.ColorMap("000,f00")
    assert image.get_cmap(colors) is colors and repr(colors) == "ColorMap('000,f00')"
    colors.source = "000,fff"
    assert np.array_equal(colors.palette(), image.palette("gray"))
    with pytest.raises(cmap.ColorMapError):
        colors.source = "no"
    assert colors.source == "000,fff" and np.array_equal(colors.palette(), image.palette("gray"))
    for copied in (copy.deepcopy(colors), pickle.loads(pickle.dumps(colors))):
        assert np.array_equal(copied.palette(), colors.palette())
    with pytest.raises(cmap.ColorMapError, match="got int"):
        image.get_cmap(3)  # type: ignore[arg-type]


def test_named_color_maps_are_made_once_and_can_be_added() -> None:
    assert list(image.CMAPS) == list(zennit.image.CMAPS) and len(image.CMAPS) == len(zennit.image.CMAPS)
    named = cmap.LazyColorMapCache({"a": "000,fff"})
    first = named["a"]
    named["a"], named["b"] = "fff,000", "f00,0f0"
    assert named["a"] is first and first.source == "fff,000" and set(named) == {"a", "b"}
    del named["a"]
    with pytest.raises(KeyError, match="no color map is called 'a', there are b"):
        named["a"]


SHAPES: list[tuple[tuple[int, ...], Any]] = [
    ((7, 9), False), ((1, 7, 9), False), ((3, 7, 9), False), ((7, 9, 1), False), ((7, 9, 3), False), ((5, 7, 9), True),
    ((5, 1, 7, 9), True),
    ((5, 3, 7, 9), True), ((5, 7, 9, 3), (2, 2)), ((5, 7, 9), (3, 4)), ((1, 7, 9), True), ((7, 3, 3), True), ((10, 7, 9, 1), [2, 5]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8, np.int64])
@pytest.mark.parametrize(("shape", "grid"), SHAPES, ids=str)
def test_images_equal_zennits(shape: tuple[int, ...], grid: Any, dtype: Any, theirs: Any) -> None:
    values = np.random.default_rng(0).normal(size=shape) * 40
    array = (values.clip(0, 255) if dtype is np.uint8 else values).astype(dtype)
    options: list[dict[str, Any]] = [
        {}, {"symmetric": True}, {"symmetric": True, "vmin": 0}, {"vmin": -5.0, "vmax": 30.0, "cmap": "coldnhot"},
        {"vmax": np.float32(20), "level": 2.0, "cmap": "00f,80:ff0,f00"}, {"gridfill": 7, "cmap": "gray", "level": 0.5},
    ]  # fmt: skip
    for chosen in options:
        expected, found = (module.imgify(array, grid=grid, **chosen) for module in (theirs, image))
        assert (found.mode, found.size) == (expected.mode, expected.size)
        assert np.array_equal(np.array(found), np.array(expected))
        assert np.array_equal(np.array(found.convert("RGB")), np.array(expected.convert("RGB")))
        assert np.array_equal(np.array(image.imgify(torch.from_numpy(array), grid=grid, **chosen)), np.array(expected))


def test_limits_of_each_image(theirs: Any) -> None:
    heatmap = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    most = heatmap.abs().numpy().max((1, 2), keepdims=True)
    expected = theirs.imgify(heatmap.numpy(), symmetric=True, grid=True)
    found = image.imgify(
        heatmap, vmin=-most, vmax=most, grid=True
    )  # zennit 0.5.1 fails on two limits of several images
    assert np.array_equal(np.array(found), np.array(expected))
    low, high = image.interval_norm_bounds(heatmap.numpy(), symmetric=True)
    assert np.array_equal(high, most) and np.array_equal(low, -most)
    assert all(np.array_equal(a, b) for a, b in zip(
        image.interval_norm_bounds(heatmap.numpy()), theirs.interval_norm_bounds(heatmap.numpy()), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("shape", [None, (2, 3), (1, 2), (3, 3)])
def test_grids_equal_zennits(shape: Any, theirs: Any) -> None:
    for array in (np.random.default_rng(1).normal(size=s) for s in ((5, 4, 6), (5, 3, 4, 6), (5, 4, 6, 1))):
        assert np.array_equal(image.gridify(array, shape), theirs.gridify(array, shape))
        assert np.array_equal(image.gridify(array, shape, 0.5), theirs.gridify(array, shape, 0.5))


def test_files(tmp_path: Path) -> None:
    heatmap = torch.randn(3, 8, 6, requires_grad=True)
    for name in ("a.png", "a.jpg", "a.gif", "a.JPEG"):
        image.imsave(tmp_path / name, heatmap, symmetric=True, grid=True, cmap="coldnhot")
        assert Image.open(tmp_path / name).size == (6, 24)
    image.imsave(str(tmp_path / "b"), heatmap[0], None, None, "hot", 2.0, False, "png", {"optimize": True})
    assert np.array_equal(Image.open(tmp_path / "b"), image.imgify(heatmap[0], cmap="hot", level=2.0))
    with (tmp_path / "c.png").open("wb") as file:
        image.imsave(file, heatmap[0], format="PNG")
    assert Image.open(tmp_path / "c.png").size == (6, 8)
    with pytest.raises(ValueError, match="unknown file extension"):
        image.imsave(tmp_path / "a.xyz", heatmap[0])
    with pytest.raises(FileNotFoundError):
        image.imsave(tmp_path / "no" / "a.png", heatmap[0])


def test_what_zennit_does_not_take() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    expected = np.array(image.imgify(x))
    assert np.array_equal(np.array(image.imgify(x.clone().requires_grad_())), expected)
    assert np.array_equal(np.array(image.imgify(x.tolist())), expected)
    assert np.array_equal(np.array(image.imgify(np.asfortranarray(x.numpy()))), expected)
    assert image.imgify(x.bfloat16()).size == (5, 6)
    assert set(np.unique(np.array(image.imgify(x > 0)))) == {0, 255}
    wraps = np.array([[0, 60000]], np.uint16)
    assert np.array(image.imgify(wraps, symmetric=True)).tolist() == [[127, 255]]
    assert np.array(image.imgify(np.array([[-128, 127]], np.int8), symmetric=True)).tolist() == [[0, 254]]


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constants_warn_of_nothing(value: float) -> None:
    with np.errstate(all="raise"):
        assert np.unique(np.array(image.imgify(np.full((4, 4), value)))).tolist() == [0]
        middle = np.unique(np.array(image.imgify(np.full((4, 4), value), symmetric=True))).tolist()
    assert middle == ([127] if value == 0 else [255])


@pytest.mark.parametrize(
    ("array", "options", "kind", "text"),
    [
        (np.zeros(3), {}, TypeError, r"expected \[H, W\]"),
        (np.zeros((2, 4, 5)), {}, TypeError, "1 or 3 channels, got shape"),
        (np.zeros((2, 3, 4, 5)), {}, TypeError, "pass grid=True"),
        (np.zeros((2, 2)), {"grid": True}, TypeError, r"expected \[N, H, W\]"),
        (np.zeros((2, 4, 5, 6)), {"grid": True}, TypeError, "1 or 3 channels"),
        (np.zeros((2, 4, 5)), {"grid": (1, 2, 3)}, TypeError, "rows, columns"),
        (np.zeros((2, 4, 5)), {"grid": (0, 2)}, ValueError, "positive"),
        (np.zeros((0, 4, 5)), {"grid": True}, ValueError, "holds no values"),
        (np.array([[0.0, np.nan]]), {}, ValueError, "1 of its 2 values are NaN"),
        (np.zeros((2, 2), complex), {}, TypeError, "real numbers"),
        (np.array([["a"]]), {}, TypeError, "real numbers"),
        (np.zeros((2, 2)), {"cmap": "nope"}, cmap.ColorMapError, "'nope' in 'nope' is no color"),
    ],
)
def test_refused(array: Any, options: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as error:
        image.imgify(array, **options)
    assert "\n" not in str(error.value)
