"""Reads a pickle of plain data - numbers, texts, lists, dicts and uint8 arrays - without ever running it.

A pickle is a program. Python's unpickler executes it; this reads the same opcodes (`pickletools.genops`) and builds
what they describe from values alone: no class is looked up, nothing is imported, nothing is called. A pickle that asks
for anything else, such as ``os.system``, is refused by that name.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from deploykit.errors import DataError

__all__ = ["read_plain_pickle"]

_NDARRAY, _DTYPE = "numpy ndarray", "numpy dtype"
_RECONSTRUCT = frozenset({"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"})
_FROMBUFFER = frozenset({"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"})
_ENCODE = "_codecs encode"  # how Python 3 writes bytes below protocol 3
_BYTES = frozenset({"__builtin__ bytes", "builtins bytes", "__builtin__ bytearray", "builtins bytearray"})
_KNOWN = frozenset({_NDARRAY, _DTYPE, _ENCODE}) | _RECONSTRUCT | _FROMBUFFER | _BYTES
_UINT8 = frozenset({b"u1", b"|u1"})
_SHOWN = 60  # characters of a foreign name in a message

_VALUES = frozenset(
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
    | {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
_TEXTS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING"})  # Python 2's str: bytes
_CONSTANTS: Mapping[str, Any] = MappingProxyType({"NONE": None, "NEWTRUE": True, "NEWFALSE": False})


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass
class _Array:
    """An array that is being described; ``state`` is what numpy would be given."""

    value: np.ndarray[Any, Any] | None = None


def read_plain_pickle(content: bytes, name: str) -> Any:
    """What ``content`` describes: dict, list, tuple, str, bytes, numbers, None and uint8 arrays.

    Args:
        content: The pickle, of any protocol. Texts of Python 2 come as bytes.
        name: Of the file, for messages.

    Raises:
        DataError: Damaged, cut short, or holding anything but plain data. Nothing was run.
    """
    machine = _Machine(name)
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.step(opcode.name, argument)
        return _finished(machine.stack[-1])
    except DataError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
        said = " ".join(str(problem).split())[:_SHOWN] or type(problem).__name__
        raise DataError(f"{name} is damaged or no pickle: {said}; fetch it again") from problem


class _Machine:
    """The pickle machine's stack, marks and memo, over plain values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Does one instruction. Raises: DataError for one that plain data does not need."""
        if opcode in _VALUES:
            self.stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif opcode in _TEXTS:
            self.stack.append(argument.encode("latin-1") if isinstance(argument, str) else argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif action := _ACTIONS.get(opcode):
            action(self, argument)
        else:
            raise DataError(f"{self.name} holds the pickle instruction {opcode}; allowed: plain data; nothing was run")

    def put(self, number: int) -> None:
        """Remembers what is on top."""
        self.memo[number] = self.stack[-1]

    def to_mark(self) -> list[Any]:
        """Takes what lies above the last mark, and the mark."""
        place = self.marks.pop()
        items = self.stack[place:]
        del self.stack[place:]
        return items

    def find(self, name: str) -> None:
        """Puts a known name on the stack. Raises: DataError for any other: this is where code would come in."""
        if name not in _KNOWN:
            shown = name.replace(" ", ".")[:_SHOWN]
            raise DataError(f"{self.name} asks to run {shown!r}; allowed: plain data and uint8 arrays; nothing was run")
        self.stack.append(_Global(name))

    def reduce(self) -> None:
        """What a call of a known name would give."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_called(self.name, function.name, arguments))

    def build(self) -> None:
        """Fills an array or a dtype with its state; nothing else has one."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Array):
            _, shape, dtype, by_columns, raw = state
            target.value = _array(self.name, raw, dtype, shape, "F" if by_columns else "C")
        elif target not in _UINT8:  # the state of u1 says nothing more
            raise DataError(f"{self.name} holds a state for a {type(target).__name__}; allowed: plain data")


def _called(name: str, function: str, arguments: Any) -> Any:
    if function in _RECONSTRUCT:
        return _Array()
    if function in _FROMBUFFER:
        raw, dtype, shape, order = arguments
        return _Array(_array(name, raw, dtype, shape, order))
    if function == _DTYPE:
        kind = arguments[0].encode() if isinstance(arguments[0], str) else arguments[0]
        if kind not in _UINT8:
            raise DataError(f"{name} holds an array of {str(arguments[0])[:_SHOWN]!r}; allowed: uint8")
        return kind
    if function == _ENCODE:
        return arguments[0].encode("latin-1")
    if function in _BYTES:
        content = arguments[0] if arguments else b""
        return bytes(content) if isinstance(content, bytes | list) else b""
    raise DataError(f"{name} asks to make a {function!r}; allowed: plain data and uint8 arrays")


def _array(name: str, raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    if dtype not in _UINT8 or not isinstance(raw, bytes):
        raise DataError(f"{name} holds an array that is not of uint8; allowed: uint8")
    if math.prod(shape) != len(raw) or order not in ("C", "F"):
        raise DataError(f"{name} is damaged: {len(raw)} bytes for an array of shape {shape}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order=order)  # type: ignore[call-overload, no-any-return]


def _finished(value: Any) -> Any:
    """``value`` with its arrays in place of their descriptions, one level deep, which is where they stand."""
    if isinstance(value, dict):
        return {key: _finished(item) if isinstance(item, _Array) else item for key, item in value.items()}
    return value.value if isinstance(value, _Array) else value


def _append(machine: _Machine, argument: Any) -> None:
    item = machine.stack.pop()
    machine.stack[-1].append(item)


def _extend(machine: _Machine, argument: Any) -> None:
    items = machine.to_mark()
    machine.stack[-1].extend(items)


def _set(machine: _Machine, argument: Any) -> None:
    item, key = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1][key] = item


def _set_all(machine: _Machine, argument: Any) -> None:
    items = machine.to_mark()
    machine.stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, argument: Any) -> None:
        items = tuple(machine.stack[-count:])
        del machine.stack[-count:]
        machine.stack.append(items)

    return make


def _dict_of_mark(machine: _Machine, argument: Any) -> None:
    items = machine.to_mark()
    machine.stack.append(dict(zip(items[::2], items[1::2], strict=True)))


def _stack_global(machine: _Machine, argument: Any) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.find(f"{module} {name}")


def _nothing(machine: _Machine, argument: Any) -> None:
    """PROTO, FRAME and STOP build nothing."""


_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = MappingProxyType(
    {
        **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
        "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
        "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
        "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
        "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
        "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.to_mark())),
        "TUPLE1": _tuple_of(1),
        "TUPLE2": _tuple_of(2),
        "TUPLE3": _tuple_of(3),
        "LIST": lambda machine, _: machine.stack.append(machine.to_mark()),
        "DICT": _dict_of_mark,
        "APPEND": _append,
        "APPENDS": _extend,
        "SETITEM": _set,
        "SETITEMS": _set_all,
        **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, number: machine.put(number)),
        "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
        **dict.fromkeys(
            ("GET", "BINGET", "LONG_BINGET"), lambda machine, number: machine.stack.append(machine.memo[number])
        ),
        "GLOBAL": lambda machine, name: machine.find(name),
        "STACK_GLOBAL": _stack_global,
        "REDUCE": lambda machine, _: machine.reduce(),
        "BUILD": lambda machine, _: machine.build(),
    }
)
