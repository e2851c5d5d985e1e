"""The process that runs a model on an emulated CPU: a script that stands alone and needs only NumPy and ONNX Runtime.

``emulation`` starts it as ``python -I -S emulated_worker.py FOLDER``: under an emulator every import takes seconds, and
the Python of another architecture does not have this package. FOLDER holds ``job.json`` and ``inputs.npy``; the process
writes ``progress`` (rows done), ``logits.npy`` and, when all is done, ``answer.json``. A failure ends it with a
traceback. When its standard input closes, its parent is gone, and so is it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["cpu_features"]

# push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid; mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx;
# mov [r8+12], edx; pop rbx; ret  – void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
_CPUID = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3")
_EAX, _EBX, _ECX, _EDX = range(4)
# Intel's Software Developer's Manual, volume 2A, CPUID: (leaf, subleaf, register, bit).
_X86_FEATURES = {
    "sse4_2": (1, 0, _ECX, 20),
    "avx": (1, 0, _ECX, 28),
    "avx2": (7, 0, _EBX, 5),
    "fma": (1, 0, _ECX, 12),
    "avx512f": (7, 0, _EBX, 16),
    "avx512_vnni": (7, 0, _ECX, 11),
    "avx_vnni": (7, 1, _EAX, 4),
    "avx512_bf16": (7, 1, _EAX, 5),
    "amx_int8": (7, 0, _EDX, 25),
    "amx_bf16": (7, 0, _EDX, 22),
}
_HWCAP, _HWCAP2 = 16, 26  # getauxval(3)
# Linux, arch/arm64/include/uapi/asm/hwcap.h: (vector, bit).
_ARM_FEATURES = {
    "asimd": (_HWCAP, 1),
    "asimddp": (_HWCAP, 20),
    "i8mm": (_HWCAP2, 13),
    "bf16": (_HWCAP2, 14),
    "sve": (_HWCAP, 22),
}


def cpu_features() -> list[str]:
    """What the CPU that this process sees can do, named as ``environment.cpu_features`` names it.

    The CPU itself is asked: an emulated process reads the host's /proc/cpuinfo.
    """
    if platform.machine() == "aarch64":
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        return [name for name, (vector, bit) in _ARM_FEATURES.items() if getauxval(vector) >> bit & 1]
    try:
        with mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC) as page:
            return _x86_features(page)
    except OSError:  # a system that refuses memory which is both written and run
        return []


def _x86_features(page: mmap.mmap) -> list[str]:
    page.write(_CPUID)
    start = ctypes.c_char.from_buffer(page)
    cpuid = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(ctypes.addressof(start))
    registers = (ctypes.c_uint32 * 4)()
    cpuid(0, 0, ctypes.addressof(registers))
    last, found = registers[_EAX], []
    for name, (leaf, subleaf, register, bit) in _X86_FEATURES.items():
        cpuid(leaf, subleaf, ctypes.addressof(registers))
        if leaf <= last and registers[register] >> bit & 1:
            found.append(name)
    del start  # the page cannot be closed while something points into it
    return found


def _serve(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sys.path[:0] = job["paths"]
    import numpy as np
    import onnxruntime

    began = time.perf_counter()
    inputs = np.load(folder / "inputs.npy", mmap_mode="r")
    np.save(folder / "logits.npy", np.concatenate(list(_answers(job, inputs, folder / "progress"))))
    answer = {
        "onnxruntime": onnxruntime.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_features": cpu_features(),
        "seconds": time.perf_counter() - began,
    }
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


def _answers(job: dict[str, Any], inputs: Any, progress: Path) -> Any:
    """The first output's rows, batch by batch, as ``runtime.Session.run_rows`` gives them."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
    session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
    name, size = session.get_inputs()[0].name, job["batch"]
    for start in range(0, len(inputs), size):
        batch = np.ascontiguousarray(inputs[start : start + size])
        count = len(batch)
        if job["fixed"] and count < size:  # the model takes full batches only
            batch = np.concatenate([batch, np.repeat(batch[-1:], size - count, axis=0)])
        yield session.run(None, {name: batch})[0][:count].reshape(count, -1).astype(np.float32)
        progress.write_text(str(start + count), encoding="utf-8")


def _end_with_parent() -> None:
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _serve(Path(sys.argv[1]))
