"""From the groups of options to commands that take all of them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from isnet._text import say
from isnet.cli.request import Request, is_several, requested
from isnet.config import GROUPS, RECIPES
from isnet.config.option import Option, bare, choices_of, default_of, full_help, options_of
from isnet.runs.build import best_device, device_text
from isnet.runs.folder import Run, load_run
from isnet.runs.other import on_data
from isnet.training.slurm import adopt_slurm

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]


def check_device(name: str) -> str:
    """The device that ``auto`` stands for; refuses those that this PyTorch does not find.

    Raises:
        ValueError: no device's name, or a GPU that is not there.
    """
    try:
        return best_device(name)
    except ValueError as error:
        raise ValueError(f"--{error}") from error


_DEVICE_HELP = "Where to compute: cpu, cuda, cuda:1, ...; auto: a GPU, if there is one."
Device = Annotated[str, typer.Option(callback=check_device, help=_DEVICE_HELP)]


Data = Annotated[
    Path | None,
    typer.Option(
        help="Other images for the run: folder, manifest or shards with its classes.", show_default="the run's"
    ),
]
Masks = Annotated[Path | None, typer.Option(help="Folder of the images' masks, under the same names.")]
Split = Annotated[str | None, typer.Option(help="Which split of DATA.", show_default="its tests, or all")]


Trust = Annotated[
    list[str] | None,
    typer.Option(
        "--trust",
        metavar="NAME",
        help="Code of yours that the run's settings may use: package.module:CALLABLE, or a package; repeatable.",
        show_default=False,
    ),
]


def load_on(
    folder: Path,
    device: str,
    trust: Sequence[str] | None,
    data: Path | None = None,
    masks: Path | None = None,
    split: str | None = None,
) -> Run:
    """A run, on other images than its own if they are named."""
    return on_data(load_run(folder, device=device, trust=trust or ()), data, masks, split)


def tell_device(device: str) -> None:
    """Says where the work is done; the error output holds errors alone."""
    if is_first():
        say(f"Device: {device_text(device)}")


def takes_options(app: typer.Typer, name: str, action: Callable[[Request], None]) -> None:
    """Adds a command that takes all options of a run."""

    def command(**given: Any) -> None:
        adopt_slurm(os.environ)  # first: only one of several processes speaks
        action(requested(**given))

    command.__doc__ = action.__doc__
    command.__signature__ = _signature()  # type: ignore[attr-defined]
    app.command(name)(command)


def _signature() -> inspect.Signature:
    """One parameter per option, named GROUP__OPTION, and those that are no settings."""
    parameters = [
        _parameter("arguments", list[str], typer.Argument(metavar="RUN [GROUP.OPTION=VALUE]...", help=(
            "Folder of the run, and options by their names in a configuration file, as train.lr=1e-4."
        ), show_default=False), None),
        _parameter("config", Path, typer.Option("--config", help="YAML file with options, as --print-config prints them."), None),
        _parameter("recipe", str, typer.Option(
            "--recipe", metavar="NAME", help=(
                f"Other defaults for what is left out: {', '.join(RECIPES)}; isnet recipes shows them."
            ),
            autocompletion=lambda incomplete: [name for name in RECIPES if name.startswith(incomplete)],
        ), None),
        _parameter("name", str, typer.Option("--name", help="What to call the run in tables.", show_default="the variant"), None),
        _parameter("device", str, typer.Option("--device", callback=check_device, help=_DEVICE_HELP), "auto"),
        _parameter("resume", bool, typer.Option("--resume", help="Continue the run; options left out are taken from it."), False),
        _parameter("overwrite", bool, typer.Option("--overwrite", help="Begin again in the folder of an earlier run."), False),
        _parameter("print_config", bool, typer.Option("--print-config", help="Print all options and stop."), False),
        _parameter("dry_run", bool, typer.Option("--dry-run", help="Tell what would be done, and stop."), False),
        inspect.Parameter("trust", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Trust),
        _parameter("quiet", bool, typer.Option("--quiet", help="Print errors only."), False),
        _parameter("help_all", bool, typer.Option(
            "--help-all", is_eager=True, callback=_show_all, help="All options, the rarer ones, too."
        ), False),
    ]  # fmt: skip
    for key, group in GROUPS.items():
        panel = (group.__doc__ or "").partition("\n")[0].partition(";")[0].rstrip(".")
        for name, (option, kind) in options_of(group).items():
            parameters.append(_option_parameter(key, name, option, kind, panel))
    return inspect.Signature(parameters)


def _parameter(name: str, kind: Any, info: Any, default: Any) -> inspect.Parameter:
    annotation: Any = Annotated[kind if default is not None else kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _option_parameter(key: str, name: str, option: Option, kind: Any, panel: str) -> inspect.Parameter:
    names = option.names or (f"--{name.replace('_', '-')}",)
    plain, several = bare(kind), is_several(kind)
    if plain is bool and "/" not in names[0]:
        names = (f"{names[0]}/--no-{names[0][2:]}", *names[1:])
    info = typer.Option(
        *names,
        help=_help(option, plain, default_of(GROUPS[key], name)),
        metavar=None if plain is bool else option.metavar or {int: "INTEGER", float: "NUMBER"}.get(plain, "TEXT"),
        show_default=False,
        rich_help_panel=panel,
        hidden=not option.common,
        autocompletion=_completion(option, plain),
    )
    return _parameter(f"{key}__{name}", bool if plain is bool else list[str] if several else str, info, None)


def _completion(option: Option, plain: Any) -> Callable[[str], list[str]] | None:
    if not choices_of(option, plain):
        return None
    return lambda incomplete: [value for value in choices_of(option, plain) if value.startswith(incomplete)]


def _help(option: Option, plain: Any, default: Any) -> str:
    """The help with the default."""
    shown = _shown(default)
    return f"{full_help(option, plain)} Default: {shown}." if shown else full_help(option, plain)


def _shown(value: Any) -> str:
    """A default as one would write it; empty for none."""
    if isinstance(value, bool):
        return "on" if value else ""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return "" if value in (None, "", {}) else f"{value}"


def _show_all(context: typer.Context, wanted: bool) -> None:
    if wanted:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        say(context.get_help())
        raise typer.Exit


def is_first() -> bool:
    """Whether this process is the first of those that torchrun started, or alone."""
    return os.environ.get("RANK", "0") == "0"
