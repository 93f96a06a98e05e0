"""Names in texts: shown as they are, in one place for all commands."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

import isnet
from isnet import cli
from isnet._text import Screen, figure_text, say, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [bold] :smile: ä 漢 🫁", "plain [bold] :smile: ä 漢 🫁"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31m\x07\x9b", "\\x1b[31m\\x07\\x9b"),
        ("a\u202eb\u200b\u2028\ufeff", "a\\u202eb\\u200b\\u2028\\ufeff"),
        ("\udcff\U000e0001", "\\udcff\\U000e0001"),
        ("", ""),
    ],
)
def test_what_has_no_shape_becomes_visible(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert visible(text) == shown
    file = io.StringIO()
    Screen(file=file, width=200).print(text)
    assert file.getvalue() == f"{shown}\n"
    say(text.replace("\n", "").replace("\t", ""))
    assert capsys.readouterr().out == f"{visible(text.replace(chr(10), '').replace(chr(9), ''))}\n"


def test_texts_of_figures() -> None:
    assert figure_text("$x^$ \x1b") == r"\$x^\$ \x1b"


def test_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["isnet", "data", "check", "/no\nfile[/red]\x1b[2J"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "isnet: data: /no\\nfile[/red]\\x1b[2J does not exist\n"


def test_nothing_is_printed_past_it() -> None:
    """Commands print by say() and Screen alone."""
    root = Path(str(isnet.__file__)).parent
    wrong = []
    for path in root.rglob("*.py"):
        if path.name in ("_text.py", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name in ("print", "typer.echo", "click.echo", "Console", "rich.print"):
                    wrong.append(f"{path.relative_to(root)}:{node.lineno}: {name}")
    assert not wrong
