"""The rooms ``providers``, ``provider_options`` and ``runtime_plugins``: names, plugins built on disk, options."""

import json
import os
import subprocess
import sys
from importlib import util

import numpy as np
import pytest
from tiny_onnx import classifier, relu

from deploykit import environment
from deploykit.commands.options import parse_provider_options
from deploykit.errors import InputError, ProviderError, UnknownNameError
from deploykit.evaluate import EvaluateOptions
from deploykit.provider_options import check_provider_options, precision_notes
from deploykit.providers import PROVIDERS, check_provider, short_name_of
from deploykit.runtime import create_session
from deploykit.runtime_plugins import plugin_of

no_gpu = pytest.mark.skipif(bool(environment.describe()["gpus"]), reason="needs a machine without an NVIDIA GPU")


def install(site, distribution, package, body):
    """A package as pip would leave it in ``site``."""
    (site / package).mkdir(parents=True)
    (site / package / "__init__.py").write_text(body)
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")


def plugin(name, library):
    return f"def get_library_path():\n    return {library!r}\ndef get_ep_name():\n    return {name!r}\n"


def run(site, *words):
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, timeout=120)


def test_an_installed_plugin_is_listed_by_its_short_name(tmp_path):
    install(tmp_path, "onnxruntime-ep-acme", "onnxruntime_ep_acme", plugin("AcmeExecutionProvider", "/absent.so"))
    rtx = plugin("acme_rtx", "/absent.so")
    install(tmp_path, "onnxruntime-ep-acme-rtx-cu13", "onnxruntime_ep_acme_rtx", rtx)
    install(tmp_path, "onnxruntime-ep-broken", "onnxruntime_ep_broken", "raise ImportError('no such library')")
    install(
        tmp_path, "onnxruntime-extra", "onnxruntime_extra", plugin("extra", "/absent.so")
    )  # not called as plugins are
    code = "from deploykit.runtime import provider_names; print(*provider_names())"
    names = run(tmp_path, "-c", code).stdout.split()
    assert {"cpu", "acme", "acme_rtx"} <= set(names)
    assert not {"broken", "extra"} & set(names)


def test_a_plugin_that_cannot_be_loaded_is_refused_with_the_reason(tmp_path):
    install(tmp_path, "onnxruntime-ep-acme", "onnxruntime_ep_acme", plugin("AcmeExecutionProvider", "/absent.so"))
    lost = plugin("lost", "").replace("return ''", "raise FileNotFoundError('liblost.so is gone')")
    install(tmp_path, "onnxruntime-ep-lost", "onnxruntime_ep_lost", lost)
    model = str(relu(tmp_path / "m.onnx"))
    code = (
        "import sys; from deploykit.runtime import create_session; from deploykit.errors import ProviderError\n"
        "for name in ('acme', 'lost'):\n"
        "    try: create_session(sys.argv[1], name)\n"
        "    except ProviderError as problem: print(problem)\n"
        "    print(create_session(sys.argv[1], name, allow_fallback=True).provider)\n"
    )
    done = run(tmp_path, "-c", code, model)
    assert done.stderr == ""
    acme, fallback, gone, also_fallback = done.stdout.splitlines()
    assert "provider 'acme' cannot be registered" in acme and "/absent.so" in acme and "--provider cpu" in acme
    assert "onnxruntime_ep_lost is broken: liblost.so is gone" in gone
    assert fallback == also_fallback == "cpu"


def test_doctor_tells_of_a_plugin_and_that_it_does_not_start(tmp_path):
    install(tmp_path, "onnxruntime-ep-acme", "onnxruntime_ep_acme", plugin("AcmeExecutionProvider", "/absent.so"))
    document = json.loads(run(tmp_path, "-m", "deploykit", "doctor", "--json").stdout)
    row = next(row for row in document["providers"] if row["name"] == "acme")
    assert row["listed"] and not row["works"] and "/absent.so" in row["detail"]
    plugins = next(check for check in document["checks"] if check["name"] == "plugins")
    assert plugins["status"] == "ok" and "onnxruntime-ep-acme 1.0" in plugins["detail"]


@pytest.mark.skipif(util.find_spec("onnxruntime_ep_openvino") is None, reason="needs the extra openvino")
def test_openvino_takes_the_nodes_or_says_that_it_has_no_device(tmp_path):
    path = relu(tmp_path / "m.onnx")
    if "Intel" in environment.describe()["cpu"]:
        session = create_session(path, "openvino", provider_options={"INFERENCE_PRECISION_HINT": "f32"})
        assert session.nodes_by_provider == {"openvino": 1}
        assert session.provider_options == {"INFERENCE_PRECISION_HINT": "f32"}
        assert not any("bfloat16" in note for note in session.notes)
        assert session.run(np.array([[-1.0, 0.0, 2.0]], np.float32))[0].tolist() == [[0.0, 0.0, 2.0]]
    else:
        with pytest.raises(ProviderError, match="no device here"):
            create_session(path, "openvino")


def test_names():
    for name in PROVIDERS:
        check_provider(name)
        assert short_name_of(PROVIDERS[name]) == name
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt'"):
        check_provider("tensorrrt")
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        EvaluateOptions(provider="openvinno")


def test_openvinos_properties_reach_the_device():
    found = plugin_of("openvino", 3, {"INFERENCE_PRECISION_HINT": "f32", "reshape_input": "x[1,3]"})
    config = json.loads(found.options["load_config"])
    assert config == {"CPU": {"INFERENCE_NUM_THREADS": "3", "INFERENCE_PRECISION_HINT": "f32"}}
    assert found.options["reshape_input"] == "x[1,3]"
    assert plugin_of("cpu", 1) is None


@pytest.mark.parametrize(
    ("provider", "key", "word"),
    [
        ("cpu", "use_tf32", "takes no options"),
        ("openvino", "num_of_threads", "--threads"),
        ("openvino", "INFERENCE_NUM_THREADS", "--threads"),
        ("openvino", "precision", "INFERENCE_PRECISION_HINT"),
        ("openvino", "load_config", "one by one"),
        ("xnnpack", "intra_op_num_threads", "--threads"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, provider, key, word):
    for refuse in (
        lambda: check_provider_options(provider, {key: "1"}),
        lambda: create_session(relu(tmp_path / "m.onnx"), provider, provider_options={key: "1"}, allow_fallback=True),
        lambda: EvaluateOptions(provider=provider, provider_options={key: "1"}),
    ):
        with pytest.raises(InputError, match=word) as info:
            refuse()
        assert key in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize(
    ("provider", "options", "words"),
    [
        ("cpu", {}, []),
        ("cuda", {}, ["TF32"]),
        ("cuda", {"use_tf32": "0"}, []),
        ("tensorrt", {"trt_fp16_enable": "1"}, ["float16", "TF32"]),
        ("coreml", {}, ["float16"]),
        ("coreml", {"MLComputeUnits": "CPUOnly"}, []),
        ("qnn", {}, ["float16"]),
        ("qnn", {"enable_htp_fp16_precision": "0"}, []),
        ("openvino", {"INFERENCE_PRECISION_HINT": "f32"}, []),
        ("openvino", {"INFERENCE_PRECISION_HINT": "f16"}, ["f16"]),
        ("openvino", {"EXECUTION_MODE_HINT": "ACCURACY"}, []),
        ("acme", {}, ["not known"]),
    ],
)
def test_the_precision_that_is_computed_in(monkeypatch, provider, options, words):
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    notes = list(precision_notes(provider, options))
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))


def test_bfloat16_is_said_where_the_processor_has_it(monkeypatch):
    has = bool({"amx_bf16", "avx512_bf16"} & set(environment.cpu_features()))
    assert any("bfloat16" in note for note in precision_notes("openvino", {})) is has
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert list(precision_notes("cuda", {})) == []


def test_options_as_texts():
    assert parse_provider_options(["use_tf32=0", "cudnn_conv_algo_search=HEURISTIC"]) == {
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    assert parse_provider_options(None) == {}
    for texts in (["use_tf32"], ["=0"], ["use_tf32="], ["use_tf32=0", "use_tf32=1"]):
        with pytest.raises(InputError, match="--provider-option"):
            parse_provider_options(texts)


@no_gpu
def test_the_command_line_ends_in_one_line_where_there_is_no_gpu(tmp_path):
    done = run(tmp_path, "-m", "deploykit", "bench", str(relu(tmp_path / "m.onnx")), "--provider", "cuda", "--json")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ") and "'cuda'" in line and "--provider cpu" in line
    assert "latency_ms" not in done.stdout


@no_gpu
def test_a_permitted_fallback_says_cpu_everywhere(tmp_path):
    session = create_session(
        relu(tmp_path / "m.onnx"), "cuda", provider_options={"use_tf32": "0"}, allow_fallback=True, memory="lean"
    )
    assert (session.provider, session.nodes_by_provider, session.provider_options) == ("cpu", {"cpu": 1}, {})
    assert not any("CUDA" in note for note in session.notes)


@no_gpu
def test_evaluate_gives_no_figures_under_the_label_of_a_provider_that_did_not_run(tmp_path):
    words = ["-m", "deploykit", "evaluate", str(classifier(tmp_path / "m.onnx", width=8)), "--data", "shapes", "--json"]
    refused = run(tmp_path, *words, "--provider", "cuda")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.strip().splitlines()) == 1
    plain = json.loads(run(tmp_path, *words).stdout)
    options = ("--provider", "cuda", "--provider-option", "use_tf32=0", "--allow-fallback", "--memory", "lean")
    record = json.loads(run(tmp_path, *words, *options).stdout)
    assert (record["provider"], record["provider_options"], record["top1"]) == ("cpu", {}, plain["top1"])
    assert any("provider 'cuda' could not be used" in warning for warning in record["warnings"])
    assert any("lean memory" in warning for warning in record["warnings"])
    assert plain["warnings"] == []
