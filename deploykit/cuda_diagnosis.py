"""Why CUDA does not start under ONNX Runtime, said as one mismatch and what mends it, from facts alone.

Nothing is loaded and nothing is asked of the machine here: ``cuda_facts`` gathers, this judges. The texts that are
recognised are those of the dynamic loader (ld.so), of CUDA's runtime (cudaGetErrorString) and of ONNX Runtime's CUDA
provider, which repeats both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = ["CudaFacts", "CudaFinding", "blames_cuda", "diagnose_cuda"]

MIN_DRIVER = {11: 450, 12: 525, 13: 580}
"""CUDA's major version -> the oldest driver branch (docs.nvidia.com, "CUDA Minor Version Compatibility", table 1)."""

_CPU = "or use --provider cpu"
_GPU_WHEEL = "pip install --no-cache-dir onnxruntime-gpu"
_LIBRARY = re.compile(
    r"(lib(?:cublasLt|cublas|cudart|cufft|curand|nvrtc|cudnn\w*|cuda|nvinfer\w*|nvonnxparser)\.so\.(\d+))"
    r"[.\d]*: (?:cannot open shared object file|wrong ELF class|undefined symbol|version)"
)
# A cuDNN that is found and does not fit what asks for it.
_OTHER_CUDNN = re.compile(
    r"CUDNN_STATUS_(?:\w*VERSION_MISMATCH|NOT_INITIALIZED)|undefined symbol: cudnn"
    r"|libcudnn\w*\.so[.\d]*: (?:wrong ELF class|undefined symbol|version)"
)
_NUMBERED_AS_CUDA = ("libcublas", "libcublasLt", "libcudart", "libnvrtc")
_CUFFT = {10: 11, 11: 12, 12: 13}  # libcufft's number -> CUDA's major version
# Texts of CUDA's runtime and of ONNX Runtime that blame the installation or the device, not the model.
_OF_CUDA = re.compile(
    r"CUDA failure (?:2|3|35|46|100|101|209|222|803|804)\b|CUDNN failure|CUBLAS failure|cuDNN is unavailable"
    r"|no CUDA-capable device|driver version is insufficient|no kernel image is available|out of memory"
    r"|Failed to allocate memory for requested buffer|CUDNN_STATUS_\w+|Failed to initialize CUDNN Frontend"
    r"|PTX was compiled with an unsupported toolchain"
)


@dataclass(frozen=True)
class CudaFacts:
    """What is installed and what was said.

    Attributes:
        error: What failed to load or to start, in the words of the loader or of ONNX Runtime.
        wheels: Distributions that bring ``onnxruntime``, with their versions.
        built_for: CUDA's major version that this ONNX Runtime is built for; None for one without CUDA.
        packages: Installed distributions of NVIDIA's libraries (``nvidia-…``) with their versions.
        torch_cuda: CUDA's major version of the installed torch; None without torch, and for one without CUDA.
        driver: Version of the NVIDIA driver, such as ``"580.65.06"``.
        gpus: Names of the GPUs that the driver shows.
        preload: What ``onnxruntime.preload_dlls`` said it could not load.
    """

    error: str = ""
    wheels: Mapping[str, str] = field(default_factory=dict)
    built_for: int | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    torch_cuda: int | None = None
    driver: str | None = None
    gpus: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()

    @property
    def said(self) -> str:
        """All that was said, on one line."""
        return " ".join([self.error, *self.preload])

    @property
    def runtime(self) -> str:
        """The wheel, with its version."""
        return ", ".join(f"{name} {version}" for name, version in self.wheels.items()) or "this onnxruntime"


@dataclass(frozen=True)
class CudaFinding:
    """One mismatch, and what mends it; both are parts of a line."""

    problem: str
    fix: str


def blames_cuda(text: str) -> bool:
    """Whether a message blames the installation of CUDA or the device, not the model that was run."""
    return bool(_OF_CUDA.search(text) or _LIBRARY.search(text))


def diagnose_cuda(facts: CudaFacts) -> CudaFinding:
    """The first of these that holds, since the earlier ones make the later ones moot.

    1. The installed wheel has no CUDA provider, or two wheels overwrite each other.
    2. There is no driver, or no GPU that this process sees.
    3. The driver is older than what the wheel's CUDA needs.
    4. The GPU is of a generation that this build has no code for, or has no memory left.
    5. cuDNN is missing, or of another version than what loads beside it.
    6. A library of CUDA is missing: those of another CUDA are installed, the right ones cannot be found, or none are.
    7. Otherwise what was said is repeated.
    """
    for rule in _RULES:
        if finding := rule(facts):
            return finding
    said = facts.error or "it gave no reason"
    return CudaFinding(said, f"deploykit doctor says what is installed; {_CPU}")


def _wheel(facts: CudaFacts) -> CudaFinding | None:
    """Rule 1."""
    if len(facts.wheels) > 1:
        names = " ".join(facts.wheels)
        return CudaFinding(
            f"{facts.runtime} are installed and overwrite each other's files",
            f"pip uninstall -y {names} && {_GPU_WHEEL}",
        )
    name = next(iter(facts.wheels), "")
    absent = bool(name) or "is not in this onnxruntime" in facts.error  # what is no wheel may not say what it has
    if facts.built_for is None and absent and not name.endswith("-gpu"):
        change = f"pip uninstall -y {name} && {_GPU_WHEEL}" if name else _GPU_WHEEL
        return CudaFinding(f"{facts.runtime} is built without CUDA", f"{change}; {_CPU}")
    return None


def _device(facts: CudaFacts) -> CudaFinding | None:
    """Rule 2."""
    if facts.driver is None and not facts.gpus and not _blames_device(facts):
        return CudaFinding(
            "no NVIDIA driver was found",
            f"it needs an NVIDIA GPU with its driver{_at_least(facts)} (in a container: docker run --gpus all), and "
            f"pip install 'deploykit[cuda]'; {_CPU}",
        )
    if re.search(r"no CUDA-capable device|CUDA failure (?:100|101)\b", facts.said):
        return CudaFinding(
            "the driver shows this process no GPU",
            f"look at nvidia-smi and CUDA_VISIBLE_DEVICES (in a container: docker run --gpus all); {_CPU}",
        )
    return None


def _blames_device(facts: CudaFacts) -> bool:
    """Whether CUDA's own runtime has spoken, so that a driver must be there though nothing tells its version."""
    return bool(re.search(r"CUDA failure|driver version is insufficient", facts.said))


def _driver(facts: CudaFacts) -> CudaFinding | None:
    """Rule 3."""
    needed = MIN_DRIVER.get(facts.built_for or 0)
    branch = int(facts.driver.split(".")[0]) if facts.driver and facts.driver.split(".")[0].isdigit() else None
    old = needed is not None and branch is not None and branch < needed
    if not old and not re.search(
        r"driver version is insufficient|CUDA failure 35\b|unsupported toolchain|CUDA failure 222\b", facts.said
    ):
        return None
    version = f" {facts.driver}" if facts.driver else ""
    return CudaFinding(
        f"the NVIDIA driver{version} is too old for CUDA {facts.built_for or ''}".rstrip()
        + f", which {facts.runtime} is built for",
        f"update the driver{_to(needed)}; {_CPU}",
    )


def _cudnn(facts: CudaFacts) -> CudaFinding | None:
    """Rule 5."""
    wanted = f"nvidia-cudnn-cu{facts.built_for or 13}"
    if _OTHER_CUDNN.search(facts.said):
        return CudaFinding(
            f"cuDNN does not start beside CUDA {facts.built_for}{_installed(facts, 'nvidia-cudnn')}",
            f"pip install --upgrade {wanted}, and take other cuDNNs off LD_LIBRARY_PATH; {_CPU}",
        )
    missing = re.search(r"libcudnn\w*\.so\.(\d+)[.\d]*: cannot open|cuDNN is unavailable", facts.said)
    if not missing:
        return None
    return CudaFinding(
        f"cuDNN {missing[1] or 9} for CUDA {facts.built_for} is missing{_installed(facts, 'nvidia-cudnn')}",
        f"pip install {wanted}, or pip install 'deploykit[cuda]'; {_CPU}",
    )


def _library(facts: CudaFacts) -> CudaFinding | None:
    """Rule 6."""
    found = [match for match in _LIBRARY.finditer(facts.said) if not match[1].startswith(("libcudnn", "libcuda."))]
    if re.search(r"libnv(?:infer|onnxparser)\w*\.so|Please install TensorRT libraries", facts.error):
        return CudaFinding(
            "the libraries of TensorRT are missing",
            f"pip install tensorrt-cu{facts.built_for or 13}, or put TensorRT on LD_LIBRARY_PATH; {_CPU}",
        )
    if not found:
        return _windows_library(facts)
    library = found[0][1]
    wanted = _cuda_of(library) or facts.built_for
    others = _of_other_cudas(facts, wanted)
    own = _of_cuda(facts, wanted)
    if own:
        return CudaFinding(
            f"{library} cannot be loaded though {own} is installed",
            f"pip install --force-reinstall {own.split()[0]}; {_CPU}",
        )
    if others:
        return CudaFinding(
            f"{facts.runtime} is built for CUDA {wanted}, but {others} is installed ({library} is missing)",
            f"pip install 'deploykit[cuda]', which puts CUDA {wanted} beside it; {_CPU}",
        )
    return CudaFinding(
        f"the libraries of CUDA {wanted} are missing, beginning with {library}",
        f"pip install 'deploykit[cuda]'; {_CPU}",
    )


def _windows_library(facts: CudaFacts) -> CudaFinding | None:
    if not re.search(r"LoadLibrary failed with error 126|onnxruntime_providers_cuda\.dll", facts.said):
        return None
    return CudaFinding(
        f"a library of CUDA {facts.built_for} or the Visual C++ runtime is missing",
        f"pip install 'deploykit[cuda]', and https://aka.ms/vs/17/release/vc_redist.x64.exe; {_CPU}",
    )


def _silicon(facts: CudaFacts) -> CudaFinding | None:
    """Rule 4."""
    gpu = facts.gpus[0] if facts.gpus else "this GPU"
    if re.search(r"no kernel image is available|CUDA failure 209\b", facts.said):
        return CudaFinding(f"{facts.runtime} has no code for {gpu}", f"take another version of onnxruntime-gpu; {_CPU}")
    if re.search(r"out of memory|CUDA failure 2\b|Failed to allocate memory for requested buffer", facts.said):
        return CudaFinding(
            f"{gpu} has no memory left", f"end other programs on it (nvidia-smi), or take a smaller batch; {_CPU}"
        )
    return None


_RULES: tuple[Callable[[CudaFacts], CudaFinding | None], ...] = (_wheel, _device, _driver, _silicon, _cudnn, _library)


def _cuda_of(library: str) -> int | None:
    """CUDA's major version that a library belongs to; None for those that are numbered on their own."""
    name, _, number = library.partition(".so.")
    if name in _NUMBERED_AS_CUDA:
        return int(number)
    return _CUFFT.get(int(number)) if name == "libcufft" else None


def _major_of(name: str, version: str) -> int | None:
    """CUDA's major version of one of NVIDIA's packages: its ending, from CUDA 13 on its version."""
    if match := re.search(r"-cu(\d\d)$", name):
        return int(match[1])
    numbered = name in ("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")
    return int(version.split(".")[0]) if numbered and version.split(".")[0].isdigit() else None


def _of_cuda(facts: CudaFacts, major: int | None) -> str | None:
    """The package of cuBLAS for this CUDA, as text."""
    for name, version in facts.packages.items():
        if name.startswith("nvidia-cublas") and _major_of(name, version) == major:
            return f"{name} {version}"
    return None


def _of_other_cudas(facts: CudaFacts, major: int | None) -> str | None:
    """What is there of another CUDA, as text."""
    for name, version in facts.packages.items():
        other = _major_of(name, version)
        if other is not None and other != major and name.startswith(("nvidia-cublas", "nvidia-cuda-runtime")):
            return f"{name} {version} of CUDA {other}"
    if facts.torch_cuda is not None and facts.torch_cuda != major:
        return f"torch with CUDA {facts.torch_cuda}"
    return None


def _installed(facts: CudaFacts, beginning: str) -> str:
    named = [f"{name} {version}" for name, version in facts.packages.items() if name.startswith(beginning)]
    return f" ({', '.join(named)} is installed)" if named else ""


def _at_least(facts: CudaFacts) -> str:
    needed = MIN_DRIVER.get(facts.built_for or 0)
    return f", version {needed} or later for CUDA {facts.built_for}" if needed else ""


def _to(needed: int | None) -> str:
    return f" to {needed} or later" if needed else ""
