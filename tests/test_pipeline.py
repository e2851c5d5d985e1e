from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploykit.bench import BenchOptions
from deploykit.cli import main
from deploykit.environment import package_versions
from deploykit.errors import InputError, OutputError, UnknownNameError
from deploykit.files import read_json, sha256_file, write_json
from deploykit.lock import LOCK, folder_lock
from deploykit.pipeline import PipelineOptions, PipelineResult, run_pipeline
from deploykit.report import collect
from deploykit.results import Training, read_record
from deploykit.train import train_network
from deploykit.training_recipes import recipe_for

QUICK = PipelineOptions(epochs=1, samples=40, threads=1, bench=BenchOptions(samples=20, min_time_s=0.05))
NETWORKS = ("lenet1", "color-shape-mlp")
STEPS_A_NETWORK = 7  # train, export, quantize, and for both files inspect and evaluate


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PipelineResult]:
    folder = tmp_path_factory.mktemp("chain")
    return folder, run_pipeline(NETWORKS, "shapes", folder, QUICK)


def test_the_whole_chain(first: tuple[Path, PipelineResult]) -> None:
    folder, result = first
    assert len(result.done) == 2 * STEPS_A_NETWORK + 2 and not result.skipped
    assert result.report == folder / "report.html" and result.report.stat().st_size > 100_000
    assert {(row.name, row.precision) for row in result.rows} == {
        (name + suffix, precision) for name in NETWORKS for suffix, precision in (("", "fp32"), (".int8", "int8"))
    }
    for row in result.rows:
        assert row.top1 is not None and row.latency_ms is not None and row.peak_bytes is not None
        model = folder / row.network / f"{row.name}.onnx"
        assert row.sha256 == sha256_file(model)
        assert row.file_bytes == model.stat().st_size
    for path in folder.rglob("*.json"):
        if path.name != "steps.json":
            assert read_record(path).environment["cpu"]


def test_repeated_it_skips_everything(first: tuple[Path, PipelineResult]) -> None:
    folder, _ = first
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = run_pipeline(NETWORKS, "shapes", folder, QUICK)
    assert not again.done and len(again.skipped) == 2 * STEPS_A_NETWORK + 2
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_damaged_result_is_made_again_with_what_hangs_on_it(first: tuple[Path, PipelineResult]) -> None:
    folder, _ = first
    model = folder / "lenet1" / "lenet1.int8.onnx"
    good = model.read_bytes()
    model.write_bytes(good[:500])
    again = run_pipeline(NETWORKS, "shapes", folder, QUICK)
    assert "lenet1.int8/quantize" in again.done
    assert "lenet1/train" in again.skipped and "lenet1/export" in again.skipped
    assert model.read_bytes() == good  # quantization is repeatable, so nothing after it changes
    assert "bench" in again.skipped


def _files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copied(first: tuple[Path, PipelineResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(first[0], tmp_path / "copy"))


def _until(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """Waits without a busy loop, which would take a processor from the process; ends when it ends."""
    while not reached() and process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)


@pytest.mark.slow
def test_other_options_are_refused_and_do_the_work_again_when_asked(copied: Path) -> None:
    before = _files(copied)
    options = PipelineOptions(**{**QUICK.__dict__, "seed": 3})
    with pytest.raises(OutputError, match=r"checkpoint.safetensors was made with seed 0, now 3; give .* --overwrite"):
        run_pipeline(NETWORKS[:1], "shapes-color-shape", copied, options)
    assert _files(copied) == before
    again = run_pipeline(NETWORKS[:1], "shapes-color-shape", copied, options, overwrite=True)
    assert {"lenet1/train", "lenet1/export", "lenet1.int8/quantize", "bench", "report"} <= set(again.done)
    name = Path("lenet1/checkpoint.safetensors")
    assert _files(copied)[name] != before[name]
    assert _files(copied)[Path("color-shape-mlp/train.json")] == before[Path("color-shape-mlp/train.json")]
    repeated = run_pipeline(NETWORKS[:1], "shapes-color-shape", copied, options)
    assert not repeated.done


def test_left_by_a_kill_and_by_others(copied: Path) -> None:
    """Half-written records and other people's JSON do not stop the chain; the former are cleared away."""
    for leftover in ("lenet1/.train.0123abcd.partial.json", ".steps.89abcdef.partial.json"):
        (copied / leftover).write_text('{"schema": "deploykit.tr')
    (copied / "lenet1/notes.json").write_text("[1, 2")
    again = run_pipeline(NETWORKS, "shapes", copied, QUICK)
    assert not again.done and len(again.rows) == 4
    assert not [path for path in copied.rglob("*") if "partial" in path.name or path.name == LOCK]
    assert (copied / "lenet1/notes.json").read_text() == "[1, 2"


def test_a_training_of_the_users_own_is_never_replaced_unasked(
    first: tuple[Path, PipelineResult], tmp_path: Path
) -> None:
    trained = Path(shutil.copytree(first[0] / "lenet1", tmp_path / "trained" / "lenet1"))
    for path in trained.iterdir():
        if path.name not in ("checkpoint.safetensors", "train.json"):
            path.unlink()
    begun = tmp_path / "begun"
    (begun / "lenet1").mkdir(parents=True)
    (begun / "lenet1" / "state.safetensors").write_bytes(b"twenty epochs")
    page = tmp_path / "page"
    page.mkdir()
    (page / "report.html").write_text("mine")
    for folder in (trained.parent, begun, page):
        before = _files(folder)
        with pytest.raises(OutputError, match=r"exists and is not of this chain; give another folder or --overwrite"):
            run_pipeline(NETWORKS, "shapes", folder, QUICK)
        assert _files(folder) == before
        assert not (folder / NETWORKS[1]).exists()


def test_a_whole_training_in_the_place_of_ours_is_no_damage(copied: Path) -> None:
    from deploykit import data

    train, test = (data.load("shapes", split, classes=9).take(60) for split in ("train", "test"))
    train_network("lenet1", train, test, copied / "lenet1", QUICK.training("shapes", "lenet1", 28), overwrite=True)
    before = _files(copied)
    with pytest.raises(OutputError, match=r"checkpoint.safetensors is of another training"):
        run_pipeline(NETWORKS, "shapes", copied, QUICK)
    assert _files(copied) == before


def test_the_command_refuses_in_one_line(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "lenet1", "--data", "shapes-color-shape", "--epochs", "2", "--threads", "1", "-o", str(copied)]
    assert main(command) == 2
    out, errors = capsys.readouterr()
    assert not out and errors.count("\n") == 1 and "made with epochs 1, now 2" in errors and "--overwrite" in errors
    monkeypatch.setitem(sys.modules, "altair", None)
    assert main([*command, "--overwrite"]) == 2
    assert "deploykit[report]" in capsys.readouterr().err
    assert _files(copied)[Path("lenet1/train.json")]


RUNTIME = next(name for name in ("onnxruntime", "onnxruntime-gpu") if name in package_versions())


@pytest.mark.parametrize(
    ("step", "decides"),
    [
        ("lenet1/train", ("dataset", "training pictures", "test pictures", "epochs", "augment", "threads", "builder")),
        ("lenet1/export", ("torch", "onnx", RUNTIME, "test pictures")),
        ("lenet1.int8/quantize", (RUNTIME, "recipe", "samples", "seed", "training pictures")),
        ("lenet1/evaluate", (RUNTIME, "provider", "threads", "test pictures")),
        ("bench", (RUNTIME, "cpu", "cpu_features", "available_cpus", "threads", "provider", "models")),
        ("report", ("title", "dataset", "altair")),
    ],
)
def test_what_decides_a_step(first: tuple[Path, PipelineResult], step: str, decides: tuple[str, ...]) -> None:
    """The settings that are hashed into a step's key."""
    settings = read_json(first[0] / "steps.json")["steps"][step]["settings"]
    assert set(decides) <= set(settings)


def test_a_training_of_other_settings_is_refused_before_anything_is_done(copied: Path) -> None:
    """Each setting that differs is named."""
    document = read_json(copied / "steps.json")
    for name in ("dataset", "training pictures", "epochs", "augment", "builder"):
        changed = json.loads(json.dumps(document))
        changed["steps"]["lenet1/train"]["settings"][name] = "another"
        write_json(copied / "steps.json", changed)
        with pytest.raises(OutputError, match=f"made with {name} another, now "):
            run_pipeline(NETWORKS, "shapes", copied, QUICK)


def test_other_steps_are_done_again_when_their_settings_change(copied: Path) -> None:
    """A newer onnxruntime, another list of networks: what this chain made itself it makes again."""
    document = read_json(copied / "steps.json")
    entry = document["steps"]["lenet1.int8/inspect"]
    entry["settings"]["onnx"], entry["key"] = "0.0.1", "0" * 64
    write_json(copied / "steps.json", document)
    again = run_pipeline(NETWORKS[:1], "shapes", copied, QUICK)
    assert set(again.done) == {"lenet1.int8/inspect", "bench", "report"}


def test_a_missing_picture_of_the_curves_is_no_reason_to_train(copied: Path) -> None:
    (copied / "lenet1" / "curves.svg").unlink()
    assert not run_pipeline(NETWORKS, "shapes", copied, QUICK).done


def test_a_folder_in_use(first: tuple[Path, PipelineResult]) -> None:
    folder, _ = first
    with folder_lock(folder), pytest.raises(OutputError, match=f"in use by process {os.getpid()}"):
        run_pipeline(NETWORKS, "shapes", folder, QUICK)
    assert not (folder / LOCK).exists()


@pytest.mark.slow
def test_killed_and_repeated_it_gives_the_same_figures(first: tuple[Path, PipelineResult], tmp_path: Path) -> None:
    """SIGKILL to the real process while it trains, after the training, and after the quantization."""
    network, folder = "lenet1", tmp_path / "runs"
    command = [sys.executable, "-m", "deploykit", "run", network, "--data", "shapes-color-shape", "--epochs", "1"]
    command += ["--samples", "40", "--threads", "1", "-o", str(folder)]
    moments: list[Callable[[], bool]] = [
        (folder / "steps.json").exists,
        (folder / network / "train.json").exists,
        (folder / network / "lenet1.int8.onnx").exists,
    ]
    for reached in moments:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _until(process, reached)
        process.kill()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, errors
        assert (folder / LOCK).exists()
    result = run_pipeline([network], "shapes-color-shape", folder, QUICK)
    assert "bench" in result.done and "lenet1/train" in result.skipped + result.done
    for name in ("checkpoint.safetensors", "lenet1.onnx", "lenet1.int8.onnx"):
        assert sha256_file(folder / network / name) == sha256_file(first[0] / network / name), name
    wanted = {row.name: (row.top1, row.agreement) for row in first[1].rows}
    assert {row.name: (row.top1, row.agreement) for row in result.rows} == {
        name: figures for name, figures in wanted.items() if name.startswith(network)
    }
    assert not [path for path in folder.rglob("*") if "partial" in path.name or path.name == LOCK]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "epochs 0; allowed"),
        ({"samples": 0}, "0 calibration samples; allowed"),
        ({"threads": 0}, "threads 0; allowed"),
        ({"seed": -1}, "seed -1; allowed"),
        ({"seed": 2**32}, "seed 4294967296; allowed"),
        ({"recipe": "int9"}, "unknown recipe 'int9'; did you mean 'int8'"),
    ],
)
def test_options_are_checked_before_anything_runs(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PipelineOptions(**given)  # type: ignore[arg-type]
    assert PipelineOptions(seed=2**32 - 1, epochs=1, samples=1, threads=1).training("mnist", "lenet5", 32).epochs == 1


def test_size_and_options_go_to_the_networks_that_take_them(tmp_path: Path) -> None:
    options = PipelineOptions(size=40, network_options={"width": "16", "pooling": "average"})
    options.check_networks(["resnet18", "lenet5"])
    thin, plain = options.plan("resnet18", (32, 32)), options.plan("lenet5", (32, 32))
    assert (thin.side, dict(thin.options)) == (40, {"width": "16", "pictures": "small"})
    assert (plain.side, dict(plain.options)) == (32, {"pooling": "average"})
    assert options.training("photos", "resnet18", 40) == recipe_for("photos", "resnet18", 40)
    for given, networks, says in (
        ({"size": 40}, ["lenet1"], "size 40 for lenet1"),
        ({"network_options": {"width": "16"}}, ["lenet1", "lenet5"], "none of lenet1, lenet5 has an option 'width'"),
        ({"network_options": {"width": "17"}}, ["resnet18"], "width='17'; allowed: 64, 32, 16"),
        ({"size": 20}, ["vgg11"], "vgg11 with pictures=small with --size 20; allowed: 32 or more"),
    ):
        with pytest.raises(InputError, match=says):
            run_pipeline(networks, "shapes", tmp_path, PipelineOptions(**given))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_chain_of_a_photo_network(tmp_path: Path) -> None:
    """Photos of 40×40 at 24, so that what is evaluated is the middle of a resized picture."""
    random = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "photos" / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = random.integers(0, 100, (40, 40, 3)) + (index % 2) * np.array([100, 0, 0])
        Image.fromarray(picture.astype(np.uint8)).save(path)
    options = replace(QUICK, size=24, epochs=4, samples=16, network_options={"width": "16"})
    result = run_pipeline(["resnet18"], tmp_path / "photos", tmp_path / "runs", options)
    assert len(result.done) == STEPS_A_NETWORK + 2
    assert any("pictures=small" in warning for warning in result.warnings)
    training = read_record(tmp_path / "runs/resnet18/train.json")
    assert isinstance(training, Training) and training.options["size"] == 24
    accuracy = read_record(tmp_path / "runs/resnet18/resnet18.accuracy.json")
    assert accuracy.top1 == training.test_top1  # the same pictures, the same pixels
    assert not run_pipeline(["resnet18"], tmp_path / "photos", tmp_path / "runs", options).done


def test_an_accuracy_that_does_not_know_the_precision_leaves_it(
    first: tuple[Path, PipelineResult], tmp_path: Path
) -> None:
    source = first[0] / "lenet1"
    for name in ("lenet1.int8.profile.json", "lenet1.int8.accuracy.json"):
        shutil.copy(source / name, tmp_path / name)
    document = read_json(tmp_path / "lenet1.int8.accuracy.json")
    write_json(tmp_path / "lenet1.int8.accuracy.json", document | {"precision": "unknown"})
    (row,) = collect([tmp_path]).rows
    assert row.precision == "int8" and row.top1 is not None
    (tmp_path / "lenet1.int8.profile.json").unlink()
    (row,) = collect([tmp_path]).rows
    assert row.precision == "unknown"


@pytest.mark.slow
def test_interrupted_and_repeated(tmp_path: Path) -> None:
    """SIGINT to the real process: exit code 130, one line, complete steps stay; a repetition goes on from there."""
    command = [sys.executable, "-m", "deploykit", "run", "lenet1", "--data", "shapes", "--epochs", "40"]
    command += ["--threads", "1", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _until(process, (tmp_path / "lenet1" / "state.safetensors").exists)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted; what was complete stays\n"
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name or path.name == LOCK]
    steps = read_json(tmp_path / "steps.json")["steps"]
    assert steps["lenet1/train"]["outputs"] is None
    resumed: list[str] = []

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        resumed.append(stage)
        if "epoch" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(["lenet1"], "shapes", tmp_path, PipelineOptions(epochs=40, threads=1), progress=stop)
    assert not resumed[-1].startswith("lenet1: epoch 1/")  # not from the beginning


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'lenet5'"):
        run_pipeline(["lenet"], "shapes", tmp_path / "a")
    with pytest.raises(UnknownNameError, match="dataset 'shape'; did you mean"):
        run_pipeline(["lenet5"], "shape", tmp_path / "a")
    with pytest.raises(InputError, match="each once"):
        run_pipeline(["lenet5", "lenet5"], "shapes", tmp_path / "a")
    with pytest.raises(InputError, match="one or more"):
        run_pipeline([], "shapes", tmp_path / "a")
    with pytest.raises(UnknownNameError, match="recipe"):
        PipelineOptions(recipe="int9")
    assert not (tmp_path / "a").exists()
    (tmp_path / "steps.json").write_text('{"schema": "deploykit.steps/9"}')
    with pytest.raises(InputError, match="steps/9"):
        run_pipeline(["lenet1"], "shapes", tmp_path)
