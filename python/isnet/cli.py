"""Command line: train, evaluate, explain, report, demo."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="isnet",
    help="Train image classifiers that ignore the background.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_errors = Console(stderr=True)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, ...")]
Split = Literal["biased", "unbiased", "deceiving"]


def main() -> None:
    """Runs the command line; expected errors end it with one line and status 1."""
    try:
        app()
    except ModuleNotFoundError as error:
        _fail(f"{error}. The command line needs: pip install 'lrpkernels[isnet]'")
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    _errors.print(f"[bold red]isnet:[/] {escape(message)}", soft_wrap=True)
    raise SystemExit(1)


# Options left out are None here and take the default of their settings class, or, on --resume, the run's own value.
@app.command()
def train(
    run: RunFolder,
    variant: Annotated[
        str | None,
        typer.Option(help="standard, or an ISNet: selective, stochastic, original, dual.", show_default="standard"),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What to call the run in tables.", show_default="the variant")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="monai:NAME, torchvision:NAME, timm:NAME or package.module:CALLABLE.",
            show_default="a narrow monai:ResNet",
        ),
    ] = None,
    arch_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Argument of the architecture (value in JSON or text); repeatable."),
    ] = None,
    data_folder: Annotated[
        Path | None, typer.Option(help="Folder of the MNIST files.", show_default="data/mnist")
    ] = None,
    train_size: Annotated[int | None, typer.Option(help="Training digits.", show_default="all")] = None,
    test_size: Annotated[int | None, typer.Option(help="Test digits.", show_default="all")] = None,
    mark: Annotated[str | None, typer.Option(help="Background mark: place or texture.", show_default="place")] = None,
    mask: Annotated[str | None, typer.Option(help="Foreground mask: box or digit.", show_default="box")] = None,
    canvas: Annotated[int | None, typer.Option(help="Side of the images.", show_default="40")] = None,
    shift: Annotated[int | None, typer.Option(help="Largest displacement of the digit.", show_default="2")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Amplitude of the noise on the canvas.", show_default="0.1")
    ] = None,
    channels: Annotated[int | None, typer.Option(help="Colour channels; 3 for torchvision.", show_default="1")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs after the warm-up.", show_default="8")] = None,
    warmup: Annotated[
        int | None, typer.Option(help="Epochs with the background replaced by noise first.", show_default="0")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.", show_default="64")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd or adamw.", show_default="adamw")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.", show_default="0.002")] = None,
    lr_after_warmup: Annotated[
        float | None, typer.Option(help="Factor on it after the warm-up.", show_default="0.3")
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="constant or cosine.", show_default="constant")] = None,
    p: Annotated[float | None, typer.Option("--p", help="P, share of the heatmap loss.", show_default="0.7")] = None,
    p_ramp: Annotated[float | None, typer.Option(help="Epochs over which P rises from 0.", show_default="0")] = None,
    heatmap_every: Annotated[
        int | None, typer.Option(help="Heatmap loss on every K-th step, weighted K.", show_default="1")
    ] = None,
    clip_norm: Annotated[
        float | None, typer.Option(help="Largest gradient norm, 0 = no limit.", show_default="1")
    ] = None,
    channels_last: Annotated[
        bool | None, typer.Option("--channels-last/--channels-first", help="Memory format.", show_default="first")
    ] = None,
    eps: Annotated[float | None, typer.Option(help="Stabiliser of the epsilon rule.", show_default="0.01")] = None,
    d: Annotated[float | None, typer.Option("--d", help="GWRP decay of the heatmap loss.", show_default="0.9")] = None,
    c1: Annotated[
        float | None, typer.Option(help="Lower end of natural foreground relevance.", show_default="1")
    ] = None,
    c2: Annotated[float | None, typer.Option(help="Upper end.", show_default="25")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data and training.", show_default="0")] = None,
    device: Device = "cpu",
    resume: Annotated[bool, typer.Option(help="Continue the run; options left out are taken from it.")] = False,
) -> None:
    """Trains a network on biased MNIST and scores it on the three tests."""
    from isnet import runs
    from isnet.architectures import parse_arguments

    clipping: dict[str, Any] = {} if clip_norm is None else {"clip_norm": clip_norm or None}
    saved = resume and (run / runs.CONFIG_NAME).exists()
    base = runs.load_config(run) if saved else runs.RunConfig()
    arch_arguments: dict[str, Any] | None = None
    if arch is not None:
        arch_arguments = parse_arguments(arch_arg or [])
    elif arch_arg:
        arch_arguments = {**base.arch_arguments, **parse_arguments(arch_arg)}
    config = dataclasses.replace(
        base,
        **_given(variant=variant, name=name, arch=arch, arch_arguments=arch_arguments),
        data=dataclasses.replace(
            base.data,
            **_given(
                folder=None if data_folder is None else str(data_folder),
                train_size=train_size,
                test_size=test_size,
                mark=mark,
                mask=mask,
                canvas=canvas,
                shift=shift,
                noise=noise,
                channels=channels,
                seed=seed,
            ),
        ),
        heatmap=dataclasses.replace(base.heatmap, **_given(eps=eps, d=d, c1=c1, c2=c2)),
        train=dataclasses.replace(
            base.train,
            **_given(
                epochs=epochs,
                warmup=warmup,
                batch_size=batch_size,
                optimizer=optimizer,
                lr=lr,
                lr_after_warmup=lr_after_warmup,
                schedule=schedule,
                p=p,
                p_ramp=p_ramp,
                heatmap_every=heatmap_every,
                channels_last=channels_last,
                seed=seed,
            ),
            **clipping,
        ),
    )
    data = runs.load_data(config.data)
    trained = runs.train_run(run, config, data=data, device=device, resume=resume)
    runs.evaluate_run(trained, data)
    _print_scores([trained])
    typer.echo(f"Run: {run}")


@app.command()
def evaluate(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs.")], device: Device = "cpu"
) -> None:
    """Scores runs on the biased, unbiased and deceiving tests and prints a Markdown table."""
    from isnet import runs

    loaded = [runs.load_run(folder, device=device) for folder in run]
    for trained in loaded:
        runs.evaluate_run(trained)
    _print_scores(loaded)


@app.command()
def explain(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Picture to write: .png, .pdf or .svg.")] = Path("explanation.png"),
    split: Annotated[Split, typer.Option(help="Test set.")] = "deceiving",
    index: Annotated[int, typer.Option(help="Which of its images.", min=0)] = 0,
    target: Annotated[
        int | None, typer.Option(help="Class to explain.", show_default="the predicted class", min=0)
    ] = None,
    device: Device = "cpu",
) -> None:
    """Draws a test image, its LRP heatmap and its foreground mask."""
    from isnet import runs
    from isnet._files import atomic_path
    from isnet.evaluation import background_share, heatmaps
    from isnet.pictures import explanation_figure

    trained = runs.load_run(run, device=device)
    dataset = runs.load_data(trained.config.data).tests[split]
    if index >= len(dataset):
        raise ValueError(f"--index: the {split} test has images 0 to {len(dataset) - 1}, got {index}")
    if target is not None and target >= runs.NUM_CLASSES:
        raise ValueError(f"--target: expected a class from 0 to {runs.NUM_CLASSES - 1}, got {target}")
    image, label, mask = dataset[index]
    settings = trained.config.heatmap
    logits, heatmap = heatmaps(
        trained.model, image[None].to(device), target=target, eps=settings.eps, input_range=settings.input_range
    )
    answer = int(logits.argmax())
    share = background_share(heatmap.cpu(), mask[None]).item()
    told = int(dataset.marks[index])
    title = (
        f"{trained.config.title}, {split} test, image {index}: a {int(label)}"
        f"{f' with the mark of {told}' if told >= 0 else ''}, answered {answer}"
        f"{f'; explained: {target}' if target is not None else ''}"
    )
    figure = explanation_figure(image, heatmap[0].cpu(), mask, title=title, background_share=share)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix.removeprefix(".") or "png", dpi=150)
    typer.echo(f"{title}; {100 * share:.1f} % of the relevance outside the mask. Picture: {out}")


@app.command()
def report(
    run: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of the runs, in the table's order.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "ISNet on biased MNIST",
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


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _print_scores(loaded: list[Any]) -> None:
    from isnet.report import markdown_table, score_rows

    typer.echo(markdown_table(score_rows(loaded)), nl=False)
