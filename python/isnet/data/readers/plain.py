"""PNG, JPEG and the like."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from PIL import Image

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import MAX_PIXELS, Picture, Pixels, Reader, check_size, upright

_MARKS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")  # the only ones of Pillow's that are tried; MPO counts as JPEG
# P2, P3 (texts), P5, P6; width, height, largest number.
_NETPBM = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d{1,9})" + rb"\s")
_ORIENTATION = 0x0112  # the EXIF tag for the camera's orientation


class Plain(Reader):
    """PNG, JPEG, GIF, BMP, WebP, PBM, PGM, PPM; cameras' pictures are turned upright."""

    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pbm", ".pgm", ".ppm")
    extra = "isnet"

    def recognises(self, head: bytes) -> bool:
        webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
        netpbm = re.match(rb"P[1-6]\s+[#0-9]", head)
        return head.startswith(_MARKS) or webp or bool(netpbm) or _is_bmp(head)

    def read(self, file: FileRef, *, scaled: bool) -> Picture:
        raw = file.read()
        if found := _NETPBM.match(raw):
            return _netpbm(file, raw, found)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = Image.open(io.BytesIO(raw), formats=_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UnreadableFileError(
                f"{file}: more than the {MAX_PIXELS} pixels that are read; make it smaller first"
            ) from error
        with image:
            check_size(file, image.height, image.width)
            # An MPO file is a camera's JPEG with previews behind it.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                raise UnreadableFileError(f"{file}: several pictures; save the one to use as a file of its own")
            orientation = image.getexif().get(_ORIENTATION, 1)
            picture = _decoded(image, raw, scaled)
        alpha = None if picture.alpha is None else upright(picture.alpha, orientation)
        lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and b"VP8 " in raw)
        return picture._replace(pixels=upright(picture.pixels, orientation), alpha=alpha, lossy=lossy)


def _is_bmp(head: bytes) -> bool:
    """``BM`` alone begins many a text; the size of the second header tells."""
    return head[:2] == b"BM" and head[14:18] in {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}


def _decoded(image: Image.Image, raw: bytes, scaled: bool) -> Picture:
    if image.format == "PNG" and raw[24] == 16 and raw[25] != 0:  # depth and colour type; Pillow keeps 8 bits of these
        return _deep_png(raw, image.info.get("transparency"))
    key = image.info.get("transparency")
    if image.mode == "P" and not scaled:
        palette = np.asarray(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        indices = np.asarray(image)
        return Picture(indices, alpha=None if key is None else _opacity(key)[indices], palette=palette)
    if image.mode in ("I;16", "I;16B", "I"):
        pixels = np.asarray(image)
        alpha = None if key is None else (pixels != key).astype(np.float32)
        return Picture(pixels, 65535, alpha)
    if image.mode in ("1", "L"):
        stored = _as_stored(np.asarray(image).astype(np.uint8), raw)
        alpha = None if key is None else (stored != key).astype(np.float32)
        return Picture(np.asarray(image.convert("L")) if scaled else stored, 255, alpha)
    transparent = image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or key is not None
    if not transparent:
        return Picture(np.asarray(image.convert("RGB")), 255)
    pixels = np.asarray(image.convert("LA" if image.mode in ("LA", "La") else "RGBA"))
    colours = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3]
    return Picture(colours, 255, pixels[..., -1] / np.float32(255))


def _deep_png(raw: bytes, key: tuple[int, ...] | None) -> Picture:
    """Colours, or grey with alpha, of 16 bits."""
    import imagecodecs

    pixels = imagecodecs.png_decode(raw)
    if pixels.shape[-1] in (2, 4):
        colours = pixels[..., 0] if pixels.shape[-1] == 2 else pixels[..., :3]
        return Picture(colours, 65535, pixels[..., -1] / np.float32(65535))
    alpha = None if key is None else (pixels != np.asarray(key)).any(-1).astype(np.float32)
    return Picture(pixels, 65535, alpha)


def _opacity(key: int | bytes) -> Pixels:
    """Alpha per index of a palette: ``key`` is the transparent index, or the alphas of the first ones."""
    alpha = np.ones(256, np.float32)
    if isinstance(key, bytes):
        alpha[: len(key)] = np.frombuffer(key, np.uint8) / np.float32(255)
    else:
        alpha[key] = 0
    return alpha


def _as_stored(pixels: Pixels, raw: bytes) -> Pixels:
    """Undoes Pillow's scaling of grey PNGs of 2 and 4 bits to 255."""
    bits = raw[24] if raw.startswith(_MARKS[0]) else 8
    return pixels // (255 // (2**bits - 1)) if bits in (2, 4) else pixels


def _netpbm(file: FileRef, raw: bytes, header: re.Match[bytes]) -> Picture:
    """Grey or colours with a largest number of their own, which Pillow would scale to 255."""
    kind, width, height, largest = map(int, header.groups())
    samples, text = (3 if kind in (3, 6) else 1), kind < 4
    number = np.dtype(">u2" if largest > 255 else np.uint8)
    check_size(file, height, width, samples * (64 if text else number.itemsize))  # 64: of a word in a list
    count, body = samples * width * height, raw[header.end() :]
    if text:
        pixels = np.array([*map(int, re.sub(rb"#[^\n]*", b"", body).split(None, count)[:count])])
    else:
        pixels = np.frombuffer(body, number, count)
    if not 0 < largest < 65536 or pixels.max() > largest:
        raise ValueError(f"numbers up to {pixels.max()}, where its header tells {largest}")
    shape = (height, width) if samples == 1 else (height, width, 3)
    return Picture(pixels.astype(number.newbyteorder("=")).reshape(shape), largest)
