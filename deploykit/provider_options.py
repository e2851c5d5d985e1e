"""What a provider is told beside the model, what of it would be ignored, and the precision that follows from it.

Options are refused here where they are known to have no effect; what else a provider does not take, it says itself
when a session is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from deploykit import environment
from deploykit.errors import InputError
from deploykit.nvml import ON_NVIDIA, counted_alike, first_visible

__all__ = [
    "built_in_options",
    "captures_graph",
    "check_provider_options",
    "check_unbound",
    "computed_in",
    "precision_notes",
]

# What the plugin only warns of in its log (messages of onnxruntime-ep-openvino 1.8.1) -> what has the effect.
_IGNORED_BY_OPENVINO = {
    "cache_dir": "CACHE_DIR=FOLDER",
    "precision": "INFERENCE_PRECISION_HINT=f32",
    "num_of_threads": "--threads",
    "num_streams": "NUM_STREAMS=1",
    "model_priority": "MODEL_PRIORITY=LOW",
    "device_type": "nothing: the CPU is used",
    "device_id": "nothing: the CPU is used",
    "device_luid": "nothing: the CPU is used",
    "enable_opencl_throttling": "nothing: the CPU is used",
    "enable_qdq_optimizer": "nothing: the CPU is used",
    "load_config": "its properties one by one, such as INFERENCE_PRECISION_HINT=f32",
}
# What deploykit settles by the number of threads.
_OF_THREADS = {"openvino": "INFERENCE_NUM_THREADS", "xnnpack": "intra_op_num_threads"}
_BF16 = {"amx_bf16", "avx512_bf16"}
_CUDA_SWITCHES = ("use_tf32", "prefer_nhwc", "enable_cuda_graph", "enable_cudnn", "cudnn_conv_use_max_workspace")
_ON, _OFF = ("1", "true"), ("0", "false")
_SHORT = {"float16": "fp16", "bfloat16": "bf16", "int8": "int8", "f16": "fp16", "bf16": "bf16", "f32": "fp32"}
_HALF = {"trt_fp16_enable": "float16", "trt_bf16_enable": "bfloat16", "trt_int8_enable": "int8"}
_QUIET_PROVIDERS = ("cpu", "xnnpack", "openvino", "cuda", "tensorrt", "coreml", "qnn")


def check_provider_options(provider: str, options: Mapping[str, str]) -> None:
    """Raises: InputError for options that are known to have no effect, or that are set in another way."""
    if provider == "cpu" and options:
        raise InputError(f"provider 'cpu' received {', '.join(options)}; allowed: none, as it takes no options")
    for key, value in options.items():
        if not key or not isinstance(value, str):
            raise InputError(f"provider option {key!r}: {value!r}; allowed: a name and its value as a text")
        if key == _OF_THREADS.get(provider):
            raise InputError(f"provider {provider!r} received {key}; give the number of threads as --threads instead")
        if provider == "openvino" and key in _IGNORED_BY_OPENVINO:
            instead = _IGNORED_BY_OPENVINO[key]
            raise InputError(f"provider 'openvino' ignores {key}; give {instead} instead")
        if provider in ON_NVIDIA and key == "device_id":  # memory, energy and precision are told of the first GPU
            raise InputError(
                f"provider {provider!r} received device_id; choose the GPU by CUDA_VISIBLE_DEVICES instead"
            )
        if provider == "cuda" and key in _CUDA_SWITCHES and value.lower() not in (*_ON, *_OFF):
            raise InputError(f"provider option {key}={value}; allowed: 1 or 0")


def check_unbound(provider: str, options: Mapping[str, str]) -> None:
    """For runs whose inputs are copied to the device each time, which a captured graph would not look at.

    Raises: InputError for ``enable_cuda_graph``: the provider replays on the addresses of the first run
    (onnxruntime.ai, "CUDA Execution Provider", CUDA graphs).
    """
    if captures_graph(provider, options):
        raise InputError(
            "provider option enable_cuda_graph=1 needs inputs that stay on the device; bench with IO binding has them"
        )


def captures_graph(provider: str, options: Mapping[str, str]) -> bool:
    """Whether the CUDA provider is told to capture and replay a graph."""
    return provider == "cuda" and options.get("enable_cuda_graph", "0").lower() in _ON


def built_in_options(provider: str, threads: int, given: Mapping[str, str], *, lean: bool) -> dict[str, str]:
    """Options for a provider that is part of ONNX Runtime: ``given``, and what threads and lean memory ask for."""
    options = {}
    if provider == "xnnpack":  # it keeps a thread pool of its own (onnxruntime docs, XNNPACK provider)
        options["intra_op_num_threads"] = str(threads)
    if provider == "cuda" and lean:  # the arena then grows by what is asked for, not to the next power of two
        options["arena_extend_strategy"] = "kSameAsRequested"
    return options | dict(given)


def precision_notes(provider: str, options: Mapping[str, str]) -> Iterator[str]:
    """What is computed in another precision than the file's, under these options and on this machine."""
    if provider == "openvino":
        yield from _openvino_notes(options)
    elif provider in ("cuda", "tensorrt"):
        yield from _nvidia_notes(provider, options)
    elif provider == "coreml" and options.get("MLComputeUnits") != "CPUOnly":
        yield "CoreML may compute float32 in float16 on the GPU and the Neural Engine"
    elif provider == "qnn" and options.get("enable_htp_fp16_precision", "1") != "0":
        yield "QNN computes float32 in float16 on the HTP unless enable_htp_fp16_precision=0"
    elif provider not in _QUIET_PROVIDERS:
        yield f"the precision that {provider} computes in is not known to deploykit"


def computed_in(provider: str, options: Mapping[str, str], precision: str) -> str | None:
    """What a model's layers are computed in: ``"fp32"``, ``"tf32"``, ``"fp16"``, … ; None where it is not known.

    Args:
        provider: What really runs.
        options: What the provider was told.
        precision: The file's (``graph.precision``).
    """
    if provider in ("cuda", "tensorrt"):
        return _computed_by_nvidia(provider, options, precision)
    if precision != "fp32":
        return precision if provider in ("cpu", "web", "openvino", "xnnpack") and precision == "int8" else None
    if provider == "openvino":
        hint = options.get("INFERENCE_PRECISION_HINT")
        lowered = hint is None and next(iter(_openvino_notes(options)), None)
        return _SHORT.get(hint) if hint else "bf16" if lowered else "fp32"
    return "fp32" if provider in ("cpu", "web", "xnnpack") else None


def _computed_by_nvidia(provider: str, options: Mapping[str, str], precision: str) -> str | None:
    """Ampere, of compute capability 8, is the first generation with TF32."""
    allowed = [kind for key, kind in _HALF.items() if options.get(key, "0").lower() in _ON]
    if allowed or precision not in ("fp32", "fp16"):  # TensorRT chooses among them; integers in float are told apart
        return None
    if precision == "fp16" or not _tf32_allowed(provider, options):
        return precision
    capability = _capability()
    if capability is None:
        return None
    return "tf32" if int(capability.split(".")[0]) >= 8 else "fp32"


def _capability() -> str | None:
    """Compute capability of the GPU that CUDA takes first; None where it is not known which of several that is."""
    gpus, first = environment.describe()["gpus"], first_visible()
    capabilities: list[str | None] = [gpu.get("compute_capability") for gpu in gpus]
    if first is None or not gpus:
        return None
    if len(set(capabilities)) == 1:
        return capabilities[0]
    alike = isinstance(first, int) and first < len(gpus) and counted_alike([gpu["name"] for gpu in gpus])
    return capabilities[int(first)] if alike else None


def _openvino_notes(options: Mapping[str, str]) -> Iterator[str]:
    """OpenVINO's default is bfloat16 where the CPU has it (docs.openvino.ai, "Precision Control")."""
    hint = options.get("INFERENCE_PRECISION_HINT")
    exact = hint == "f32" or (hint is None and options.get("EXECUTION_MODE_HINT") == "ACCURACY")
    if hint is not None and hint != "f32":
        yield f"OpenVINO was asked to compute float models in {hint}"
    elif not exact and _BF16 & set(environment.cpu_features()):
        yield "OpenVINO computes float models in bfloat16 on this CPU unless INFERENCE_PRECISION_HINT=f32"


def _nvidia_notes(provider: str, options: Mapping[str, str]) -> Iterator[str]:
    name = {"cuda": "CUDA", "tensorrt": "TensorRT"}[provider]
    allowed = [kind for key, kind in _HALF.items() if options.get(key, "0").lower() in _ON]
    if provider == "tensorrt" and allowed:
        yield f"TensorRT was allowed to compute in {' and '.join(allowed)}"
    if _tf32_allowed(provider, options):
        off = "use_tf32=0" if provider == "cuda" else "NVIDIA_TF32_OVERRIDE=0 is set"
        yield f"{name} computes float32 convolutions in TF32 on Ampere and later unless {off}"


def _tf32_allowed(provider: str, options: Mapping[str, str]) -> bool:
    """cuBLAS, cuDNN and TensorRT obey the variable (docs.nvidia.com, "TF32"); the option is the CUDA provider's."""
    switched_off = provider == "cuda" and options.get("use_tf32", "1").lower() in _OFF
    return os.environ.get("NVIDIA_TF32_OVERRIDE") != "0" and not switched_off
