"""Names in texts: shown as they are, in one place for all commands."""

from __future__ import annotations

import ast
import csv
import io
import json
from pathlib import Path

import pytest
from hostile import lay, mask, png
from test_isnet_own_images import SHORT, SIDE
from typer.testing import CliRunner

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


def test_a_run_on_classes_with_odd_names(tmp_path: Path) -> None:
    names = ("[/red] $x^{", "[bold]\x1b[31m\u202e", "<script>alert(1)</script>")
    rows = [["image", "mask", "label", "split", "source"]]
    for label, name in enumerate(names):
        for number in range(8):
            image = f"{label}-{number}.png"
            lay(tmp_path, {image: png(image, SIDE), "mask.png": mask(SIDE)})
            split = ("train", "train", "validation", "a/b\\[/]\x1b$^{")[number % 4]
            rows.append([image, "mask.png", name, split, f"from {name}"])
    with (tmp_path / "set.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    run, page = tmp_path / "run", tmp_path / "report.html"
    options = ["--data", tmp_path / "set.csv", "--variant", "selective", "--c1", 1, "--c2", 25, "--tensorboard", *SHORT]
    for words in (
        ["train", run, *options],
        ["evaluate", run, "--resamples", 5],
        ["report", run, "--out", page],
    ):
        result = CliRunner().invoke(cli.app, list(map(str, words)))
        assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
        assert "\x1b" not in result.output and "\u202e" not in result.output
        assert "a/b\\[/]\\x1b$^{" in result.output or words[0] == "report"
    assert json.loads((run / "config.json").read_text())["data"]["classes"] == sorted(names)
    assert "<script>alert(1)" not in page.read_text() and "$x^{" in page.read_text()


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
