"""The demonstration: a standard network and two ISNets on biased MNIST, in a few minutes on two cores.

Four networks of one architecture learn from the same images, whose background mark gives the class away:

- *standard*: classification loss only;
- *control*: the same after a warm-up with the background replaced by noise;
- *Selective ISNet* and *Stochastic ISNet*: the same warm-up, then classification and heatmap loss.

The warm-up is computed once and continued three times.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from isnet._files import write_text
from isnet._text import Screen
from isnet.config import RunConfig
from isnet.experiments.digits import DigitsConfig, digits_run
from isnet.experiments.mnist_files import load_mnist
from isnet.runs import branch_run, evaluate_run, load_run, load_run_data, train_run
from isnet.runs.gallery import gallery
from isnet.runs.report import write_report
from isnet.runs.tables import Row, markdown_table, score_rows
from isnet.training.log import LOG_NAME, read_log

WARMUP = "warm-up"
_POLL_SECONDS = 0.4
_CLEAR_MARGIN = 2.0  # points by which an ISNet must beat the control on the deceiving test


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demonstration.

    Attributes:
        folder: Where runs, report, table and picture go.
        data_folder: Where the MNIST files are kept.
        train_size, test_size: Digits used.
        standard_epochs: Epochs of the standard network, which is perfect on its biased test after one.
        warmup, epochs: Epochs of the warm-up and after it.
        batch_size: Images per step.
        lr_after_warmup: Factor on the learning rate once the warm-up is over.
        heatmap_every: The heatmap loss is taken on every K-th step, weighted K.
        seed: Seed of data and training.
    """

    folder: str = "runs/demo"
    data_folder: str = "data/mnist"
    train_size: int = 10000
    test_size: int = 2000
    standard_epochs: int = 2
    warmup: int = 3
    epochs: int = 5
    batch_size: int = 64
    lr_after_warmup: float = 1.0
    heatmap_every: int = 4
    seed: int = 0


class Claim(NamedTuple):
    """Something that the demonstration should show, and whether it did."""

    text: str
    holds: bool


class DemoResult(NamedTuple):
    """What :func:`run_demo` found.

    Attributes:
        rows: Scores by folder name, in percent.
        claims: What it should show, and whether it did.
        complete: False if digits other than the full MNIST stood in.
    """

    rows: dict[str, Row]
    claims: list[Claim]
    complete: bool


class _Job(NamedTuple):
    name: str
    config: RunConfig
    start: str | None  # the job whose checkpoint it continues

    @property
    def epochs(self) -> int:
        return self.config.schedule.warmup + self.config.schedule.epochs


def demo_runs(config: DemoConfig) -> dict[str, RunConfig]:
    """The settings of the four networks and of the warm-up that three of them share, by folder name."""
    data = DigitsConfig(folder=config.data_folder, train_size=config.train_size, test_size=config.test_size)
    common = {
        "epochs": config.epochs,
        "warmup": config.warmup,
        "batch_size": config.batch_size,
        "lr_after_warmup": config.lr_after_warmup,
        "lr_schedule": "cosine",
        "heatmap_every": config.heatmap_every,
        "channels_last": True,
        "log_every": 10,
        "seed": config.seed,
    }

    def run(name: str, **options: Any) -> RunConfig:
        return digits_run(data, name, **{**common, **options})

    return {
        WARMUP: run("warm-up", epochs=0),
        "standard": run("standard", warmup=0, epochs=config.standard_epochs),
        "selective": run("Selective ISNet", variant="selective"),
        "stochastic": run("Stochastic ISNet", variant="stochastic"),
        "control": run("control (warm-up, then standard)"),
    }


def check_claims(rows: dict[str, Row]) -> list[Claim]:
    """Compares the scores with what the demonstration should show.

    Args:
        rows: Scores of ``standard``, ``control``, ``selective`` and ``stochastic``, in percent.
    """
    standard, control = rows["standard"].accuracy, rows["control"].accuracy
    claims = [
        Claim(
            f"standard network: biased {standard['biased']:.1f} % (at least 99), "
            f"deceiving {standard['deceiving']:.1f} % (at most 20)",
            standard["biased"] >= 99 and standard["deceiving"] <= 20,
        )
    ]
    for name in ("selective", "stochastic"):
        scores = rows[name].accuracy
        lowest = min(scores.values())
        spread = max(scores.values()) - lowest
        margin = scores["deceiving"] - control["deceiving"]
        claims.append(
            Claim(
                f"{rows[name].title}: lowest {lowest:.1f} % (at least 95), spread {spread:.1f} points (at most 1.5), "
                f"deceiving {margin:+.1f} points against the control (at least {_CLEAR_MARGIN:.0f})",
                lowest >= 95 and spread <= 1.5 and margin >= _CLEAR_MARGIN,
            )
        )
    return claims


def run_demo(config: DemoConfig, *, resume: bool = False, console: Console | None = None) -> DemoResult:
    """Trains and scores the four networks, prints the table and writes report, table and picture.

    Args:
        config: The settings.
        resume: Continue what an earlier call left unfinished, instead of starting afresh.
        console: Where to print.
    """
    console = console or Screen()
    started = time.perf_counter()
    folder = Path(config.folder)
    runs = demo_runs(config)
    mnist = load_mnist(config.data_folder)
    console.print(f"Digits: {mnist.source}")
    if not resume:
        for name in runs:
            shutil.rmtree(folder / name, ignore_errors=True)
    jobs = [_Job(name, run, WARMUP if run.schedule.warmup and name != WARMUP else None) for name, run in runs.items()]
    _run_jobs(jobs, folder, console)

    loaded = {name: load_run(folder / name) for name in ("standard", "control", "selective", "stochastic")}
    data = load_run_data(runs["standard"])
    rows = dict(zip(loaded, score_rows(list(loaded.values())), strict=True))
    claims = check_claims(rows)
    seconds = time.perf_counter() - started
    notes = [f"{'✓' if claim.holds else '✗'} {claim.text}" for claim in claims]
    if not mnist.complete:
        notes.insert(0, f"Not the full MNIST: {mnist.source}.")
    write_text(folder / "table.md", markdown_table(list(rows.values())))
    gallery(list(loaded.values()), data.tests["deceiving"], count=6).savefig(folder / "demo.png", dpi=110)
    write_report(folder / "report.html", list(loaded.values()), data, notes=notes)
    _print_results(console, list(rows.values()), claims, folder, seconds)
    return DemoResult(rows, claims, mnist.complete)


def _run_jobs(jobs: Sequence[_Job], folder: Path, console: Console) -> None:
    """Runs every job once the job it starts from is done, one process for each core.

    One thread each: a narrow network gains little from a second one, and threads that wait for each other lose much time
    as soon as another program takes a core.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(1, min(cores, len(jobs) - 1))
    threads = max(1, cores // workers)
    waiting, running, done = list(jobs), dict[Future[None], _Job](), set[str]()
    columns = (TextColumn("{task.description}"), BarColumn(16), TimeElapsedColumn(), TextColumn("{task.fields[state]}"))
    console.print("Training; accuracy in % on the biased / unbiased / deceiving test:")
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with (
        Progress(*columns, console=console) as display,
        ProcessPoolExecutor(workers, mp_context=context) as pool,
    ):
        tasks = {job.name: display.add_task(job.name, total=job.epochs, start=False, state="") for job in jobs}
        try:
            while waiting or running:
                for job in [job for job in waiting if job.start is None or job.start in done]:
                    if len(running) == workers:
                        break
                    waiting.remove(job)
                    display.start_task(tasks[job.name])
                    start = None if job.start is None else str(folder / job.start)
                    running[pool.submit(_work, str(folder / job.name), job.config.to_json(), start, threads)] = job
                finished, _ = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for job in running.values():
                    display.update(tasks[job.name], **_state(folder / job.name))
                for future in finished:
                    job = running.pop(future)
                    future.result()
                    done.add(job.name)
                    display.stop_task(tasks[job.name])
        except BaseException:
            # The pool would wait for the runs that are still training, for minutes.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


def _work(folder: str, config: dict[str, Any], start: str | None, threads: int) -> None:
    """One job, in its own process."""
    torch.set_num_threads(threads)
    if start is not None:
        branch_run(folder, start)
    settings = RunConfig.from_json(config)
    data = load_run_data(settings, progress=False)
    run = train_run(folder, settings, data=data, resume=True, progress=False)
    evaluate_run(run, data, progress=False)


def _state(folder: Path) -> dict[str, Any]:
    """How far the run in ``folder`` is, for its progress bar."""
    log = folder / LOG_NAME
    entries = read_log(log) if log.exists() else []
    if not entries:
        return {}
    steps = [entry for entry in entries if entry["kind"] == "step"]
    accuracies = [entry["accuracy"] for entry in entries if "accuracy" in entry]
    state = f"loss {steps[-1]['loss']:.3f}" if steps else ""
    if accuracies:
        state += ", " + " / ".join(f"{100 * value:.1f}" for value in accuracies[-1].values())
    return {"completed": entries[-1]["epoch"], "state": state}


def _print_results(
    console: Console, rows: Sequence[Row], claims: Sequence[Claim], folder: Path, seconds: float
) -> None:
    table = Table(title="Accuracy on biased MNIST")
    table.add_column("network")
    for name in ("biased", "unbiased", "deceiving", "relevance in background"):
        table.add_column(name, justify="right")
    for row in rows:
        shares = [row.accuracy[name] for name in ("biased", "unbiased", "deceiving")]
        shares.append(row.background_attention["deceiving"])
        table.add_row(row.title, *(f"{share:.1f} %" for share in shares))
    console.print(table)
    for claim in claims:
        mark = Text("✓ ", style="green") if claim.holds else Text("✗ ", style="red")
        console.print(mark + Text(claim.text, style=""), soft_wrap=True)
    console.print(f"{seconds:.0f} s. Report: {folder / 'report.html'}", soft_wrap=True)
