"""What ONNX Runtime is told of a session: threads, optimisations, and how it deals with memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deploykit.errors import InputError, UnknownNameError
from deploykit.lean_model import LeanModel
from deploykit.providers import LOG_FATAL, onnxruntime_module

__all__ = ["MEMORY_MODES", "apply_lean", "check_memory", "check_threads", "session_options"]

MEMORY_MODES = ("default", "lean")
"""How a session may deal with memory: ONNX Runtime's defaults, or a peak near the weights at a price in latency."""

_MOST_THREADS = 1024


def check_memory(memory: str) -> None:
    """Raises: UnknownNameError for a name that is not in ``MEMORY_MODES``."""
    if memory not in MEMORY_MODES:
        raise UnknownNameError("memory mode", memory, MEMORY_MODES)


def check_threads(threads: int | None) -> None:
    """Raises: InputError for fewer than one thread, or more than any machine has use for."""
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise InputError(f"threads {threads}; allowed: 1 to {_MOST_THREADS}")


def session_options(
    threads: int,
    *,
    optimize: bool,
    spinning: bool,
    placement: bool = False,
    weights_folder: Path | None = None,
    profile_prefix: str | None = None,
) -> Any:
    """An ``onnxruntime.SessionOptions``; the arguments are those of ``runtime.create_session``."""
    runtime = onnxruntime_module()
    options = runtime.SessionOptions()
    options.log_severity_level = LOG_FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    levels = runtime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if profile_prefix is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile_prefix
    if placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if weights_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_folder))
    return options


def apply_lean(options: Any, lean: LeanModel, provider: str) -> Any:
    """``options``, changed to what keeps the memory of a lean copy low.

    For the CPU provider each of them was measured (``benchmarks/memory_lean.py``); for others only the allocator of
    the weights, whose arena would otherwise grow to a power of two, is set, as ONNX Runtime's documentation advises.
    """
    if provider != "cpu":
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        return options
    options.enable_mem_pattern = False  # plans one block for all activations, which is larger than the arena's
    if lean.optimised:
        options.graph_optimization_level = onnxruntime_module().GraphOptimizationLevel.ORT_DISABLE_ALL
    if lean.prepacking:
        # The arena would keep what the packing needs for a moment.
        options.enable_cpu_mem_arena = False
    else:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options
