"""Checks of masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from isnet.data.checks.seen import Seen
from isnet.data.facts import MaskFacts
from isnet.data.findings import Finding, counted
from isnet.data.mask_reading import kinds_that_differ
from isnet.data.names import TRAIN, VALIDATION

_FULL, _TINY = 0.999, 0.001  # shares of foreground
_FRAME = 0.75  # share of the border that is foreground
_HOLLOW = 0.25  # by which the middle has less foreground than the border, where they are exchanged
_GREY = 0.2  # share of the pixels of a thresholded mask that are neither dark nor light
_SAME = 10  # masks from which on it is remarkable that all are one


def _suspicion(mask: MaskFacts) -> str | None:
    if mask.foreground >= _FULL:
        return "full"
    if mask.border >= _FRAME and mask.center <= mask.border - _HOLLOW:
        return "inverted"
    if mask.border >= _FRAME:
        return "border"
    return "tiny" if mask.foreground < _TINY else None


_SUSPECTS = {
    "full": ("mask-full", "masks with foreground everywhere, and no background", "Leave such masks out, or mend them"),
    "inverted": (
        "mask-inverted",
        "masks that look inverted: foreground along the border, background in the middle",
        "Foreground is white, or the larger numbers",
    ),
    "border": ("mask-border", "masks that touch the border nearly everywhere", "Is the background that should be ignored inside?"),
    "tiny": ("mask-tiny", f"masks with a foreground of less than {100 * _TINY:.1f} % of the image", ""),
}  # fmt: skip


def suspect_masks(seen: Seen) -> Iterator[Finding]:
    """Masks that are all white, inverted, all along the border, or nearly empty."""
    suspects: dict[str, list[str]] = {}
    count = 0
    for facts in seen.facts:
        if facts.mask is not None:
            count += 1
            record = seen.record(facts)
            kind = _suspicion(facts.mask)
            if kind is not None:
                suspects.setdefault(kind, []).append(str(record.mask or record.image))
    for kind, (code, text, remedy) in _SUSPECTS.items():
        if found := suspects.get(kind):
            yield Finding(code, "warning", f"{len(found)} of {count} {text}", tuple(found), remedy)


def same_masks(seen: Seen) -> Iterator[Finding]:
    """One mask for all images."""
    contents = Counter(facts.mask.content for facts in seen.facts if facts.mask is not None)
    if len(contents) == 1 and contents.total() >= _SAME:
        yield Finding("mask-same", "note", f"all {contents.total()} masks are the same")


def mask_readings(seen: Seen) -> Iterator[Finding]:
    """Masks of one set that are read in different ways, and which values are foreground where there are several."""
    first: dict[str, str] = {}  # the first file of each kind
    kinds, values, grey = Counter[str](), dict[str, None](), list[str]()
    readings = []
    for facts in seen.facts:
        reading = None if facts.mask is None else facts.mask.reading
        if reading is None:
            continue
        readings.append(reading)
        name = str(seen.record(facts).mask)
        first.setdefault(reading.kind, name)
        kinds[reading.kind] += 1
        if reading.kind not in ("binary", "threshold"):
            values[str(reading)] = None
        if reading.threshold is not None and reading.between >= _GREY:
            grey.append(name)
    if different := kinds_that_differ(readings):
        told = tuple(f"{kind} ({kinds[kind]}, as {first[kind]})" for kind in different)
        remedy = "Save all in one way, or say which values are foreground (--foreground-values)"
        yield Finding("mask-readings", "warning", "masks are read in different ways", told, remedy)
    if values:
        yield Finding("mask-values", "note", "foreground among the values of the masks", tuple(values))
    if grey:
        text = f"{len(grey)} of {len(readings)} masks have many shades of grey: pictures rather than masks?"
        yield Finding("mask-grey", "warning", text, tuple(grey))


def unmasked_tests(seen: Seen) -> Iterator[Finding]:
    """Test images without masks: allowed, and left out of some scores."""
    bare = [
        facts for facts in seen.facts
        if facts.size and not facts.mask and not facts.problem and seen.record(facts).split not in (TRAIN, VALIDATION)
    ]  # fmt: skip
    if bare:
        text = f"{counted(len(bare), 'test image')} without a mask; what is told from masks is told of the other ones"
        yield Finding("test-masks-missing", "note", text, tuple(str(seen.record(facts).image) for facts in bare))


def mask_is_image(seen: Seen) -> Iterator[Finding]:
    """A mask that is its own image."""
    found = tuple(str(record.image) for record in seen.table.records if record.mask == record.image)
    if found:
        yield Finding("mask-is-image", "error", f"{counted(len(found), 'image')} named as mask of itself", found)
