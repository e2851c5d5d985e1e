"""``bench --provider web``: real models in a real browser, the same record as in a process, and what goes wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from browser import BROWSER
from onnx import TensorProto, helper
from test_embed_node import runtime_or_skip
from tiny_onnx import conv_chain, endless_loop, matmul, relu, save_graph

from deploykit import browser_guard, onnxruntime_web, page_server
from deploykit.bench_options import BenchOptions
from deploykit.comparability import mismatches
from deploykit.errors import InputError, ModelFileError, ProviderError
from deploykit.page_server import PageServer
from deploykit.random_inputs import make_feeds
from deploykit.report.environments import provider_version
from deploykit.results import read_record
from deploykit.runtime import create_session
from deploykit.web_worker import WebWorker, check_web

in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
QUICK = ("--samples", 10, "--min-time", 0.05)


@pytest.fixture(scope="module", autouse=True)
def runtime():
    return runtime_or_skip()


def command(*arguments):
    return [sys.executable, "-m", "deploykit", *map(str, arguments)]


def run(*arguments, cwd, **environment):
    given = os.environ | environment
    return subprocess.run(command(*arguments), capture_output=True, text=True, cwd=cwd, timeout=200, env=given)


def one_line(text):
    assert text.count("\n") == 1 and text.endswith("\n"), text
    return text


def started(worker, model, feeds, threads=1):
    return worker.ask("start", model=str(model), feeds=feeds, seed=3, provider="web", threads=threads)


def feed(name, dtype, *shape):
    return {"name": name, "dtype": dtype, "shape": list(shape)}


# What is recorded


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """One run of two models in a process and in a browser, with one thread and two; one of them only a process runs."""
    folder = tmp_path_factory.mktemp("both")
    conv_chain(folder / "net.onnx", 3)
    flags = ("--provider", "cpu,web", "--threads", "1,2", "--energy", *QUICK)
    return folder, run("bench", "net.onnx", *flags, "--json", "-o", "b.json", cwd=folder)


@in_browser
def test_a_browser_gives_the_record_that_a_process_gives(both):
    folder, done = both
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert read_record(folder / "b.json").to_document() == document
    rows = {(row["provider"], row["threads"]): row for row in document["results"]}
    assert list(rows) == [("cpu", 1), ("cpu", 2), ("web", 1), ("web", 2)]
    for threads in (1, 2):
        native, web = rows["cpu", threads], rows["web", threads]
        assert list(web) == list(native)
        assert list(web["latency_ms"]) == list(native["latency_ms"])
        assert web["model_sha256"] == native["model_sha256"]
        latency = web["latency_ms"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"]
        assert latency["ci_low"] <= latency["median"] <= latency["ci_high"]
        assert latency["samples"] >= 10
        step_ms = 0.005  # of a page's clock: no interval can be narrower
        assert latency["ci_low"] <= latency["median"] - step_ms and latency["median"] + step_ms <= latency["ci_high"]
        assert web["load_ms"] > 0 and web["first_run_ms"] > 0
        assert len(web["turns_ms"]) == web["processes"] == 1
        assert (web["nodes_by_provider"], web["energy_mj_per_inference"]) == ({}, None)
        assert any("no energy: " in warning for warning in web["warnings"])
    # A and B have as many turns, as they are taken in turns.
    assert len({len(row["turns_ms"][0]) for row in rows.values()}) == 1


@in_browser
def test_what_ran_is_told_and_decides_what_compares(both):
    record = read_record(both[0] / "b.json")
    versions = record.environment["versions"]
    assert versions["onnxruntime-web"] == "1.30.0"
    assert versions["browser"].split()[-1].count(".") == 3, versions  # the full version, as chrome://version has it
    web = next(timing for timing in record.results if timing.provider == "web")
    native = record.results[0]
    other = {**record.environment, "versions": {**versions, "browser": "Chromium 1.2.3.4"}}
    same = mismatches(web, record.environment, record.environment, {})
    differs = mismatches(web, record.environment, other, {})
    assert (same, [item.key for item in differs]) == ((), ["browser"])
    assert mismatches(native, record.environment, other, {}) == ()
    native_runtime = {name: "0.0.0" for name in ("onnxruntime", "onnxruntime-gpu") if name in versions}
    updated = {**record.environment, "versions": {**versions, **native_runtime}}
    assert mismatches(web, record.environment, updated, {}) == ()  # the browser runs another one
    assert [item.key for item in mismatches(native, record.environment, updated, {})] == ["onnxruntime"]
    assert provider_version(other, "web") == "1.30.0, Chromium 1.2.3.4" and provider_version(other, "cpu") is None


# What the browser computes


CASES = {
    "convolutions": (lambda path: conv_chain(path, 2), [feed("x", "float32", 2, 16, 24, 24)]),
    "bytes": (lambda path: _cast(path, TensorProto.UINT8), [feed("x", "uint8", 1, 5)]),
    "half precision": (lambda path: relu(path, dtype=TensorProto.FLOAT16), [feed("x", "float16", 2, 3)]),
    "two inputs": (lambda path: _sum(path), [feed("x", "float32", 1, 4), feed("y", "int64", 1, 4)]),
    "weights beside": (lambda path: _beside(path), [feed("x", "float32", 1, 64)]),
}


def _cast(path, dtype):
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    return save_graph(path, [node], [("x", dtype, ["N", 5])], [("y", TensorProto.FLOAT, ["N", 5])])


def _sum(path):
    nodes = [helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT), helper.make_node("Sub", ["x", "z"], ["out"])]
    ends = [("x", TensorProto.FLOAT, ["N", 4]), ("y", TensorProto.INT64, ["N", 4])]
    return save_graph(path, nodes, ends, [("out", TensorProto.FLOAT, ["N", 4])])


def _beside(path):
    model = onnx.load(matmul(path, 64, 32))
    given = {"save_as_external_data": True, "location": "net weights.bin", "size_threshold": 0}
    onnx.save_model(model, str(path), **given)
    assert path.with_name("net weights.bin").stat().st_size == 64 * 32 * 4
    return path


@in_browser
@pytest.mark.parametrize("case", CASES)
def test_the_page_answers_as_onnx_runtime_does(tmp_path, case):
    make, feeds = CASES[case]
    model = make(tmp_path / "net.onnx")
    with WebWorker("net") as worker:
        assert started(worker, model, feeds, threads=2)["threads"] == 2
        (found,) = worker.ask("outputs")["outputs"]
    (expected,) = create_session(model).run(make_feeds(feeds, 3))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(np.array(found, np.float64), expected.reshape(-1), rtol=1e-3, atol=1e-5)


@in_browser
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows another process's peak")
def test_memory_is_the_models(tmp_path):
    """Of 16 MB of weights; what the browser and the runtime hold is not among it."""
    model = matmul(tmp_path / "net.onnx", 2048, 2048)
    with WebWorker("net") as worker:
        answer = started(worker, model, [feed("x", "float32", 1, 2048)])
        worker.ask("measure", runs=3, lead=1)
        memory = worker.ask("memory")
        resident = psutil.Process(worker.renderer).memory_info().rss
    weights = model.stat().st_size
    assert answer["notes"] == []
    assert weights < answer["after_load_bytes"] <= answer["load_peak_bytes"] <= memory["peak_bytes"] < 8 * weights
    assert weights < memory["steady_bytes"] < memory["process_peak_bytes"]
    assert resident <= memory["process_peak_bytes"]


# What goes wrong


@pytest.mark.slow
@in_browser
def test_a_model_that_the_browser_cannot_run_leaves_the_others_their_figures(tmp_path):
    relu(tmp_path / "fine.onnx")
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Magic", ["h"], ["y"], domain="acme")]
    ends = ([("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 3])])
    save_graph(tmp_path / "magic.onnx", nodes, *ends)
    done = run("bench", "magic.onnx", "fine.onnx", "--provider", "web", "--threads", 1, *QUICK, "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert done.returncode == 2
    assert [(row["model"], row["provider"]) for row in document["results"]] == [("fine", "web")]
    (failure,) = document["failures"]
    assert (failure["model"], failure["provider"]) == ("magic", "web")
    assert "onnxruntime-web cannot load the model" in failure["error"] and "acme" in failure["error"]
    (error,) = (line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert failure["error"] in error


@pytest.mark.slow
@in_browser
def test_a_model_that_hangs_meets_its_time_limit(tmp_path):
    endless_loop(tmp_path / "hangs.onnx")
    done = run("bench", "hangs.onnx", "--provider", "web", *QUICK, "--threads", 1, "--timeout", 8, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "gave no answer to 'start' within 8 s and was ended" in one_line(done.stderr)


@in_browser
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the page's process is not known")
def test_a_page_that_dies_is_told(tmp_path):
    model = relu(tmp_path / "net.onnx")
    with WebWorker("net") as worker:
        started(worker, model, [feed("x", "float32", 1, 3)])
        os.kill(worker.renderer, signal.SIGKILL)
        with pytest.raises(ProviderError, match="lost the page during 'measure'"):
            worker.ask("measure", runs=3, lead=1)


@pytest.mark.slow
@in_browser
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("place", ["", "a folder with a name so long that a socket has no room in it"])
def test_nothing_of_the_browser_outlives_the_command(tmp_path, number, place):
    conv_chain(tmp_path / "net.onnx", 2)
    flags = ("--provider", "web", "--threads", 1, "--min-time", 60, "--max-time", 100)
    (folder := tmp_path / place).mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(
        command("bench", "net.onnx", *flags), cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    ) as process:
        while not any("--type=renderer" in words for words in _command_lines(process.pid)):
            assert process.poll() is None
        family = psutil.Process(process.pid).children(recursive=True)
        told = [word for words in _command_lines(process.pid) for word in words if word.startswith(_PROFILE)]
        profile = Path(told[0].removeprefix(_PROFILE))
        assert profile.is_dir() and len(str(profile)) < 60
        process.send_signal(number)
        process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert len(family) > 3
    assert psutil.wait_procs(family, timeout=30)[1] == []
    assert not profile.exists()


_PROFILE = "--user-data-dir="


def _command_lines(pid):
    for process in psutil.Process(pid).children(recursive=True):
        try:
            yield process.cmdline()
        except psutil.Error:
            continue


@pytest.mark.parametrize("providers", ["web", "cpu,web"])
def test_a_missing_browser_is_one_line_before_anything_is_measured(tmp_path, providers):
    relu(tmp_path / "net.onnx")
    done = run("bench", "net.onnx", "--provider", providers, cwd=tmp_path, PATH=str(tmp_path), DEPLOYKIT_BROWSER="")
    assert (done.returncode, done.stdout) == (2, "")
    assert "none of chromium," in one_line(done.stderr) and "apt install chromium" in done.stderr
    done = run("bench", "net.onnx", "--provider", providers, cwd=tmp_path, DEPLOYKIT_BROWSER="no-such-program")
    assert done.returncode == 2 and "DEPLOYKIT_BROWSER is 'no-such-program'" in one_line(done.stderr)


@in_browser
def test_an_input_that_a_page_has_no_array_for_is_told(tmp_path):
    model = relu(tmp_path / "net.onnx")
    with WebWorker("net") as worker, pytest.raises(ModelFileError, match="input x is complex64, which no array"):
        started(worker, model, [feed("x", "complex64", 1, 3)])


@in_browser
def test_a_page_that_is_not_isolated_is_not_the_models_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(page_server, "_ISOLATION", {})
    model = relu(tmp_path / "net.onnx")
    with WebWorker("net") as worker, pytest.raises(ProviderError, match="does not isolate the page"):
        started(worker, model, [feed("x", "float32", 1, 3)])


@pytest.mark.skipif(os.name != "posix", reason="starts a program of POSIX")
@pytest.mark.parametrize("gone", ["before the number is written", "later"])
def test_the_guard_ends_the_browser_though_the_command_is_gone(tmp_path, gone):
    profile, told = tmp_path / "profile", tmp_path / "pid"
    profile.mkdir()
    guard = [sys.executable, "-I", "-S", browser_guard.__file__, str(profile)]
    browser = ["/bin/sh", "-c", f"echo $$ > {told}.new; mv {told}.new {told}; exec sleep 100"]
    reading, writing = os.pipe()
    if gone != "later":
        os.close(reading)
    with subprocess.Popen([*guard, *browser], stdin=subprocess.PIPE, stdout=writing) as process:
        os.close(writing)
        if gone == "later":
            assert os.read(reading, 20).strip().isdigit()
            os.close(reading)
        while not told.exists():
            assert process.poll() is None
        process.stdin.close()
        process.wait(timeout=30)
    assert not psutil.pid_exists(int(told.read_text()))
    assert not profile.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is damaged"), ('{"name": "onnxruntime-web", "version": "9.9.9"}', "9.9.9 instead of 1.30.0")],
)
@in_browser
def test_a_kept_runtime_that_is_another_is_removed(tmp_path, monkeypatch, content, said):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path))
    folder = onnxruntime_web.cached_folder()
    folder.mkdir()
    for name in ("package.json", "ort.js", "ort-wasm-simd-threaded.wasm"):
        (folder / name).write_text(content)
    with pytest.raises(InputError, match=said) as caught:
        check_web()
    assert "--runtime" not in str(caught.value)  # which bench does not have
    assert not folder.exists()


@in_browser
def test_a_missing_runtime_is_one_line_before_anything_is_measured(tmp_path):
    relu(tmp_path / "net.onnx")
    offline = {"npm_config_registry": "http://127.0.0.1:9", "npm_config_fetch_retries": "0"}
    given = {"DEPLOYKIT_CACHE": str(tmp_path / "cache"), **offline}
    done = run("bench", "net.onnx", "--provider", "cpu,web", cwd=tmp_path, **given)
    assert (done.returncode, done.stdout) == (2, "")
    assert "onnxruntime-web 1.30.0" in one_line(done.stderr) and f"copy {tmp_path}" in done.stderr


def test_a_program_that_is_no_browser_is_told(tmp_path):
    model = relu(tmp_path / "net.onnx")
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho 'no display' >&2\nexit 7\n")
    program.chmod(0o755)
    done = run("bench", model, "--provider", "web", "--threads", 1, cwd=tmp_path, DEPLOYKIT_BROWSER=str(program))
    assert (done.returncode, done.stdout) == (2, "")
    assert "ended with exit code 7 during 'start': no display" in one_line(done.stderr)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory": "lean"}, "has no lean memory"),
        ({"provider_options": {"a": "b"}}, "has no provider options"),
        ({"per_operator": True}, "has no time by operator"),
        ({"io_binding": True}, "has no IO binding"),
        ({"allow_fallback": True, "per_operator": True}, "has no time by operator, a fallback"),
    ],
)
def test_what_a_browser_would_ignore_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        BenchOptions(provider=["cpu", "web"], **options)


def test_only_bench_measures_in_a_browser(tmp_path):
    relu(tmp_path / "net.onnx")
    for arguments in (
        ("gate", "net.onnx", "--max-latency", "5ms", "--provider", "web"),
        ("evaluate", "net.onnx", "--data", "shapes", "--provider", "web"),
        ("tune", "net.onnx", "--data", "shapes", "--provider", "web", "-o", "tuned"),
    ):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and "browser" in one_line(done.stderr), done.stderr


@in_browser
def test_gate_does_not_compare_with_what_a_browser_took(both):
    folder, _ = both
    document = json.loads((folder / "b.json").read_text())
    document["results"] = [row for row in document["results"] if (row["provider"], row["threads"]) == ("web", 1)]
    (folder / "web.json").write_text(json.dumps(document))
    done = run("gate", "net.onnx", "--baseline", "web.json", cwd=folder)
    assert done.returncode == 2 and "was measured in a browser" in one_line(done.stderr)


# The server


def test_the_server_gives_the_page_what_it_may_have_and_nobody_else(tmp_path):
    import requests

    path = Path(tmp_path / "net.onnx")
    path.write_bytes(b"model")
    server = PageServer({"index.html": b"page", "model.onnx": path})
    try:
        root = server.url.removesuffix("index.html")
        answer = requests.get(root + "model.onnx", timeout=10)
        assert answer.content == b"model"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        host = "/".join(root.split("/")[:3])
        for other in (root + "no.html", root + "../net.onnx", host + "/model.onnx", host + "/next", host + "/"):
            assert requests.get(other, timeout=10).status_code == 404
        assert requests.post(host + "/answer", data=b"{}", timeout=10).status_code == 404
        server.send({"do": "add"})
        assert requests.get(root + "next", timeout=10).json() == {"do": "add"}
        assert server.answer(0.0) is None
        requests.post(root + "answer", data=b'{"sum": 3}', timeout=10)
        assert server.answer(10.0) == {"sum": 3}
    finally:
        server.close()


def raw(server, text):
    """The status that a request gets which no client would send, and all that comes after the head."""
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0])), timeout=10) as connection:
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        head, _, body = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_nothing_is_given_or_taken_without_the_pages_address():
    server = PageServer({"index.html": b"page", "model.onnx": b"model"})
    try:
        secret = server.root
        for path in ("model.onnx", "/model.onnx", "next", "", secret[1:] + "model.onnx", "x" + secret + "model.onnx"):
            assert raw(server, f"GET {path or '*'} HTTP/1.1\r\nHost: a\r\n\r\n") == (404, b""), path
        assert raw(server, f"GET {secret}model.onnx HTTP/1.1\r\n\r\n") == (200, b"model")
        for path, length, status in (
            ("answer", "2", 404),
            ("/answer", "2", 404),
            (secret[1:] + "answer", "2", 404),
            (secret + "answer", "-1", 411),
            (secret + "answer", "two", 411),
            (secret + "answer", str(1 << 40), 413),
            (secret + "answer", "9" * 5000, 413),
        ):
            # What would be the body, read as a second request, must not be answered either.
            request = f"POST {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
            assert raw(server, request + f"GET {secret}model.onnx HTTP/1.1\r\n\r\n") == (status, b""), path
        assert server.answer(0.0) is None
    finally:
        server.close()


@pytest.mark.parametrize("body", ["{", "[1]", "", "[" * 100_000])
def test_an_answer_that_is_none_is_one_line(body):
    server = PageServer({})
    try:
        request = f"POST {server.root}answer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        assert raw(server, request)[0] == 204
        with pytest.raises(ProviderError, match="expected a JSON object") as caught:
            server.answer(10.0)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    finally:
        server.close()
