"""Settings as YAML: ``--config run.yaml``, ``--print-config`` and a run's ``config.yaml``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from isnet._files import read_text
from isnet.config.option import default_of, full_help, options_of, to_json
from isnet.config.recipes import RECIPES
from isnet.config.run import FROM_RUN, GROUPS, NOTES, RunConfig, flag, require_groups


def read_values(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The groups of options in a YAML (or JSON) file, values as they stand there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no YAML, or no groups of options.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"--config: no file {path}")
    try:
        found = parse_yaml(read_text(path))
    except RecursionError as error:
        raise ValueError(f"{path}: no YAML (nested too deeply)") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    found = {} if found is None else found
    try:
        require_groups(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return {key: v if key in NOTES else dict(v or {}) for key, v in found.items() if key != FROM_RUN}


class _Loader(yaml.SafeLoader):
    """YAML without its traps.

    A key that stands twice is an error (the first would be dropped), a date is a text, and an alias is an error, since a few lines of
    aliases may stand for gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"the alias *{event.anchor} is not followed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands there twice", problem_mark=key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for letter, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=_Loader)


def to_yaml(config: RunConfig) -> str:
    """All options with their values and what they mean; :func:`read_values` reads it."""
    lines = [
        f"name: {_value(config.name)}  # what to call the run in tables; the variant by default",
        f"recipe: {_value(config.recipe)}  # the one that filled the options left out, with its version; none by default",
    ]
    for key in GROUPS:
        group = getattr(config, key)
        lines += ["", f"# {(type(group).__doc__ or '').partition(chr(10))[0]}", f"{key}:"]
        for name, (option, _) in options_of(type(group)).items():
            lines.append(f"  {name}: {_value(getattr(group, name))}  # {option.help}")
    return "\n".join(lines) + "\n"


def to_markdown() -> str:
    """The page of all options, docs/options.md."""
    lines = [
        "# Options of a run",
        "",
        "What `isnet train` and `isnet tune` take, by group: on the command line, as `GROUP.OPTION=VALUE` after it, or in a file",
        "(`--config run.yaml`; `--print-config` prints one). Made by `python -m isnet.config` from `isnet/config/groups.py`.",
    ]
    for key, group in GROUPS.items():
        lines += ["", f"## {key}", (group.__doc__ or "").partition("\n")[0], ""]
        lines += ["| option | command line | default | meaning |", "| --- | --- | --- | --- |"]
        for name, (option, kind) in options_of(group).items():
            default, meaning = _value(default_of(group, name)), full_help(option, kind)
            lines.append(f"| `{name}` | `{flag(name)}` | `{default}` | {meaning} |")
    lines += [
        "",
        "## Recipes",
        "Sets of defaults: `--recipe NAME`, or `recipe: NAME` in a file, fills the options that are left out; one that is given wins.",
        "A run's settings note name and version. What speaks for them: [which method when](which_method.md).",
    ]
    for recipe in RECIPES.values():
        lines += ["", f"### {recipe.name}, version {recipe.version}", recipe.summary, ""]
        lines += ["| option | value |", "| --- | --- |"]
        lines += [
            f"| `{key}.{name}` | `{_value(value)}` |" for key, of in recipe.values.items() for name, value in of.items()
        ]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    text = yaml.safe_dump(to_json(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
