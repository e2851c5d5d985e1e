"""The rooms ``cuda_diagnosis`` and ``cuda_facts``: texts that ONNX Runtime, CUDA and the loader really give."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from deploykit.cuda_diagnosis import CudaFacts, blames_cuda, diagnose_cuda
from deploykit.cuda_facts import cuda_facts

# onnxruntime-gpu 1.31.1 on a machine with nothing of NVIDIA's.
NO_CUBLAS_13 = "libcublasLt.so.13: cannot open shared object file: No such file or directory"
# microsoft/onnxruntime #22968.
NO_CUBLAS_12 = (
    "[ONNXRuntimeError] : 1 : FAIL : Failed to load library libonnxruntime_providers_cuda.so with error: "
    "libcublasLt.so.12: cannot open shared object file: No such file or directory"
)
# onnxruntime/mobius #316.
OLD_DRIVER = (
    "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:122 std::conditional_t<THRW, void, "
    "onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, "
    "const char*, int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; std::conditional_t<THRW, "
    "void, common::Status> = void] CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; "
    "GPU=-1 ; hostname=c ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; "
    "line=336 ; expr=cudaSetDevice(info_.device_id); "
)
# deepinsight/insightface #2524.
NO_DEVICE = OLD_DRIVER.replace(
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
    "CUDA failure 100: no CUDA-capable device is detected",
)
# Gourieff/sd-webui-reactor #503.
NO_CUDNN = (
    "Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open shared object "
    "file: No such file or directory"
)
# In the library of onnxruntime-gpu 1.31.1, which loads cuDNN when a kernel first asks for it (#29252).
NO_LAZY_CUDNN = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Non-zero status code returned while running Conv node. Name:'conv' "
    "Status Message: cuDNN is unavailable or disabled for CUDA Execution Provider: libcudnn.so.9 not found"
)
# microsoft/onnxruntime #26322.
CUDNN_STATUS = (
    "CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=p ; "
    "file=cuda_execution_provider.cc ; line=182 ; expr=cudnnCreate(&cudnn_handle_);"
)
# The loader's words (glibc, elf/dl-lookup.c, dl-load.c, dl-version.c).
CUDNN_SYMBOL = "/opt/libcudnn_graph.so.9.8.0: undefined symbol: _ZN5cudnn7backend, version libcudnn_ops.so.9"
CUDNN_CLASS = "libcudnn.so.9: wrong ELF class: ELFCLASS32"
CUDNN_VERSION = "libcudnn.so.9: version `libcudnn.so.9' not found (required by libonnxruntime_providers_cuda.so)"
CUDNN_ASKED = "libonnxruntime_providers_cuda.so: undefined symbol: cudnnGetLibConfig, version libcudnn.so.9"
FULL = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Status "
    "Message: bfc_arena.cc:376 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
    "Failed to allocate memory for requested buffer of size 8589934592"
)
NO_CODE = "CUDA failure 209: no kernel image is available for execution on the device ; GPU=0 ; expr=cudaGetLastError()"

GPU = CudaFacts(wheels={"onnxruntime-gpu": "1.31.1"}, built_for=13, driver="580.65.06", gpus=("NVIDIA H100 80GB HBM3",))
CUDA_12 = {"nvidia-cublas-cu12": "12.8.4.1", "nvidia-cuda-runtime-cu12": "12.8.90", "nvidia-cudnn-cu12": "9.10.2.21"}
CUDA_13 = {"nvidia-cublas": "13.0.0.19", "nvidia-cuda-runtime": "13.0.48"}


@pytest.mark.parametrize(
    ("change", "problem", "fix"),
    [
        ({"error": NO_CUBLAS_13}, "the libraries of CUDA 13 are missing", "pip install 'deploykit[cuda]'"),
        (
            {"error": NO_CUBLAS_13, "packages": CUDA_12},
            "onnxruntime-gpu 1.31.1 is built for CUDA 13, but nvidia-cublas-cu12 12.8.4.1 of CUDA 12 is installed",
            "puts CUDA 13 beside it",
        ),
        ({"error": NO_CUBLAS_13, "torch_cuda": 12}, "but torch with CUDA 12 is installed", "CUDA 13 beside it"),
        (
            {"error": NO_CUBLAS_12, "built_for": 12, "packages": CUDA_13, "wheels": {"onnxruntime-gpu": "1.26.0"}},
            "onnxruntime-gpu 1.26.0 is built for CUDA 12, but nvidia-cublas 13.0.0.19 of CUDA 13 is installed",
            "puts CUDA 12 beside it",
        ),
        (
            {"error": NO_CUBLAS_13, "packages": CUDA_13},
            "libcublasLt.so.13 cannot be loaded though nvidia-cublas 13.0.0.19 is installed",
            "pip install --force-reinstall nvidia-cublas",
        ),
        ({"preload": (NO_CUBLAS_13,), "error": "cannot start here"}, "CUDA 13 are missing", "deploykit[cuda]"),
        (
            {"error": NO_CUDNN, "packages": CUDA_13 | {"nvidia-cudnn-cu12": "9.10.2.21"}},
            "cuDNN 9 for CUDA 13 is missing (nvidia-cudnn-cu12 9.10.2.21 is installed)",
            "pip install nvidia-cudnn-cu13",
        ),
        ({"error": NO_LAZY_CUDNN}, "cuDNN 9 for CUDA 13 is missing", "pip install nvidia-cudnn-cu13"),
        ({"error": CUDNN_STATUS}, "cuDNN does not start beside CUDA 13", "LD_LIBRARY_PATH"),
        *(
            ({"error": text}, "cuDNN does not start beside CUDA 13", "pip install --upgrade nvidia-cudnn-cu13")
            for text in (CUDNN_SYMBOL, CUDNN_CLASS, CUDNN_VERSION, CUDNN_ASKED)
        ),
        ({"error": OLD_DRIVER, "driver": "535.183.01"}, "driver 535.183.01 is too old for CUDA 13", "580 or later"),
        ({"error": OLD_DRIVER, "driver": None, "gpus": ()}, "driver is too old for CUDA 13", "580 or later"),
        ({"error": NO_CUBLAS_13, "driver": "550.54.15"}, "driver 550.54.15 is too old", "update the driver to 580"),
        ({"error": NO_DEVICE}, "shows this process no GPU", "CUDA_VISIBLE_DEVICES"),
        ({"error": NO_CUBLAS_13, "driver": None, "gpus": ()}, "no NVIDIA driver was found", "--gpus all"),
        (
            {"wheels": {"onnxruntime": "1.31.0"}, "built_for": None, "error": "absent"},
            "onnxruntime 1.31.0 is built without CUDA",
            "pip uninstall -y onnxruntime && pip install --no-cache-dir onnxruntime-gpu",
        ),
        (
            {"wheels": {"onnxruntime-directml": "1.24.4"}, "built_for": None},
            "onnxruntime-directml 1.24.4 is built without CUDA",
            "pip uninstall -y onnxruntime-directml && pip install --no-cache-dir onnxruntime-gpu",
        ),
        (
            {"wheels": {}, "built_for": None, "error": "provider 'cuda' is not in this onnxruntime, which has cpu"},
            "this onnxruntime is built without CUDA",
            "pip install --no-cache-dir onnxruntime-gpu",
        ),
        (
            {"wheels": {"onnxruntime": "1.31.0", "onnxruntime-gpu": "1.31.1"}, "error": NO_CUBLAS_13},
            "overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && ",
        ),
        ({"error": FULL}, "NVIDIA H100 80GB HBM3 has no memory left", "smaller batch"),
        ({"error": NO_CODE}, "has no code for NVIDIA H100", "another version"),
        ({"error": "libnvinfer.so.10: cannot open shared object file"}, "TensorRT are missing", "tensorrt-cu13"),
        (
            {"error": 'LoadLibrary failed with error 126 "" when trying to load "onnxruntime_providers_cuda.dll"'},
            "Visual C++",
            "vc_redist",
        ),
        ({"error": "something new"}, "something new", "deploykit doctor"),
    ],
)
def test_the_mismatch_and_its_remedy(change, problem, fix):
    finding = diagnose_cuda(replace(GPU, **change))
    assert problem in finding.problem
    assert fix in finding.fix
    assert "\n" not in finding.problem + finding.fix
    if "wheels" not in change or len(change["wheels"]) == 1:
        assert "--provider cpu" in finding.fix  # there is always a way on


def test_what_blames_cuda_and_what_blames_the_model():
    for text in (
        NO_CUBLAS_13,
        OLD_DRIVER,
        NO_DEVICE,
        NO_CUDNN,
        NO_LAZY_CUDNN,
        CUDNN_STATUS,
        FULL,
        NO_CODE,
        CUDNN_SYMBOL,
    ):
        assert blames_cuda(text)
    for text in (
        "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for ConvInteger(10) node",
        "Got invalid dimensions for input: x for the following indices index: 1 Got: 4 Expected: 3",
        "Load model from cudnn.onnx failed:Protobuf parsing failed.",
    ):
        assert not blames_cuda(text)


def install(site, name, version, *requires):
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (folder / "METADATA").write_text("\n".join(lines) + "\n")


def test_facts_of_installed_packages_and_driver(tmp_path):
    site = tmp_path / "site"
    install(site, "onnxruntime-gpu", "1.31.1")
    install(site, "onnxruntime-qnn", "2.0.0")  # a plugin, which overwrites nothing
    install(site, "nvidia-cublas-cu12", "12.8.4.1")
    install(site, "torch", "2.9.0", "filelock", 'nvidia-cudnn-cu12==9.10.2.21; platform_system == "Linux"')
    driver = tmp_path / "version"
    driver.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\nGCC version:  gcc\n"
    )
    facts = cuda_facts("why", path=[str(site)], driver_file=driver)
    assert facts.wheels == {"onnxruntime-gpu": "1.31.1"}
    assert facts.packages == {"nvidia-cublas-cu12": "12.8.4.1"}
    assert (facts.torch_cuda, facts.driver, facts.error) == (12, "535.183.01", "why")
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (builder)\n")
    assert cuda_facts(path=[str(site)], driver_file=driver).driver == "580.65.06"


@pytest.mark.parametrize(
    ("version", "requires", "major"),
    [
        ("2.11.0+cu128", (), 12),
        ("2.13.0+cpu", (), None),
        ("2.11.0", ("cuda-toolkit[cudart,nvrtc]==13.0.2; platform_system == 'Linux'",), 13),
        ("2.11.0", ("nvidia-cudnn-cu13==9.15.1.9; platform_system == 'Linux'",), 13),
        ("2.11.0", ("numpy",), None),
    ],
)
def test_cuda_of_torch_by_its_metadata(tmp_path, version, requires, major):
    install(tmp_path, "torch", version, *requires)
    assert cuda_facts(path=[str(tmp_path)]).torch_cuda == major


def test_the_cuda_that_a_wheel_is_built_for_is_read_and_nothing_imported(tmp_path):
    runtime = tmp_path / "onnxruntime"
    (runtime / "capi").mkdir(parents=True)
    (runtime / "__init__.py").write_text("raise ImportError('not needed')\n")
    (runtime / "capi" / "build_and_package_info.py").write_text("package_name = 'onnxruntime'\n")
    code = (
        "import sys; from deploykit.cuda_facts import cuda_facts; from deploykit.cuda_diagnosis import diagnose_cuda\n"
        "facts = cuda_facts('absent'); print(facts.built_for)\n"
        "assert not {'torch', 'onnxruntime'} & set(sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "None"
    (runtime / "capi" / "build_and_package_info.py").write_text("cuda_version = '12.8'\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "12"
