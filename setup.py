"""Builds lrpkernels._C; lrpkernels/_build_config.py decides what to build, everything else is in pyproject.toml."""

import importlib.util
import json
import os
import re
import site
import sys
import sysconfig
from pathlib import Path

import setuptools
from setuptools import find_namespace_packages, find_packages, setup

ROOT = Path(__file__).parent.resolve()
# Jump threading would put branches back into the loops that the CPU kernels keep free of them for the vectoriser.
CXX_FLAGS = ["-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fno-thread-jumps", "-fopenmp-simd"]
CXX_FLAGS += ["-fvisibility=hidden"]
NVCC_FLAGS = ["-O3"]


def load_build_config():
    """Imports lrpkernels/_build_config.py without importing the package, which is not built yet."""
    spec = importlib.util.spec_from_file_location("_build_config", ROOT / "lrpkernels" / "_build_config.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


config = load_build_config()
# Commands that compile nothing; get_requires_for_build_* of PEP 517 is egg_info.
BUILDS = not {"sdist", "egg_info", "clean", "--version", "--name"} & set(sys.argv[1:])


def import_torch():
    """The torch of the environment that the package is installed into; an isolated build (PEP 517) hides it.

    pip runs an isolated build with that environment's Python and takes its packages off sys.path: at the end of it,
    behind those of the build, they are found again.
    """
    if importlib.util.find_spec("torch") is None:
        user = [site.getusersitepackages()] if sys.prefix == sys.base_prefix else []
        sys.path += [folder for folder in (*site.getsitepackages(), *user) if folder not in sys.path]
        importlib.invalidate_caches()
    if importlib.util.find_spec("torch") is None:
        raise config.BuildError(f"torch is not installed; {config.INSTALL_HINT}")
    try:
        import torch
    except (ImportError, OSError) as error:
        raise config.BuildError(f"torch is installed and does not import ({error}); reinstall it") from None
    return torch


try:
    config.check_setuptools_version(setuptools.__version__)
    if BUILDS:
        torch = import_torch()
        config.check_torch_version(torch.__version__)
        headers = config.pybind11_headers(Path(torch.__file__).parent / "include")
        config.check_build_tools(os.environ, sysconfig.get_paths()["include"])
        toolkit, missing = config.find_toolkit(os.environ)
        cuda = config.decide_cuda(config.parse_mode(os.environ), toolkit, torch.version.cuda, missing)
        architectures = ""
        if cuda.build:
            architectures = config.choose_architectures(os.environ, config.supported_architectures(toolkit))
            os.environ["TORCH_CUDA_ARCH_LIST"] = architectures
            os.environ["CUDA_HOME"] = str(toolkit.home)
except config.BuildError as error:
    raise SystemExit(f"lrpkernels: {error}") from None


def version() -> str:
    """The version, read from lrpkernels/_version.py."""
    return re.search(r'__version__ = "(.+)"', (ROOT / "lrpkernels" / "_version.py").read_text())[1]


def write_build_info() -> Path:
    """Writes what _C.build_info() reports as a header; returns its folder. An unchanged file keeps its time stamp."""
    values = {
        "LRP_VERSION": version(),
        "LRP_CXX_FLAGS": " ".join(CXX_FLAGS),
        "LRP_TORCH_VERSION": torch.__version__,
        "LRP_CUDA_REASON": cuda.reason,
        "LRP_NVCC_VERSION": toolkit.version if cuda.build else "",
        "LRP_CUDA_ARCHITECTURES": architectures,
    }
    text = "#pragma once\n" + "".join(f"#define {name} {json.dumps(value)}\n" for name, value in values.items())
    header = ROOT / "build" / "generated" / "build_info.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)
    return header.parent


def build_extension():
    """The command that says what was decided, then builds."""
    from torch.utils import cpp_extension  # reads CUDA_HOME when imported

    if cuda.build:
        cpp_extension.CUDA_HOME = str(toolkit.home)  # a CPU-only torch ignores the variable

    class BuildExtension(cpp_extension.BuildExtension):
        def run(self) -> None:
            print(f"lrpkernels {version()} for torch {torch.__version__}")
            print(f"  CUDA kernels: {'yes' if cuda.build else 'no'} ({cuda.reason})")
            if cuda.build:
                print(f"  architectures: {architectures}")
            sys.stdout.flush()
            write_build_info()
            super().run()

    return BuildExtension


def sources_in(pattern: str) -> list[str]:
    """The files that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


def extension():
    """The one extension: op registrations for CPU and, if decided, CUDA, and the pybind11 module."""
    from torch.utils import cpp_extension

    sources = ["csrc/library.cpp", "csrc/module.cpp", *sources_in("csrc/cpu/*.cpp")]
    options = {
        "define_macros": [("TORCH_TARGET_VERSION", "0x020b000000000000")],
        "include_dirs": [str(ROOT / "build" / "generated"), headers],
    }
    if cuda.build:
        sources += ["csrc/cuda/register.cpp", *sources_in("csrc/cuda/*.cu")]
        options["define_macros"].append(("LRP_WITH_CUDA", None))
        options["include_dirs"].append(str(toolkit.home / "include"))
        options["library_dirs"] = [str(toolkit.home / folder) for folder in ("lib64", "lib")]
        options["libraries"] = [cuda.runtime_library, "dl", "rt", "pthread"]
    built = cpp_extension.CppExtension(
        "lrpkernels._C", sources, extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS}, **options
    )
    # The ops use torch's stable C++ interface only: without torch_python one build serves several torch versions.
    built.libraries = [name for name in built.libraries if name != "torch_python"]
    return built


def compiled_part():
    """What setup() is told of the extension: nothing for a source distribution, which needs no torch."""
    if not BUILDS:
        return {}
    told = {"ext_modules": [extension()], "cmdclass": {"build_ext": build_extension()}}
    if cuda.build:  # in the name of the wheel, which runs on other GPUs and drivers than one for the CPU
        told["options"] = {"egg_info": {"tag_build": config.local_version(toolkit)}}
    return told


setup(
    packages=[
        *find_packages(include=["lrpkernels", "lrpkernels.*"]),
        *find_namespace_packages("python", include=["isnet", "isnet.*"]),
    ],
    **compiled_part(),
)
