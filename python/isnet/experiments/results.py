"""Results that the repository keeps, and the tables of the documentation that are made from them alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from isnet._files import read_text
from isnet.experiments.cells import Result, read_result
from isnet.experiments.coloured import ColouredExperiment
from isnet.experiments.grid import Experiment
from isnet.experiments.mask_errors_grid import DigitMasks, RadiographMasks
from isnet.experiments.mnist import MNISTConfig
from isnet.experiments.natural import NaturalConfig
from isnet.experiments.xray import XrayConfig

# A new experiment's class comes here.
EXPERIMENTS: Mapping[str, type[Experiment]] = {
    kind.name: kind
    for kind in (MNISTConfig, ColouredExperiment, XrayConfig, NaturalConfig, DigitMasks, RadiographMasks)
}
_BEGIN, _END = r"^(<!-- results: ([\w.-]+)( by seed)? -->\n)", r"(?=^<!-- end of results -->$)"
_PLACE = re.compile(rf"{_BEGIN}(?:(?!<!-- ).)*?{_END}", re.DOTALL | re.MULTILINE)


def read_results(folder: Path) -> list[Result]:
    """The cells in a folder that have scores, in the order of the tables: settings by name, methods as the experiment lists them.

    Raises:
        ValueError: none, a file that cannot be read, an unknown experiment, or several in one folder.
    """
    found = {path: read_result(path) for path in sorted(folder.glob("*.json"))}
    for path, result in found.items():
        if path.stem != result.cell.key:
            raise ValueError(f"{path}: expected the name {result.cell.key}.json for the cell ({result.cell})")
    results = [result for result in found.values() if result.scores]
    names = {result.experiment for result in results}
    if len(names) != 1 or not names <= EXPERIMENTS.keys():
        told = ", ".join(sorted(names)) or "none"
        raise ValueError(f"{folder}: expected the cells of one experiment ({' or '.join(EXPERIMENTS)}), got {told}")
    known = list(EXPERIMENTS[names.pop()].all_methods())

    def place(result: Result) -> tuple[str, int, str, int]:
        number = known.index(result.method) if result.method in known else len(known)
        return result.setting, number, result.method, result.seed

    return sorted(results, key=place)


def results_text(results: Sequence[Result], *, by_seed: bool = False) -> str:
    """The table of the cells of one experiment, and which code made them."""
    table = EXPERIMENTS[results[0].experiment].table(results, by_seed=by_seed)
    versions = sorted({f"{result.code['version']} (sources {result.code['sources']})" for result in results})
    minutes = sum(result.cpu_seconds for result in results) / 60
    note = f"{len(results)} cells, {minutes:.0f} processor minutes of training; code: {', '.join(versions)}."
    return f"\n{table}\n{note}\n\n"


def with_tables(page: str, folder: Path) -> str:
    """A page with its tables made anew, wherever it says ``<!-- results: NAME -->`` or ``<!-- results: NAME by seed -->``.

    Args:
        page: Markdown; each table ends with ``<!-- end of results -->``.
        folder: With a folder NAME of cells for each.

    Raises:
        ValueError: cells that cannot be read, or a place without its end.
    """

    def made(found: re.Match[str]) -> str:
        return found[1] + results_text(read_results(folder / found[2]), by_seed=bool(found[3]))

    ended = len(_PLACE.findall(page))
    if ended < len(shown(page)):
        raise ValueError(f"the page has {len(shown(page))} places for results, of which {ended} have an end of results")
    return _PLACE.sub(made, page)


def shown(page: str) -> list[str]:
    """The names of the results for which a page has a place."""
    return [found[2] for found in re.finditer(_BEGIN, page, re.MULTILINE)]


def current_pages(docs: Path) -> dict[Path, str]:
    """Every page of a documentation that shows results, with its tables made from the cells in ``results``.

    Raises:
        ValueError: see :func:`with_tables`; or cells that no page shows.
    """
    pages = {path: read_text(path) for path in sorted(docs.glob("*.md"))}
    pages = {path: text for path, text in pages.items() if shown(text)}
    folder = docs / "results"
    unused = {path.name for path in folder.glob("*") if path.is_dir()} - {
        n for text in pages.values() for n in shown(text)
    }
    if unused:
        raise ValueError(f"{folder}: no page has a place (<!-- results: NAME -->) for {', '.join(sorted(unused))}")
    found = {}
    for path, text in pages.items():
        try:
            found[path] = with_tables(text, folder)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return found
