"""From the groups of options to commands that take all of them, and from a command line to the settings of a run."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import typer
import yaml

from isnet._text import say
from isnet.config import GROUPS, RunConfig, changed, flag, require_use
from isnet.config.files import parse_yaml, read_values
from isnet.config.option import Option, bare, choices_of, default_of, full_help, near, options_of
from isnet.factories import require_no_files, require_trusted
from isnet.runs.build import best_device, device_text
from isnet.runs.folder import CONFIG_NAME, Run, load_config, load_run
from isnet.runs.other import on_data
from isnet.training.slurm import adopt_slurm

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run.")]
_OVERRIDE = re.compile(r"(\w+)\.(\w+)=(.*)", re.DOTALL)


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


class Request(NamedTuple):
    """What a command line asks for.

    Attributes:
        folder: Of the run; None if none was named.
        config: Its settings.
        device: Where to compute.
        resume, overwrite: What to do with a run that is in the folder.
        print_config, dry_run: What to do instead of training.
        quiet: Print nothing but errors.
        trust: Code that files may name.
        typed: (group, option) of those on the command line.
    """

    folder: Path | None
    config: RunConfig
    device: str
    resume: bool
    overwrite: bool
    print_config: bool
    dry_run: bool
    quiet: bool
    trust: tuple[str, ...] = ()
    typed: tuple[tuple[str, str], ...] = ()

    @property
    def run(self) -> Path:
        """The folder of the run.

        Raises:
            ValueError: none was named.
        """
        if self.folder is None:
            raise ValueError("RUN: name the folder of the run")
        return self.folder

    @property
    def how(self) -> dict[str, bool]:
        """What :func:`isnet.runs.train_run` gets beside settings, data and device."""
        return {"resume": self.resume, "overwrite": self.overwrite, "progress": not self.quiet}


def takes_options(app: typer.Typer, name: str, action: Callable[[Request], None]) -> None:
    """Adds a command that takes all options of a run."""

    def command(**given: Any) -> None:
        adopt_slurm(os.environ)  # first: only one of several processes speaks
        action(_request(**given))

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
    plain, several = bare(kind), _is_several(kind)
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


def _is_several(kind: Any) -> bool:
    """Whether the option may be given more than once."""
    plain = bare(kind)
    return get_origin(plain) is dict or (get_origin(plain) is tuple and get_args(plain)[-1] is Ellipsis)


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


def _request(
    arguments: Sequence[str] | None,
    config: Path | None,
    name: str | None,
    device: str,
    resume: bool,
    overwrite: bool,
    print_config: bool,
    dry_run: bool,
    quiet: bool,
    trust: Sequence[str] | None,
    help_all: bool,
    **options: Any,
) -> Request:
    folder, overrides = _split_arguments(arguments or ())
    if resume and overwrite:
        raise ValueError("--resume, --overwrite: the one goes on with what the other removes; leave one out")
    values: dict[str, Any] = {}
    if resume and folder is not None and (folder / CONFIG_NAME).exists():
        values = load_config(folder).to_json()
    elif (
        resume
        and folder is not None
        and not (config or options.get("data__path") or "path" in overrides.get("data", {}))
    ):
        raise ValueError(f"--resume: {folder} holds no run; to begin one there, name --data or --config")
    given = {key: dict(found) for key, found in overrides.items()}
    for parameter, value in options.items():
        if value is not None and value != []:
            key, _, option = parameter.partition("__")
            given.setdefault(key, {})[option] = value
    read = read_values(config) if config is not None else {}
    for layer in (read, given):
        for key, found in layer.items():
            values[key] = found if key == "name" else {**values.get(key, {}), **found}
    if name is not None:
        values["name"] = name
    if "path" in {**read.get("data", {}), **given.get("data", {})} and not resume:
        values["data"] = {k: v for k, v in values["data"].items() if k not in ("classes", "multi_label")}
    typed = [(key, option) for key, found in given.items() for option in found]
    try:
        settings = RunConfig.from_json(values)
    except ValueError as error:
        raise ValueError(_named(str(error), typed, read, config)) from error
    require_use(settings, typed)
    _require_use_in(read, settings, config)
    if not print_config:
        _require_trusted(settings, typed, trust or (), config if config and read else (folder or Path()) / CONFIG_NAME)
    return Request(
        folder, settings, device, resume, overwrite, print_config, dry_run, quiet, tuple(trust or ()), tuple(typed)
    )


def _require_trusted(config: RunConfig, typed: Sequence[tuple[str, str]], trust: Sequence[str], path: Path) -> None:
    """Refuses code that only a file names: what is typed is the user's choice."""
    said = [f"{key}.{option}" for key, option in typed]
    require_trusted({option: name for option, name in config.named_code.items() if option not in said}, trust, path)
    if "network.arch_args" not in said:
        require_no_files(config.network.arch, config.network.arch_args, path)


def _require_use_in(read: Mapping[str, Any], settings: RunConfig, path: Path | None) -> None:
    """Refuses options of a file that do nothing with its others; what the command line switches off may stand there."""
    alone = RunConfig.from_json({**read, "data": {**read.get("data", {}), "kind": "images"}})
    filed = [pair for pair in changed(alone) if pair[1] in read.get(pair[0], {})]
    try:
        require_use(alone, [pair for pair in filed if pair in changed(settings)])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _named(text: str, typed: Sequence[tuple[str, str]], read: Mapping[str, Any], path: Path | None) -> str:
    """An error's text that begins with GROUP.OPTION, with the file or the name under which the option was given."""
    found = re.match(r"(\w+)\.(\w+(?:, \w+)*): ", text)
    if found is None:
        return f"{path}: {text}" if text.partition(":")[0] in read else text
    key, names = found[1], found[2].split(", ")
    if any((key, name) in typed for name in names):
        return f"{', '.join(map(flag, names))}{text[found.end() - 2 :]}"
    return f"{path}: {text}" if any(name in read.get(key, {}) for name in names) else text


def _split_arguments(arguments: Sequence[str]) -> tuple[Path | None, dict[str, dict[str, Any]]]:
    """The run's folder, and the options that are given as GROUP.OPTION=VALUE."""
    folders, overrides = [], dict[str, dict[str, Any]]()
    for argument in arguments:
        found = _OVERRIDE.fullmatch(argument)
        if found is None:
            folders.append(argument)
            continue
        key, name, text = found.groups()
        if key not in GROUPS:
            raise ValueError(f"{argument}: no such group of options{near(key, GROUPS)}")
        options: Mapping[str, Any] = options_of(GROUPS[key])
        if name not in options:
            raise ValueError(f"{key}.{name}: no such option{near(name, options)}")
        overrides.setdefault(key, {})[name] = _value(text, options[name][1])
    folders = [folder for folder in folders if folder]  # an empty text is an unset variable's, not the current folder
    if len(folders) > 1:
        raise ValueError(f"RUN: expected one folder, got {', '.join(folders)}")
    return (Path(folders[0]) if folders else None), overrides


def _value(text: str, kind: Any) -> Any:
    """What a text stands for: lists and mappings as YAML has them."""
    if not _is_several(kind):
        return text
    try:
        found = parse_yaml(text)
    except yaml.YAMLError:
        found = text
    return found if isinstance(found, list | dict) else [text]


def is_first() -> bool:
    """Whether this process is the first of those that torchrun started, or alone."""
    return os.environ.get("RANK", "0") == "0"
