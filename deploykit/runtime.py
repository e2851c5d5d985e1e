"""The only place that creates ONNX Runtime sessions: threads, memory, and honest placement.

ONNX Runtime lists providers that cannot start, and a session that cannot start one falls back to the CPU without a
word. Here the placement of every node is read back, and a provider that took none is an error.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit import environment
from deploykit.artifact import TensorSpec, check_is_file
from deploykit.errors import InputError, ProviderError
from deploykit.lean_model import LeanModel, prepared
from deploykit.provider_options import (
    built_in_options,
    check_provider_options,
    check_unbound,
    computed_in,
    precision_notes,
)
from deploykit.providers import (
    PROVIDERS,
    add_plugin,
    check_provider,
    fix_of,
    listed_name,
    onnxruntime_module,
    plugin_for,
    provider_names,
    short_name_of,
    why_not,
)
from deploykit.runtime_errors import mapped
from deploykit.runtime_plugins import Plugin, plugin_of
from deploykit.runtime_views import DTYPES, view_of
from deploykit.session_options import MEMORY_MODES, apply_lean, check_memory, check_threads, session_options

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "MEMORY_MODES",
    "PROVIDERS",
    "Plugin",
    "Session",
    "check_memory",
    "check_provider",
    "check_provider_options",
    "check_threads",
    "check_unbound",
    "computed_in",
    "create_session",
    "filled",
    "plugin_of",
    "provider_names",
    "save_optimized",
]


@dataclass(frozen=True)
class _Wanted:
    """What is asked for: the provider and what it is told."""

    provider: str
    threads: int
    options: Mapping[str, str]
    lean: bool
    plugin: Plugin | None = None


class Session:
    """An ONNX Runtime session that knows where its nodes run; made by ``create_session``.

    Attributes:
        raw: The ``onnxruntime.InferenceSession``, for IO binding and tight loops.
        name: What messages call the model: its file's name, where it has one.
        inputs: Names, element types and shapes of the inputs.
        outputs: The same of the outputs.
        provider: Short name of what really runs: the provider asked for if it took a node, otherwise ``"cpu"``.
        nodes_by_provider: Number of nodes by short name after optimisation and fusion; empty when not known.
        threads: Threads of one operator, the calling one counted.
        provider_options: What the user told the provider; empty where the CPU runs instead.
        plugin: What loaded the provider where it came as a plugin, with all that it was told.
        memory: The memory mode, of ``MEMORY_MODES``.
        load_ms: Milliseconds from the path to a session that is ready to run; for lean memory from the prepared copy.
        notes: What a reader of figures has to know, such as a provider that computes in another precision.
    """

    def __init__(
        self, raw: Any, name: str, wanted: _Wanted, *, load_ms: float, placed: bool, notes: tuple[str, ...] = ()
    ) -> None:
        self.raw, self.name = raw, name
        self.inputs = tuple(_tensor(value) for value in raw.get_inputs())
        self.outputs = tuple(_tensor(value) for value in raw.get_outputs())
        self.nodes_by_provider = _placement(raw) if placed else {}
        took_part = self.nodes_by_provider or {short_name_of(name): 1 for name in raw.get_providers()}
        runs = bool(took_part.get(wanted.provider))
        self.provider = wanted.provider if runs else "cpu"
        self.threads = wanted.threads
        self.provider_options = dict(wanted.options) if runs else {}
        self.plugin = wanted.plugin if runs else None
        self.memory = "lean" if wanted.lean else "default"
        self.load_ms = load_ms
        self.notes = (*_placement_notes(self.provider, placed), *self._option_notes(), *notes)

    def _option_notes(self) -> Iterator[str]:
        yield from precision_notes(self.provider, self.provider_options)
        told = set() if self.plugin else set(self.raw.get_provider_options().get(PROVIDERS.get(self.provider), {}))
        for key in self.provider_options:
            if told and key not in told:
                yield f"{self.provider} does not report the option {key}, which may have had no effect"

    def run(self, feeds: NDArray[Any] | Mapping[str, NDArray[Any]]) -> list[np.ndarray[Any, Any]]:
        """Runs the model once on an array (for the only input) or on arrays by input name; returns all outputs.

        Raises:
            InputError: Missing or unknown inputs, wrong element type or shape; a captured CUDA graph, which needs
                ``io_binding``.
            ModelFileError: An operator fails while it runs.
            ProviderError: The provider, which is not the CPU, fails while it runs.
        """
        check_unbound(self.provider, self.provider_options)
        named = feeds if isinstance(feeds, Mapping) else {self.inputs[0].name: feeds}
        with mapped(f"cannot run {self.name}", self.provider, partial(fix_of, self.provider)):
            outputs: list[np.ndarray[Any, Any]] = self.raw.run(None, named)
        return outputs

    def run_views(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """As ``run`` on the CPU, by name and without a copy: the arrays are the runtime's memory, free when they go.

        Outputs that are no plain tensors are left out.
        """
        binding = self.raw.io_binding()
        with mapped(f"cannot run {self.name}", self.provider, ""):
            for name, values in feeds.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(values))
            for output in self.outputs:
                binding.bind_output(output.name, "cpu")
            self.raw.run_with_iobinding(binding)
        views = zip(self.outputs, map(view_of, binding.get_outputs()), strict=True)
        return {output.name: view for output, view in views if view is not None}

    @property
    def fixed_batch(self) -> int | None:
        """The size that the model fixes its first axis to, None where it is free."""
        shape = self.inputs[0].shape
        return shape[0] if shape and isinstance(shape[0], int) else None

    def run_rows(self, rows: NDArray[Any]) -> np.ndarray[Any, Any]:
        """The first output for any number of rows; where the model fixes its batch, the last one is filled up and cut.

        Raises: as ``run``.
        """
        size = self.fixed_batch or len(rows)
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate([self.run(filled(chunk, size))[0][: len(chunk)] for chunk in chunks])


def filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """``rows`` with copies of the last one up to ``size`` rows."""
    short = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows


def create_session(
    model: str | os.PathLike[str] | bytes,
    provider: str = "cpu",
    *,
    threads: int | None = None,
    optimize: bool = True,
    spinning: bool = True,
    allow_fallback: bool = False,
    record_placement: bool = True,
    weights_folder: Path | None = None,
    profile_prefix: str | None = None,
    provider_options: Mapping[str, str] | None = None,
    memory: str = "default",
) -> Session:
    """Loads a model on one provider.

    Args:
        model: A path, or the bytes of a model.
        provider: A short name of ``PROVIDERS`` or of an installed plugin. Nodes that it cannot take run on the CPU, and
            are counted.
        threads: Threads of one operator; None takes what affinity and the cgroup's quota allow.
        optimize: Whether ONNX Runtime rewrites and fuses the graph.
        spinning: Whether idle threads wait actively (about 50 ms after a run): faster runs, busy neighbours.
        allow_fallback: Whether a provider that cannot start or took no node may be replaced by the CPU.
        record_placement: Whether to read back where the nodes were placed.
        weights_folder: Where the files with the weights lie that the bytes of a model name.
        profile_prefix: What the name of the profile begins with that ONNX Runtime then writes; None writes none.
        provider_options: Options of the provider, in its own names.
        memory: ``"default"``, or ``"lean"`` for a peak near the weights: the model is loaded from a copy that is
            prepared in another process, unless it is one (``lean_model.lean_copy``).

    Raises:
        UnknownNameError: No such provider or memory mode.
        InputError: ``threads`` below 1 or above 1024; an option that would be ignored; lean memory for bytes.
        ModelFileError: Missing, damaged, or with operators that have no kernel here.
        ProviderError: The provider is absent, cannot start, refuses an option or took no node, with the reason and
            the fix.
    """
    given = dict(provider_options or {})
    check_provider(provider)
    check_provider_options(provider, given)
    check_threads(threads)
    check_memory(memory)
    wanted = _Wanted(
        provider, environment.available_cpus() if threads is None else threads, given, lean=memory == "lean"
    )
    with _source(model, wanted, optimize) as (source, lean):

        def options() -> Any:
            made = session_options(
                wanted.threads,
                optimize=optimize,
                spinning=spinning,
                placement=record_placement,
                weights_folder=weights_folder,
                profile_prefix=profile_prefix,
            )
            return apply_lean(made, lean, provider) if lean else made

        began = time.perf_counter()
        raw, started = _start(source, wanted, options, allow_fallback)
        load_ms = (time.perf_counter() - began) * 1000.0
        notes = tuple(lean.notes(Path(str(source)))) if lean else ()
    placed = record_placement and hasattr(raw, "get_provider_graph_assignment_info")
    name = "the model" if isinstance(model, bytes) else Path(model).name
    session = Session(raw, name, started, load_ms=load_ms, placed=placed, notes=notes)
    if session.provider != provider and not allow_fallback:
        why = why_not(provider, raw)
        said = "" if why.startswith("started") else why  # where it has started, the installation is right
        raise ProviderError(f"provider {provider!r} {why}; {fix_of(provider, said)}")
    return session


def save_optimized(model: Path, target: Path, *, weights: str, inline_bytes: int) -> None:
    """Writes the graph as the CPU provider runs it on this processor, for ``lean_model``.

    Args:
        model: The file.
        target: The ``.onnx`` to write.
        weights: Name of the file beside it that takes the weights.
        inline_bytes: Weights below this size stay in ``target``.

    Raises: as ``create_session`` on the CPU.
    """
    options = session_options(1, optimize=True, spinning=False)
    options.optimized_model_filepath = str(target)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", weights),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(inline_bytes)),
        ("session.disable_prepacking", "1"),  # what is packed is not written, and takes time
    ):
        options.add_session_config_entry(key, value)
    _on_cpu(str(model), options)


@contextmanager
def _source(
    model: str | os.PathLike[str] | bytes, wanted: _Wanted, optimize: bool
) -> Iterator[tuple[str | bytes, LeanModel | None]]:
    """What ONNX Runtime loads, and what is known of it where it is a lean copy."""
    if isinstance(model, bytes):
        if wanted.lean:
            raise InputError("memory 'lean' received a model's bytes; allowed: the path of a file")
        yield model, None
        return
    check_is_file(Path(model))
    if not wanted.lean:
        yield str(Path(model)), None
        return
    with prepared(Path(model), provider=wanted.provider, optimize=optimize) as copy:
        yield str(copy), LeanModel.read(copy)


def _start(
    source: str | bytes, wanted: _Wanted, options: Callable[[], Any], allow_fallback: bool
) -> tuple[Any, _Wanted]:
    """The raw session on the provider, or on the CPU when it cannot be had and ``allow_fallback`` permits that."""
    if wanted.provider != "cpu":
        try:
            return _on_provider(source, wanted, options())
        except ProviderError:
            if not allow_fallback:
                raise
    return _on_cpu(source, options()), wanted


def _on_provider(source: str | bytes, wanted: _Wanted, options: Any) -> tuple[Any, _Wanted]:
    provider, arguments = wanted.provider, dict[str, Any]()
    plugin = plugin_for(provider, wanted.threads, dict(wanted.options))
    if plugin:
        add_plugin(plugin, provider, options)
    else:
        told = built_in_options(provider, wanted.threads, wanted.options, lean=wanted.lean)
        arguments = {"providers": [(listed_name(provider), told), PROVIDERS["cpu"]]}
    with mapped(f"cannot load {_name_of(source)}", provider, partial(fix_of, provider)):
        # Without enable_fallback=0 onnxruntime prints to stdout and quietly starts on the CPU.
        raw = onnxruntime_module().InferenceSession(source, options, enable_fallback=0, **arguments)
    return raw, replace(wanted, plugin=plugin)


def _on_cpu(source: str | bytes, options: Any) -> Any:
    with mapped(f"cannot load {_name_of(source)}", "cpu", ""):
        return onnxruntime_module().InferenceSession(source, options, enable_fallback=0, providers=[PROVIDERS["cpu"]])


def _name_of(source: str | bytes) -> str:
    return "the model's bytes" if isinstance(source, bytes) else source


def _placement(raw: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in raw.get_provider_graph_assignment_info():
        counts[short_name_of(part.ep_name)] += len(part.get_nodes())
    return dict(counts)


def _placement_notes(provider: str, placed: bool) -> Iterator[str]:
    if not placed and provider != "cpu":
        yield "placement of single nodes is unknown: this onnxruntime does not record it"


def _tensor(value: Any) -> TensorSpec:
    """ONNX Runtime's ``tensor(float)`` as numpy's ``float32``; other kinds of values as ``unknown``."""
    match = re.fullmatch(r"tensor\((\w+)\)", value.type)
    dtype = DTYPES.get(match[1], match[1]) if match else "unknown"
    return TensorSpec(value.name, dtype, None if value.shape is None else tuple(value.shape))
