"""Peak activations by liveness against what ONNX Runtime's arena really held, byte for byte.

    python benchmarks/arena.py [NETWORK or MODEL.onnx …] [--only on|off] [--json]

Each model is loaded and run in a fresh process, with optimisations off and on. Its arena is told to grow by exactly
what is asked for and to hand out no larger chunks, so that its statistics (``AllocatorGetStats`` of the C API, which
the Python API lacks) are the bytes that were asked for. Columns:

predicted  liveness, as ``deploykit inspect`` tells it, without the input, which is the caller's memory
planned    what the runtime's own memory plan takes for all activations at once: by how much the arena grew at the
           second run, when the plan is known; – where a chunk of the first run was large enough
in use     most bytes that were handed out during the first run, less what the session held before (repacked weights)
beyond     in use less predicted: what kernels need to work in, and freed buffers that the runtime keeps because a later
           tensor of the same size will need one
arena      what the arena of a session with default options takes from the system, less what it held before

What differs, and why: LRN keeps the squares and the scales of its input, twice its size. Without optimisations a
convolution writes the columns of its input (im2col) into a buffer of its own; the blocked kernels of optimised sessions
do not. The default arena doubles its regions and starts at 1 MiB, and hands out a whole region where less would do.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = ("alexnet-owt", "resnet18", "googlenet")
LEVELS = {"off": 0, "on": 99}  # GraphOptimizationLevel of the C API
API_VERSION = 24  # the first with AllocatorGetStats is 23; the table of functions only grows
FUNCTIONS = {  # position in OrtApi (onnxruntime_c_api.h)
    "GetErrorMessage": 2,
    "CreateEnv": 3,
    "CreateSession": 7,
    "Run": 9,
    "CreateSessionOptions": 10,
    "SetSessionGraphOptimizationLevel": 23,
    "SetIntraOpNumThreads": 24,
    "CreateTensorWithDataAsOrtValue": 49,
    "CreateCpuMemoryInfo": 69,
    "ReleaseValue": 96,
    "AddSessionConfigEntry": 130,
    "CreateAllocator": 131,
    "CreateAndRegisterAllocator": 144,
    "CreateArenaCfg": 156,
    "GetKeyValue": 297,
    "AllocatorGetStats": 319,
}
STATISTICS = ("InUse", "MaxInUse", "TotalAllocated")
Pointer = ctypes.c_void_p


class Api:
    """The functions of the C API by name; every object lives until the process ends."""

    def __init__(self) -> None:
        import onnxruntime

        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
        base = ctypes.CDLL(str(library)).OrtGetApiBase
        base.restype = ctypes.POINTER(Pointer * 2)
        get_api = ctypes.CFUNCTYPE(Pointer, ctypes.c_uint32)(base().contents[0])
        self.table = ctypes.cast(get_api(API_VERSION), ctypes.POINTER(Pointer * 320)).contents

    def function(self, name: str, result: Any, *arguments: Any) -> Any:
        return ctypes.CFUNCTYPE(result, *map(type, arguments))(self.table[FUNCTIONS[name]])(*arguments)

    def call(self, name: str, *arguments: Any) -> None:
        if status := self.function(name, Pointer, *arguments):
            raise RuntimeError(self.function("GetErrorMessage", ctypes.c_char_p, Pointer(status)).decode())

    def made(self, name: str, *arguments: Any) -> Any:
        made = Pointer()
        self.call(name, *arguments, ctypes.pointer(made))
        return made


class Arena:
    """A session in C, its only input, and the statistics of its arena."""

    def __init__(self, model: str, level: int, exact: bool, inputs: np.ndarray, names: tuple[str, str]) -> None:
        self.api = api = Api()
        self.names, self.inputs = names, inputs
        environment = api.made("CreateEnv", ctypes.c_int(3), ctypes.c_char_p(b"arena"))
        options = api.made("CreateSessionOptions")
        api.call("SetSessionGraphOptimizationLevel", options, ctypes.c_int(level))
        api.call("SetIntraOpNumThreads", options, ctypes.c_int(1))
        if exact:  # no limit; as requested; first region and largest waste of 1 byte
            sizes = (ctypes.c_size_t(0), ctypes.c_int(1), ctypes.c_int(1), ctypes.c_int(1))
            memory = api.made("CreateCpuMemoryInfo", ctypes.c_int(1), ctypes.c_int(0))
            api.call("CreateAndRegisterAllocator", environment, memory, api.made("CreateArenaCfg", *sizes))
            entry = (ctypes.c_char_p(b"session.use_env_allocators"), ctypes.c_char_p(b"1"))
            api.call("AddSessionConfigEntry", options, *entry)
        self.session = api.made("CreateSession", environment, ctypes.c_char_p(model.encode()), options)
        memory = api.made("CreateCpuMemoryInfo", ctypes.c_int(0), ctypes.c_int(0))
        self.allocator = api.made("CreateAllocator", self.session, memory)
        dims = (ctypes.c_int64 * inputs.ndim)(*inputs.shape)
        self.value = api.made(
            "CreateTensorWithDataAsOrtValue",
            *(memory, Pointer(inputs.ctypes.data), ctypes.c_size_t(inputs.nbytes)),
            *(ctypes.pointer(dims), ctypes.c_size_t(inputs.ndim), ctypes.c_int(1)),
        )

    def statistics(self) -> dict[str, int]:
        pairs = self.api.made("AllocatorGetStats", self.allocator)
        found = {
            key: self.api.function("GetKeyValue", ctypes.c_char_p, pairs, ctypes.c_char_p(key.encode()))
            for key in STATISTICS
        }
        return {key: int(text) for key, text in found.items()}

    def run(self) -> None:
        given, wanted = ((ctypes.c_char_p * 1)(name.encode()) for name in self.names)
        values, answers = (Pointer * 1)(self.value), (Pointer * 1)()
        one = ctypes.c_size_t(1)
        ends = (ctypes.pointer(given), ctypes.pointer(values), one, ctypes.pointer(wanted), one)
        self.api.call("Run", self.session, Pointer(), *ends, ctypes.pointer(answers))
        self.api.function("ReleaseValue", None, Pointer(answers[0]))


def measure(model: str, level: int, exact: bool) -> dict[str, int | None]:
    """In a process of its own: the arena's figures of one model."""
    from deploykit.artifact import Artifact

    artifact = Artifact.read(model)
    shape = [size if isinstance(size, int) else 1 for size in artifact.inputs[0].shape or ()]
    inputs = np.random.default_rng(0).random(shape, np.float32)
    arena = Arena(model, level, exact, inputs, (artifact.inputs[0].name, artifact.outputs[0].name))
    before = arena.statistics()
    arena.run()
    first = arena.statistics()
    arena.run()
    second = arena.statistics()
    return {
        "in_use_bytes": first["MaxInUse"] - before["InUse"],
        "planned_bytes": second["TotalAllocated"] - first["TotalAllocated"] or None,
        "arena_bytes": second["TotalAllocated"] - before["TotalAllocated"],
    }


def predicted(model: str) -> int | None:
    from deploykit.artifact import load_model
    from deploykit.graph.activations import peak_activation_bytes
    from deploykit.graph.shapes import infer
    from deploykit.graph.weights import collect

    loaded = load_model(model)
    shapes = infer(loaded, {})
    return peak_activation_bytes(shapes, collect(loaded.graph, shapes.graph), inputs=False)


def in_a_fresh_process(model: str, level: int, exact: bool) -> dict[str, int | None]:
    command = [sys.executable, __file__, "--measure", str(level), str(int(exact)), model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, int | None] = json.loads(done.stdout)
    return found


def rows_of(name: str, model: str, levels: list[str]) -> list[dict[str, Any]]:
    rows = []
    for optimised in levels:
        level = LEVELS[optimised]
        exact, default = (in_a_fresh_process(model, level, exact) for exact in (True, False))
        row = {"name": name, "optimised": optimised, "predicted_bytes": predicted(model)}
        rows.append(row | exact | {"arena_bytes": default["arena_bytes"]})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | optimised | predicted | planned | in use | beyond | arena |", "|---|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        predicted, planned, in_use = row["predicted_bytes"], row["planned_bytes"], row["in_use_bytes"]
        figures = (predicted, planned, in_use, in_use - predicted, row["arena_bytes"])
        texts = ("–" if figure is None else f"{figure:,}" for figure in figures)
        lines.append(f"| `{row['name']}` | {row['optimised']} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", default=NETWORKS)
    parser.add_argument("--only", choices=LEVELS, help="optimisations on or off")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", nargs=2, type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.sources[0], given.measure[0], bool(given.measure[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source in given.sources:
            model = source
            if not source.endswith(".onnx"):
                model = str(Path(folder) / f"{source}.onnx")
                subprocess.run([sys.executable, "-m", "deploykit", "export", source, "-o", model], check=True, stdout=2)
            rows += rows_of(Path(source).stem, model, [given.only] if given.only else [*LEVELS])
    print(json.dumps(rows) if given.json else table(rows))


if __name__ == "__main__":
    main()
