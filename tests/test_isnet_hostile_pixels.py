"""Images as files hold them: the right pixels, by an expectation of their own, or one line that names the file."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile
from picture_files import Array, affine, dicom, lookup_tables, nifti, palette_image, png, stretched, without_preamble
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGLSLossless

from isnet.data import FileRef, UnreadableFileError, read_image
from isnet.data.readers import kind_of

RANDOM = np.random.default_rng(0)
GREY, DEEP = RANDOM.integers(0, 256, (7, 6)).astype(np.uint8), RANDOM.integers(0, 65536, (7, 6)).astype(np.uint16)
RGB, RGB16 = RANDOM.integers(0, 256, (7, 6, 3)).astype(np.uint8), RANDOM.integers(0, 65536, (7, 6, 3)).astype(np.uint16)
ALPHA = RANDOM.integers(0, 256, (7, 6)).astype(np.uint8)
CT = RANDOM.integers(-1024, 3072, (7, 6)).astype(np.int16)
CMYK = RANDOM.integers(0, 256, (7, 6, 4)).astype(np.uint8)
INDEX, COLOURS = RANDOM.integers(0, 4, (7, 6)).astype(np.uint8), [(0, 0, 0), (255, 0, 0), (0, 255, 0), (10, 20, 30)]
TABLE = np.array(COLOURS) / 255
MAP = np.pad(np.array(COLOURS, np.uint16).T * 257, ((0, 0), (0, 252)))
BOTH = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
NAN = np.where(GREY > 100, np.nan, 1).astype(np.float32)
Write = Callable[[Path], object]


def tiff(pixels: Array, **how: object) -> Write:
    return lambda path: tifffile.imwrite(path, pixels, **how)


def pillow(image: Image.Image, **how: object) -> Write:
    return lambda path: image.save(path, **how)


def with_bytes(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def then(first: Write, change: Callable[[bytes], bytes]) -> Write:
    def write(path: Path) -> None:
        first(path)
        path.write_bytes(change(path.read_bytes()))

    return write


def patched(place: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:place] + content + raw[place + len(content) :]


def _written(write: Write, path: Path) -> bytes:
    plain = path.with_name("plain.nii")
    write(plain)
    return plain.read_bytes()


def thumbnail(path: Path) -> None:
    with tifffile.TiffWriter(path) as writer:
        writer.write(GREY)
        writer.write(GREY[:3, :2], subfiletype=1)


def lying_strip(path: Path) -> None:
    """The strip holds 100 MB, its header tells 64x64."""
    tifffile.imwrite(path, np.zeros((10000, 10000), np.uint8), compression="deflate", rowsperstrip=10000)
    with tifffile.TiffFile(path) as file:
        tags = [file.pages[0].tags[name] for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    raw = bytearray(path.read_bytes())
    for tag in tags:
        raw[tag.valueoffset : tag.valueoffset + 2] = (64).to_bytes(2, "little")
    path.write_bytes(raw)


def no_pixels(path: Path) -> None:
    dicom(path, GREY)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)


def bare(meta: bool, implicit: bool = False) -> Write:
    def write(path: Path) -> None:
        dicom(path, GREY)
        without_preamble(path, meta=meta, implicit=implicit)

    return write


def as_dicom(pixels: Array, kind: str = "MONOCHROME2", **tags: object) -> Write:
    return lambda path: dicom(path, pixels, kind, **tags)


def as_nifti(pixels: Array, matrix: Array | None = None) -> Write:
    return lambda path: nifti(path, pixels, matrix)


def as_named(pixels: Array) -> Write:
    """A plain NIfTI file under any name; nibabel would follow the suffix."""

    def write(path: Path) -> None:
        nifti(path.with_suffix(".nii"), pixels)
        path.with_suffix(".nii").rename(path)

    return write


def volume(path: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 4, 3), np.int16), np.eye(4)), path)


# name of the file -> how it is written, and what it shows: [H, W] or [H, W, 3] in [0, 1]; or why it is refused.
CASES: dict[str, tuple[Write, Array | str]] = {
    **{f"ct_{t.__name__}.tif": (tiff(CT.astype(t)), stretched(CT)) for t in (np.int16, np.int32, np.float32, np.float64)},
    "uint32.tif": (tiff(DEEP + np.uint32(4 * 10**9)), stretched(DEEP)),
    "int8.tif": (tiff(GREY.view(np.int8)), stretched(GREY.view(np.int8))),
    "white_is_zero.tif": (tiff(GREY, photometric="miniswhite"), 1 - GREY / 255),
    "white_is_zero_16.tif": (tiff(DEEP, photometric="miniswhite"), 1 - DEEP / 65535),
    "white_is_zero_ct.tif": (tiff(CT, photometric="miniswhite"), 1 - stretched(CT)),
    "white_is_zero_bits.tif": (tiff(GREY > 99, photometric="miniswhite"), (GREY <= 99) * 1.0),
    "bits.tif": (tiff(GREY > 99, photometric="minisblack"), (GREY > 99) * 1.0),
    "fax.tif": (pillow(Image.fromarray(GREY > 99), compression="group4"), (GREY > 99) * 1.0),
    "rgb16.tif": (tiff(RGB16, photometric="rgb"), RGB16 / 65535),
    "planes.tif": (tiff(RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"), RGB / 255),
    **{f"{c}.tif": (tiff(DEEP, compression=c), DEEP / 65535) for c in ("lzw", "deflate", "packbits", "zstd", "lzma")},
    "predictor.tif": (tiff(DEEP, compression="lzw", predictor=True), DEEP / 65535),
    "tiles.tif": (tiff(np.tile(GREY, (9, 9)), tile=(32, 32), compression="lzw"), np.tile(GREY, (9, 9)) / 255),
    "big.tif": (tiff(GREY, bigtiff=True), GREY / 255),
    "big_endian.tif": (tiff(DEEP, byteorder=">"), DEEP / 65535),
    "thumbnail.tif": (thumbnail, GREY / 255),
    "palette.tif": (tiff(INDEX, photometric="palette", colormap=MAP), TABLE[INDEX]),
    "cmyk.tif": (tiff(CMYK, photometric="separated"), (1 - CMYK[..., :3] / 255) * (1 - CMYK[..., 3:] / 255)),
    "alpha.tif": (
        tiff(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
        RGB / 255 * ALPHA[..., None] / 255,
    ),
    "on_black.tif": (tiff(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["assocalpha"]), RGB / 255),
    "jpeg.tif": (pillow(Image.new("RGB", (32, 48), (200, 200, 200)), compression="jpeg"), np.full((48, 32, 3), 200 / 255)),
    **{
        f"orientation{o}.tif": (tiff(GREY, extratags=[(274, 3, 1, o, True)]), shown / 255)
        for o, shown in enumerate(
            (GREY, GREY[:, ::-1], np.rot90(GREY, 2), GREY[::-1], GREY.T, np.rot90(GREY, -1), np.rot90(GREY, 2).T, np.rot90(GREY)),
            1,
        )
    },
    "unknown_sample.tif": (tiff(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["unspecified"]), "number 4 is unknown"),
    "channels.tif": (tiff(np.dstack([RGB, RGB]), photometric="minisblack", planarconfig="contig"), "6 samples"),
    "pages.tif": (tiff(np.stack([GREY] * 3), photometric="minisblack"), "several pages"),
    "imagej.tif": (tiff(np.stack([GREY] * 3), imagej=True), "several pages"),
    "depth.tif": (tiff(np.zeros((16, 16, 16), np.uint8), volumetric=True, tile=(16, 16, 16)), "several pages"),
    "complex.tif": (tiff(CT.astype(np.complex64)), "expected real numbers"),
    "lab.tif": (tiff(RGB, photometric="cielab"), "CIELAB"),
    "nan.tif": (tiff(NAN), "not finite"),
    "cut.tif": (then(tiff(RGB16, photometric="rgb"), lambda raw: raw[:150]), "cannot be read"),
    "noise.tif": (with_bytes(b"II*\0" + bytes(range(256)) * 9), "no page|cannot be read"),
    "lying.tif": (lying_strip, "cannot be read"),
    "rgb16.png": (with_bytes(imagecodecs.png_encode(RGB16)), RGB16 / 65535),
    "rgba16.png": (with_bytes(imagecodecs.png_encode(np.dstack([RGB16, DEEP]))), RGB16 / 65535 * DEEP[..., None] / 65535),
    "la16.png": (with_bytes(imagecodecs.png_encode(np.dstack([DEEP, DEEP[::-1]]))), DEEP / 65535 * (DEEP[::-1] / 65535)),
    "la.png": (pillow(Image.fromarray(np.dstack([GREY, ALPHA]), "LA")), GREY / 255 * (ALPHA / 255)),
    "rgba.png": (pillow(Image.fromarray(np.dstack([RGB, ALPHA]))), RGB / 255 * ALPHA[..., None] / 255),
    "opaque.png": (pillow(Image.fromarray(np.dstack([RGB, ALPHA | 255]))), RGB / 255),
    "palette.png": (pillow(palette_image(INDEX, COLOURS)), TABLE[INDEX]),
    "palette_clear.png": (pillow(palette_image(INDEX, COLOURS), transparency=1), TABLE[INDEX] * (INDEX != 1)[..., None]),
    "palette.gif": (pillow(palette_image(INDEX, COLOURS)), TABLE[INDEX]),
    "palette.bmp": (pillow(palette_image(INDEX, COLOURS)), TABLE[INDEX]),
    "grey_key.png": (pillow(Image.fromarray(GREY), transparency=int(GREY[0, 0])), GREY / 255 * (GREY[0, 0] != GREY)),
    "1_bit.png": (pillow(Image.fromarray(GREY > 99)), (GREY > 99) * 1.0),
    "2_bits.png": (lambda path: png(path, INDEX, 2, 0), INDEX / 3),
    "4_bits.png": (lambda path: png(path, INDEX, 4, 0), INDEX / 15),
    "12_bits.pgm": (with_bytes(b"P5\n6 7\n4095\n" + (DEEP >> 4).astype(">u2").tobytes()), (DEEP >> 4) / 4095),
    "deep.ppm": (with_bytes(b"P6\n# x\n6 7\n65535\n" + RGB16.astype(">u2").tobytes()), RGB16 / 65535),
    "text.pgm": (with_bytes(b"P2 # x\n2 2\n15\n 0 5\n# y\n10 15\n"), np.array([[0, 5], [10, 15]]) / 15),
    "short.ppm": (with_bytes(b"P6 2 100 255\n1234"), "cannot be read"),
    "short_text.ppm": (with_bytes(b"P3 2 100 255\n1 2 3"), "cannot be read"),
    "beyond.pgm": (with_bytes(b"P5 2 2 100\n\xff\0\0\0"), "its header tells 100"),
    "lossless.webp": (pillow(BOTH[0], lossless=True), RGB / 255),
    **{f"moving.{kind}": (pillow(BOTH[0], save_all=True, append_images=BOTH[1:]), "several pictures") for kind in ("gif", "png", "webp")},
    "huge.png": (lambda path: png(path, GREY, 8, 0, (20000, 20000)), "50000000 pixels"),
    "large.png": (lambda path: png(path, GREY, 8, 0, (8000, 8000)), "8000x8000 pixels are more than the 50000000"),
    "huge.ppm": (with_bytes(b"P6 99999 99999 255\n1234"), "99999x99999 pixels"),
    "page.png": (with_bytes(b"<html>not found</html>"), "cannot be read"),
    "empty.png": (with_bytes(b""), "cannot be read"),
    "cut.png": (then(pillow(BOTH[0]), lambda raw: raw[:-40]), "cannot be read"),
    "tiff_inside.png": (tiff(CT), stretched(CT)),
    "no_suffix": (lambda path: Image.fromarray(GREY).save(path, "PNG"), GREY / 255),
    "text.txt": (with_bytes(b"BM is text"), "expected an image"),
    "dicom": (as_dicom(GREY), stretched(GREY)),
    "SCAN.IMA": (as_dicom(GREY), stretched(GREY)),
    "dicom.weird": (as_dicom(GREY), stretched(GREY)),
    "dicom_inside.png": (as_dicom(GREY), stretched(GREY)),
    "meta_first": (bare(meta=True), stretched(GREY)),
    "no_meta": (bare(meta=False), stretched(GREY)),
    "no_meta_implicit": (bare(meta=False, implicit=True), stretched(GREY)),
    "like_tiff": (then(as_dicom(GREY), patched(0, b"II*\0\x08\0\0\0")), stretched(GREY)),
    "monochrome1.dcm": (as_dicom(GREY, "MONOCHROME1"), 1 - stretched(GREY)),
    "hu.dcm": (as_dicom(CT, RescaleSlope=2, RescaleIntercept=-100), stretched(CT)),
    "window.dcm": (
        as_dicom(CT, WindowCenter=400.5, WindowWidth=801),
        np.clip(CT / 800, 0, 1),
    ),
    "rgb12.dcm": (as_dicom(RGB16 >> 4, "RGB", BitsStored=12, HighBit=11), (RGB16 >> 4) / 4095),
    "palette8.dcm": (as_dicom(INDEX, "PALETTE COLOR", **lookup_tables(COLOURS)), TABLE[INDEX]),
    "palette16.dcm": (as_dicom(INDEX, "PALETTE COLOR", **lookup_tables(COLOURS, 16)), TABLE[INDEX]),
    "deflated.dcm": (as_dicom(GREY, syntax=DeflatedExplicitVRLittleEndian), stretched(GREY)),
    "deflated_more.dcm": (
        then(as_dicom(GREY, syntax=DeflatedExplicitVRLittleEndian), lambda raw: raw + b"more" * 99),
        stretched(GREY),
    ),
    "frames.dcm": (as_dicom(np.stack([GREY] * 3), NumberOfFrames=3), "expected one frame, got 3"),
    "large.dcm": (as_dicom(GREY, Rows=60000, Columns=60000), "60000x60000 pixels"),
    "cmyk.dcm": (as_dicom(CMYK, "CMYK"), "4 samples of the kind CMYK"),
    "no_pixels.dcm": (no_pixels, "without pixels"),
    "junk.dcm": (with_bytes(b"this is text" * 99), "without pixels"),
    "cut.dcm": (then(as_dicom(GREY), lambda raw: raw[:-20]), "cannot be read"),
    "jpeg_ls.dcm": (
        as_dicom(GREY, syntax=JPEGLSLossless, PixelData=pydicom.encaps.encapsulate([b"\xff\xd8" * 9])),
        "pip install one of|cannot be read",
    ),
    "ras.nii": (as_nifti(CT), stretched(CT)),
    "lps.nii.gz": (as_nifti(CT[::-1, ::-1], affine("LPS")), stretched(CT)),
    "swapped.nii": (as_nifti(CT.T, affine("ARS")), stretched(CT)),
    "coronal.nii": (as_nifti(CT, affine("RSA")), stretched(CT)),
    "sagittal.nii": (as_nifti(CT, affine("ASR")), stretched(CT)),
    "slope.nii": (then(as_nifti(CT), patched(112, struct.pack("<ff", -2, 9))), 1 - stretched(CT)),
    "thin.nii": (then(as_nifti(CT), patched(312, b"\0" * 16)), stretched(CT)),
    "no_offset.nii.gz": (lambda p: p.write_bytes(gzip.compress(patched(108, b"\0" * 4)(_written(as_nifti(CT), p)))), stretched(CT)),
    "really_gzip.nii": (then(as_nifti(CT), gzip.compress), stretched(CT)),
    "no_gzip.nii.gz": (as_named(CT), stretched(CT)),
    "volume.nii": (volume, r"two-dimensional image, got shape \(6, 4, 3\)"),
    "complex.nii": (as_nifti(CT.astype(np.complex64)), "expected real numbers"),
    "singular.nii": (then(as_nifti(CT), patched(280, b"\0" * 16)), "no inverse"),
    "analyze.nii": (then(as_nifti(CT), patched(344, b"\0\0\0\0")), "no NIfTI header"),
    "pair.hdr": (then(as_named(CT), patched(344, b"ni1\0")), "another file"),
    "large.nii": (then(as_nifti(CT), patched(42, struct.pack("<hh", 30000, 30000))), "30000x30000 pixels"),
    "negative.nii": (then(as_nifti(CT), patched(42, struct.pack("<h", -5))), "at least one pixel"),
    "far.nii": (then(as_nifti(CT), patched(108, struct.pack("<f", 1e9))), "begin at byte 1000000000"),
    "cut.nii": (then(as_nifti(CT), lambda raw: raw[:-9]), "cannot be read"),
    "wrong_sum.nii.gz": (then(as_nifti(DEEP.repeat(99, 1)), lambda raw: raw[:-8] + b"checksum"), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_right_or_refused(tmp_path: Path, name: str) -> None:
    write, expected = CASES[name]
    path = tmp_path / name
    write(path)
    if isinstance(expected, str):
        with pytest.raises(UnreadableFileError, match=rf"{name}: .*({expected})") as caught:
            read_image(FileRef(path), 3)
        assert "\n" not in str(caught.value) and type(caught.value) is UnreadableFileError
        return
    shown = read_image(FileRef(path), 3).numpy().transpose(1, 2, 0)
    atol = 0.02 if name == "jpeg.tif" else 2e-6
    np.testing.assert_allclose(shown, np.broadcast_to(np.atleast_3d(expected), shown.shape), rtol=0, atol=atol)
    one = read_image(FileRef(path)).numpy()[0]
    luma = expected if expected.ndim == 2 else expected @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(one, luma, rtol=0, atol=atol)


def test_a_kind_is_found_by_content(tmp_path: Path) -> None:
    contents = {"tiff": tiff(GREY), "dicom": as_dicom(GREY), "nifti": then(as_nifti(CT), gzip.compress)}
    contents["plain"] = lambda path: Image.fromarray(GREY).save(path, "PNG")
    for kind, write in contents.items():
        made = tmp_path / f"made{'.nii' if kind == 'nifti' else ''}"
        write(made)
        for name in ("bare", "x.jpg", "x.dcm", "x.txt"):
            assert kind_of(FileRef(made.replace(tmp_path / name))) == kind
            made = tmp_path / name
    # In a stretch of another file, too; what is neither by content nor by name is no image.
    whole = (tmp_path / "x.txt").read_bytes()
    (tmp_path / "shard").write_bytes(b"x" * 600 + whole)
    assert kind_of(FileRef(tmp_path / "shard", 600, len(whole), "a.dcm")) == "plain"
    (tmp_path / "notes").write_bytes(b"BM is no picture, P5 is none, and II* neither")
    assert kind_of(FileRef(tmp_path / "notes")) is None and kind_of(FileRef(tmp_path / "absent.txt")) is None
    directory = b"\0" * 128 + b"DICM\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10\0"
    (tmp_path / "DICOMDIR").write_bytes(directory)
    assert kind_of(FileRef(tmp_path / "DICOMDIR")) is None


BOMBS = {
    "stream.nii.gz": lambda path: path.write_bytes(gzip.compress(_head(64, 64) + b"\0" * 100_000_000, 1)),
    "sides.nii.gz": lambda path: path.write_bytes(gzip.compress(_head(20000, 20000) + b"\0" * 100_000_000, 1)),
    "deflated.dcm": lambda path: dicom(path, np.zeros((15000, 20000), np.uint8), syntax=DeflatedExplicitVRLittleEndian),
    "strip.tif": lying_strip,
}
MEASURE = """
import resource, sys
from pathlib import Path
import imagecodecs, nibabel, pydicom, tifffile
from isnet.data import FileRef, UnreadableFileError, read_image, read_mask
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    for read in (read_image, read_mask):
        try:
            print(list(read(FileRef(Path(name))).shape))
        except UnreadableFileError as error:
            print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def _head(width: int, height: int) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_shape((width, height, 1))
    header.set_data_dtype(np.uint8)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    return bytes(header.binaryblock) + b"\0" * 4


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KB on Linux only")
def test_small_files_take_little_memory(tmp_path: Path) -> None:
    for name, write in BOMBS.items():
        write(tmp_path / name)
        assert (tmp_path / name).stat().st_size < 1_000_000
    # Another process in between: the peak of a process that is forked begins with its parent's.
    start = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    command = [sys.executable, "-c", start, "-c", MEASURE, *(str(tmp_path / name) for name in BOMBS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *told, megabytes = done.stdout.splitlines()
    for line, name in zip(told, [name for name in BOMBS for _ in range(2)], strict=True):
        assert line == "[1, 64, 64]" if name == "stream.nii.gz" else name in line
    assert int(megabytes) < 60
