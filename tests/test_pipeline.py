from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploykit.bench import BenchOptions
from deploykit.errors import InputError, UnknownNameError
from deploykit.files import read_json, sha256_file
from deploykit.pipeline import PipelineOptions, PipelineResult, run_pipeline
from deploykit.results import read_record

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
    assert "lenet1/quantize" in again.done
    assert "lenet1/train" in again.skipped and "lenet1/export" in again.skipped
    assert model.read_bytes() == good  # quantization is repeatable, so nothing after it changes
    assert "bench" in again.skipped


def test_other_options_do_the_work_again(first: tuple[Path, PipelineResult], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(first[0], folder)
    before = sha256_file(folder / "lenet1" / "checkpoint.safetensors")
    options = PipelineOptions(**{**QUICK.__dict__, "seed": 3})
    again = run_pipeline(NETWORKS[:1], "shapes", folder, options)
    assert "lenet1/train" in again.done
    assert sha256_file(folder / "lenet1" / "checkpoint.safetensors") != before


def test_interrupted_and_repeated(tmp_path: Path) -> None:
    """SIGINT to the real process: exit code 130, one line, complete steps stay; a repetition goes on from there."""
    command = [sys.executable, "-m", "deploykit", "run", "lenet1", "--data", "shapes", "--epochs", "40"]
    command += ["--threads", "1", "-o", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "lenet1" / "state.safetensors").exists():
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "interrupted; what was complete stays\n"
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
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
