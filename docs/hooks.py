"""MkDocs: the reference of both command lines, which they write themselves, and the pages that stand at the repository's root."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from isnet.cli import app as isnet
from lrpkernels.__main__ import app as lrpkernels

_PAGE = "api/commands.md"
_ROOT = {"SECURITY.md": "security.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated page and those of the root to the site."""
    files.append(File.generated(config, _PAGE, content=reference()))
    for name, page in _ROOT.items():
        text = (Path(config.config_file_path).parent / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the root's pages, as the repository shows them, lead to those of the site."""
    for name, page in _ROOT.items():
        markdown = markdown.replace(f"](../{name})", f"]({page})").replace(f"]({name})", f"]({page})")
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings name what they refer to as Sphinx does; here the name alone is shown."""
    return re.sub(r":(?:class|func|meth|mod|data|attr):\s*(?=<code>)", "", html)


def reference() -> str:
    """Markdown of every command, its arguments and its options, as ``--help`` states them."""
    parts = ["# Command lines"]
    for name, app in (("isnet", isnet), ("lrpkernels", lrpkernels)):
        parts += _section(get_command(app), name, typer.Context(get_command(app), info_name=name))
    return "\n\n".join(parts) + "\n"


def _section(command: Any, path: str, context: Any) -> list[str]:
    parts = [f"## `{path}`" if " " not in path else f"### `{path}`"]
    if command.help:
        parts.append(" ".join(command.help.split()))
    rows = list(filter(None, (_row(parameter, context) for parameter in command.get_params(context))))
    if rows:
        parts.append("| argument or option | meaning |\n| --- | --- |\n" + "\n".join(rows))
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            parts += _section(child, f"{path} {name}", type(context)(child, info_name=name, parent=context))
    return parts


def _row(parameter: Any, context: Any) -> str:
    if parameter.name in ("help", "install_completion", "show_completion") or getattr(parameter, "hidden", False):
        return ""
    record = parameter.get_help_record(context)
    if record is None and parameter.param_type_name != "argument":
        return ""
    name, meaning = record or (parameter.human_readable_name, getattr(parameter, "help", None) or "")
    return "| `{}` | {} |".format(*(_cell(text) for text in (name, meaning)))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
