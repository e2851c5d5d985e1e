"""How a record becomes a versioned JSON document, and comes back from it with every value's type checked."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

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


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return {name: hint for name, hint in typing.get_type_hints(cls).items() if typing.get_origin(hint) is not ClassVar}


def _build(cls: Any, values: Mapping[str, Any], source: str) -> Any:
    """Builds a dataclass from JSON; keys that a later version added are passed over."""
    hints = _hints(cls)
    needed = {
        item.name
        for item in dataclasses.fields(cls)
        if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    }
    if missing := sorted(needed - set(values)):
        raise InputError(f"{source} lacks the keys {', '.join(missing)} of a {cls.__name__} record")
    return cls(**{name: _typed(hints[name], values[name], source, name) for name in hints if name in values})


# What JSON may hold for a field's type; a float that was NaN or infinite stands there as null.
_SCALARS: dict[Any, tuple[type, ...]] = {float: (int, float, type(None)), int: (int,), str: (str,), bool: (bool,)}


def _typed(hint: Any, value: Any, source: str, key: str) -> Any:
    """The value as the field's type has it. Raises: InputError naming the key whose value is of another type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        return value if value is None or len(inner) != 1 else _typed(inner[0], value, source, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, source)
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(arguments[0], item, source, key) for item in value)
    if origin is Mapping and isinstance(value, Mapping):
        return {str(name): _typed(arguments[1], item, source, key) for name, item in value.items()}
    if hint is Any or (isinstance(value, _SCALARS.get(hint, ())) and (hint is bool or not isinstance(value, bool))):
        return value
    expected = getattr(origin or hint, "__name__", str(hint))
    raise InputError(f"{source}: {key!r} is a {type(value).__name__}; expected a {expected}")
