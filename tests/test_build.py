"""What setup.py decides, and that it says so in one line when it cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import compile_kernels
import pytest

from lrpkernels import _build_config as build

ROOT = Path(__file__).parent.parent
TOOLKIT = build.Toolkit(Path("/opt/cuda"), "13.0")


def make_toolkit(home: Path, release: str = "13.0") -> Path:
    """A folder that looks like a CUDA toolkit; its nvcc only knows its version."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(
        f'#!/bin/sh\ncase "$1" in\n--dryrun) echo "#\\$ TOP={home}" >&2 ;;\n'
        f'--list-gpu-arch) printf "compute_75\\ncompute_80\\ncompute_90\\ncompute_120\\n" ;;\n'
        f'*) echo "Cuda compilation tools, release {release}, V{release}.1" ;;\nesac\n'
    )
    nvcc.chmod(0o755)
    return home


class TestDecision:
    def test_auto_is_cpu_only_beside_a_cpu_torch(self) -> None:
        decision = build.decide_cuda("auto", TOOLKIT, None)
        assert not decision.build
        assert "torch is CPU-only" in decision.reason and "LRPKERNELS_CUDA=1" in decision.reason

    def test_one_links_the_runtime_statically_beside_a_cpu_torch(self) -> None:
        decision = build.decide_cuda("1", TOOLKIT, None)
        assert decision.build and decision.runtime_library == "cudart_static"
        assert "nvcc 13.0 at /opt/cuda" in decision.reason

    def test_auto_links_the_shared_runtime_beside_a_cuda_torch(self) -> None:
        decision = build.decide_cuda("auto", TOOLKIT, "13.2")
        assert decision.build and decision.runtime_library == "cudart"

    def test_auto_falls_back_without_nvcc(self) -> None:
        decision = build.decide_cuda("auto", None, None, "no nvcc found")
        assert not decision.build and decision.reason == "no nvcc found"

    def test_auto_falls_back_when_the_major_versions_differ(self) -> None:
        decision = build.decide_cuda("auto", TOOLKIT, "12.8")
        assert not decision.build
        assert "nvcc 13.0" in decision.reason and "CUDA 12.8" in decision.reason

    def test_zero_never_builds(self) -> None:
        assert build.decide_cuda("0", TOOLKIT, "13.0") == build.CudaDecision(False, "LRPKERNELS_CUDA=0")

    @pytest.mark.parametrize(
        ("toolkit", "torch_cuda", "text"), [(None, None, "no nvcc found"), (TOOLKIT, "12.8", "does not fit")]
    )
    def test_one_builds_or_fails(self, toolkit: build.Toolkit | None, torch_cuda: str | None, text: str) -> None:
        with pytest.raises(build.BuildError, match=text):
            build.decide_cuda("1", toolkit, torch_cuda)
        assert build.decide_cuda("1", TOOLKIT, "13.0").build

    def test_mode(self) -> None:
        assert build.parse_mode({}) == build.parse_mode({"LRPKERNELS_CUDA": ""}) == "auto"
        assert build.parse_mode({"LRPKERNELS_CUDA": " 1 "}) == "1"
        with pytest.raises(build.BuildError, match="must be auto, 0 or 1, got 'yes'"):
            build.parse_mode({"LRPKERNELS_CUDA": "yes"})

    @pytest.mark.parametrize("version", ["2.10.1", "1.13.0", "unknown"])
    def test_old_torch(self, version: str) -> None:
        with pytest.raises(build.BuildError, match="too old"):
            build.check_torch_version(version)

    @pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.14.1+cu130", "3.0.0a0"])
    def test_new_torch(self, version: str) -> None:
        build.check_torch_version(version)


class TestArchitectures:
    def test_default(self) -> None:
        assert build.choose_architectures({}, []) == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"

    def test_only_what_nvcc_knows(self) -> None:
        assert build.choose_architectures({}, ["7.5", "8.0", "9.0"]) == "8.0;9.0+PTX"

    def test_the_users_list_is_taken_as_it_is(self) -> None:
        assert build.choose_architectures({"TORCH_CUDA_ARCH_LIST": "7.5 9.0a"}, ["8.0"]) == "7.5 9.0a"

    def test_nothing_in_common(self) -> None:
        with pytest.raises(build.BuildError, match="set TORCH_CUDA_ARCH_LIST"):
            build.choose_architectures({}, ["5.0"])


class TestToolkit:
    def test_cuda_home_comes_first(self, tmp_path: Path) -> None:
        wanted, other = make_toolkit(tmp_path / "wanted", "12.9"), make_toolkit(tmp_path / "other")
        environment = {"CUDA_HOME": str(wanted), "PATH": f"{other / 'bin'}:{os.environ['PATH']}"}
        assert build.find_toolkit(environment) == (build.Toolkit(wanted, "12.9"), "")

    def test_a_wrong_cuda_home_is_named_and_nothing_else_is_tried(self, tmp_path: Path) -> None:
        other = make_toolkit(tmp_path / "other")
        toolkit, missing = build.find_toolkit({"CUDA_HOME": str(tmp_path), "PATH": str(other / "bin")})
        assert toolkit is None and missing.startswith(f"CUDA_HOME={tmp_path} holds no bin/nvcc")

    def test_nvcc_on_path(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda")
        assert build.find_toolkit({"PATH": f"{home / 'bin'}:{os.environ['PATH']}"})[0] == build.Toolkit(home, "13.0")

    def test_nvcc_on_path_is_a_link_or_a_wrapper(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda")
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "nvcc").symlink_to(home / "bin" / "nvcc")
        wrapper = tmp_path / "wrappers" / "nvcc"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
        wrapper.chmod(0o755)
        assert build.toolkit_of_nvcc(str(tmp_path / "links" / "nvcc")) == home
        assert build.toolkit_of_nvcc(str(wrapper)) == home

    def test_an_nvcc_that_does_not_run(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda")
        (home / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
        toolkit, missing = build.find_toolkit({"CUDA_HOME": str(home)})
        assert toolkit is None and missing.endswith("does not run")

    def test_architectures_of_nvcc(self, tmp_path: Path) -> None:
        toolkit = build.Toolkit(make_toolkit(tmp_path / "cuda"), "13.0")
        assert build.supported_architectures(toolkit) == ["7.5", "8.0", "9.0", "12.0"]


def run_setup(arguments: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LRPKERNELS_CUDA": "0", **variables}
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=120)


def test_a_broken_torch_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError\n")
    done = run_setup(["bdist_wheel"], PYTHONPATH=str(tmp_path))
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("lrpkernels: torch is installed and does not import (") and line.endswith("reinstall it")


def test_a_bad_setting_is_one_line() -> None:
    done = run_setup(["bdist_wheel"], LRPKERNELS_CUDA="perhaps")
    assert done.returncode != 0
    assert done.stderr.splitlines() == ["lrpkernels: LRPKERNELS_CUDA must be auto, 0 or 1, got 'perhaps'"]


def test_the_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    done = run_setup(["-q", "egg_info", "--egg-base", str(tmp_path), "sdist", "--dist-dir", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert sources <= names
    assert {
        "setup.py",
        "pyproject.toml",
        "LICENSE",
        "CITATION.cff",
        "lrpkernels/ops.pyi",
        "lrpkernels/_build_config.py",
        "lrpkernels/py.typed",
    } <= names
    assert {"python/isnet/cli/options.py", "python/isnet/runs/report.html.jinja", "python/isnet/py.typed"} <= names
    assert not any(name.endswith(".so") for name in names)


PTXAS_REPORT = """
ptxas info    : Compiling entry function '_Z1av' for 'sm_80'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Function properties for _Z1bv
    {frame} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 376 bytes cmem[0]
"""


class TestKernelGate:
    """tests/compile_kernels.py must refuse what it is there to refuse."""

    def run(self, monkeypatch: pytest.MonkeyPatch, home: Path, *arguments: str) -> int:
        monkeypatch.setenv("CUDA_HOME", str(home))
        return compile_kernels.main(list(arguments))

    def nvcc_that_prints(self, home: Path, report: str, status: int = 0) -> Path:
        make_toolkit(home)
        nvcc = home / "bin" / "nvcc"
        header = '#!/bin/sh\ncase "$1" in --version) echo "release 13.0,"; exit ;; --list-gpu-arch) exit ;; esac\n'
        nvcc.write_text(f"{header}cat <<'END'\n{report}\nEND\nexit {status}\n")
        return home

    def test_clean(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        home = self.nvcc_that_prints(tmp_path / "cuda", PTXAS_REPORT.format(frame=0, spill=0))
        assert self.run(monkeypatch, home) == 0
        printed = capsys.readouterr().out
        assert "no spills" in printed and "at most 255 registers" in printed

    @pytest.mark.parametrize(("frame", "spill"), [(8, 0), (0, 16)])
    def test_spills_and_local_memory(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frame: int, spill: int
    ) -> None:
        home = self.nvcc_that_prints(tmp_path / "cuda", PTXAS_REPORT.format(frame=frame, spill=spill))
        assert self.run(monkeypatch, home) == 1

    def test_a_kernel_that_does_not_compile(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        home = self.nvcc_that_prints(tmp_path / "cuda", "error: expected a ';'", status=1)
        assert self.run(monkeypatch, home) == 1

    def test_a_report_without_kernels(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert self.run(monkeypatch, self.nvcc_that_prints(tmp_path / "cuda", "nothing")) == 1

    def test_without_nvcc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert self.run(monkeypatch, tmp_path) == 0
        assert self.run(monkeypatch, tmp_path, "--require-nvcc") == 1
