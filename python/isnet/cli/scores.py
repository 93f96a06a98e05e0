"""isnet evaluate, isnet compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from isnet._files import require_place
from isnet._text import say
from isnet.cli.options import Data, Device, Masks, Split, Trust, load_on, tell_device
from isnet.data.names import title_of_test
from isnet.runs.compare import compare_runs, comparison_lines
from isnet.runs.data import run_data
from isnet.runs.evaluate import evaluate_run
from isnet.runs.folder import EVALUATION_NAME, Run
from isnet.runs.predict import write_test_tables
from isnet.runs.tables import (
    class_rows,
    confusion_rows,
    fits_a_page,
    headline,
    markdown,
    mask_notes,
    most_confused,
    network_rows,
    score_rows,
    score_table,
    sensitivity_table,
    subgroup_rows,
    warnings_of,
)

app = typer.Typer()


@app.command()
def evaluate(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs.")],
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the intervals; 0 = none.", min=0)] = 200,
    sensitivity: Annotated[bool, typer.Option(help="Score with removed and swapped backgrounds, too.")] = True,
    data: Data = None,
    masks: Masks = None,
    split: Split = None,
    trust: Trust = None,
    device: Device = "auto",
) -> None:
    """Scores runs on their tests: AUC, balanced accuracy, background and swapped backgrounds first, then all, class by class."""
    loaded = [load_on(folder, device, trust, data, masks, split) for folder in run]
    tell_device(device)
    for trained in loaded:
        require_place(
            trained.folder / EVALUATION_NAME, "RUN", "scores are kept there: copy the run to a folder of yours"
        )
        sets = run_data(trained)
        evaluate_run(trained, sets, resamples=resamples, sensitivity=sensitivity)
        write_test_tables(trained, sets.tests)
    print_scores(loaded)
    rows = score_rows(loaded)
    for row in rows:
        for test in row.scores:
            _print_table(f"{row.title}, {title_of_test(test)}, by class", class_rows(row, test))
            matrix = confusion_rows(row, test)
            if matrix and fits_a_page(row, test):
                _print_table(f"{row.title}, {title_of_test(test)}, confusion matrix", matrix)
            elif confused := most_confused(row, test):
                say(f"\n{row.title}, {title_of_test(test)}, commonest errors: {'; '.join(confused)}")
            if by_subgroup := subgroup_rows(row, test):
                _print_table(f"{row.title}, {title_of_test(test)}, by subgroup", by_subgroup)
    if changes := sensitivity_table(rows):
        _print_table("Other backgrounds", changes)
    _print_table("All scores", score_table(rows))


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the other, on the same data.")],
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", min=1)] = 1000,
    data: Data = None,
    masks: Masks = None,
    split: Split = None,
    trust: Trust = None,
    device: Device = "auto",
) -> None:
    """Paired differences between two runs on the same test images, with intervals, and McNemar's test; by groups, if any."""
    a, b = (load_on(folder, device, trust, data, masks, split) for folder in (first, second))
    tell_device(device)
    found = compare_runs(a, b, resamples=resamples)
    _print_warnings([a, b])
    for line in comparison_lines(found, *_names(first, second)):
        say(line)


def _names(first: Path, second: Path) -> tuple[str, str]:
    """The folders' names, whole paths where they are alike."""
    if first.name and first.name != second.name:
        return first.name, second.name
    return str(first), str(second)


def print_scores(loaded: Sequence[Run]) -> None:
    """Warnings, and the table of the scores that decide."""
    _print_warnings(loaded)
    rows = score_rows(loaded)
    say(markdown(headline(rows)), nl=False)
    for note in mask_notes(rows):
        say(note)
    for row in network_rows(rows, loaded):
        say(f"{row['network']}: {row['weights']}")


def _print_warnings(loaded: Sequence[Run]) -> None:
    for warning in warnings_of(score_rows(loaded)):
        say(f"WARNING: {warning}")


def _print_table(title: str, table: Sequence[dict[str, str]]) -> None:
    say(f"\n{title}\n\n{markdown(table)}", nl=False)
