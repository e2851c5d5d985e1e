"""The command line as a user meets it: real processes, exit codes, one line on stderr."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from conftest import Trained
from onnx import numpy_helper
from tiny_onnx import endless_loop

from deploykit.cli import main
from deploykit.commands.options import parse_network_options, parse_preprocess, parse_shape
from deploykit.errors import InputError

Cli = Callable[..., tuple[int, str, str]]


def run(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploykit", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **(env or {})}, timeout=200
    )


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this process, which has loaded torch already: exit code, stdout, stderr."""

    def called(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return called


def _best_of(count: int, *arguments: str) -> float:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("deploykit"), *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return min(times)


def test_help_and_models_are_quick() -> None:
    """Generous bounds on a shared machine; benchmarks/startup.py measures. test_layers asserts what is not imported."""
    assert _best_of(5, "--help") < 0.7
    assert _best_of(5, "models") < 1.0


@pytest.mark.parametrize(
    "command",
    ["models", "inspect", "train", "export", "quantize", "evaluate", "bench", "report", "verify"]
    + ["rewrite", "doctor", "run", "demo"],
)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert f"Example: deploykit {command}" in " ".join(capsys.readouterr().out.split())


def test_json_is_one_document_with_the_promised_keys(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    promised = {
        ("models",): ("networks/1", {"networks"}),
        ("inspect", "lenet5"): ("profile/1", {"name", "parameters", "connections", "macs", "weight_bytes", "layers"}),
        ("inspect", str(trained.onnx)): (
            "profile/1",
            {"file_bytes", "download_bytes", "peak_activation_bytes", "precision"},
        ),
        ("inspect", str(trained.folder)): ("profile/1", {"file_bytes", "download_bytes", "parameters"}),
        ("data", "list"): ("datasets/1", {"datasets"}),
        ("evaluate", str(trained.onnx), "--data", "shapes"): (
            "accuracy/1",
            {"model", "dataset_digest", "top1", "top5", "provider"},
        ),
        ("doctor",): ("doctor/1", {"checks", "providers"}),
    }
    for arguments, (schema, keys) in promised.items():
        main([*arguments, "--json"])
        document = json.loads(capsys.readouterr().out)
        assert document["schema"] == f"deploykit.{schema}"
        assert document["deploykit"] == "0.1.0"
        assert document["environment"]["cpu"]
        assert keys <= set(document), arguments


def test_models_json_has_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "--json"])
    networks = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["networks"]}
    lenet5 = networks["lenet5"]
    assert (lenet5["parameters"], lenet5["input"], lenet5["classes"]) == (61_706, [1, 32, 32], 10)
    assert networks["lenet5-1998"]["parameters"] == 60_850


def test_inspect_prints_the_papers_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Lecture notes and LeCun et al. 1998: parameters and connections of each layer."""
    assert main(["inspect", "lenet5-1998", "--layers"]) == 0
    out = capsys.readouterr().out
    for name, parameters, connections in (
        ("c1", "156", "122,304"),
        ("s2", "12", "5,880"),
        ("c3", "1,516", "151,600"),
        ("s4", "32", "2,000"),
        ("c5", "48,120", "48,120"),
        ("f6", "10,164", "10,164"),
        ("output", "850", "850"),
        ("total", "60,850", "340,918"),
    ):
        assert re.search(rf"^ *{name} .* {parameters} +{connections} ", out, re.MULTILINE | re.IGNORECASE), name


@pytest.mark.slow
def test_the_chain_by_hand(cli: Cli, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """export → quantize → evaluate → bench → report as commands, in a folder with a space and beyond ASCII."""
    folder = tmp_path / "mein Ordner ü"
    folder.mkdir()
    monkeypatch.chdir(folder)
    shutil.copy(trained.folder / "checkpoint.safetensors", folder)
    for arguments in (
        ("export", "checkpoint.safetensors", "-o", "net.onnx"),
        ("quantize", "net.onnx", "-o", "net.int8.onnx", "--calibrate", "shapes", "--samples", "64", "--any-speed"),
        ("evaluate", "net.int8.onnx", "--data", "shapes", "--reference", "net.onnx", "-o", "acc.json"),
        (
            "bench",
            "net.onnx",
            "net.int8.onnx",
            "--samples",
            "20",
            "--min-time",
            "0.05",
            "--threads",
            "1",
            "-o",
            "bench.json",
        ),
        ("report", ".", "-o", "report.html"),
        ("report", ".", "-o", "report.csv"),
    ):
        code, _, err = cli(*arguments)
        assert code == 0, err
    assert json.loads((folder / "bench.json").read_text())["results"][1]["precision"] == "int8"
    assert "net.int8" in (folder / "report.csv").read_text()
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint.safetensors",
        "net.onnx",
        "net.int8.onnx",
        "net.int8.quantization.json",
        "acc.json",
        "bench.json",
        "report.html",
        "report.csv",
    }


@pytest.mark.slow
def test_a_module_of_ones_own(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))\n"
    )
    code, _, err = cli("export", "mine:net", "-o", "mine.onnx")
    assert (code, err.count("\n")) == (2, 1) and "--shape" in err
    # In a process of its own: nothing of torch or ONNX Runtime may reach the terminal.
    done = run("export", "mine:net", "-o", "mine.onnx", "--shape", "3x8x8", "--preprocess", "unit", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == ""
    _, out, _ = cli("inspect", "mine.onnx", "--json")
    assert json.loads(out)["parameters"] == 4 * 27 + 4 + 288 + 2


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Path:
    """A folder of files, each named after its fault."""
    folder = tmp_path_factory.mktemp("bad")
    good, checkpoint = trained.onnx.read_bytes(), (trained.folder / "checkpoint.safetensors").read_bytes()
    (folder / "good.onnx").write_bytes(good)
    (folder / "good.safetensors").write_bytes(checkpoint)
    (folder / "text.onnx").write_text("I am not a model.\n")
    (folder / "empty.onnx").touch()
    (folder / "truncated.onnx").write_bytes(good[: len(good) // 2])
    (folder / "truncated.safetensors").write_bytes(checkpoint[: len(checkpoint) // 2])
    (folder / "text.safetensors").write_text("I am not a checkpoint.\n")
    model = onnx.load(trained.onnx)
    weights = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    values = numpy_helper.to_array(weights).copy()
    values[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    onnx.save(model, folder / "nan.onnx")
    images = np.zeros((20, 28, 28, 3), np.uint8)
    np.savez(folder / "labels.npz", images=images, labels=np.zeros(19, np.int64))
    np.savez(folder / "float.npz", images=images.astype(np.float32), labels=np.zeros(20, np.int64))
    np.savez(folder / "good.npz", images=images, labels=np.arange(20) % 9)
    whole = (folder / "good.npz").read_bytes()
    (folder / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    _mnist(folder / "cut" / "mnist")
    cut = folder / "cut" / "mnist" / "train-images-idx3-ubyte.gz"
    cut.write_bytes(cut.read_bytes()[:200])
    _mnist(folder / "miscounted" / "mnist", labels=49)
    (folder / "empty folder").mkdir()
    (folder / "file").write_text("in the way")
    (folder / "text.json").write_text("{")
    (folder / "future.json").write_text('{"schema": "deploykit.timing/9"}')
    (folder / "weights.pth").write_bytes(b"PK")
    return folder


def _mnist(folder: Path, labels: int = 50) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", 50), ("t10k", 50)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        header = np.array([2051, count, 28, 28], ">u4").tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        header = np.array([2049, labels], ">u4").tobytes()
        targets = (np.arange(labels) % 10).astype(np.uint8).tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + targets))


QUANTIZE = ("quantize", "-o", "out/q.onnx", "--calibrate", "shapes")
EVALUATE = ("evaluate", "--data", "shapes", "-o", "out/a.json")
TRAIN = ("train", "-o", "out/run", "--epochs", "1", "--threads", "1")

BAD_INPUT: list[tuple[tuple[str, ...], str]] = [
    (("inspect", "absent.onnx"), "no such model file: absent.onnx"),
    (("inspect", "absent.safetensors"), "no such checkpoint"),
    (("inspect", "text.onnx"), "text.onnx is not a"),
    (("inspect", "truncated.safetensors"), "cut short"),
    (("inspect", "lenet55"), "did you mean 'lenet5'"),
    (("inspect", "lenet5", "--option", "activation"), "NAME=VALUE"),
    (("inspect", "lenet5", "--option", "activation=gelu"), "tanh"),
    (("inspect", "lenet5", "--classes", "1"), "classes"),
    (("inspect", "good.onnx", "-o", "file/p.json"), "cannot write"),
    (("bench", "absent.onnx"), "no such model file"),
    (("bench", "text.onnx"), "text.onnx"),
    (("bench", "empty.onnx"), "empty.onnx is empty"),
    (("bench", "truncated.onnx"), "truncated.onnx"),
    (("bench", "good.onnx", "--provider", "cud"), "did you mean 'cuda'"),
    (("bench", "good.onnx", "--provider", "cuda"), "cuda"),
    (("bench", "good.onnx", "--threads", "0"), "threads"),
    (("bench", "good.onnx", "--shape", "x"), "name=1x3x224x224"),
    (("bench", "good.onnx", "-o", "file/b.json"), "cannot write"),
    ((*EVALUATE, "text.onnx"), "text.onnx"),
    ((*EVALUATE, "truncated.onnx"), "truncated.onnx"),
    ((*EVALUATE, "nan.onnx"), "NaN"),
    (("evaluate", "good.onnx", "--data", "labels.npz"), "19 labels"),
    (("evaluate", "good.onnx", "--data", "float.npz"), "uint8"),
    (("evaluate", "good.onnx", "--data", "truncated.npz"), "truncated.npz"),
    (("evaluate", "good.onnx", "--data", "empty folder"), "empty folder"),
    (("evaluate", "good.onnx", "--data", "mnits"), "did you mean 'mnist'"),
    (("evaluate", "good.onnx", "--data", "mnist", "--data-dir", "empty folder"), "deploykit data prepare mnist"),
    (("evaluate", "good.onnx", "--data", "shapes-color"), "6"),
    (("evaluate", "good.onnx", "--data", "shapes", "--split", "dev"), "auto, train, test, all"),
    (("evaluate", "good.onnx", "--data", "shapes", "--preprocess", "imagnet"), "did you mean 'imagenet'"),
    ((*QUANTIZE, "text.onnx"), "text.onnx"),
    ((*QUANTIZE, "truncated.onnx"), "truncated.onnx"),
    ((*QUANTIZE, "nan.onnx"), "'conv1.weight' hold NaN"),
    ((*QUANTIZE, "good.onnx", "--recipe", "int88"), "did you mean 'int8'"),
    ((*QUANTIZE, "good.onnx", "--samples", "0"), "1 or more"),
    (("quantize", "good.onnx", "-o", "good.onnx", "--calibrate", "shapes"), "good.onnx"),
    (("quantize", "good.onnx", "-o", "file/q.onnx", "--calibrate", "shapes"), "cannot write"),
    (("quantize", "good.onnx", "-o", "/proc/q.onnx", "--calibrate", "shapes"), "cannot write"),
    (("quantize", "good.onnx", "-o", "", "--calibrate", "shapes"), "it is a folder"),
    ((*QUANTIZE, "good.onnx", "--max-drop", "-1"), "below 100 points"),
    (("compress", "good.onnx", "-o", "", "--rank", "0.5"), "it is a folder"),
    (("bench", "good.onnx", "-o", "out/b.json", "--bencher", "out/../out/b.json"), "several outputs"),
    (("export", "good.safetensors", "-o", "good.onnx"), "--overwrite"),
    (("export", "good.safetensors", "-o", "file/m.onnx"), "cannot write"),
    (("export", "truncated.safetensors", "-o", "out/m.onnx"), "cut short"),
    (("export", "text.safetensors", "-o", "out/m.onnx"), "not a readable safetensors"),
    (("inspect", "weights.pth"), "NETWORK --weights FILE"),
    (("export", "empty folder", "-o", "out/m.onnx"), "checkpoint.safetensors"),
    (("export", "lenet", "-o", "out/m.onnx"), "did you mean 'lenet"),
    (("export", "lenet5", "-o", "out/m.onnx", "--opset", "3"), "18 to 23"),
    (("export", "no.module:f", "-o", "out/m.onnx"), "cannot import"),
    ((*TRAIN, "lenet6", "--data", "shapes"), "did you mean 'lenet5'"),
    ((*TRAIN, "lenet5", "--data", "shaps"), "did you mean 'shapes'"),
    ((*TRAIN, "lenet5", "--data", "mnist", "--data-dir", "cut"), "train-images-idx3-ubyte.gz"),
    ((*TRAIN, "lenet5", "--data", "mnist", "--data-dir", "miscounted"), "49"),
    ((*TRAIN, "lenet5", "--data", "shapes", "--learning-rate", "-1"), "learning rate"),
    ((*TRAIN, "lenet5", "--data", "shapes", "--device", "cuda"), "cuda"),
    (("train", "lenet5", "--data", "shapes", "-o", "file/run"), "cannot write"),
    (("train", "lenet5", "--data", "shapes", "-o", "/proc/run"), "cannot write"),
    (("run", "lenet5", "--data", "shapes", "-o", "/proc/run"), "cannot write"),
    (("run", "lenet5", "lenet5", "--data", "shapes", "-o", "out/run"), "each once"),
    (("report", "absent", "-o", "out/r.html"), "absent"),
    (("report", "text.json", "-o", "out/r.html"), "text.json"),
    (("report", "future.json", "-o", "out/r.html"), "timing/9"),
    (("report", "empty folder", "-o", "out/r.html"), "no"),
    (("report", ".", "-o", "out/r.pdf"), ".html"),
    (("data", "prepare", "imagenet"), "mnist"),
    (("export", "lenet5", "--classes", "9999999999999", "-o", "out/l.onnx"), "not enough memory"),
    (("inspct", "lenet5"), "No such command"),
    (("inspect",), "Missing argument"),
    (("inspect", "lenet5", "--colour"), "--colour"),
    (("train", "lenet5", "--data", "shapes", "-o", "out/run", "--epochs", "many"), "valid integer"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), BAD_INPUT, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...],
    says: str,
    bad: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(bad)
    monkeypatch.delenv("DEPLOYKIT_DATA", raising=False)
    before = {path: path.stat().st_mtime_ns for path in bad.rglob("*") if path.is_file()}
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert says in err
    assert "internal error" not in err and "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in bad.rglob("*") if path.is_file()} == before
    assert not [path for path in (bad / "out").rglob("*") if path.is_file()]


def test_parity_failure_is_exit_code_1(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liar.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Liar(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(192, 5)\n"
        "    def forward(self, x):\n        y = self.fc(x.flatten(1))\n"
        "        return y * 2 if torch.compiler.is_compiling() else y\n"
    )
    code, _, err = cli("export", "liar:Liar", "-o", "liar.onnx", "--shape", "3x8x8")
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"liar.py", "__pycache__"}


def _as_root(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root")(test)


@pytest.mark.slow
@_as_root
@pytest.mark.parametrize("options", ["size=64k", "size=1m,ro"], ids=["full", "read-only"])
def test_a_real_full_disk_and_a_real_read_only_folder(options: str, cli: Cli, tmp_path: Path, trained: Trained) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        for arguments in (
            ("export", trained.folder, "-o", place / "m.onnx"),
            ("train", "cifar-mlp", "--data", "shapes", "-o", place / "run", "--epochs", "1", "--threads", "1"),
            (
                "quantize",
                _wide_model(tmp_path),
                "-o",
                place / "q.onnx",
                "--calibrate",
                tmp_path / "w.npz",
                "--preprocess",
                "unit",
            ),
        ):
            code, _, err = cli(*arguments)
            assert code == 2, err
            assert re.search(r"No space left|Read-only file system", err)
            errors = [line for line in err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and "Traceback" not in err
        assert not [path for path in place.rglob("*") if path.is_file()]
    finally:
        subprocess.run(["umount", place], check=True)


def _wide_model(folder: Path) -> Path:
    """A model whose int8 file does not fit on a disk of 64 KiB, with pictures for it."""
    from onnx import TensorProto, helper
    from tiny_onnx import save_graph

    weight = np.random.default_rng(0).standard_normal((768, 400)).astype(np.float32)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
    ends = [("x", TensorProto.FLOAT, ["N", 3, 16, 16])], [("y", TensorProto.FLOAT, ["N", 400])]
    np.savez(
        folder / "w.npz",
        images=np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8),
        labels=np.arange(40) % 2,
    )
    return save_graph(folder / "wide.onnx", nodes, *ends, [numpy_helper.from_array(weight, "w")])


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploykit", "models", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    assert errors == ""


def test_debug_shows_the_traceback() -> None:
    done = run("inspect", "absent.onnx", "--debug")
    assert "Traceback" in done.stderr and "ModelFileError" in done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "deploykit 0.1.0\n"


def test_texts_become_values(tmp_path: Path) -> None:
    assert parse_shape("3x224x160") == parse_shape("1,3,224,160") == (3, 224, 160)
    assert parse_shape(None) is None
    for text in ("224", "3x0x4", "axbxc", "1x2x3x4x5"):
        with pytest.raises(InputError, match="CxHxW"):
            parse_shape(text)
    assert parse_network_options(["a=b", "c=d=e"]) == {"a": "b", "c": "d=e"}
    value = parse_preprocess('{"size": [8, 9], "channels": "L"}')
    assert value is not None and not isinstance(value, str) and value.size == (8, 9)
    (tmp_path / "p.json").write_text('{"size": [8, 9], "channels": "L"}')
    assert parse_preprocess(str(tmp_path / "p.json")) == value
    with pytest.raises(InputError, match="not JSON"):
        parse_preprocess("{size}")


@pytest.mark.slow
def test_a_terminal_that_knows_ascii_only() -> None:
    """Letters become question marks; JSON stays whole, escaped."""
    plain = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = run("models", env=plain)
    assert done.returncode == 0 and "lenet5" in done.stdout
    document = json.loads(run("inspect", "lenet5", "--json", env=plain).stdout)
    assert document["parameters"] == 61_706


def test_streams_that_cannot_be_written() -> None:
    """A full disk behind stdout is one line; closed streams change no exit code."""
    shell = f'"{sys.executable}" -m deploykit'
    full = subprocess.run(["sh", "-c", f"{shell} models > /dev/full"], capture_output=True, text=True)
    assert full.returncode == 2
    assert full.stderr == "error: cannot write to standard output: No space left on device\n"
    for command, code in (
        ("models >&-", 0),
        ("inspect absent.onnx 2>&-", 2),
        ("inspect absent.onnx 2>/dev/full", 2),
        ("models --json >&-", 0),
    ):
        done = subprocess.run(["sh", "-c", f"{shell} {command}"], capture_output=True, text=True)
        assert done.returncode == code, (command, done)
        assert "Traceback" not in done.stdout + done.stderr


def test_sigterm_ends_as_ctrl_c_does(tmp_path: Path, trained: Trained) -> None:
    command = [sys.executable, "-m", "deploykit", "quantize", trained.onnx, "-o", tmp_path / "q.onnx"]
    process = subprocess.Popen(
        [*command, "--calibrate", "shapes", "--samples", "5000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )
    (tmp_path / "temporary").mkdir()
    while process.poll() is None and not list((tmp_path / "temporary").glob("deploykit-*")):
        os.sched_yield()
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted; what was complete stays\n")
    assert [path for path in tmp_path.rglob("*") if path.name.startswith(("deploykit-", ".q", "q."))] == []


def test_ctrl_c_at_any_moment_of_the_start() -> None:
    for delay in (0.06, 0.1, 0.14, 0.2):
        process = subprocess.Popen(
            [sys.executable, "-m", "deploykit", "train", "lenet1", "--data", "shapes", "-o", "/proc/never"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        # Before our first line the interpreter itself answers, and nobody can.
        assert process.returncode in (130, -signal.SIGINT), errors
        if process.returncode == 130:
            assert errors == "interrupted; what was complete stays\n"


def test_json_stays_pure_when_a_module_prints(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatty.py").write_text(
        "from torch import nn\nprint('import')\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        print('init')\n        self.fc = nn.Linear(192, 2)\n"
        "    def forward(self, x):\n        print('forward')\n        return self.fc(x.flatten(1))\n"
        "def leave():\n    raise SystemExit(3)\n"
    )
    code, out, _ = cli("export", "chatty:Net", "-o", "m.onnx", "--shape", "3x8x8", "--json")
    assert code == 0
    assert json.loads(out)["schema"] == "deploykit.profile/1"
    code, _, err = cli("export", "chatty:leave", "-o", "n.onnx", "--shape", "3x8x8")
    assert code == 2 and "raised SystemExit" in err


def test_a_link_stays_a_link(cli: Cli, tmp_path: Path, trained: Trained) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    code, _, err = cli("export", trained.folder, "-o", link, "--overwrite")
    assert code == 0, err
    assert link.is_symlink() and real.stat().st_size > 10_000


_STUCK = """
import sys
import numpy as np
import onnxruntime
from deploykit.files import atomic_path
from deploykit.interruption import interruptible

with interruptible(lambda: print("last words", file=sys.stderr, flush=True)), atomic_path(sys.argv[2]) as aside:
    aside.write_bytes(b"half a file")
    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    print("begun", flush=True)
    session.run(None, {"x": np.ones(1, np.float32)})
"""


def _stuck(folder: Path) -> subprocess.Popen[str]:
    """A process within a model that never answers, with a file half-written."""
    model, target = endless_loop(folder / "endless.onnx"), folder / "out" / "made.onnx"
    process = subprocess.Popen(
        [sys.executable, "-c", _STUCK, str(model), str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    burnt = psutil.Process(process.pid).cpu_times
    before = burnt().user
    while burnt().user < before + 0.5:  # the endless loop does, what comes before it does not
        assert process.poll() is None
    assert len(list(folder.glob("out/.made.*"))) == 1
    return process


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_second_signal_ends_a_call_that_never_returns(tmp_path: Path) -> None:
    process = _stuck(tmp_path)
    began = time.monotonic()
    while process.poll() is None:  # as an impatient user does
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
    assert process.returncode == 130 and time.monotonic() - began < 15
    assert process.communicate() == ("", "last words\n")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["endless.onnx"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_one_signal_ends_it_after_a_while(tmp_path: Path) -> None:
    process = _stuck(tmp_path)
    process.terminate()
    assert process.communicate(timeout=60) == ("", "last words\n")
    assert process.returncode == 130
    assert [path.name for path in tmp_path.rglob("*.*")] == ["endless.onnx"]
