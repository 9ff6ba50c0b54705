"""Frozen dataclasses <-> plain data, led by their annotations; what does not fit is refused.

Notable: fields at their default are left out, so links and files stay short and old ones still
read when a field is added. Tuples are lists on the wire.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

Data = TypeVar("Data")


_CALLED: Mapping[type, str] = types.MappingProxyType(
    {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
)


class StateError(ValueError):
    """Data that does not describe what it should; says where and what was expected."""


def encode(value: object) -> Any:
    """A dataclass, tuple or scalar as what JSON can hold, without fields at their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field, _read(value, field)) for field in dataclasses.fields(value))
        return {field.name: encode(item) for field, item in pairs if item != _default(field)}
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[Data], data: object, where: str = "investigation") -> Data:
    """The `kind` that `data` describes.

    Raises:
        StateError: If a key is unknown or missing, or a value is of the wrong kind.
    """
    return _decode(kind, data, where)


def _decode(kind: Any, data: object, where: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return _either(typing.get_args(kind), data, where)
    if origin is typing.Literal:
        return _one_of(typing.get_args(kind), data, where)
    if origin is tuple:
        return _tuple(typing.get_args(kind), data, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, data, where)
    return _scalar(kind, data, where)


def _dataclass(kind: Any, data: object, where: str) -> Any:
    if not isinstance(data, Mapping):
        raise StateError(f"{where} must be an object, got {data!r}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(str(key) for key in data if key not in hints)
    if unknown:
        raise StateError(f"{where} has no {unknown[0]!r}; it has {', '.join(hints)}.")
    found = {str(key): _decode(hints[key], item, f"{where}.{key}") for key, item in data.items()}
    needed = [f.name for f in dataclasses.fields(kind) if _default(f) is dataclasses.MISSING]
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise StateError(f"{where} lacks {lacking[0]!r}.")
    return kind(**found)


def _either(kinds: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    return _decode(next(kind for kind in kinds if kind is not type(None)), data, where)


def _one_of(allowed: tuple[Any, ...], data: object, where: str) -> Any:
    if data not in allowed:
        raise StateError(f"{where} must be one of {', '.join(map(str, allowed))}, got {data!r}.")
    return data


def _tuple(kinds: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise StateError(f"{where} must be a list, got {data!r}.")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise StateError(f"{where} must have {len(kinds)} items, got {len(data)}.")
    pairs = enumerate(zip(kinds, data, strict=True))
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in pairs)


def _scalar(kind: Any, data: object, where: str) -> Any:
    if kind is float and isinstance(data, int | float) and not isinstance(data, bool):
        if abs(data) <= sys.float_info.max:  # NaN is not, and an integer may be longer
            return float(data)
    elif isinstance(data, kind) and (kind is bool or not isinstance(data, bool)):
        return data
    raise StateError(f"{where} must be {_CALLED[kind]}, got {data!r}.")


def _read(value: Any, field: dataclasses.Field[Any]) -> Any:
    return value.__getattribute__(field.name)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
