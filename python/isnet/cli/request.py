"""From a command line to the settings of a run: a resumed run's, a recipe, a file and typed options, the later over the earlier."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import yaml

from isnet.config import GROUPS, NOTES, RunConfig, changed, find_recipe, flag, require_use
from isnet.config.files import parse_yaml, read_values
from isnet.config.option import bare, near, options_of
from isnet.factories import require_no_files, require_trusted
from isnet.runs.folder import CONFIG_NAME, load_config

_OVERRIDE = re.compile(r"(\w+)\.(\w+)=(.*)", re.DOTALL)


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


def requested(
    arguments: Sequence[str] | None,
    config: Path | None,
    recipe: str | None,
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
    """What the values of a command line ask for, as :func:`isnet.cli.options.takes_options` has them.

    Raises:
        ValueError: wrong, contradictory or idle options; the text names them as they were given.
    """
    folder, overrides = _split_arguments(arguments or ())
    if resume and overwrite:
        raise ValueError("--resume, --overwrite: the one goes on with what the other removes; leave one out")
    values: dict[str, Any] = {}
    resumed = folder if resume and folder is not None and (folder / CONFIG_NAME).exists() else None
    if resumed is not None:
        values = load_config(resumed).to_json()
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
    filled = _recipe(recipe, read, config, resumed)
    for layer in (filled, read, given):
        for key, found in layer.items():
            if key != "recipe" or layer is filled:
                values[key] = found if key in NOTES else {**values.get(key, {}), **found}
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
    _require_use_in(read, filled, settings, config)
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


def _recipe(typed: str | None, read: Mapping[str, Any], path: Path | None, resumed: Path | None) -> dict[str, Any]:
    """What the recipe on the command line, or else the one in the file, fills in: nothing in a run that is resumed, which has it already.

    Raises:
        ValueError: an unknown recipe, or another one than the resumed run's.
    """
    text, place = (read.get("recipe") or "", f"{path}: ") if typed is None else (typed, "--")
    if not text and typed is None:
        return {}
    try:
        recipe = find_recipe(str(text))
    except ValueError as error:
        raise ValueError(f"{place}{error}") from error
    if resumed is None:
        return {**recipe.values, "recipe": recipe.title}
    begun = load_config(resumed).recipe
    if begun != recipe.title:
        had = f"with the recipe {begun!r}" if begun else "without a recipe"
        raise ValueError(f"{place}recipe: the run in {resumed} was begun {had} and keeps to that; leave the recipe out")
    return {}


def _require_use_in(read: Mapping[str, Any], filled: Mapping[str, Any], settings: RunConfig, path: Path | None) -> None:
    """Refuses options of a file that do nothing with its others and its recipe's; what the command line switches off may stand there."""
    both = {**filled, **{key: v if key in NOTES else {**filled.get(key, {}), **v} for key, v in read.items()}}
    alone = RunConfig.from_json({**both, "data": {**both.get("data", {}), "kind": "images"}})
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
    if not is_several(kind):
        return text
    try:
        found = parse_yaml(text)
    except yaml.YAMLError:
        found = text
    return found if isinstance(found, list | dict) else [text]


def is_several(kind: Any) -> bool:
    """Whether the option may be given more than once."""
    plain = bare(kind)
    return get_origin(plain) is dict or (get_origin(plain) is tuple and get_args(plain)[-1] is Ellipsis)
