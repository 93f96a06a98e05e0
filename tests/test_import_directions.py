"""Imports of both packages run one way (docs/architecture.md): read from the source, imports for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import isnet
import lrpkernels

LONGEST = {"lrpkernels": 450, "isnet": 350}  # lines of a file

# From the top down; a file may import what stands below it, and its own room. Rooms on one line do not know each other.
LEVELS = {
    lrpkernels: (
        ("__init__", "__main__"),
        ("tools",),
        ("testing",),
        ("compat", "pictures"),
        ("attribution", "verification"),
        ("tape",),
        ("engine",),
        ("layers",),
        ("graph",),
        ("rules",),
        ("functional",),
        ("config", "ops"),
        ("_extension", "errors", "heatmap"),
        ("_version", "_build_config", "_C"),
    ),
    isnet: (
        ("__init__", "__main__"),
        ("cli",),
        ("experiments", "export"),
        ("faster_isnet",),
        ("lightning",),
        ("runs",),
        ("training",),
        ("config",),
        ("loggers", "scoring"),
        ("loss",),
        ("distillation", "model"),
        ("explanation", "variants"),
        ("architectures", "data", "gwrp", "masks"),
        ("factories",),
        ("_files", "_seeds", "_text"),
    ),
}


class Package:
    """The files of a package and what they import of it."""

    def __init__(self, package: ModuleType) -> None:
        self.name, self.root = package.__name__, Path(str(package.__file__)).parent
        self.depth = {room: depth for depth, rooms in enumerate(LEVELS[package]) for room in rooms}
        self.modules: dict[str, Path] = {}  # by their dotted names below the package
        for path in self.root.rglob("*.py"):
            parts = path.relative_to(self.root).with_suffix("").parts
            self.modules[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path

    def imports(self, name: str) -> Iterator[tuple[str, bool]]:
        """The modules of the package that a file imports, and whether it does so inside a function."""
        tree = ast.parse(self.modules[name].read_text())
        package = [self.name, *name.split(".")]
        if name == "__init__":
            package = [self.name]
        elif self.modules[name].name != "__init__.py":
            package = package[:-1]
        inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.Lambda)) for n in ast.walk(f)}
        for node in ast.walk(tree):
            targets: list[str] = []
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
                base = base if node.level else node.module or ""
                targets = [f"{base}.{alias.name}" for alias in node.names]
            for target in targets:
                known = [m for m in self.modules if f"{target}.".startswith(f"{self.name}.{m}.")]
                if known:
                    yield max(known, key=len), id(node) in inside
                elif target.split(".")[0] == self.name:
                    yield "_C" if target.startswith(f"{self.name}._C") else "__init__", id(node) in inside


PACKAGES = [Package(package) for package in LEVELS]
each_package = pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)


def room(name: str) -> str:
    return name.split(".")[0]


@each_package
def test_imports_point_downwards(package: Package) -> None:
    wrong = [
        f"{name} -> {target}"
        for name in package.modules
        for target, _ in package.imports(name)
        if room(name) != room(target) and not package.depth[room(name)] < package.depth[room(target)]
    ]
    assert not wrong


@each_package
def test_no_file_is_in_a_circle(package: Package) -> None:
    below = {name: {target for target, _ in package.imports(name)} - {name, "_C"} for name in package.modules}
    while ready := [name for name, targets in below.items() if not targets & below.keys()]:
        for name in ready:
            del below[name]
    assert not below


@each_package
def test_nothing_is_imported_inside_a_function(package: Package) -> None:
    inside = {f"{name} -> {target}" for name in package.modules for target, local in package.imports(name) if local}
    assert not {entry for entry in inside if not entry.startswith("__main__ ->")}


@each_package
def test_files_are_short(package: Package) -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in package.modules.items()}
    assert not {name: count for name, count in lines.items() if count > LONGEST[package.name]}


def test_the_checks_see_what_they_are_for() -> None:
    engine, product = PACKAGES
    assert ("functional.conv_routes", False) in set(engine.imports("functional.conv"))
    assert {target for target, _ in engine.imports("engine.replay")} >= {"rules", "graph", "engine.fusion"}
    assert ("config.groups", False) in set(product.imports("training.validation"))
    for package in PACKAGES:
        assert len(package.modules) > 50 and {room(name) for name in package.modules} <= package.depth.keys()
