"""The command line: each command is a function in the file of its kind."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import signal
from collections.abc import Iterator
from typing import Annotated, NoReturn

import typer
from rich.text import Text

from isnet._text import Screen, say, visible
from isnet.cli import archs, data, demo, experiment, explain, export, pictures, predict, recipes, scores, train
from isnet.cli.options import is_first
from isnet.training.distributed import ProcessLostError, speaks_first
from isnet.training.stop import on_signals
from lrpkernels import __version__

app = typer.Typer(
    name="isnet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (train, predict, explain, scores, pictures, export, archs, recipes, demo):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")
app.add_typer(experiment.app, name="experiment")
_errors = Screen(stderr=True)
_DISTRIBUTIONS = {
    "PIL": "Pillow",
    "nrrd": "pynrrd",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"isnet {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    """Train image classifiers that ignore the background."""


def main() -> None:
    """Runs the command line; expected errors end it with one line and status 1. torchrun's processes report a common failure once.

    Ctrl-C ends it with status 130 and SIGTERM with 143; a training first saves its state (:mod:`isnet.training.stop`).
    """
    try:
        with _interrupts():
            _run()
    except ProcessLostError as error:
        _fail(str(error), speaks_first())  # not if another process has said why
    except ModuleNotFoundError as error:
        _fail(f"{error}{_remedy(error.name or '')}", speaks_first(f"{error}"))
    except (ValueError, OSError, RuntimeError, ArithmeticError) as error:
        _fail(_told(error), speaks_first(_told(error)))


@contextlib.contextmanager
def _interrupts() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the command with one line and status 130 or 143, and leave no half-written file behind."""

    def stop(number: int) -> NoReturn:
        _fail(f"stopped ({signal.Signals(number).name})", is_first(), 128 + number)

    with on_signals(stop, "SIGINT", "SIGTERM"):
        yield


def _run() -> None:
    """The command line; of torchrun's processes only the first complains about wrong use."""
    if is_first():
        return app()
    try:
        status = app(standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "exit_code"):  # raised for wrong use
            raise
        status = error.exit_code
    raise SystemExit(status)


def _remedy(module: str) -> str:
    """How to install a missing module, if it is of a package that this one names as its own; a stranger's is not suggested."""
    package = module.partition(".")[0]
    name = _DISTRIBUTIONS.get(package, package)
    known = {re.split(r"[^\w.-]", text)[0] for text in importlib.metadata.requires("lrpkernels") or ()}
    return f": pip install {name}" if name in known else ""


def _told(error: Exception) -> str:
    """The text of an error; if a process that loads images raised it, without the traceback that PyTorch puts around it."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    if "in DataLoader worker process" not in text.partition("\n")[0]:
        return text
    return text.rpartition(f"{type(error).__qualname__}: ")[2].strip()


def _fail(message: str, speaks: bool, status: int = 1) -> NoReturn:
    if speaks:
        # One line, so that a name cannot forge another.
        _errors.print(Text("isnet:", style="bold red") + Text(f" {visible(message)}", style=""), soft_wrap=True)
    raise SystemExit(status)
