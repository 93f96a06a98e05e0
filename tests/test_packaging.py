"""What an installation needs and says: build tools, versions, type stubs, the command line. Fresh environments are slow tests."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

import isnet.__main__
import lrpkernels as lrp
from lrpkernels import _build_config as build
from lrpkernels import _extension, ops
from lrpkernels.__main__ import app, main
from lrpkernels.tools import stubs

ROOT = Path(__file__).parent.parent
INCLUDE = sysconfig.get_paths()["include"]


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class TestBuildTools:
    def test_this_machine_can_build(self) -> None:
        build.check_build_tools(os.environ, INCLUDE)

    def test_no_compiler(self, tmp_path: Path) -> None:
        with pytest.raises(build.BuildError, match=r"no C\+\+ compiler \(c\+\+ is not on PATH\): install g\+\+"):
            build.check_build_tools({"PATH": str(tmp_path)}, INCLUDE)

    def test_a_compiler_that_is_named_and_missing(self, tmp_path: Path) -> None:
        with pytest.raises(build.BuildError, match=r"\(/no/such/g\+\+ is not on PATH\)"):
            build.check_build_tools({"PATH": os.environ["PATH"], "CXX": "/no/such/g++ -m64"}, INCLUDE)

    @pytest.mark.parametrize(
        ("text", "told"),
        [("echo 'unrecognized option -std=c++20' >&2; exit 1", "unrecognized"), ("exit 3", "status 3")],
    )
    def test_a_compiler_that_is_too_old(self, tmp_path: Path, text: str, told: str) -> None:
        old = script(tmp_path / "old g++", text)
        with pytest.raises(build.BuildError, match=rf"cannot compile C\+\+20 \({told}.*install gcc") as raised:
            build.check_build_tools({"PATH": os.environ["PATH"], "CXX": f"'{old}' -m64"}, INCLUDE)
        assert "\n" not in str(raised.value)

    def test_no_headers_of_python(self, tmp_path: Path) -> None:
        with pytest.raises(build.BuildError, match=r"Python's headers are missing .*apt install python3-dev"):
            build.check_build_tools(os.environ, str(tmp_path))

    @pytest.mark.parametrize("version", ["65.5.0", "76.1", "unknown"])
    def test_old_setuptools(self, version: str) -> None:
        with pytest.raises(build.BuildError, match="is too old: pip install 'setuptools>=77'"):
            build.check_setuptools_version(version)
        build.check_setuptools_version("77.0.3")

    def test_pybind11_is_its_package_or_torchs_copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (Path(build.pybind11_headers(tmp_path)) / "pybind11" / "pybind11.h").is_file()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        include = Path(torch.__file__).parent / "include"
        assert build.pybind11_headers(include) == str(include)
        with pytest.raises(build.BuildError, match="pip install pybind11"):
            build.pybind11_headers(tmp_path)

    def test_a_cuda_build_has_a_name_of_its_own(self) -> None:
        assert build.local_version(build.Toolkit(Path("/opt/cuda"), "13.0")) == "+cu130"


class TestImportErrors:
    def why(self, tmp_path: Path, *built: str, error: ImportError | None = None) -> str:
        for name in built:
            (tmp_path / name).touch()
        text = _extension._why_not(error or ModuleNotFoundError("No module named 'lrpkernels._C'"), tmp_path, "2.10.0")
        assert "\n" not in text
        return text

    def test_sources_that_were_never_built(self, tmp_path: Path) -> None:
        assert "is not built: in the folder of its sources, pip install -e ." in self.why(tmp_path)

    def test_another_python(self, tmp_path: Path) -> None:
        assert re.search(
            r"another Python \(_C\.cpython-399\.so\) than this Python 3\.\d+", self.why(tmp_path, "_C.cpython-399.so")
        )

    def test_an_older_torch(self, tmp_path: Path) -> None:
        told = self.why(tmp_path, "_C.x.so", error=ImportError("undefined symbol:\n torch_parallel_for"))
        assert "torch 2.10.0: it needs torch >= 2.11" in told and "undefined symbol: torch_parallel_for" in told


class TestTypes:
    def test_the_stubs_are_those_of_the_schemas(self) -> None:
        written = (ROOT / "lrpkernels" / "ops.pyi").read_text()
        assert re.sub(r"\s+", "", written) == re.sub(r"\s+", "", stubs.stubs())

    def test_the_module_is_torchs_namespace(self) -> None:
        assert len(dir(ops)) > 15 and {"ratio", "heatmap_scores"} <= set(dir(ops))
        x = torch.rand(3)
        assert torch.equal(ops.ratio(x, x, x, 0.0), x) and ops.ratio is torch.ops.lrpkernels.ratio
        with pytest.raises(AttributeError, match="no attribute 'nothing'; the ops are affine, "):
            _ = ops.nothing  # type: ignore[attr-defined]

    @pytest.mark.slow
    def test_mypy_sees_wrong_calls(self, tmp_path: Path) -> None:
        text = "from torch import zeros\nfrom lrpkernels import ops\nx = zeros(3)\nreveal_type(ops.ratio(x, x, x, 1.0))\nops.ratio(x)\n"
        (tmp_path / "user.py").write_text(text)
        command = [sys.executable, "-m", "mypy", "--config-file=", str(tmp_path / "user.py")]
        environment = {**os.environ, "MYPYPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900, env=environment)
        assert 'user.py:4: note: Revealed type is "torch._tensor.Tensor"' in done.stdout
        assert 'user.py:5: error: Missing positional arguments "value", "denominator", "epsilon"' in done.stdout


class TestCommands:
    def test_version_and_help(self) -> None:
        runner = CliRunner()
        assert runner.invoke(app, ["--version"]).stdout == f"lrpkernels {lrp.__version__}\n"
        for command in ([], ["config"], ["doctor"], ["bench"], ["profile"]):
            found = runner.invoke(app, [*command, "-h"])
            assert found.exit_code == 0 and "Usage: " in found.stdout

    def test_completion(self) -> None:
        variables = {"_LRPKERNELS_COMPLETE": "complete_bash", "COMP_WORDS": "lrpkernels pro", "COMP_CWORD": "1"}
        found = CliRunner().invoke(app, [], prog_name="lrpkernels", env=variables)
        assert found.stdout.split() == ["profile"]

    @pytest.mark.parametrize(
        ("arguments", "status", "text"),
        [
            (["nothing"], 2, "No such command 'nothing'"),
            (["profile", "torch.nn:Nothing"], 2, "model: 'torch.nn:Nothing' cannot"),
            (["bench", "--model", "torch.nn:ReLU", "--device", "cuda"], 2, "finds no GPU; use cpu"),
            (["profile", "json:dumps"], 1, "lrpkernels: TypeError: dumps() missing 1 required positional argument"),
            (["profile", "torch.nn:ReLU", "--device", "quantum"], 1, "lrpkernels: RuntimeError: Expected one of cpu"),
        ],
    )
    def test_errors_are_short_and_have_a_status(
        self,
        arguments: list[str],
        status: int,
        text: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(sys, "argv", ["lrpkernels", *arguments])
        with pytest.raises(SystemExit) as raised:
            main()
        told = capsys.readouterr()
        assert raised.value.code == status and told.out == ""
        assert text in " ".join(re.sub(r"[│╭╮╰╯─]", " ", told.err).split())
        assert status == 2 or len(told.err.splitlines()) == 1

    def test_isnet_without_its_packages_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in sys.modules if name.startswith("isnet.cli")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "typer", None)
        with pytest.raises(SystemExit, match=r"^isnet: .*typer.*: pip install 'lrpkernels\[isnet\]'$"):
            isnet.__main__.main()

    def test_isnet_has_a_version_and_help(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for arguments, text in ((["--version"], f"isnet {lrp.__version__}\n"), (["train", "-h"], "Usage: ")):
            monkeypatch.setattr(sys, "argv", ["isnet", *arguments])
            with pytest.raises(SystemExit) as raised:
                isnet.__main__.main()
            assert not raised.value.code and text in capsys.readouterr().out


class TestVersion:
    def test_is_the_same_everywhere(self) -> None:
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert citation["version"] == lrp.__version__ and citation["cff-version"] == "1.2.0"
        assert {"title", "message", "authors"} <= citation.keys()
        assert all(reference["authors"] and reference["title"] for reference in citation["references"])

    def test_the_forges_ci_runs_what_this_one_runs(self) -> None:
        workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
        steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert ".ci/run" in steps and any("make newcomer" in step for step in steps)

    def test_no_hint_asks_for_a_build_of_the_package(self) -> None:
        files = [path for folder in ("lrpkernels", "python") for path in (ROOT / folder).rglob("*.py")]
        asking = {path.name for path in files if re.search(r"pip install [^\n]*\.\[", path.read_text())}
        assert not asking


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``pip`` of a new environment that holds nothing but pip."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(folder / "bin" / "python"), "-m", "pip", *arguments]
        given = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **variables}
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000, cwd=ROOT, env=given)

    return run


def ours(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the package itself says in pip's output."""
    text = done.stdout + done.stderr
    return sorted({line.strip() for line in text.splitlines() if line.strip().startswith("lrpkernels: ")})


@pytest.mark.slow
def test_without_torch_an_installation_ends_with_one_line(
    environment: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = environment("install", ".")
    assert done.returncode != 0 and ours(done) == [f"lrpkernels: torch is not installed; {build.INSTALL_HINT}"]
    assert "Downloading torch" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--no-build-isolation"]], ids=["isolated", "no-isolation"])
def test_an_environment_with_torch_alone_is_enough(
    environment: Callable[..., subprocess.CompletedProcess[str]], options: list[str]
) -> None:
    torch_version = importlib.metadata.version("torch").partition("+")[0]
    assert environment("install", "-q", f"torch=={torch_version}", "setuptools>=77").returncode == 0
    done = environment("install", "-v", *options, ".", LRPKERNELS_CUDA="0")
    assert done.returncode == 0, done.stderr
    assert f"lrpkernels {lrp.__version__} for torch {torch_version}" in done.stdout
    assert environment("uninstall", "-yq", "lrpkernels").returncode == 0
