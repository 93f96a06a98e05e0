"""Results that the repository keeps, and the tables of docs/experiments.md, which are made from them alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from isnet.experiments.cells import Result, read_result
from isnet.experiments.coloured import ColouredExperiment
from isnet.experiments.grid import Experiment
from isnet.experiments.grid_tables import table
from isnet.experiments.mnist import MNISTConfig
from isnet.experiments.xray import XrayConfig

# A new experiment's class comes here.
EXPERIMENTS: Mapping[str, type[Experiment]] = {
    kind.name: kind for kind in (MNISTConfig, ColouredExperiment, XrayConfig)
}
_BEGIN, _END = r"^(<!-- results: ([\w.-]+)( by seed)? -->\n)", r"(?=^<!-- end of results -->$)"
_PLACE = re.compile(rf"{_BEGIN}(?:(?!<!-- ).)*?{_END}", re.DOTALL | re.MULTILINE)


def read_results(folder: Path) -> list[Result]:
    """The cells in a folder that have scores, in the order of the tables: settings by name, methods as the experiment lists them.

    Raises:
        ValueError: none, a file that cannot be read, an unknown experiment, or several in one folder.
    """
    results = [result for path in sorted(folder.glob("*.json")) if (result := read_result(path)).scores]
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
    columns = EXPERIMENTS[results[0].experiment].columns(results)
    versions = sorted({f"{result.code['version']} (sources {result.code['sources']})" for result in results})
    minutes = sum(result.cpu_seconds for result in results) / 60
    note = f"{len(results)} cells, {minutes:.0f} processor minutes of training; code: {', '.join(versions)}."
    return f"\n{table(results, columns, by_seed=by_seed)}\n{note}\n\n"


def with_tables(page: str, folder: Path) -> str:
    """A page with its tables made anew, wherever it says ``<!-- results: NAME -->`` or ``<!-- results: NAME by seed -->``.

    Args:
        page: Markdown; each table ends with ``<!-- end of results -->``.
        folder: With a folder NAME of cells for each.

    Raises:
        ValueError: cells that cannot be read, a folder of cells that the page does not show, or a place without its end.
    """

    def made(found: re.Match[str]) -> str:
        return found[1] + results_text(read_results(folder / found[2]), by_seed=bool(found[3]))

    places = [found[2] for found in _PLACE.finditer(page)]
    begun = [found[2] for found in re.finditer(_BEGIN, page, re.MULTILINE)]
    if places != begun:
        raise ValueError(f"the page has {len(begun)} places for results, of which {len(places)} have an end of results")
    unused = {path.name for path in folder.glob("*") if path.is_dir()} - {*places}
    if unused:
        raise ValueError(f"{folder}: the page has no place (<!-- results: NAME -->) for {', '.join(sorted(unused))}")
    return _PLACE.sub(made, page)
