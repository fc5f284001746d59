"""Frozen dataclasses as JSON and back, every value checked against the field's type."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Kind = TypeVar("Kind")


class VersionError(ValueError):
    """What was read is of a layout that this version does not know."""


def check_schema(schema: object, known: int) -> None:
    """Check the version of a layout.

    Raises:
        VersionError: It is another.
    """
    if schema != known:
        raise VersionError(f"it has schema {schema}, this torchcbl reads schema {known}")


def of_another_version(path: Path, error: VersionError) -> ValueError:
    """Say that a file is none of this version's; it is whole, so nobody is told to delete it."""
    return ValueError(
        f"{path} was written by another version of torchcbl: {error}. Use the version that wrote it, or choose another "
        "--out."
    )


def as_json(value: object, digits: int | None = None) -> str:
    """Write a dataclass as JSON: a key to a line, the innermost lists on one line.

    A number that is not finite is written as `null` and read back as NaN.

    Args:
        value: The dataclass, or a mapping of plain values.
        digits: How many significant digits numbers keep; None keeps them as they are.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Point:
        ...     name: str
        ...     at: tuple[float, ...]
        >>> print(as_json(Point("a", (1 / 3, math.inf)), digits=7), end="")
        {
         "name": "a",
         "at": [0.3333333, null]
        }
    """
    return _text(_plain(value, digits), "") + "\n"


def from_json(kind: type[Kind], text: str | bytes) -> Kind:
    """Read a dataclass back.

    Raises:
        VersionError: It is of another version's layout.
        ValueError: It is no JSON, a key is missing or unknown, or a value is of another type than the field.
    """
    plain = json.loads(text)
    _check_schemas(kind, plain)
    return _read(kind, plain, "the file")  # type: ignore[no-any-return]


def schema_of(known: int) -> dict[str, int]:
    """Mark the field of a layout's version, as its metadata: it is looked at before all others, which may have changed.

    Args:
        known: The version that this code reads.
    """
    return {_KNOWN: known}


_KNOWN = "known schema"


def _check_schemas(kind: Any, plain: object) -> None:
    if isinstance(plain, dict) and dataclasses.is_dataclass(kind):
        _check_fields(kind, plain)


def _check_fields(kind: Any, plain: Mapping[str, object]) -> None:
    fields, hints = _fields_of(kind)
    for name in fields.keys() & plain.keys():
        if _KNOWN in fields[name].metadata:
            check_schema(plain[name], fields[name].metadata[_KNOWN])
        _check_schemas(hints[name], plain[name])


def _text(value: object, margin: str) -> str:
    inner = margin + " "
    if isinstance(value, dict) and value:
        rows = [f"{inner}{json.dumps(key, ensure_ascii=False)}: {_text(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[\n" + ",\n".join(inner + _text(item, inner) for item in value) + f"\n{margin}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _plain(value: object, digits: int | None) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), digits) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, digits) for item in value]
    if isinstance(value, float):
        return _rounded(value, digits) if math.isfinite(value) else None
    return value


def _rounded(value: float, digits: int | None) -> float:
    return value if digits is None else float(f"{value:.{digits}g}")


def _read(kind: Any, value: object, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, key)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _read_tuple(arguments, value, key)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return {name: _read(arguments[1], item, f"{key}.{name}") for name, item in _of(dict, value, key).items()}
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, key)
    if kind is object:
        return value
    return _of(kind, value, key)


def _read_fields(kind: Any, value: object, key: str) -> Any:
    given = _of(dict, value, key)
    fields, hints = _fields_of(kind)
    missing = sorted(
        name
        for name, field in fields.items()
        if name not in given and field.default is field.default_factory is dataclasses.MISSING
    )
    if missing:
        raise ValueError(f"{key} lacks {missing}")
    found = kind(**{name: _read(hints[name], item, name) for name, item in given.items() if name in fields})
    unknown = sorted(given.keys() - fields.keys())  # after the dataclass's own checks: of the layout's version, say
    if unknown:
        raise ValueError(f"{key} holds unknown {unknown}")
    return found


@functools.cache  # a file holds thousands of a kind
def _fields_of(kind: Any) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    return {field.name: field for field in dataclasses.fields(kind)}, get_type_hints(kind)


def _read_tuple(arguments: tuple[Any, ...], value: object, key: str) -> tuple[Any, ...]:
    items = _of(list, value, key)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_read(arguments[0], item, key) for item in items)
    if len(items) != len(arguments):
        raise ValueError(f"{key} should hold {len(arguments)} values, got {len(items)}")
    return tuple(_read(one, item, key) for one, item in zip(arguments, items, strict=True))


def _read_union(arguments: tuple[Any, ...], value: object, key: str) -> Any:
    if value is None and type(None) in arguments and float not in arguments:
        return None
    choices = [one for one in arguments if one is not type(None)]
    for choice in choices[:-1]:
        try:
            return _read(choice, value, key)
        except ValueError:
            continue
    return _read(choices[-1], value, key)


def _of(kind: type[Any], value: object, key: str) -> Any:
    """Check the type of a JSON value; where a float is expected, whole numbers pass and null is NaN."""
    if kind is float and value is None:
        value = math.nan
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key} should be of type {kind.__name__}, got {value!r:.60}")
    return value
