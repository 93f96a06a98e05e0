"""Masks as files hold them: the right foreground, or one line that names the file and says what to do."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import tifffile
import torch
from picture_files import Array, affine, dicom, lookup_tables, nifti, palette_image, png
from PIL import Image, ImageDraw, ImageFilter

from isnet.data import FileRef, MaskedImages, MaskError, UnreadableFileError, audit, mask_reading, read_image, read_mask
from isnet.data.mask_reading import kinds_that_differ
from isnet.data.table import DataError, ImageTable, Record

LABELS = np.zeros((12, 12), np.uint8)  # 1 and 2 on a background of 0
LABELS[2:6, 2:6], LABELS[7:10, 7:10] = 1, 2
BOTH, ONE, TWO, NONE = LABELS > 0, LABELS == 1, LABELS == 2, LABELS < 0
LARGE = LABELS.repeat(16, 0).repeat(16, 1)
BLACK, WHITE, RED, GREEN, VOID = (0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (224, 224, 192)
VOC = [BLACK, RED, GREEN, *[BLACK] * 252, VOID]
SOFT = Image.new("L", (400, 400))
ImageDraw.Draw(SOFT).ellipse((50, 100, 300, 350), fill=255)
SMALL, BLURRED = SOFT.resize((100, 100), Image.Resampling.LANCZOS), SOFT.filter(ImageFilter.GaussianBlur(15))
STRIPES = np.zeros((100, 100), np.uint8)
for row in range(20):
    STRIPES[5 * row : 5 * row + 4, 10:90] = 10 + 12 * row
Write = Callable[[Path], object]


def values(*numbers: float, dtype: Any = np.uint8) -> Array:
    """The labels under other numbers, the first for the background."""
    return np.array(numbers, dtype)[LABELS]


def pillow(pixels: Array | Image.Image, **how: Any) -> Write:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    return lambda path: image.save(path, **how)


def tiff(pixels: Array, **how: Any) -> Write:
    return lambda path: tifffile.imwrite(path, pixels, **how)


def palette(*colours: tuple[int, int, int], indices: Array = LABELS, **how: Any) -> Write:
    return pillow(palette_image(indices, list(colours)), **how)


def with_alpha(colours: Array, alpha: Array, **how: Any) -> Write:
    wide = np.broadcast_to(colours, (12, 12, 3)).astype(np.uint8)
    return pillow(np.dstack([wide, (alpha * 255).astype(np.uint8)]), **how)


def grey_alpha(grey: Array, alpha: Array) -> Write:
    return pillow(Image.fromarray(np.dstack([grey, (alpha * 255).astype(np.uint8)]), "LA"))


def colours(*names: tuple[int, int, int]) -> Array:
    return np.array(names, np.uint8)[LABELS]


def jpeg_as_png(path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(SOFT)).save(buffer, "JPEG", quality=90)
    Image.open(buffer).save(path)


def scaled_nifti(path: Path) -> None:
    nifti(path, values(0, 10, 20).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[112:120] = struct.pack("<ff", 0.5, 0)
    path.write_bytes(raw)


def with_overlay(path: Path) -> None:
    dicom(path, LABELS)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x60003000, "OW", b"\0" * 18)
    dataset.save_as(path)


def one_bit(path: Path) -> None:
    bits = np.packbits(np.eye(16, dtype=np.uint8).ravel(), bitorder="little")
    dicom(path, bits[None], BitsAllocated=1, BitsStored=1, HighBit=0, Rows=16, Columns=16)


SAID = "--foreground-values"
TRANSPARENT = "its transparency and its colours show different areas"
# name of the file -> how it is written, what is foreground or why it is refused, how it is read, what was said of it.
CASES: dict[str, tuple[Any, ...]] = {
    **{
        f"labels{'_'.join(map(str, pair))}.png": (pillow(values(0, *pair)), BOTH, "labels")
        for pair in ((1, 2), (1, 32), (5, 100), (50, 200), (1, 255), (128, 255), (254, 255))
    },
    **{
        f"{t.__name__}.tif": (tiff(values(0, 5, 100, dtype=t)), BOTH, "labels")
        for t in (np.uint16, np.int16, np.int32, np.uint32, np.int8, np.float32, np.float64)
    },
    "binary.png": (pillow(values(0, 255, 255)), BOTH, "binary"),
    "binary16.png": (pillow(values(0, 65535, 65535, dtype=np.uint16)), BOTH, "binary"),
    "one.png": (pillow(values(0, 1, 1)), BOTH, "binary"),
    "bits.png": (pillow(BOTH), BOTH, "binary"),
    "bits.tif": (tiff(BOTH, photometric="minisblack"), BOTH, "binary"),
    "all.png": (pillow(values(255, 255, 255)), ~NONE, "binary"),
    "nothing.png": (pillow(values(0, 0, 0)), NONE, "binary"),
    "void.png": (pillow(values(0, 1, 255)), ONE, "binary", {"void": 255}),
    "void_alone.png": (pillow(values(0, 1, 255)), TWO, "values", {"foreground_values": [255]}),
    "close.tif": (
        *(tiff(values(0, 2**24, 2**24 + 1, dtype=np.int32)), ONE, "values", {"foreground_values": [2**24]}),
    ),
    "void_wins.png": (pillow(values(0, 1, 255)), ONE, "values", {"foreground_values": ["1-255"], "void": 255}),
    "trimap.png": (pillow(values(2, 1, 3)), ONE, "values", {"foreground_values": ["1"]}),
    "range.png": (pillow(values(3, 120, 250)), BOTH, "values", {"foreground_values": ["100-255"]}),
    "as_colour.png": (pillow(values(0, 255, 9)), ONE, "values", {"foreground_values": ["#ffffff"]}),
    "negative.tif": (tiff(values(0, 1, -1, dtype=np.int16)), rf"from -1 to 1.*{SAID}"),
    "negative_said.tif": (tiff(values(0, 1, -1, dtype=np.int16)), TWO, "values", {"foreground_values": [-1]}),
    "wrapped.tif": (tiff(values(0, -1, -1, dtype=np.int8)), SAID),
    "fractions.tif": (tiff(values(0, 0.25, 0.75, dtype=np.float32)), SAID),
    "fractions_said.tif": (
        *(tiff(values(0, 0.2, 0.7, dtype=np.float32)), ONE, "values", {"foreground_values": [0.2]}),
    ),
    "nan.tif": (tiff(values(0, np.nan, 1, dtype=np.float32)), "not finite"),
    "ramp.tif": (
        tiff(np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)),
        np.arange(144).reshape(12, 12) >= 72,
        "threshold",
    ),
    "no_dark.png": (pillow(values(100, 120, 250)), "without a dark background"),
    "smooth.png": (pillow(SMALL), np.asarray(SMALL) > 127.5, "threshold"),
    "blurred.png": (pillow(BLURRED), np.asarray(BLURRED) > 127.5, "threshold"),
    "noise.png": (jpeg_as_png, np.asarray(SOFT) > 127, "threshold"),
    "noise.jpg": (pillow(SOFT, quality=90), np.asarray(SOFT) > 127, "threshold"),
    "stripes.png": (pillow(STRIPES), STRIPES > 0, "labels"),
    "areas.jpg": (pillow(np.array([0, 50, 200], np.uint8)[LARGE]), f"areas of .*{SAID}"),
    "white_is_zero.tif": (tiff(values(0, 255, 255), photometric="miniswhite"), SAID),
    "white_is_zero_said.tif": (
        *(tiff(values(0, 255, 255), photometric="miniswhite"), BOTH, "values", {"foreground_values": [255]}),
    ),
    **{f"palette.{kind}": (palette(BLACK, RED, (0, 0, 40)), BOTH, "palette") for kind in ("png", "gif", "bmp", "tif")},
    "palette_white.png": (palette(WHITE, RED, GREEN), BOTH, "palette"),
    "palette_grey.png": (palette(BLACK, WHITE, (90, 90, 90)), BOTH, "palette"),
    "palette_index.png": (palette(*VOC), TWO, "values", {"foreground_values": [2]}),
    "palette_colour.png": (palette(*VOC), ONE, "values", {"foreground_values": ["#ff0000"]}),
    "palette_void.png": (palette(*VOC, indices=values(0, 1, 255)), ONE, "palette", {"void": 255}),
    "palette_inverted.png": (palette(WHITE, BLACK, BLACK), f"indices .*{SAID}"),
    "palette_inverted_said.png": (
        *(palette(WHITE, BLACK, (9, 9, 9)), ONE, "values", {"foreground_values": ["#000000"]}),
    ),
    "palette_adapted.gif": (pillow(Image.fromarray(colours(BLACK, RED, RED))), f"no black, but another one is.*{SAID}"),
    "palette_no_zero.png": (palette(WHITE, RED, GREEN, VOID, indices=LABELS + 1), f"no pixel has the index 0.*1, 2, 3.*{SAID}"),
    "palette_one.png": (palette(BLACK, RED, indices=values(1, 1, 1)), ~NONE, "palette"),
    "palette_clear.png": (palette(BLACK, RED, GREEN, transparency=0), BOTH, "alpha"),
    "palette_clear.gif": (palette(BLACK, RED, GREEN, transparency=0), BOTH, "alpha"),
    "palette_unclear.png": (palette(BLACK, RED, GREEN, transparency=2), TRANSPARENT),
    "white_on_clear.png": (with_alpha(np.array(WHITE), BOTH), BOTH, "alpha"),
    "black_on_clear.png": (with_alpha(np.array(BLACK), BOTH), BOTH, "alpha"),
    "white_on_clear.webp": (with_alpha(np.array(WHITE), BOTH, lossless=True), BOTH, "alpha"),
    "agree.png": (with_alpha(values(0, 255, 255)[..., None], BOTH), BOTH, "alpha"),
    "labels_on_clear.png": (with_alpha(colours(BLACK, RED, GREEN), BOTH), BOTH, "alpha"),
    "opaque.png": (with_alpha(values(0, 255, 255)[..., None], np.ones((12, 12))), BOTH, "binary"),
    "half.png": (with_alpha(values(0, 255, 255)[..., None], np.full((12, 12), 0.5)), BOTH, "binary"),
    "opposite.png": (with_alpha(values(0, 255, 255)[..., None], ~BOTH), TRANSPARENT),
    "black_on_white.png": (with_alpha(values(255, 0, 0)[..., None], BOTH), TRANSPARENT),
    "two_on_clear.png": (with_alpha(values(0, 255, 0)[..., None], BOTH), TRANSPARENT),
    "invisible.png": (with_alpha(values(0, 255, 255)[..., None], NONE), "transparent everywhere"),
    "grey_on_clear.png": (grey_alpha(values(255, 255, 255), BOTH), BOTH, "alpha"),
    "grey_labels.png": (grey_alpha(LABELS, BOTH), TWO, "values", {"foreground_values": [2]}),
    "clear.tif": (
        tiff(np.dstack([values(255, 255, 255)] * 3 + [values(0, 255, 255)]), photometric="rgb", extrasamples=["unassalpha"]),
        *(BOTH, "alpha"),
    ),
    "colours.png": (pillow(colours(BLACK, RED, (40, 0, 0))), BOTH, "colours"),
    "colours_said.png": (pillow(colours(WHITE, RED, GREEN)), ONE, "values", {"foreground_values": ["#FF0000"]}),
    "colours_numbers.png": (pillow(colours(BLACK, RED, GREEN)), "#00ff00.*colours", "", {"foreground_values": [1]}),
    "no_black.png": (pillow(colours(WHITE, RED, GREEN)), f"without black.*{SAID}"),
    "colours16.tif": (tiff(colours(BLACK, RED, GREEN) * np.uint16(200), photometric="rgb"), BOTH, "colours"),
    "colours_negative.tif": (tiff(colours(BLACK, RED, GREEN).astype(np.int16) - 9, photometric="rgb"), "from -9 to 246"),
    "grey_rgb.png": (pillow(colours(BLACK, WHITE, WHITE)), BOTH, "binary"),
    "red.jpg": (pillow(np.array([BLACK, RED, RED], np.uint8)[LARGE], quality=95, subsampling=0), LARGE > 0, "binary"),
    "red_on_white.jpg": (pillow(np.array([WHITE, RED, RED], np.uint8)[LARGE]), "without (black|a dark)"),
    "2_bits.png": (lambda path: png(path, LABELS, 2, 0), ONE, "values", {"foreground_values": [1]}),
    "4_bits.png": (lambda path: png(path, LABELS, 4, 0), TWO, "values", {"foreground_values": [2]}),
    "labels.pgm": (lambda path: path.write_bytes(b"P5\n12 12\n2\n" + LABELS.tobytes()), TWO, "values", {"foreground_values": ["2"]}),
    "monochrome1.dcm": (lambda path: dicom(path, LABELS, "MONOCHROME1"), BOTH, "labels"),
    "rescaled.dcm": (lambda path: dicom(path, LABELS, RescaleSlope=-1, RescaleIntercept=2), BOTH, "labels"),
    "window.dcm": (lambda path: dicom(path, LABELS, WindowCenter=2, WindowWidth=1), BOTH, "labels"),
    "palette.dcm": (lambda path: dicom(path, LABELS, "PALETTE COLOR", **lookup_tables([WHITE, BLACK, RED, RED])), BOTH, "labels"),
    "bits.dcm": (one_bit, np.eye(16) > 0, "binary"),
    "overlay.dcm": (with_overlay, "overlay"),
    "no_suffix": (lambda path: dicom(path, LABELS), BOTH, "labels"),
    "labels.nii.gz": (lambda path: nifti(path, values(0, 50, 200)), BOTH, "labels"),
    "scaled.nii": (scaled_nifti, TWO, "values", {"foreground_values": [10]}),
    "turned.nii": (lambda path: nifti(path, LABELS[::-1, ::-1], affine("LPS")), BOTH, "labels"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_masks_are_right_or_refused(tmp_path: Path, name: str) -> None:
    write, expected, *rest = CASES[name]
    said = rest[1] if len(rest) > 1 else {}
    path = tmp_path / name
    write(path)
    if isinstance(expected, str):
        with pytest.raises(UnreadableFileError, match=rf"{name}: .*({expected})") as caught:
            read_mask(FileRef(path), **said)
        assert "\n" not in str(caught.value) and type(caught.value) is UnreadableFileError
        return
    np.testing.assert_array_equal(read_mask(FileRef(path), **said)[0].numpy(), expected)
    reading = mask_reading(FileRef(path), **said)
    assert reading.kind == rest[0] and reading.share == pytest.approx(expected.mean()) and "\n" not in str(reading)
    assert set(reading.foreground) <= set(reading.found)


def test_a_reading_tells_values_and_kinds_are_compared(tmp_path: Path) -> None:
    def read(name: str, pixels: Array) -> Any:
        Image.fromarray(pixels).save(tmp_path / name)
        return mask_reading(FileRef(tmp_path / name))

    labels, binary = read("labels.png", values(0, 5, 100)), read("binary.png", values(0, 255, 255))
    smooth = read("smooth.png", np.asarray(SMALL))
    assert labels.found == ("0", "5", "100") and labels.foreground == ("5", "100") and labels.threshold is None
    assert str(labels) == "labels: 5, 100 of 0, 5, 100" and str(smooth) == "what is brighter than 127.5"
    assert smooth.threshold == 127.5 and smooth.between < 0.05
    picture = read("picture.png", np.random.default_rng(0).integers(0, 256, (50, 50)).astype(np.uint8))
    assert picture.kind == "threshold" and picture.between > 0.4
    assert read("colours.png", colours(BLACK, RED, GREEN)).foreground == ("#00ff00", "#ff0000")
    assert not kinds_that_differ([labels, binary]) and not kinds_that_differ([smooth, binary])
    assert kinds_that_differ([labels, binary, smooth]) == ("labels", "threshold")


@pytest.mark.parametrize("given", ["x", "3-1", "#ff", "", True, "nan", None])
def test_foreground_values_have_three_forms(tmp_path: Path, given: Any) -> None:
    table = ImageTable((Record(FileRef(tmp_path / "x.png"), 0),), ("a",))
    with pytest.raises(DataError, match=r"foreground_values: expected numbers \(1\), ranges .*colours"):
        MaskedImages(table, 8, foreground_values=[given])


# ---- an image and its mask


def pair(tmp_path: Path, image: Write, mask: Write, names: tuple[str, str], **how: Any) -> tuple[MaskedImages, Record]:
    image(tmp_path / names[0])
    mask(tmp_path / names[1])
    record = Record(FileRef(tmp_path / names[0]), 0, FileRef(tmp_path / names[1]))
    return MaskedImages(ImageTable((record,), ("a",)), 12, **how), record


PICTURE = np.random.default_rng(1).integers(0, 999, (12, 12)).astype(np.int16)
PLACES: dict[str, tuple[Array, Array, str]] = {
    "same": (affine("RAS"), affine("RAS"), ""),
    "lps_ras": (affine("LPS", origin=(22, 22, 0)), affine("RAS"), ""),
    "swapped": (affine("RAS"), affine("ARS"), ""),
    "rounded": (affine("RAS"), affine("RAS", 2.00001), ""),
    "origin": (affine("RAS"), affine("RAS", origin=(5, 0, 0)), " 5 mm away"),
    "slice": (affine("RAS"), affine("RAS", origin=(0, 0, 30)), " 30 mm away"),
    "spacing": (affine("RAS"), affine("RAS", 2.1), "away"),
    "plane": (affine("RAS"), affine("RSA"), "away"),
    "unshifted": (affine("LPS"), affine("RAS"), " mm away"),
}


@pytest.mark.parametrize("name", PLACES)
def test_nifti_images_and_masks_meet_in_space(tmp_path: Path, name: str) -> None:
    first, second, text = PLACES[name]

    def write(pixels: Array, matrix: Array) -> Write:
        turned = {"lps_ras": pixels[::-1, ::-1], "swapped": pixels.T}.get(name, pixels)
        return lambda path: nifti(path, turned if not np.array_equal(matrix, affine("RAS")) else pixels, matrix)

    images, record = pair(tmp_path, write(PICTURE, first), write(LABELS, second), ("i.nii.gz", "m.nii"))
    if text:
        with pytest.raises(MaskError, match=rf"m\.nii: lies .*{text}.*i\.nii\.gz.*resample"):
            images[0]
        return
    image, _, mask = images[0]
    assert mask[0].numpy().astype(bool).tolist() == BOTH.tolist()
    torch.testing.assert_close(image[0].numpy(), ((PICTURE - PICTURE.min()) / np.ptp(PICTURE)).astype(np.float32))
    assert images.reading(record).kind == "labels"


def test_one_file_with_a_place_is_taken_as_it_lies(tmp_path: Path) -> None:
    plain, grey = pillow(values(0, 255, 255)), pillow(PICTURE.astype(np.uint8))
    images, _ = pair(tmp_path, grey, lambda path: nifti(path, LABELS), ("i.png", "m.nii"))
    assert images[0][2][0].bool().tolist() == BOTH.tolist()
    for names, image, mask in (
        (("j.png", "n.nii"), grey, lambda path: nifti(path, LABELS, affine("LPS"))),
        (("k.nii", "o.png"), lambda path: nifti(path, PICTURE, affine("LPS")), plain),
    ):
        with pytest.raises(MaskError, match=r"(n|k)\.nii: its header turns it, and .*(j|o)\.png does not tell"):
            pair(tmp_path, image, mask, names)[0][0]
    images, _ = pair(
        tmp_path,
        lambda path: nifti(path, PICTURE, placed=False),
        plain,
        ("l.nii", "p.png"),
    )
    assert images[0][2][0].bool().tolist() == BOTH.tolist()


def test_dicom_images_and_masks_meet_in_space(tmp_path: Path) -> None:
    place = {"ImagePositionPatient": [0, 0, 5], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [2, 2]}
    here, there = (
        lambda path, p=p: dicom(path, LABELS, **p) for p in (place, {**place, "ImagePositionPatient": [0, 0, 9]})
    )
    assert pair(tmp_path, here, here, ("a.dcm", "b.dcm"))[0][0][2][0].bool().tolist() == BOTH.tolist()
    with pytest.raises(MaskError, match=r"d\.dcm: lies up to 4 mm away from .*c\.dcm"):
        pair(tmp_path, here, there, ("c.dcm", "d.dcm"))[0][0]
    # From left to right and front to back in DICOM is from right to left and back to front in NIfTI.
    lps = affine("LPS", origin=(0, 0, 5))
    with pytest.raises(MaskError, match=r"f\.nii: lies up to"):
        pair(tmp_path, here, lambda path: nifti(path, LABELS, lps), ("e.dcm", "f.nii"))[0][0]


@pytest.mark.parametrize(
    ("mask", "resize", "text"),
    [
        ((12, 24), True, "proportions differ"),
        ((24, 24), False, r"--resize-masks \(resize_masks=True\)"),
        ((24, 24), True, ""),
        ((25, 24), True, ""),
        ((26, 24), True, "proportions differ"),
    ],
)
def test_masks_of_another_size(tmp_path: Path, mask: tuple[int, int], resize: bool, text: str) -> None:
    pixels = np.asarray(Image.fromarray(LABELS).resize(mask[::-1], Image.Resampling.NEAREST))
    how: dict[str, Any] = {"resize_masks": True} if resize else {}
    images, record = pair(tmp_path, pillow(PICTURE.astype(np.uint8)), pillow(pixels), ("i.png", "m.png"), **how)
    if text:
        with pytest.raises(MaskError, match=rf"m\.png: a mask of {mask[0]}x{mask[1]} pixels for .* 12x12 .*{text}"):
            images[0]
        assert [problem.trouble for problem in audit(images)] == ["mask"]
    else:
        assert images[0][2].shape == (1, 12, 12)
        agreeing = (images.fit(record, read_image(record.image))[1][0].bool().numpy() == BOTH).mean()
        assert agreeing == 1 if mask == (24, 24) else agreeing > 0.9


def test_a_mask_without_foreground_tells_its_values(tmp_path: Path) -> None:
    images, _ = pair(
        tmp_path, pillow(PICTURE.astype(np.uint8)), pillow(values(0, 5, 9)), ("i.png", "m.png"), foreground_values=[1]
    )
    with pytest.raises(MaskError, match=r"m\.png: no foreground \(values: none of 0, 5, 9\)"):
        images[0]
