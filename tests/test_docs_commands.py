"""Every command line in README and documentation is one that the command lines accept, and every option named in them exists."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from isnet.cli import app as isnet_app
from lrpkernels.__main__ import app as lrpkernels_app

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SHELLS = ("sh", "bash", "console", "shell")
PROGRAMS = {"isnet": get_command(isnet_app), "lrpkernels": get_command(lrpkernels_app)}
# Programs of others, whose options are not ours to check.
OTHERS = {
    *("pip", "pytest", "git", "export", "cd", "apt-get", "python3", "tensorboard", "mlflow", "wandb"),
    *("torchrun", "sbatch", "srun", "scontrol", "squeue", "compute-sanitizer", "ncu", "nsys"),
    *("[", "exit", "while", "for", "do", "done", "if", "fi", "trap", "wait", "kill"),
}


def commands_of(text):
    """The command lines of a page's shell blocks: words, without comments, variables and prompts."""
    for language, block in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.M | re.S):
        if language not in SHELLS:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s(?:&&|\|\||\||;)\s", line.removeprefix("$ ")):
                words = shlex.split(part.split(" > ")[0], comments=True)
                while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                if words and not words[0].startswith("#"):
                    yield words


def our_command(words):
    """Program and arguments, if the words call a program of ours: directly, by ``python -m`` or by torchrun."""
    if "-m" in words[1:-1] and Path(words[0]).name in ("python", "python3", "torchrun", "srun"):
        words = words[words.index("-m") + 1 :]
    return (words[0], words[1:]) if words[0] in PROGRAMS else None


def parse(command, name, arguments, parent=None):
    """Parses as the program would, and runs nothing."""
    context = command.make_context(name, list(arguments), parent=parent)
    if hasattr(command, "commands") and context._protected_args:
        child_name, child, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parse(child, child_name, rest, context)


def every_option(command, context):
    found = set()
    for parameter in command.get_params(context):
        found |= {*parameter.opts, *parameter.secondary_opts}
    for name, child in getattr(command, "commands", {}).items():
        found |= every_option(child, type(context)(child, info_name=name, parent=context))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_parse(page):
    for words in commands_of(page.read_text()):
        called = our_command(words)
        if called is not None:
            name, arguments = called
            try:
                parse(PROGRAMS[name], name, arguments)
            except SystemExit as end:  # of --help and the like
                assert end.code in (0, None), shlex.join(words)
            except Exception as error:
                if getattr(error, "exit_code", 1) != 0:
                    raise AssertionError(f"{page.name}: {shlex.join(words)}: {error}") from error
        elif words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
            assert all(word in targets for word in words[1:] if "=" not in word), shlex.join(words)
        elif words[:2] == ["python", "-m"]:
            module = words[2].replace(".", "/")
            assert words[2] in ("pytest",) or any((ROOT / f"{module}{end}").exists() for end in (".py", "/__main__.py"))
        else:
            known = words[0] in OTHERS or words[0].endswith(".sh") or (ROOT / words[1] if words[1:] else ROOT).exists()
            assert known, shlex.join(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_options_exist(page):
    known = set()
    for name, command in PROGRAMS.items():
        known |= every_option(command, command.make_context(name, ["--help"], resilient_parsing=True))
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for code in re.findall(r"`([^`\n]+)`", text):
        if code.startswith(("isnet ", "--")):
            named = re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
            if code.startswith("isnet ") or len(named) == 1:
                missing = [option for option in named if option not in known | {"--json", "--help"}]
                assert not missing or page.name in EXTERNAL, f"{page.name}: `{code}` names {missing}"


# Pages about benchmarks and torchrun, whose options are theirs.
EXTERNAL = {"performance.md", "gpu.md", "experiments.md", "CONTRIBUTING.md", "install.md"}


def test_page_with_wrong_command_is_found():
    words = list(commands_of("```sh\nA=1 isnet train RUN --no-such 3  # comment\n```\n"))
    assert words == [["isnet", "train", "RUN", "--no-such", "3"]]
    with pytest.raises(Exception, match="no-such"):
        parse(PROGRAMS["isnet"], *our_command(words[0]))
