"""An option is stated once: as a field of a group, with its type, default, help and bounds.

Command line, configuration files, ``config.json``, checks, resuming and the documentation follow from the field.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

GroupT = TypeVar("GroupT", bound="Group")
_KEY = "option"
_FINITE = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its type and default.

    Attributes:
        help: One or two short sentences.
        names: On the command line; by default ``--field-name``.
        metavar: The form of a value there, where the type does not say it.
        common: Listed by ``--help``; the others by ``--help-all``.
        choices: The possible values of a text, looked up when they are needed.
        bounds: Of numbers: ``ge``, ``gt``, ``le``, ``lt``.
        resumable: Whether a resumed run may change it: never, after the warm-up, or always, since it changes no weight.
        needs: Name of the condition under which it has an effect (:data:`isnet.config.run.CONDITIONS`).
        location: Whether it is a path to what a run needs: where that lies may change, and is kept absolute and relative to the run.
        code: Whether it names code, which a file alone cannot make run (:mod:`isnet.factories`).
    """

    help: str
    names: tuple[str, ...] = ()
    metavar: str | None = None
    common: bool = False
    choices: Callable[[], tuple[str, ...]] | None = None
    bounds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    resumable: Literal["never", "after warm-up", "always"] = "never"
    needs: str | None = None
    location: bool = False
    code: bool = False


def option(default: Any, help: str, **more: Any) -> Any:
    """A field of a group; ``more``: the other attributes of :class:`Option`, and the bounds ``ge``, ``gt``, ``le``, ``lt``."""
    bounds: dict[str, float] = {name: more.pop(name) for name in ("ge", "gt", "le", "lt") if name in more}
    metadata = {_KEY: Option(help, bounds=bounds, **more)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Group:
    """Base of the groups: frozen dataclasses whose fields are options, checked and brought to their types when one is made.

    A field without :func:`option` is noted, not set: it is kept in ``config.json`` and is no option.

    Raises:
        ValueError: a value that does not fit; the text names option, value and what was expected.
    """

    def __init_subclass__(cls) -> None:
        lines = [
            f"    {name}: {value.metadata[_KEY].help}"
            for name, value in vars(cls).items()
            if isinstance(value, dataclasses.Field) and _KEY in value.metadata
        ]
        cls.__doc__ = "\n".join([f"{cls.__doc__}\n\nAttributes:", *lines, ""])

    def __post_init__(self) -> None:
        for field, kind in fields_of(type(self)):
            value = getattr(self, field.name)
            found = field.metadata.get(_KEY)
            object.__setattr__(self, field.name, _checked(field.name, kind, found, value))


def fields_of(group: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a group and their types."""
    hints = _hints(group)
    for field in dataclasses.fields(group):
        yield field, hints[field.name]


def options_of(group: type) -> dict[str, tuple[Option, Any]]:
    """The options of a group by field name, each with its type."""
    return {field.name: (field.metadata[_KEY], kind) for field, kind in fields_of(group) if _KEY in field.metadata}


@functools.cache
def _hints(group: type) -> dict[str, Any]:
    return get_type_hints(group, include_extras=True)


def default_of(group: type, name: str) -> Any:
    """The default of a field; ``dataclasses.MISSING`` if it must be given."""
    field = next(field for field in dataclasses.fields(group) if field.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def to_json(value: Any) -> Any:
    """A configuration, or a part of it, as JSON values."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(plain))


def made(group: type[GroupT], values: Any, where: str) -> GroupT:
    """A group from the values of a file.

    Args:
        group: Its class.
        values: Field name -> value.
        where: The part of the file, for errors.

    Raises:
        ValueError: no mapping, an unknown name, or a value that does not fit.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected options with their values, got {values!r}")
    known = [field.name for field, _ in fields_of(group)]
    for name in values:
        if name not in known:
            raise ValueError(f"{where}.{name}: no such option{near(str(name), known)}")
    missing = [name for name in known if default_of(group, name) is dataclasses.MISSING and name not in values]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    try:
        return group(**values)
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error


def near(name: str, known: Any) -> str:
    """What a name may have meant, as the end of a sentence."""
    found = difflib.get_close_matches(name, list(known), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else f"; there are {', '.join(known)}"


def _checked(name: str, kind: Any, known: Option | None, value: Any) -> Any:
    """The value in its type.

    Raises:
        ValueError: it does not fit.
    """
    if known is not None and known.choices is not None and value not in known.choices():
        raise ValueError(f"{name}: expected {' or '.join(known.choices())}, got {value!r}")
    if isinstance(value, str) and value.lower() == "none" and type(None) in get_args(_unannotated(kind)):
        return None
    if isinstance(value, bool) and not _takes_bool(kind):
        raise ValueError(f"{name}: expected {_plain(kind)}, got {value!r}")
    bounds = tuple(sorted(known.bounds.items())) if known is not None else ()
    try:
        return _adapter(kind, bounds).validate_python(value)
    except ValidationError as error:
        found = error.errors()[0]
        text = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        text = text.replace("'", "") if found["type"] == "literal_error" else text
        if known is not None and known.bounds and found["type"].startswith(("greater_than", "less_than")):
            text = _range(known.bounds)
        raise ValueError(f"{name}: expected {text}, got {value!r}") from error


def _range(bounds: Mapping[str, float]) -> str:
    """Bounds as one writes them."""
    if len(bounds) == 1:
        ((kind, number),) = bounds.items()
        return f"{ {'ge': '>=', 'gt': '>', 'le': '<=', 'lt': '<'}[kind] } {number:g}"
    low = next(f"{'[' if kind == 'ge' else '('}{bounds[kind]:g}" for kind in ("ge", "gt") if kind in bounds)
    high = next(f"{bounds[kind]:g}{']' if kind == 'le' else ')'}" for kind in ("le", "lt") if kind in bounds)
    return f"in {low}, {high}"


@functools.lru_cache(maxsize=512)
def _cached_adapter(kind: Any, bounds: tuple[tuple[str, float], ...]) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[kind, Field(**dict(bounds))] if bounds else kind, config=_FINITE)


def _adapter(kind: Any, bounds: tuple[tuple[str, float], ...]) -> TypeAdapter[Any]:
    try:
        return _cached_adapter(kind, bounds)
    except TypeError:  # a type that cannot be hashed
        return TypeAdapter(Annotated[kind, Field(**dict(bounds))] if bounds else kind, config=_FINITE)


def choices_of(option: Option, kind: Any) -> tuple[str, ...]:
    """The possible values of an option, as texts; empty if any of its type is one."""
    if option.choices is not None:
        return option.choices()
    return tuple(str(value) for value in get_args(bare(kind))) if get_origin(bare(kind)) is Literal else ()


def full_help(option: Option, kind: Any) -> str:
    """The help, with the choices that it does not name."""
    choices = choices_of(option, kind)
    if all(choice in option.help for choice in choices):
        return option.help
    return f"{option.help} One of {', '.join(choices)}."


def bare(kind: Any) -> Any:
    """A type without ``Annotated`` and without ``| None``."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        kinds = [part for part in get_args(kind) if part is not type(None)]
        return bare(kinds[0]) if len(kinds) == 1 else kind
    return kind


def _unannotated(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _takes_bool(kind: Any) -> bool:
    kind = bare(kind)
    return kind is Any or kind is bool or any(_takes_bool(part) for part in get_args(kind) if part is not Ellipsis)


def _plain(kind: Any) -> str:
    kind = bare(kind)
    return {int: "a whole number", float: "a number", str: "a text"}.get(kind, str(kind))
