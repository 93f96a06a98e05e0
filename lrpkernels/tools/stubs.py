"""Type stubs of the ops, from the schemas that they are registered with: ``python -m lrpkernels.tools.stubs > lrpkernels/ops.pyi``."""

from __future__ import annotations

from typing import Any

from lrpkernels import ops

_HEADER = '"""Signatures of torch.ops.lrpkernels. Written by `python -m lrpkernels.tools.stubs`, never by hand."""\n'


def stubs() -> str:
    """The text of lrpkernels/ops.pyi.

    Raises:
        RuntimeError: a schema has a type that this cannot write.
    """
    functions = [_HEADER, "from collections.abc import Sequence", "", "from torch import Tensor"]
    for name in dir(ops):
        schema = getattr(ops, name).default._schema
        functions += ["", *_function(name, schema)]
    return "\n".join(functions) + "\n"


def _function(name: str, schema: Any) -> list[str]:
    arguments = [f"    {argument.name}: {_parameter(str(argument.real_type))}," for argument in schema.arguments]
    returns = [_parameter(str(returned.type)) for returned in schema.returns]
    result = returns[0] if len(returns) == 1 else f"tuple[{', '.join(returns)}]"
    return [f"def {name}(", *arguments, f") -> {result}: ..."]


def _parameter(kind: str) -> str:
    known = {"Tensor": "Tensor", "int": "int", "float": "float", "bool": "bool", "List[int]": "Sequence[int]"}
    optional = kind.startswith("Optional[")
    inner = kind.removeprefix("Optional[")[:-1] if optional else kind
    if inner not in known:
        raise RuntimeError(f"no Python type is known for {kind!r}")
    return known[inner] + (" | None" if optional else "")


if __name__ == "__main__":
    print(stubs(), end="")
