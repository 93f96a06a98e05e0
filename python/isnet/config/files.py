"""Settings as YAML: ``--config run.yaml``, ``--print-config`` and a run's ``config.yaml``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from isnet.config.option import default_of, full_help, near, options_of, to_json
from isnet.config.run import GROUPS, RunConfig, flag


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
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no YAML ({' '.join(str(error).split())})") from error
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ValueError(f"{path}: expected groups of options ({', '.join(GROUPS)}), got {type(found).__name__}")
    for key, values in found.items():
        if key != "name" and key not in GROUPS:
            raise ValueError(f"{path}: {key}: no such group of options{near(str(key), GROUPS)}")
        if key != "name" and not isinstance(values, dict | None):
            raise ValueError(f"{path}: {key}: expected options with their values, got {values!r}")
    return {key: values if key == "name" else dict(values or {}) for key, values in found.items()}


def to_yaml(config: RunConfig) -> str:
    """All options with their values and what they mean; :func:`read_values` reads it."""
    lines = [f"name: {_value(config.name)}  # what to call the run in tables; the variant by default"]
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
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    text = yaml.safe_dump(to_json(value), default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
