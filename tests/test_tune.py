"""``tune``: searches on real models, in real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Trained
from tiny_onnx import classifier, conv_chain

from deploykit import cli, data
from deploykit.bench_options import BenchOptions
from deploykit.classifier import Classifier
from deploykit.errors import InputError, OutputError, ProviderError, UnknownNameError
from deploykit.evaluate import evaluate_onnx
from deploykit.files import sha256_file
from deploykit.results import Tuning, read_record
from deploykit.runtime import create_session
from deploykit.tune import TuneOptions, tune_onnx

QUICK = TuneOptions(
    recipes=("int8",),
    providers=("cpu",),
    threads=(1,),
    max_drop=0.3,
    samples=32,
    held_out=64,
    bench=BenchOptions(samples=10, min_time_s=0.05, max_time_s=5.0),
)
OPEN = """
import sys
sys.path.insert(0, sys.argv[1])
import best_session
import numpy as np
session = best_session.create_session()
np.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: np.load(sys.argv[2])})[0])
assert "deploykit" not in sys.modules
made = session.get_session_options()
print(made.intra_op_num_threads, made.graph_optimization_level.name, made.enable_cpu_mem_arena)
"""


def _search(model: Path, folder: Path, options: TuneOptions = QUICK, **given: object) -> Tuning:
    held_out = data.load("shapes", "test")
    return tune_onnx(model, data.load("shapes", "train"), folder, options, held_out=held_out, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Tuning]:
    """The model, the folder and the record of a search in which int8 has far less to compute with."""
    folder = tmp_path_factory.mktemp("tune") / "über tuned"
    model = classifier(folder.parent / "m.onnx")
    return model, folder, _search(model, folder)


def _opened_elsewhere(folder: Path, rows: np.ndarray, where: Path) -> tuple[np.ndarray, list[str]]:
    """What ``best_session.py`` answers in a process without deploykit, and what it says of its session."""
    np.save(where / "in.npy", rows)
    command = [sys.executable, "-P", "-c", OPEN, str(folder), str(where / "in.npy"), str(where / "out.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where)
    return np.load(where / "out.npy"), done.stdout.split()


def test_int8_is_named_where_it_is_clearly_faster(tuned: tuple[Path, Path, Tuning]) -> None:
    model, folder, record = tuned
    best = record.best
    assert (best.recipe, best.provider, best.threads, best.file) == ("int8", "cpu", 1, "best.onnx")
    assert record.speedup is not None and record.speedup_low is not None and record.speedup_high is not None
    assert 1.0 < record.speedup_low <= record.speedup <= record.speedup_high
    assert record.why.startswith("int8 on cpu with 1 thread: ")
    assert "as fast as the float model" in record.why and "of the 30 allowed" in record.why
    assert sha256_file(folder / "best.onnx") == best.model_sha256
    assert best.file_bytes == (folder / "best.onnx").stat().st_size < 0.4 * model.stat().st_size
    assert best in record.candidates and best.on_front
    assert any("about chance among 9 classes" in text for text in record.warnings)  # its weights are random
    assert read_record(folder / "tuning.json") == record


@pytest.mark.slow
def test_accuracy_is_that_of_the_file(trained: Trained, tmp_path: Path) -> None:
    """Top-1 and the drop equal what ``evaluate`` counts on the same pictures."""
    record = _search(trained.onnx, tmp_path / "t", replace(QUICK, objective="size"))
    pictures = data.load("shapes", "test").take(QUICK.held_out)
    before, after = (evaluate_onnx(path, pictures) for path in (trained.onnx, tmp_path / "t" / "best.onnx"))
    assert record.accuracy_by == "top1"
    assert record.best.recipe == "int8"
    assert record.best.top1 == pytest.approx(after.top1)
    assert record.best.drop == pytest.approx(before.top1 - after.top1)
    assert not any("chance" in text for text in record.warnings)


def test_the_settings_open_the_file_without_deploykit(tuned: tuple[Path, Path, Tuning], tmp_path: Path) -> None:
    _, folder, record = tuned
    rows = Classifier.open(folder / "best.onnx")
    inputs = np.random.default_rng(0).standard_normal((3, 3, 28, 28)).astype(np.float32)
    answers, told = _opened_elsewhere(folder, inputs, tmp_path)
    assert told == ["1", "ORT_ENABLE_ALL", "True"]
    np.testing.assert_array_equal(answers, rows.logits(inputs))
    session = json.loads((folder / "session.json").read_text())
    assert session == record.session
    assert session["schema"] == "deploykit.session/1"
    assert session["model_sha256"] == sha256_file(folder / "best.onnx")
    assert session["options"]["intra_op_num_threads"] == record.best.threads
    assert session["config_entries"] == {"session.intra_op.allow_spinning": "1"}


@pytest.mark.slow
def test_float_is_named_where_int8_is_not_faster(trained: Trained, tmp_path: Path) -> None:
    """The network is so small that rounding its tensors takes longer than what integers save."""
    record = _search(trained.onnx, tmp_path / "t")
    assert record.best.recipe == "float"
    assert record.speedup is None
    assert "no other file is clearly faster: int8 on cpu with 1 thread is 0." in record.why
    assert sha256_file(tmp_path / "t" / "best.onnx") == sha256_file(trained.onnx)
    smaller = next(item for item in record.candidates if item.recipe == "int8")
    assert smaller.on_front and smaller.file == "front/int8.onnx"  # less bytes
    assert (tmp_path / "t" / "front" / "int8.onnx").stat().st_size == smaller.file_bytes


@pytest.mark.slow
def test_float_is_named_where_nothing_keeps_the_accuracy(tmp_path: Path) -> None:
    """The classes are apart by less than what rounding adds; and they are 40, which are not the data's."""
    model = classifier(tmp_path / "m.onnx", width=16, classes=40, apart=1e-3)
    record = _search(model, tmp_path / "t", replace(QUICK, max_drop=0.0))
    lost = next(item for item in record.candidates if item.recipe == "int8")
    assert record.best.recipe == "float"
    assert record.accuracy_by == "agreement" and any("are not the model's" in text for text in record.warnings)
    assert lost.top1 is None and lost.agreement is not None and lost.drop == pytest.approx(1.0 - lost.agreement) != 0
    assert lost.latency_ms is None  # what loses too much is not timed
    assert lost.rejected_because is not None and "allowed are 0" in lost.rejected_because
    assert "no other file keeps within the 0 points allowed: int8 on cpu loses" in record.why


def test_a_second_call_makes_nothing_again(tuned: tuple[Path, Path, Tuning]) -> None:
    model, folder, record = tuned
    before = _written(folder)
    again = _search(model, folder)
    assert (again.steps_done, again.steps_reused) == (0, record.steps_done)
    assert _written(folder) == before
    assert again.best == record.best and again.candidates == record.candidates


def test_other_options_keep_what_they_do_not_touch(tuned: tuple[Path, Path, Tuning]) -> None:
    model, folder, _ = tuned
    before = _written(folder)
    other = _search(model, folder, replace(QUICK, max_drop=0.29, bench=replace(QUICK.bench, samples=11)))
    assert 3 <= other.steps_done <= 8  # the last runs alone
    assert before.items() <= _written(folder).items()
    assert other.max_drop == 0.29


def _written(folder: Path) -> dict[str, int]:
    entries = [entry for entry in (folder / ".tune").glob("*/entry.json") if not entry.parent.name.startswith(".")]
    return {entry.parent.name: entry.stat().st_mtime_ns for entry in entries}


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_killed_and_called_again_it_goes_on(steps: int, tmp_path: Path) -> None:
    """SIGKILL after so many results; the next call makes only those that are missing."""
    model, folder = classifier(tmp_path / "m.onnx"), tmp_path / "t"
    command = [sys.executable, "-m", "deploykit", "tune", model, "--data", "shapes", "-o", folder, "--recipe", "int8"]
    command += ["--provider", "cpu", "--threads", "1", "--samples", "32", "--held-out", "64", "--max-drop", "30"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, start_new_session=True)
    while len(_written(folder)) < steps and process.poll() is None:
        with suppress(subprocess.TimeoutExpired):  # a busy loop would take a processor from it
            process.wait(0.01)
    process.kill()
    process.communicate()
    before = _written(folder)
    assert len(before) >= steps
    assert not (folder / "tuning.json").exists()
    done = subprocess.run([*map(str, command), "--json"], capture_output=True, text=True, check=True)
    record = json.loads(done.stdout)
    assert record["steps_reused"] == len(before)
    assert record["steps_done"] == len(_written(folder)) - len(before) > 0
    assert before.items() <= _written(folder).items()
    assert not list((folder / ".tune").glob(".making-*"))


def test_files_of_others_and_other_models_are_refused(
    tuned: tuple[Path, Path, Tuning], trained: Trained, tmp_path: Path
) -> None:
    model, folder, _ = tuned
    before = (folder / "tuning.json").read_bytes()
    with pytest.raises(OutputError, match=r"holds the tuning of another model, m\.onnx; give another folder"):
        _search(trained.onnx, folder)
    assert (folder / "tuning.json").read_bytes() == before
    (tmp_path / "best.onnx").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"best\.onnx exists and is not of a tuning here"):
        _search(model, tmp_path)
    assert (tmp_path / "best.onnx").read_bytes() == b"precious"
    shutil.copytree(folder / ".tune", tmp_path / ".tune", ignore=shutil.ignore_patterns("written.json"))
    record = _search(model, tmp_path, overwrite=True)
    assert record.steps_done == 0
    assert sha256_file(tmp_path / "best.onnx") == record.best.model_sha256


def test_the_model_itself_is_never_replaced(tuned: tuple[Path, Path, Tuning]) -> None:
    _, folder, _ = tuned
    before = sha256_file(folder / "best.onnx")
    with pytest.raises(InputError, match="never changed"):
        _search(folder / "best.onnx", folder, overwrite=True)
    assert sha256_file(folder / "best.onnx") == before


def test_of_a_quantized_model_only_sessions_are_tried(tuned: tuple[Path, Path, Tuning], tmp_path: Path) -> None:
    _, folder, _ = tuned
    record = _search(folder / "best.onnx", tmp_path / "t", replace(QUICK, recipes=None))
    assert [item.recipe for item in record.candidates] == ["given"]
    assert record.why.startswith("the model as it is on cpu") and "float" not in record.why
    assert any("quantized already" in text for text in record.warnings)
    assert sha256_file(tmp_path / "t" / "best.onnx") == sha256_file(folder / "best.onnx")


@pytest.mark.slow
def test_lean_memory_is_kept_for_this_machine(tmp_path: Path) -> None:
    """Of large float weights a session that maps them holds less; its copy goes along."""
    model = classifier(tmp_path / "m.onnx", width=512, layers=3)
    record = _search(model, tmp_path / "t", replace(QUICK, objective="memory", recipes=("rewritten",)))
    assert record.best.session == {"memory": "lean"}
    default = next(item for item in record.candidates if item.recipe == "float" and not item.session)
    assert record.best.peak_bytes is not None and default.peak_bytes is not None
    assert record.best.peak_bytes < 0.8 * default.peak_bytes
    assert "of memory at the peak" in record.why
    assert record.session["model"].startswith("lean/")
    inputs = np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32)
    answers, told = _opened_elsewhere(tmp_path / "t", inputs, tmp_path)
    assert told[1] == "ORT_DISABLE_ALL"  # the copy is optimised already
    np.testing.assert_allclose(answers, create_session(model, threads=1).run(inputs)[0], rtol=1e-4, atol=1e-5)


def test_weights_beside_the_model_come_along(tmp_path: Path) -> None:
    together, apart = classifier(tmp_path / "m.onnx"), tmp_path / "apart" / "m.onnx"
    apart.parent.mkdir()
    onnx.save(onnx.load(together), apart, save_as_external_data=True, location="m.data", size_threshold=0)
    record = _search(apart, tmp_path / "t", replace(QUICK, recipes=("float",)))
    assert record.best.recipe == "float"
    assert sorted(path.name for path in (tmp_path / "t").glob("*.*") if path.suffix == ".onnx") == ["best.onnx"]
    inputs = np.random.default_rng(0).standard_normal((2, 3, 28, 28)).astype(np.float32)
    answers, _ = _opened_elsewhere(tmp_path / "t", inputs, tmp_path)
    np.testing.assert_allclose(answers, create_session(together, threads=1).run(inputs)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_cannot_run_here_is_rejected_with_the_reason(trained: Trained, tmp_path: Path) -> None:
    options = replace(QUICK, providers=("cpu", "coreml"), budget_s=0.0)
    record = _search(trained.onnx, tmp_path / "t", options)
    absent = {item.recipe: str(item.rejected_because) for item in record.candidates if item.provider == "coreml"}
    if sys.platform != "darwin":
        assert absent.keys() == {"float", "int8"}
        assert all("needs macOS" in reason for reason in absent.values())
    late = next(item for item in record.candidates if item.recipe == "int8" and item.provider == "cpu")
    assert late.rejected_because == "not tried, as the 0 s allowed had passed"
    assert record.best.recipe == "float"
    if sys.platform != "darwin":
        with pytest.raises(ProviderError, match="needs macOS"):
            _search(trained.onnx, tmp_path / "nothing", replace(QUICK, providers=("coreml",)))
        assert not (tmp_path / "nothing").exists()


def test_a_model_that_does_not_say_how_it_is_fed(tmp_path: Path) -> None:
    model = conv_chain(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="does not say how its pictures are prepared"):
        _search(model, tmp_path / "t")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"objective": "speed"}, "unknown objective 'speed'; .*latency, size, memory"),
        ({"recipes": ("int9",)}, "unknown recipe 'int9'; did you mean 'int8'"),
        ({"providers": ("gpu",)}, "unknown provider 'gpu'"),
        ({"providers": ()}, "no providers to try"),
        ({"threads": (0,)}, "threads 0; allowed: 1 to"),
        ({"max_drop": 1.5}, "largest drop 1.5; allowed: a fraction from 0 to 1"),
        ({"budget_s": -1.0}, "budget -1 s; allowed"),
        ({"effort": "huge"}, "unknown effort 'huge'"),
        ({"held_out": 0}, "0 held-out samples"),
    ],
)
def test_options_are_checked(change: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        replace(QUICK, **change)  # type: ignore[arg-type]
    assert issubclass(UnknownNameError, InputError)


def _lines(captured: str) -> list[str]:
    return captured.strip().splitlines()


@pytest.mark.slow
def test_command_line(tuned: tuple[Path, Path, Tuning], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, _ = tuned
    folder = tmp_path / "t"
    given = ["tune", str(model), "--data", "shapes", "-o", str(folder), "--recipe", "int8", "--provider", "cpu"]
    given += ["--threads", "1", "--samples", "32", "--held-out", "64", "--max-drop", "30"]
    assert cli.main([*given, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "deploykit.tuning/1"
    keys = "recipe provider threads file file_bytes latency_ms peak_bytes top1 agreement on_front rejected_because"
    assert all(set(keys.split()) <= set(item) for item in (document["best"], *document["candidates"]))
    assert cli.main(given) == 0
    lines = _lines(capsys.readouterr().out)
    assert lines[0].split() == ["file", "on", "latency", "size", "peak", "memory", "top-1"]
    assert document["why"] in lines
    assert any("were there already" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--max-drop", "-1"), "largest drop -0.01"),
        (("--recipe", "int9"), "did you mean 'int8'"),
        (("--provider", "nothing"), "unknown provider 'nothing'"),
    ],
)
def test_bad_input_is_one_line(
    trained: Trained, arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tune", str(trained.onnx), "--data", "shapes", "-o", str(tmp_path / "t"), *arguments]
    assert cli.main(given) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and says in captured.err and len(_lines(captured.err)) == 1
    assert not (tmp_path / "t").exists()
