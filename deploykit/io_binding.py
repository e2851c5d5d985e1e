"""Runs whose inputs and outputs stay in the device's memory (IO binding), so that no copy is in the latency."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.providers import fix_of
from deploykit.runtime import Session
from deploykit.runtime_errors import mapped

__all__ = ["BoundRun", "device_of"]

_DEVICES = {"cuda": "cuda", "tensorrt": "cuda"}


def device_of(provider: str) -> str:
    """ONNX Runtime's name of the memory that a provider computes in."""
    return _DEVICES.get(provider, "cpu")


class BoundRun:
    """A session's run on inputs that were copied to the device once; call it to run, and wait until it is done.

    The first run lets ONNX Runtime allocate the outputs; from then on they are written to the same memory, which a
    captured CUDA graph needs (onnxruntime.ai, CUDA Execution Provider: addresses must not change between replays).

    Args:
        session: Made by ``runtime.create_session``.
        feeds: Arrays by input name.
        device: The memory, by default the one that the session's provider computes in.

    Raises:
        ModelFileError: An operator fails while it runs.
        ProviderError: The provider, which is not the CPU, fails while it runs.
    """

    def __init__(self, session: Session, feeds: Mapping[str, NDArray[Any]], device: str | None = None) -> None:
        from onnxruntime import OrtValue

        self._run = session.raw.run_with_iobinding
        self._binding = session.raw.io_binding()
        self._held = []  # what is bound must live as long as the binding
        place = device or device_of(session.provider)
        for name, values in feeds.items():
            self._held.append(OrtValue.ortvalue_from_numpy(np.ascontiguousarray(values), place, 0))
            self._binding.bind_ortvalue_input(name, self._held[-1])
        for output in session.outputs:
            self._binding.bind_output(output.name, place)
        with mapped(f"cannot run {session.name}", session.provider, partial(fix_of, session.provider)):
            self()
        made = self._binding.get_outputs()
        self._binding.clear_binding_outputs()
        for output, value in zip(session.outputs, made, strict=True):
            self._held.append(value)
            self._binding.bind_ortvalue_output(output.name, value)

    def __call__(self) -> None:
        """Runs once, and returns when the device has finished."""
        self._run(self._binding)
        self._binding.synchronize_outputs()

    def outputs(self) -> list[NDArray[Any]]:
        """Copies of the last run's outputs, in the session's order."""
        return [np.array(value) for value in self._binding.copy_outputs_to_cpu()]
