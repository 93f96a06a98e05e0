"""Checks of pixels: duplicates, brightness, colour and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from isnet.data.checks.seen import Seen, gives_away
from isnet.data.facts import Facts
from isnet.data.findings import Finding, counted
from isnet.data.names import TRAIN

_NEARLY = 0.95  # of the pixels
_DISTORTED = 1.5  # times as wide as another


def duplicates(seen: Seen) -> Iterator[Finding]:
    """The same decoded pixels in several files or rows."""
    by_content: dict[str, list[Facts]] = {}
    for facts in seen.facts:
        if facts.content:
            by_content.setdefault(facts.content, []).append(facts)
    within, across, conflicting = list[str](), list[str](), list[str]()
    for same in by_content.values():
        if len(same) < 2:
            continue
        records = [seen.record(facts) for facts in same]
        shown = " = ".join(
            f"{record.image} ({record.split}, {'+'.join(seen.names(record.label)) or 'none'})" for record in records[:3]
        ) + (f" = {len(records) - 3} more" if len(records) > 3 else "")
        if len({record.label for record in records}) > 1:
            conflicting.append(shown)
        elif len({record.split for record in records}) > 1:
            across.append(shown)
        else:
            within.append(shown)
    if conflicting:
        text = f"{counted(len(conflicting), 'image')} present more than once, with different labels"
        yield Finding("label-conflict", "error", text, tuple(conflicting), "Keep one of each")
    if across:
        text = f"{counted(len(across), 'image')} in more than one split"
        yield Finding("duplicates-across-splits", "warning", text, tuple(across), "Scores there may be too high")
    if within:
        text = f"{counted(len(within), 'image')} more than once in the same split"
        yield Finding("duplicates", "warning", text, tuple(within))


def brightness(seen: Seen) -> Iterator[Finding]:
    """Images that show next to nothing."""
    for code, what, share in (("nearly-black", "black", "dark"), ("saturated", "white", "light")):
        found = tuple(
            str(seen.record(facts).image) for facts in seen.facts if facts.size and getattr(facts, share) >= _NEARLY
        )
        if found:
            text = f"{counted(len(found), 'image')} {what} in {100 * _NEARLY:.0f} % of the pixels or more"
            yield Finding(code, "warning", text, found)


def colour(seen: Seen) -> Iterator[Finding]:
    """Colour and grey images, and whether that tells the class."""
    known = [facts for facts in seen.facts if facts.colour is not None]
    coloured = sum(bool(facts.colour) for facts in known)
    if 0 < coloured < len(known):
        told = _told(seen, [(facts, facts.colour) for facts in known])
        text = f"{counted(coloured, 'image')} in colour, {len(known) - coloured} grey{told}"
        yield Finding("colour-and-grey", "warning" if told else "note", text)


def sizes(seen: Seen) -> Iterator[Finding]:
    """Image sizes that tell the class."""
    told = _told(seen, [(facts, facts.size) for facts in seen.facts if facts.size])
    if told:
        common = Counter(facts.size for facts in seen.facts if facts.size).most_common(3)
        shown = tuple(f"{size[0]}x{size[1]} ({count})" for size, count in common if size)
        yield Finding(
            "size-tells-class", "warning", f"sizes of the files differ{told}", shown, "It may show after resizing"
        )


def aspect_ratios(seen: Seen) -> Iterator[Finding]:
    """Shapes so different that stretching to one size distorts them."""
    ratios = sorted((facts.size[1] / facts.size[0], facts.row) for facts in seen.facts if facts.size)
    if ratios and ratios[-1][0] / ratios[0][0] > _DISTORTED:
        names = tuple(str(seen.table.records[row].image) for _, row in (ratios[0], ratios[-1]))
        text = f"images are from {ratios[0][0]:.2f} to {ratios[-1][0]:.2f} times as wide as high"
        yield Finding("aspect-ratios", "note", text, names, "--resize pad keeps their shapes")


def _told(seen: Seen, values: list[tuple[Facts, object]]) -> str:
    """How well a property tells the class of the training images; empty if it does not."""
    pairs = [(value, seen.record(facts).label) for facts, value in values if seen.record(facts).split == TRAIN]
    told = None if seen.table.multi_label else gives_away(pairs)
    return f", which alone tells the class of {100 * told[0]:.0f} % of the training images" if told else ""
