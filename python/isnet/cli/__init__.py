"""Command line: train, tune, evaluate, compare, explain, report, data, demo."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from isnet.cli import data as data_commands
from isnet.cli import experiment as experiment_commands
from isnet.cli.options import Device, Options, RunFolder, configure
from isnet.distributed import ProcessLostError, World, launched_world, speaks_first
from isnet.run_config import HeatmapConfig, RunConfig

if TYPE_CHECKING:
    from isnet.run_data import RunData

app = typer.Typer(
    name="isnet",
    help="Train image classifiers that ignore the background.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)
_NAMED = 5  # of the images that are left out


def main() -> None:
    """Runs the command line; expected errors end it with one line and status 1. torchrun's processes report a common failure once."""
    try:
        _run()
    except ProcessLostError as error:
        _fail(str(error), speaks_first())  # not if another process has said why
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        extra = package if package in ("tensorboard", "lightning") else "isnet"
        hint = f". In the folder of the sources: pip install --no-build-isolation '.[{extra}]'" if package else ""
        _fail(f"{error}{hint}", speaks_first(f"{error}"))
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        _fail(_told(error), speaks_first(_told(error)))


def _run() -> None:
    """The command line; of torchrun's processes only the first complains about wrong use."""
    if os.environ.get("RANK", "0") == "0":
        return app()
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # raised for wrong use
            raise
        status = error.exit_code
    raise SystemExit(status)


def _told(error: Exception) -> str:
    """The text of an error; if a process that loads images raised it, without the traceback that PyTorch puts around it."""
    text = str(error)
    if "in DataLoader worker process" not in text.partition("\n")[0]:
        return text
    return text.rpartition(f"{type(error).__qualname__}: ")[2].strip()


def _fail(message: str, speaks: bool) -> None:
    if speaks:
        _errors.print(f"[bold red]isnet:[/] {escape(message)}", soft_wrap=True)
    raise SystemExit(1)


def _with_settings(name: str, action: Callable[[Options], None]) -> None:
    """A command that takes all options of a run."""

    @functools.wraps(configure)
    def command(**options: Any) -> None:
        action(configure(**options))

    command.__doc__ = action.__doc__
    app.command(name)(command)


def _checked_data(config: RunConfig, is_main: bool) -> RunData:
    """The data of a run that is to be trained. What cannot be used ends the run here, not in its last minute."""
    from isnet.run_data import load_data, splits_with_masks

    data = load_data(config.data, need_masks=splits_with_masks(config), check=True, progress=is_main)
    if data.dropped and is_main:
        more = f"; and {len(data.dropped) - _NAMED} more" if len(data.dropped) > _NAMED else ""
        typer.echo(
            f"Left out (--mask-policy skip): {len(data.dropped)} images: {'; '.join(data.dropped[:_NAMED])}{more}"
        )
    return data


def _train(options: Options) -> None:
    """Trains a network on your own images (--data) or on biased MNIST and scores it; several processes with torchrun."""
    from isnet import runs

    with _joined(options) as (world, device):
        data = _checked_data(options.config, world.is_main)
        trained = runs.train_run(options.folder, options.config, data=data, device=device, resume=options.resume)
    # Scoring may take longer than processes wait for each other: the others have left.
    if world.is_main and data.tests:
        runs.evaluate_run(trained, data)
        _print_scores([trained])
    if world.is_main:
        typer.echo(f"Run: {options.folder}")


def _tune(options: Options) -> None:
    """Measures C1 and C2, the natural range of relevance, in plain training; `isnet train RUN --resume` then uses them."""
    import dataclasses

    from isnet import runs

    if (options.config.heatmap.c1, options.config.heatmap.c2) != (HeatmapConfig.c1, HeatmapConfig.c2):
        raise ValueError("--c1, --c2: isnet tune measures them")
    config = options.config if options.config.tune else dataclasses.replace(options.config, tune=2)
    with _joined(options) as (world, device):
        data = _checked_data(config, world.is_main)
        path = runs.tune_run(options.folder, config, data=data, device=device, resume=options.resume)
    if world.is_main:
        typer.echo(path.read_text())
        typer.echo(f"Ranges: {path}")


@contextlib.contextmanager
def _joined(options: Options) -> Iterator[tuple[World, str]]:
    """The processes of a training; if one is lost, the others say what training can resume from."""
    from isnet import runs

    try:
        with launched_world(options.device) as joined:
            yield joined
    except ProcessLostError as error:
        raise ProcessLostError(f"{error}; {runs.what_to_resume(options.folder)}") from error


_with_settings("train", _train)
_with_settings("tune", _tune)
app.add_typer(data_commands.app, name="data")
app.add_typer(experiment_commands.app, name="experiment")


@app.command()
def evaluate(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs.")],
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the intervals; 0 = none.", min=0)] = 200,
    sensitivity: Annotated[bool, typer.Option(help="Score with removed and swapped backgrounds, too.")] = True,
    device: Device = "cpu",
) -> None:
    """Scores runs on their tests: accuracy, macro F1, AUC with intervals, per source, and relevance in the background."""
    from isnet import runs
    from isnet.report import score_rows, score_table

    loaded = [runs.load_run(folder, device=device) for folder in run]
    for trained in loaded:
        scores = runs.evaluate_run(trained, resamples=resamples, sensitivity=sensitivity)
        for test, changes in scores.get("sensitivity", {}).items():
            for change, found in changes.items():
                typer.echo(
                    f"{trained.config.title}, {test} test, background {change}: accuracy {100 * found['accuracy']:.1f} % to "
                    f"{100 * found['accuracy_after']:.1f} %, {100 * found['changed']:.1f} % of the answers change, "
                    f"blind spot {100 * found['blind_spot']['score']:.1f} %"
                )
    _print_scores(loaded)
    table = score_table(score_rows(loaded))
    typer.echo("\n| " + " | ".join(table[0]) + " |\n|" + " --- |" * len(table[0]))
    for line in table:
        typer.echo("| " + " | ".join(line.values()) + " |")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Folder of the other, on the same data.")],
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.", min=1)] = 1000,
    device: Device = "cpu",
) -> None:
    """Paired tests between two runs on the same test images: McNemar, and bootstrap of accuracy and AUC differences; by groups, if any."""
    import torch

    from isnet import metrics, runs
    from isnet.evaluation import predict
    from isnet.run_data import require_tests, same_images

    a, b = (runs.load_run(folder, device=device) for folder in (first, second))
    data_a, data_b = (runs.run_data(run) for run in (a, b))
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
        found = metrics.compare(logits_a, logits_b, labels, groups=groups, resamples=resamples)
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


@app.command()
def explain(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("explanation.png"),
    split: Annotated[str | None, typer.Option(help="Test set.", show_default="the last")] = None,
    index: Annotated[int, typer.Option(help="Which of its images.", min=0)] = 0,
    target: Annotated[
        int | None,
        typer.Option(
            help="Class to explain.", show_default="the predicted class, or the label with the highest logit", min=0
        ),
    ] = None,
    device: Device = "cpu",
) -> None:
    """Draws a test image, its LRP heatmap and its foreground mask."""
    import torch

    from isnet import runs
    from isnet._files import atomic_path
    from isnet.evaluation import background_share, heatmaps
    from isnet.pictures import explanation_figure
    from isnet.report import answer_text, label_text
    from isnet.run_data import require_tests

    trained = runs.load_run(run, device=device)
    data, classes = runs.run_data(trained), trained.config.data.classes
    require_tests(data, run)
    tests = data.tests
    split = list(tests)[-1] if split is None else split
    if split not in tests:
        raise ValueError(f"--split: expected one of {', '.join(tests)}, got {split}")
    dataset: Any = tests[split]
    if index >= len(dataset):
        raise ValueError(f"--index: the {split} test has images 0 to {len(dataset) - 1}, got {index}")
    if target is not None and target >= len(classes):
        raise ValueError(f"--target: expected a class from 0 to {len(classes) - 1}, got {target}")
    image, label, mask = dataset[index]
    settings = trained.config.heatmap
    logits, heatmap = heatmaps(
        trained.model, image[None].to(device), target=target, eps=settings.eps, input_range=settings.input_range
    )
    share = background_share(heatmap.cpu(), mask[None]).item()
    told_share = (
        "no mask or no relevance" if math.isnan(share) else f"{100 * share:.1f} % of the relevance outside the mask"
    )
    marks = getattr(dataset, "marks", None)
    told = f" with the mark of {classes[marks[index]]}" if marks is not None and marks[index] >= 0 else ""
    explained = int(logits.argmax()) if target is None else target
    said = f"; explained: {classes[explained]}" if target is not None or label.dim() else ""
    title = (
        f"{trained.config.title}, {split} test, image {index}: {label_text(label, classes)}{told}, "
        f"answered {answer_text(logits[0], label, classes)}{said}"
    )
    low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in trained.config.data.pixel_range)
    figure = explanation_figure(
        (image - low) / (high - low),
        heatmap[0].cpu(),
        mask,
        title=title,
        background_share=None if math.isnan(share) else share,
    )
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix.removeprefix(".") or "png", dpi=150)
    typer.echo(f"{title}; {told_share}. Picture: {out}")


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs, in the table's order.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "ISNet",
) -> None:
    """Writes one self-contained HTML page: accuracies, heatmap gallery and training curves."""
    from isnet import runs
    from isnet.report import write_report

    write_report(out, [runs.load_run(folder) for folder in run], title=title)
    typer.echo(f"Report: {out}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for runs, report, table and picture.")] = Path("runs/demo"),
    data_folder: Annotated[Path, typer.Option(help="Folder of the MNIST files.")] = Path("data/mnist"),
    resume: Annotated[bool, typer.Option(help="Continue an interrupted demonstration.")] = False,
) -> None:
    """Trains a standard network and two ISNets on biased MNIST and compares them; minutes on two cores.

    Ends with status 1 when the figures of the full MNIST fall short of what is to be shown.
    """
    from isnet.experiments.demo import DemoConfig, run_demo

    result = run_demo(DemoConfig(folder=str(out), data_folder=str(data_folder)), resume=resume)
    if not all(claim.holds for claim in result.claims) and result.complete:
        raise typer.Exit(1)


def _print_scores(loaded: list[Any]) -> None:
    from isnet.report import markdown_table, mask_notes, score_rows

    rows = score_rows(loaded)
    typer.echo(markdown_table(rows), nl=False)
    for note in mask_notes(rows):
        typer.echo(note)
