"""Precision, parts of a step, memory that runs out, batches that fit, and what is told of the speed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deploykit import data
from deploykit.augment import mix
from deploykit.batch_size import fits, largest_batch, scaled
from deploykit.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from deploykit.cli import main
from deploykit.data.dataset import Dataset
from deploykit.device_peaks import mfu, peak_flops
from deploykit.errors import CheckpointError, InputError
from deploykit.models import build
from deploykit.pixels import InMemory
from deploykit.preprocess import for_network
from deploykit.progress import silent
from deploykit.results import Training, read_record
from deploykit.train import STATE, train_network
from deploykit.training_compile import choose_compile
from deploykit.training_loop import run_epochs
from deploykit.training_precision import choose_precision, float_arithmetic
from deploykit.training_recipes import TrainOptions
from deploykit.training_run import Run, start_run
from deploykit.training_state import restore, save_state
from deploykit.training_step import part_sizes, train_step

QUICK = TrainOptions(epochs=2, batch_size=64, augment="shapes", threads=1, device="cpu")
CPU = torch.device("cpu")
GREY = for_network((1, 28, 28), None, mean=(0.5,), std=(0.5,))


@pytest.fixture(scope="module")
def small() -> tuple[Dataset, Dataset]:
    return data.load("shapes", "train").take(150), data.load("shapes", "test").take(30)


class Hungry(nn.Module):
    """Takes ``most`` pictures at once; of more it says what CUDA says, and counts both."""

    def __init__(self, most: int, *, norm: bool = False) -> None:
        super().__init__()
        self.most, self.sizes, self.refused = most, [], []
        self.norm = nn.BatchNorm2d(1) if norm else nn.Identity()
        self.fc = nn.Linear(28 * 28, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.most and self.training:
            self.refused.append(len(x))
            raise torch.OutOfMemoryError(f"CUDA out of memory, {len(x)} pictures")
        self.sizes.append(len(x))
        return self.fc(self.norm(x).flatten(1))


def _begun(module: nn.Module, **options: object) -> Run:
    return start_run(module, replace(QUICK, optimizer="sgd", **options), GREY)  # type: ignore[arg-type]


def _pixels(count: int) -> InMemory:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    return InMemory(pictures, torch.arange(count) % 3)


def test_bfloat16_trains_and_the_record_says_so(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    plain, fast = (
        train_network("lenet1", *small, tmp_path / name, replace(QUICK, precision=name)) for name in ("fp32", "bf16")
    )
    assert (plain.precision, fast.precision) == ("fp32", "bf16") == (plain.options["precision"], "bf16")
    losses = [[row["train_loss"] for row in record.history] for record in (plain, fast)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)
    kept = read_checkpoint(tmp_path / "bf16" / "checkpoint.safetensors")
    assert kept.training["options"]["precision"] == "bf16"
    assert {tensor.dtype for tensor in kept.tensors.values()} == {torch.float32}


@pytest.mark.parametrize("network", ["lenet5-1998", "mnist-cnn", "squeezenet1.1"])
def test_steps_in_bfloat16_are_near_those_in_float(network: str) -> None:
    gradients = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        module = build(network, 3, 1)
        side = 64 if network == "squeezenet1.1" else 32 if network == "lenet5-1998" else 28
        preprocess = for_network((1, side, side), None, mean=(0.5,), std=(0.5,))
        run = start_run(module, replace(QUICK, precision=precision, learning_rate=1e-9), preprocess)
        pictures = torch.rand(4, 1, side, side, generator=torch.Generator().manual_seed(1)) * 255.0
        torch.manual_seed(2)
        loss, _ = train_step(run, mix(pictures, torch.tensor([0, 1, 2, 0]), mixup=0.0, cutmix=0.0)).tolist()
        gradients.append(
            (loss, torch.cat([weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]))
        )
        assert gradients[-1][1].dtype == torch.float32
    (loss, exact), (other, coarse) = gradients
    assert loss != other and other == pytest.approx(loss, rel=0.05)
    assert float(torch.cosine_similarity(exact, coarse, 0)) > 0.95


@pytest.mark.parametrize(
    ("precision", "device", "chosen"),
    [("auto", "cpu", "fp32"), ("fp32", "cpu", "fp32"), ("bf16", "cpu", "bf16"), ("auto", "mps", "fp32")],
)
def test_the_precision_is_the_devices(precision: str, device: str, chosen: str) -> None:
    assert choose_precision(precision, torch.device(device)) == chosen


def test_precisions_that_a_device_lacks() -> None:
    for name, device, allowed in (("tf32", "cpu", "auto, fp32, bf16"), ("bf16", "mps", "auto, fp32")):
        with pytest.raises(InputError, match=f"precision {name} on {device}; allowed here: {allowed}$"):
            choose_precision(name, torch.device(device))


def test_the_cpus_arithmetic_stays_as_it_is() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    with float_arithmetic("bf16", CPU):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == before


@pytest.mark.parametrize("count", [64, 63, 65])
@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(count: int, mixup: float) -> None:
    """LeNet-5 has neither BatchNorm nor dropout."""
    pictures, targets = torch.rand(count, 1, 32, 32) * 255.0, torch.randint(0, 10, (count,))
    preprocess = for_network((1, 32, 32), None, mean=(0.5,), std=(0.5,))
    told, weights = [], []
    torch.manual_seed(0)
    mixed = mix(pictures, targets, mixup=mixup, cutmix=0.0)
    for accumulate in (1, 4):
        torch.manual_seed(0)
        module = build("lenet5", 10, 1)
        options = replace(QUICK, optimizer="sgd", learning_rate=0.1, accumulate=accumulate, clip_norm=1.0)
        run = start_run(module, options, preprocess)
        told.append(train_step(run, mixed))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]))
    assert torch.allclose(told[0], told[1], atol=1e-6)
    assert not torch.equal(weights[0], weights[1])  # sums in another order
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_parts_add_up() -> None:
    cases = ((128, 128, [128]), (129, 128, [129]), (130, 128, [128, 2]), (5, 2, [2, 3]), (3, 1, [1, 1, 1]))
    for total, size, sizes in (*cases, (1, 64, [1]), (100, 32, [32, 32, 32, 4])):
        assert part_sizes(total, size) == sizes and sum(sizes) == total


def test_out_of_memory_halves_the_parts_and_the_run_goes_on() -> None:
    """The same steps on the same batches, to the same weights, as where memory is enough."""
    pixels, runs, notes = _pixels(150), [], []
    for most in (1000, 20):
        torch.manual_seed(0)
        run = _begun(Hungry(most), augment="none", learning_rate=0.01)
        run_epochs(run, pixels, pixels, lambda: None, lambda stage, done, total, note="": notes.append(note))
        runs.append(run)
    plain, hungry = runs
    assert plain.module.refused == [] and plain.warnings == []
    assert hungry.module.refused == [64, 32]  # once each, in the first step
    trained = [size for size in hungry.module.sizes if size < 150]
    assert max(trained) == 16 and sum(trained) == 2 * 150
    assert [row["train_loss"] for row in hungry.history] == pytest.approx(
        [row["train_loss"] for row in plain.history], rel=1e-5
    )
    assert torch.allclose(plain.module.fc.weight, hungry.module.fc.weight, atol=1e-5)
    assert [row["learning_rate"] for row in plain.history] == [row["learning_rate"] for row in hungry.history]
    assert len(hungry.warnings) == 2
    assert "did not hold 64 pictures at once in epoch 1" in hungry.warnings[0]
    assert "steps of 64 pictures are computed in parts of 16" in hungry.warnings[1]
    assert any("out of memory: now in parts of 16" in note for note in notes)


@pytest.mark.parametrize(("norm", "least"), [(False, 1), (True, 2)])
def test_it_gives_up_where_not_even_the_smallest_part_fits(norm: bool, least: int) -> None:
    run = _begun(Hungry(least - 1, norm=norm))
    with pytest.raises(InputError, match=f"steps? of 64 pictures of 28×28, not even in parts of {least};") as caught:
        run_epochs(run, _pixels(64), _pixels(3), lambda: None, lambda *told: None)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError) and "\n" not in str(caught.value)
    assert run.module.refused == [64, 32, 16, 8, 4, 2, 1][: 7 if least == 1 else 6]
    assert ("BatchNorm" in run.warnings[0]) is norm


def test_states_that_do_not_say_how_they_were_computed_are_gone_on_with(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    """As earlier versions wrote them; another precision is named."""
    straight = train_network("lenet1", *small, tmp_path / "straight", QUICK)

    class Stop(Exception):
        pass

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "epoch 2/2":
            raise Stop

    with pytest.raises(Stop):
        train_network("lenet1", *small, tmp_path / "run", QUICK, progress=interrupt)
    state = read_checkpoint(tmp_path / "run" / STATE)
    options = dict(state.training["options"])
    for name in ("precision", "accumulate"):
        del options[name]
    write_checkpoint(replace(state, training={**state.training, "options": options}), tmp_path / "run" / STATE)
    for change, says in (
        ({"precision": "bf16"}, "option precision was 'fp32' and is now 'bf16'"),
        ({"accumulate": 2}, "option accumulate was 1 and is now 2"),
    ):
        with pytest.raises(CheckpointError, match=says):
            train_network("lenet1", *small, tmp_path / "run", replace(QUICK, **change), resume=True)
    resumed = train_network("lenet1", *small, tmp_path / "run", replace(QUICK, precision="fp32"), resume=True)
    assert resumed.checkpoint_sha256 == straight.checkpoint_sha256


@pytest.mark.parametrize("bad", [{"precision": "fp16"}, {"accumulate": 0}, {"accumulate": 65, "batch_size": 64}])
def test_options_that_are_not_allowed(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="allowed: "):
        TrainOptions(**bad)  # type: ignore[arg-type]


def test_what_was_noted_and_the_parts_survive_an_interruption() -> None:
    """A state keeps both, so that the resumed run does not run out of memory again."""
    run = _begun(Hungry(20), augment="none", learning_rate=0.01)
    states: list[Checkpoint] = []
    header = Checkpoint("lenet1", 3, 1, GREY, ("a", "b", "c"), {})

    def save() -> None:
        with tempfile.TemporaryDirectory() as folder:
            save_state(run, header, Path(folder) / STATE)
            states.append(read_checkpoint(Path(folder) / STATE))

    pixels = _pixels(150)
    run_epochs(run, pixels, pixels, save, silent)
    resumed = _begun(Hungry(20), augment="none", learning_rate=0.01)
    restore(resumed, states[0], Path(STATE))
    assert (resumed.part, resumed.warnings) == (16, run.warnings)
    run_epochs(resumed, pixels, pixels, lambda: None, silent)
    assert resumed.module.refused == [] and torch.equal(resumed.module.fc.weight, run.module.fc.weight)
    for damage in ({"part": 0}, {"part": 65}, {"part": "few"}, {"warnings": [1]}, {"warnings": "x"}):
        with pytest.raises(CheckpointError, match="the state is damaged"):
            damaged = replace(states[0], state={**states[0].state, **damage})
            restore(_begun(Hungry(20), augment="none"), damaged, Path(STATE))


@pytest.mark.parametrize(
    ("most", "samples", "batch_size", "says"),
    [(1000, 10**6, 512, "holds"), (512, 10**6, 512, "holds"), (20, 10**6, 16, "holds"), (10**9, 2048, 64, "32 steps")]
    + [(10**9, 10**4, 256, "32 steps an epoch"), (10**9, 10**7, 8192, "8192 pictures")],
)
def test_the_largest_batch_is_found_by_real_steps(most: int, samples: int, batch_size: int, says: str) -> None:
    module = Hungry(most)
    run = _begun(module, augment="none")
    before = module.fc.weight.detach().clone()
    found, why = largest_batch(run, (28, 28), samples)
    assert found == batch_size and says in why
    assert module.sizes == [] and torch.equal(module.fc.weight, before) and run.part == 64  # only copies were trained
    assert fits(run, (28, 28), found) and fits(run, (28, 28), 2 * found) is (most > 2 * found)


def test_a_batch_that_never_fits() -> None:
    with pytest.raises(InputError, match="does not hold a batch of 2 pictures of 28×28; give a smaller --size"):
        largest_batch(_begun(Hungry(1, norm=True), augment="none"), (28, 28), 1000)


def test_the_learning_rate_is_scaled_to_the_batch() -> None:
    options = TrainOptions(optimizer="sgd", batch_size=64, learning_rate=0.05)
    assert scaled(options, 512) == replace(options, batch_size=512, learning_rate=0.4)
    assert scaled(options, 16).learning_rate == 0.0125
    assert scaled(replace(options, optimizer="adamw"), 256).learning_rate == 0.1


def test_on_a_cpu_the_batch_stays(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    plain = train_network("lenet1", *small, tmp_path / "plain", QUICK)
    record = train_network("lenet1", *small, tmp_path / "auto", QUICK, largest_batch=True)
    assert record.checkpoint_sha256 == plain.checkpoint_sha256
    assert "batch size 64, the recipe's: the memory of cpu sets no useful limit" in record.warnings
    again = train_network("lenet1", *small, tmp_path / "auto", QUICK, largest_batch=True, resume=True)
    assert again == record


def test_a_resumed_training_keeps_the_batch_that_was_found(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """A finished one of another batch and the rate that goes with it is what ``auto`` once found."""
    found = train_network("lenet1", *small, tmp_path, scaled(QUICK, 32))
    assert train_network("lenet1", *small, tmp_path, QUICK, largest_batch=True, resume=True) == found
    with pytest.raises(CheckpointError, match=r"option batch_size was 32 and is now 64"):
        train_network("lenet1", *small, tmp_path, QUICK, resume=True)
    other = replace(QUICK, learning_rate=0.1)
    with pytest.raises(CheckpointError, match=r"option learning_rate was"):
        train_network("lenet1", *small, tmp_path, other, largest_batch=True, resume=True)


def test_the_share_of_the_peak_against_a_hand_computed_one() -> None:
    """ResNet-50: 4.089 G multiply-accumulates; 3,000 pictures/s are 73.6 Tflop/s, 7.4 % of an H200's 989.5."""
    peak = peak_flops("NVIDIA H200", "bf16")
    assert peak == 989.5e12
    assert mfu(3000.0, 4_089_000_000, peak) == pytest.approx(0.07438, abs=1e-5)
    assert mfu(1.0, 10, 60.0) == 1.0
    run = _begun(Hungry(100))
    assert run.mfu(3000.0) is None  # no peak is known of a CPU
    run.macs, run.peak = 10, 6000.0
    assert run.mfu(50.0) == 0.5
    run.options = replace(run.options, freeze="features")
    assert run.mfu(50.0) is None  # the formula's backward pass does not happen


@pytest.mark.parametrize(
    ("name", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA H200", 989.5, 494.5, 67.0),
        ("NVIDIA H100 80GB HBM3", 989.5, 494.5, 67.0),
        ("NVIDIA H100 PCIe", 756.5, 378.0, 51.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 19.5),
        ("NVIDIA A100 80GB PCIe", 312.0, 156.0, 19.5),
        ("NVIDIA L4", 121.0, 60.0, 30.3),
        ("Tesla T4", None, None, 8.1),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None, None),
        ("NVIDIA A10G", None, None, None),
        ("Some GPU", None, None, None),
    ],
)
def test_peaks_by_name(name: str, bf16: float | None, tf32: float | None, fp32: float | None) -> None:
    found = [peak_flops(name, precision) for precision in ("bf16", "tf32", "fp32")]
    assert found == [None if value is None else pytest.approx(value * 1e12) for value in (bf16, tf32, fp32)]
    assert peak_flops(name, "fp16") is None


def test_the_speed_of_the_last_epoch_is_told_while_the_next_one_runs(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    notes: dict[str, set[str]] = {}

    def listen(stage: str, done: int, total: int, note: str = "") -> None:
        notes.setdefault(stage, set()).add(note)

    record = train_network("lenet1", *small, tmp_path, QUICK, progress=listen)
    speed = 150 / record.history[0]["train_seconds"]
    assert notes["epoch 1/2"] == {""} and notes["epoch 2/2"] == {f"{speed:,.0f} pictures/s"}
    assert record.mfu is None
    told = Training.from_document({**record.to_document(), "mfu": 0.25})
    assert told.mfu == 0.25


def test_what_is_compiled_by_default() -> None:
    """Nothing on a CPU; on CUDA what saves more than a minute."""
    assert choose_compile(QUICK, CPU, 10**12, 10**9) == "off"
    assert choose_compile(replace(QUICK, compile="on"), CPU, None, 1) == "on"
    assert choose_compile(replace(QUICK, compile="off"), torch.device("cuda"), 10**12, 10**9) == "off"
    assert choose_compile(QUICK, torch.device("cuda"), None, 10**9) == "off"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--precision", "half"], "precision 'half'; allowed: auto, fp32, tf32, bf16"),
        (["--precision", "tf32"], "precision tf32 on cpu; allowed here: auto, fp32, bf16"),
        (["--accumulate", "0"], "accumulate 0; allowed: 1 or more"),
        (["--accumulate", "9", "--batch-size", "8"], "accumulate 9; allowed: 1 to the batch size, which is 8"),
        (["--batch-size", "most"], "--batch-size 'most'; allowed: a whole number from 1 on, or auto"),
        (["--batch", "0"], "batch_size 0; allowed: 1 or more"),
    ],
)
def test_the_command_refuses(given: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "lenet1", "--data", "shapes", "-o", str(tmp_path / "run"), "--device", "cpu", "--threads", "1"]
    assert main([*command, *given]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_command_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    np.savez(tmp_path / "few.npz", images=rows, labels=np.arange(40) % 2)
    command = ["train", "lenet1", "--data", str(tmp_path / "few.npz"), "-o", str(tmp_path / "run"), "--epochs", "1"]
    command += ["--threads", "1", "--device", "cpu", "--precision", "bf16", "--accumulate", "4", "--no-compile"]
    assert main([*command, "--batch", "auto"]) == 0
    assert "note: batch size 128, the recipe's: the memory of cpu" in capsys.readouterr().err
    record = read_record(tmp_path / "run" / "train.json")
    assert isinstance(record, Training)
    options = {name: record.options[name] for name in ("precision", "compile", "accumulate", "batch_size")}
    assert options == {"precision": "bf16", "compile": "off", "accumulate": 4, "batch_size": 128}


_FAILING = """
import sys
from dataclasses import replace
from deploykit import data
from deploykit.errors import InputError
from deploykit.train import train_network
from deploykit.training_compile import compile_module
from deploykit.training_recipes import TrainOptions

splits = data.load("shapes", "train").take(64), data.load("shapes", "test").take(30)
options = TrainOptions(epochs=1, batch_size=64, augment="shapes", threads=1, device="cpu", compile="on")
try:
    train_network("lenet1", *splits, sys.argv[1], options)
except InputError as problem:
    print("refused:", problem)
"""


_CHOSEN = """
import torch
from deploykit.augment import mix
from deploykit.models import build
from deploykit.preprocess import for_network
from deploykit.training_run import start_run
from deploykit.training_step import train_step

run = start_run(build("lenet1", 10, 1), replace(options, batch_size=8, compile="on"), for_network(
    (1, 28, 28), None, mean=(0.5,), std=(0.5,)))
run.compiled = compile_module(run.module, run.options, None, run.device, required=False)
for _ in range(2):
    mixed = mix(torch.rand(8, 1, 28, 28) * 255.0, torch.arange(8), mixup=0.0, cutmix=0.0)
    assert torch.isfinite(train_step(run, mixed)).all()
assert run.compiled is None and run.options.compile == "off" and len(run.warnings) == 1, run.warnings
assert run.warnings[0].startswith("trained without torch.compile, which fails on cpu: "), run.warnings
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_training_is_near_the_plain_one(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """In a process of its own, as compiling leaves much behind; 150 = 64 + 64 + 22, so that both forms are used."""
    code = (
        "import sys; from deploykit import data; from deploykit.train import train_network, TrainOptions\n"
        "splits = data.load('shapes', 'train').take(150), data.load('shapes', 'test').take(30)\n"
        "options = TrainOptions(epochs=2, batch_size=64, augment='shapes', threads=1, device='cpu', compile='on')\n"
        "train_network('mnist-cnn', *splits, sys.argv[1], options)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "compiled")], check=True, timeout=200)
    compiled = read_record(tmp_path / "compiled" / "train.json")
    assert isinstance(compiled, Training) and compiled.options["compile"] == "on" and compiled.warnings == ()
    plain = train_network("mnist-cnn", *small, tmp_path / "plain", QUICK)
    losses = [[row["train_loss"] for row in record.history] for record in (compiled, plain)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.2)  # dropout draws otherwise


@pytest.mark.slow
def test_a_compiler_that_fails_is_said(tmp_path: Path) -> None:
    """Asked for it is an error; chosen it is a warning, and the training goes on without."""
    surroundings = {**os.environ, "CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    asked = [sys.executable, "-c", _FAILING, str(tmp_path / "asked")]
    done = subprocess.run(asked, env=surroundings, capture_output=True, text=True, check=True, timeout=200)
    assert "refused: torch.compile fails on cpu: " in done.stdout and done.stdout.count("\n") == 1
    chosen = _FAILING.replace('compile="on")', 'compile="auto")') + _CHOSEN
    subprocess.run([sys.executable, "-c", chosen, str(tmp_path / "x")], env=surroundings, check=True, timeout=200)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("compiled", ["on", "off"])
def test_on_a_gpu_every_precision_trains(
    small: tuple[Dataset, Dataset], tmp_path: Path, precision: str, compiled: str
) -> None:
    """Streamed, so that pictures are copied ahead; in parts, so that CUDA graphs and added gradients meet."""
    options = replace(QUICK, device="cuda", precision=precision, compile=compiled, accumulate=2, ema=0.9)
    record = train_network("mnist-cnn", *small, tmp_path / "run", options, memory_cap=0, workers=0)
    plain = train_network("mnist-cnn", *small, tmp_path / "plain", replace(QUICK, device="cpu", ema=0.9))
    assert (record.precision, record.device, record.warnings) == (precision, "cuda", ())
    assert record.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=0.3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_the_largest_batch_is_found_and_memory_that_runs_out_halves_the_parts() -> None:
    torch.cuda.set_per_process_memory_fraction(2e9 / torch.cuda.get_device_properties(0).total_memory)
    try:
        preprocess = for_network((3, 64, 64), None, mean=(0.5,) * 3, std=(0.5,) * 3)
        options = replace(QUICK, device="cuda", batch_size=16, optimizer="sgd", augment="none")
        run = start_run(build("resnet18", 10, 3, pictures="small").to("cuda"), options, preprocess)
        found, _ = largest_batch(run, (64, 64), 10**6)
        assert 16 <= found < 8192
        run.use(replace(options, batch_size=16 * found))
        pictures = torch.rand(16 * found, 3, 64, 64, device="cuda")
        train_step(run, mix(pictures, torch.zeros(16 * found, dtype=torch.int64, device="cuda"), mixup=0.0, cutmix=0.0))
        assert run.part < 16 * found and run.warnings
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
