"""Precision, parts of a step, memory that runs out, batches that fit, and what is told of the speed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from deploykit import data
from deploykit.augment import mix
from deploykit.checkpoint import read_checkpoint, write_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError
from deploykit.models import build
from deploykit.pixels import InMemory
from deploykit.preprocess import for_network
from deploykit.train import STATE, train_network
from deploykit.training_loop import run_epochs
from deploykit.training_precision import choose_precision, float_arithmetic
from deploykit.training_recipes import TrainOptions
from deploykit.training_run import Run, start_run
from deploykit.training_step import part_sizes, train_step

QUICK = TrainOptions(epochs=2, batch_size=64, augment="shapes", threads=1, device="cpu")
CPU = torch.device("cpu")
GREY = for_network((1, 28, 28), None, mean=(0.5,), std=(0.5,))

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


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
