"""isnet evaluate, isnet compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from isnet.cli.options import Data, Device, Masks, Split, Trust, load_on, tell_device
from isnet.runs.data import require_tests, run_data, same_images
from isnet.runs.evaluate import evaluate_run
from isnet.runs.folder import Run
from isnet.runs.predict import write_test_tables
from isnet.runs.tables import markdown_table, mask_notes, score_rows, score_table
from isnet.scoring.evaluation import predict
from isnet.scoring.paired import compare as paired_tests

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
    """Scores runs on their tests: accuracy, macro F1, AUC with intervals, per source, and relevance in the background."""
    loaded = [load_on(folder, device, trust, data, masks, split) for folder in run]
    tell_device(device)
    for trained in loaded:
        sets = run_data(trained)
        scores = evaluate_run(trained, sets, resamples=resamples, sensitivity=sensitivity)
        write_test_tables(trained, sets.tests)
        for test, changes in scores.get("sensitivity", {}).items():
            for change, found in changes.items():
                typer.echo(
                    f"{trained.config.title}, {test} test, background {change}: accuracy {100 * found['accuracy']:.1f} % to "
                    f"{100 * found['accuracy_after']:.1f} %, {100 * found['changed']:.1f} % of the answers change, "
                    f"blind spot {100 * found['blind_spot']['score']:.1f} %"
                )
    print_scores(loaded)
    table = score_table(score_rows(loaded))
    typer.echo("\n| " + " | ".join(table[0]) + " |\n|" + " --- |" * len(table[0]))
    for line in table:
        typer.echo("| " + " | ".join(line.values()) + " |")


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
    """Paired tests between two runs on the same test images: McNemar, and bootstrap of accuracy and AUC differences; by groups, if any."""
    a, b = (load_on(folder, device, trust, data, masks, split) for folder in (first, second))
    tell_device(device)
    data_a, data_b = (run_data(run) for run in (a, b))
    require_tests(data_a, first)
    tests_a, tests_b = data_a.tests, data_b.tests
    for test in tests_a:
        if test not in tests_b or not same_images(tests_a[test], tests_b[test]):
            raise ValueError(f"{first} and {second} do not share the {test} test: their images are not the same")
    for test in tests_a:
        (logits_a, labels), (logits_b, others) = (
            predict(run.model, tests[test], run.config.train.batch_size) for run, tests in ((a, tests_a), (b, tests_b))
        )
        if not torch.equal(labels, others):
            raise ValueError(f"{first} and {second} do not share the {test} test: the labels are not the same")
        groups = getattr(tests_a[test], "groups", None)
        found = paired_tests(logits_a, logits_b, labels, groups=groups, resamples=resamples)
        for name in ("accuracy", "auc"):
            value, low, high = found[f"{name}_difference"]
            typer.echo(
                f"{test} test: {name} of {second.name} - {first.name} = {value:+.4f} ({low:+.4f} to {high:+.4f})"
            )
        if "mcnemar_p" in found:
            typer.echo(f"{test} test: McNemar's p = {found['mcnemar_p']:.3g}")
        else:
            typer.echo(
                f"{test} test: p = {found['sign_flips_p']:.3g} (both exchanged at random in each group of images)"
            )


def print_scores(loaded: Sequence[Run]) -> None:
    """The table of the scores of runs."""
    rows = score_rows(loaded)
    typer.echo(markdown_table(rows), nl=False)
    for note in mask_notes(rows):
        typer.echo(note)
