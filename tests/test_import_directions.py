"""The engine's imports run one way (docs/architecture.md): read from the source, imports for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lrpkernels

ROOT = Path(lrpkernels.__file__).parent
# From the top down; a file may import what stands below it, and its own level's package. Files on one line do not know each other.
LEVELS = (
    ("__init__", "__main__"),
    ("tools",),
    ("testing",),
    ("attribution", "verification"),
    ("tape",),
    ("engine",),
    ("layers",),
    ("graph",),
    ("rules",),
    ("functional",),
    ("config",),
    ("_extension", "errors", "heatmap"),
    ("_version", "_build_config", "_C"),
)
DEPTH = {room: depth for depth, rooms in enumerate(LEVELS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every file of the package by its dotted name below ``lrpkernels``."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """The modules of the package that a file imports, and whether it does so inside a function."""
    tree = ast.parse(MODULES[name].read_text())
    package = ["lrpkernels", *name.split(".")]
    if name == "__init__":
        package = ["lrpkernels"]
    elif MODULES[name].name != "__init__.py":
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
            known = [m for m in MODULES if f"{target}.".startswith(f"lrpkernels.{m}.")]
            if known:
                yield max(known, key=len), id(node) in inside
            elif target.split(".")[0] == "lrpkernels":
                yield "_C" if target.startswith("lrpkernels._C") else "__init__", id(node) in inside


def room(name: str) -> str:
    return name.split(".")[0]


def test_imports_point_downwards() -> None:
    wrong = [
        f"{name} -> {target}"
        for name in MODULES
        for target, _ in imports(name)
        if room(name) != room(target) and not DEPTH[room(name)] < DEPTH[room(target)]
    ]
    assert not wrong


def test_no_file_is_in_a_circle() -> None:
    below: dict[str, set[str]] = {name: {target for target, _ in imports(name)} - {name, "_C"} for name in MODULES}
    while ready := [name for name, targets in below.items() if not targets & below.keys()]:
        for name in ready:
            del below[name]
    assert not below


def test_nothing_is_imported_inside_a_function() -> None:
    inside = {f"{name} -> {target}" for name in MODULES for target, local in imports(name) if local}
    assert not {entry for entry in inside if not entry.startswith("__main__ ->")}


def test_the_checks_see_what_they_are_for(tmp_path: Path, monkeypatch: object) -> None:
    assert ("functional.conv_routes", False) in set(imports("functional.conv"))
    assert {target for target, _ in imports("engine.replay")} >= {"rules", "graph", "engine.fusion"}
    assert len(MODULES) > 50 and {room(name) for name in MODULES} <= DEPTH.keys()
