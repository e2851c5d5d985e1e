"""ONNX Runtime's exceptions as deploykit's: which of them blame the file, the call or the provider."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from deploykit.cuda_diagnosis import blames_cuda
from deploykit.errors import DeploykitError, InputError, ModelFileError, ProviderError

__all__ = ["failures", "mapped", "one_line"]

_MESSAGE_CHARACTERS = 300
_CUDA_PROVIDERS = ("cuda", "tensorrt")


def failures() -> Any:
    """The module that holds ONNX Runtime's exception classes."""
    from onnxruntime.capi import onnxruntime_pybind11_state

    return onnxruntime_pybind11_state


@contextlib.contextmanager
def mapped(what: str, provider: str, fix: str | Callable[[str], str]) -> Iterator[None]:
    """Turns ONNX Runtime's exceptions into ours; ``what`` begins the message, ``fix`` ends it off the CPU.

    ``fix`` may be a function of what was said, where the remedy hangs on it.
    """
    known = failures()
    of_the_call = (known.InvalidArgument, ValueError)
    of_the_file = (
        known.InvalidProtobuf,
        known.InvalidGraph,
        known.NoSuchFile,
        known.NotImplemented,
        known.NoModel,
        known.ModelRequiresCompilation,
    )
    of_either = (known.Fail, known.RuntimeException, known.EPFail, known.EngineError, known.NotFound)
    try:
        yield
    except (*of_the_file, *of_the_call, *of_either, RuntimeError) as problem:
        said = one_line(problem)
        by_cuda = provider in _CUDA_PROVIDERS and blames_cuda(str(problem))
        if isinstance(problem, of_the_file) and not by_cuda:
            raise ModelFileError(f"{what}: {said}") from problem
        if isinstance(problem, of_the_call) and not by_cuda:
            kind: type[DeploykitError] = InputError if what.startswith("cannot run") else ModelFileError
            raise kind(f"{what}: {said}") from problem
        if provider == "cpu":
            raise ModelFileError(f"{what}: {said}") from problem
        remedy = fix if isinstance(fix, str) else fix(str(problem))
        raise ProviderError(f"{what} on {provider!r}: {said}; {remedy}") from problem


def one_line(problem: BaseException) -> str:
    """The message without ONNX Runtime's error code and source position, on one line of bounded length."""
    text = " ".join(str(problem).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+ (?:[^()]*\([^()]*\)(?: const)? )?", "", text)
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 1] + "…"
