"""Which mask belongs to which image, by their names."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from isnet.data.files import suffix_of
from isnet.data.findings import some
from isnet.data.names import DataError
from isnet.data.readers import image_suffixes

MASK_ENDING = "_mask"
Place = tuple[str, ...]  # (SPLIT, CLASS, NAME) or (CLASS, NAME), of an image or its mask alike


def stem(name: str) -> str:
    """The name without the suffix of an image; another suffix may be a part of the name (``1.2.840.10008.5``)."""
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix and suffix in image_suffixes() else name


def _any_stem(name: str) -> str:
    suffix = suffix_of(name)
    return name[: -len(suffix)] if suffix else name


# What names of image and mask must have in common, the surest first: the name, the name without suffix, and then NAME_mask.
_ALIKE: tuple[tuple[Callable[[str], str], Callable[[str], str]], ...] = (
    (str, str),
    (stem, stem),
    (_any_stem, stem),
    (str, stem),  # x.dcm and x.dcm.png
    (stem, lambda name: stem(name).removesuffix(MASK_ENDING)),
    (_any_stem, lambda name: stem(name).removesuffix(MASK_ENDING)),
)


def pair(images: Mapping[Path, Place], masks: Mapping[Path, Place]) -> tuple[dict[Path, Path], list[Path]]:
    """Finds the mask of each image.

    ``p.png`` gets ``p.png``, else ``p`` with another suffix, else ``p.png`` with one more, else ``p_mask`` with any. Names are compared in
    Unicode's composed form, and, for what is left over after that, without case. A mask taken under a surer name is gone.

    Args:
        images, masks: Place of each file.

    Returns:
        The mask of each image that has one, and the masks without an image.

    Raises:
        DataError: an image with two masks, or a mask with two images.
    """
    found: dict[Path, Path] = {}
    taken: dict[Path, Path] = {}  # the image of a mask
    for fold in (str, str.casefold):
        for of_image, of_mask in _ALIKE:
            by_image = _by_key([path for path in images if path not in found], images, of_image, fold)
            by_mask = _by_key(masks, masks, of_mask, fold)
            for key, wanting in by_image.items():
                matching = by_mask.get(key, [])
                free = [mask for mask in matching if mask not in taken]
                if len(free) > 1:
                    raise DataError(f"{wanting[0]}: two masks ({some(free)}); leave one")
                mask = (free or matching)[0] if matching else None
                claims = [*wanting, *([taken[mask]] if mask in taken else [])]
                if mask is None:
                    continue
                if len(claims) > 1:
                    raise DataError(
                        f"{mask}: the mask of two images ({some(sorted(claims))}); give each image a mask with its own name"
                    )
                found[wanting[0]] = mask
                taken[mask] = wanting[0]
    return found, [path for path in masks if path not in taken]


def _by_key(
    paths: Sequence[Path] | Mapping[Path, Place],
    places: Mapping[Path, Place],
    name: Callable[[str], str],
    fold: Callable[[str], str],
) -> dict[Place, list[Path]]:
    groups: dict[Place, list[Path]] = {}
    for path in paths:
        *folders, last = (unicodedata.normalize("NFC", part) for part in places[path])
        groups.setdefault((*map(fold, folders), fold(name(last))), []).append(path)
    return groups
