"""How a record becomes a versioned JSON document, and comes back from it with every value's type checked."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, TypeVar

from deploykit.errors import InputError

__all__ = ["Record"]

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, kw_only=True)
class Record:
    """Base of the records: a kind, a version, and what machine and versions it was made with."""

    kind: ClassVar[str]
    schema_version: ClassVar[int] = 1

    environment: Mapping[str, Any] = field(default_factory=dict)
    deploykit: str = ""

    def to_document(self) -> dict[str, Any]:
        """The JSON document, with ``schema``, ``deploykit`` and ``environment`` first."""
        body = {item.name: _plain(getattr(self, item.name)) for item in dataclasses.fields(self)}
        head = {"schema": f"deploykit.{self.kind}/{self.schema_version}", "deploykit": body.pop("deploykit")}
        return head | {"environment": body.pop("environment")} | body

    @classmethod
    def from_document(cls: type[R], document: Mapping[str, Any], *, source: str = "document") -> R:
        """The record of a JSON document. Raises: InputError naming an unknown schema or a missing key."""
        expected = f"deploykit.{cls.kind}/{cls.schema_version}"
        if document.get("schema") != expected:
            raise InputError(f"{source} has schema {document.get('schema')!r}; this deploykit reads {expected!r}")
        return typing.cast(R, _build(cls, {key: value for key, value in document.items() if key != "schema"}, source))


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON has them; NaN and infinities as null, which JSON lacks."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


Converter: TypeAlias = Callable[[Any, str, str], Any]  # of a value, the document's name and the key


@functools.cache
def _fields_of(cls: Any) -> tuple[frozenset[str], dict[str, Converter]]:
    """The fields of a dataclass that JSON must have, and how each becomes its type. Found out once a class."""
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is not ClassVar}
    needed = {
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    return frozenset(needed), {name: _converter(hint) for name, hint in hints.items()}


def _build(cls: Any, values: Mapping[str, Any], source: str) -> Any:
    """Builds a dataclass from JSON; keys that a later version added are passed over."""
    needed, converters = _fields_of(cls)
    if missing := sorted(needed - values.keys()):
        raise InputError(f"{source} lacks the keys {', '.join(missing)} of the record {cls.__name__}")
    return cls(**{name: convert(values[name], source, name) for name, convert in converters.items() if name in values})


# What JSON may hold for a field's type; a float that was NaN or infinite stands there as null.
_SCALARS: dict[Any, tuple[type, ...]] = {float: (int, float, type(None)), int: (int,), str: (str,), bool: (bool,)}


def _converter(hint: Any) -> Converter:
    """Gives a value as the field's type has it, or raises InputError naming the key whose value is of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return lambda value, source, key: value
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return _optional(_converter(inner[0] if len(inner) == 1 else Any))
    if dataclasses.is_dataclass(hint):
        return lambda value, source, key: _build(hint, _of(Mapping, value, hint, source, key), source)
    if origin is tuple:
        return _items(hint, _converter(arguments[0]))
    if origin is Mapping:
        return _values(hint, _converter(arguments[1]))
    return _scalar(hint, _SCALARS.get(hint, ()))


def _optional(inner: Converter) -> Converter:
    return lambda value, source, key: None if value is None else inner(value, source, key)


def _items(hint: Any, inner: Converter) -> Converter:
    return lambda value, source, key: tuple([inner(item, source, key) for item in _of(list, value, hint, source, key)])


def _values(hint: Any, inner: Converter) -> Converter:
    return lambda value, source, key: {
        str(name): inner(item, source, key) for name, item in _of(Mapping, value, hint, source, key).items()
    }


def _scalar(hint: Any, allowed: tuple[type, ...]) -> Converter:
    def convert(value: Any, source: str, key: str) -> Any:
        if isinstance(value, allowed) and (hint is bool or not isinstance(value, bool)):
            return value
        raise _mistyped(hint, value, source, key)

    return convert


def _of(kind: Any, value: Any, hint: Any, source: str, key: str) -> Any:
    if not isinstance(value, kind):
        raise _mistyped(hint, value, source, key)
    return value


def _mistyped(hint: Any, value: Any, source: str, key: str) -> InputError:
    expected = getattr(typing.get_origin(hint) or hint, "__name__", str(hint))
    return InputError(f"{source}: {key!r} is a {type(value).__name__}; expected a {expected}")
