"""ONNX Runtime's tensors as arrays without a copy."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DTYPES", "view_of"]

DTYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of element types that differ from numpy's."""


def view_of(value: Any) -> NDArray[Any] | None:
    """The memory of an ``OrtValue`` on the CPU, which lives as long as the array; None for what is no plain tensor."""
    match = re.fullmatch(r"tensor\((\w+)\)", value.data_type()) if value.is_tensor() else None
    try:
        dtype = np.dtype(DTYPES.get(match[1], match[1])) if match else None
    except TypeError:  # a type that numpy lacks
        return None
    if dtype is None or dtype.hasobject or dtype.kind == "U":
        return None
    shape = tuple(value.shape())
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory: Any = (ctypes.c_char * size).from_address(value.data_ptr())
    memory.owner = value  # the array holds its buffer, and the buffer the value
    return np.frombuffer(memory, dtype).reshape(shape)
