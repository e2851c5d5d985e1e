"""Interrupted, killed, damaged and replaced trainings."""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploykit import checkpoint as checkpoint_room
from deploykit import data, environment
from deploykit.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, OutputError
from deploykit.files import read_json, sha256_file
from deploykit.results import Training, read_record
from deploykit.train import CHECKPOINT, CURVES, HISTORY, RECORD, STATE, train_network
from deploykit.training_recipes import TrainOptions

QUICK = TrainOptions(epochs=2, batch_size=64, augment="shapes", threads=1, device="cpu")
RESULTS = {CHECKPOINT, CURVES, HISTORY, RECORD}


@pytest.fixture(scope="module")
def small() -> tuple[Dataset, Dataset]:
    return data.load("shapes", "train").take(450), data.load("shapes", "test").take(90)


class _Stop(Exception):
    pass


def _interrupt(
    folder: Path, splits: tuple[Dataset, Dataset], options: TrainOptions = QUICK, *, overwrite: bool = False
) -> None:
    """Leaves ``lenet1`` after its first epoch."""

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage.startswith("epoch 2/"):
            raise _Stop

    with pytest.raises(_Stop):
        train_network("lenet1", *splits, folder, options, overwrite=overwrite, progress=interrupt)


def test_resume_after_an_interruption_gives_the_same_bits(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Interrupted in the first, in a middle and in the last epoch, with dropout, BatchNorm and both optimizers."""
    small = small[0].take(150), small[1].take(30)
    cases = (("mnist-cnn", "adamw", (1, 2, 3)), ("cifar-cnn", "sgd", (2,)))
    for network, optimizer, stops in cases:
        options = replace(QUICK, epochs=3, optimizer=optimizer, learning_rate=0.01, batch_size=50)
        straight = train_network(network, *small, tmp_path / network / "straight", options)
        for stop_at in (f"epoch {epoch}/3" for epoch in stops):
            folder = tmp_path / network / stop_at.replace("/", "-")

            def interrupt(stage: str, done: int, total: int, note: str = "", at: str = stop_at) -> None:
                if stage == at and done > 50:
                    raise _Stop

            with pytest.raises(_Stop):
                train_network(network, *small, folder, options, progress=interrupt)
            resumed = train_network(network, *small, folder, options, resume=True)
            assert resumed.checkpoint_sha256 == straight.checkpoint_sha256
            assert [r["train_loss"] for r in resumed.history] == [r["train_loss"] for r in straight.history]


def test_averaged_mixed_and_frozen_trainings_resume_to_the_same_bits(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    splits, thin = (small[0].take(24), small[1].take(9)), {"width": "16"}
    mixed = replace(
        QUICK, batch_size=8, optimizer="sgd", ema=0.9, clip_norm=1.0, mixup=0.2, cutmix=1.0, augment="crops"
    )
    begun = tmp_path / "mixed straight" / CHECKPOINT

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "epoch 2/2":
            raise _Stop

    frozen = replace(QUICK, batch_size=8, freeze="features", ema=0.9)
    for name, options, weights in (("mixed", mixed, None), ("frozen", frozen, begun)):
        given = {"network_options": thin, "weights": weights, "size": 12}
        straight = train_network("resnet18", *splits, tmp_path / f"{name} straight", options, **given)
        with pytest.raises(_Stop):
            train_network("resnet18", *splits, tmp_path / name, options, **given, progress=interrupt)
        kept = read_checkpoint(tmp_path / name / STATE).tensors
        learning = {key.split(".")[1] for key in kept if key.startswith("optimizer.")}
        assert len(learning) == (2 if weights else 62)  # of the frozen one, the classifier's weights and biases
        resumed = train_network("resnet18", *splits, tmp_path / name, options, **given, resume=True)
        assert resumed.checkpoint_sha256 == straight.checkpoint_sha256
        assert resumed.warnings == straight.warnings
    with pytest.raises(CheckpointError, match="weights_sha256 was"):
        other = tmp_path / "frozen straight" / CHECKPOINT
        train_network("resnet18", *splits, tmp_path / "frozen", frozen, weights=other, size=12, resume=True)


def test_a_finished_training_is_not_repeated_and_not_overwritten(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    first = train_network("lenet1", *small, tmp_path / "run", QUICK)
    with pytest.raises(OutputError, match=r"--resume or --overwrite"):
        train_network("lenet1", *small, tmp_path / "run", QUICK)
    assert train_network("lenet1", *small, tmp_path / "run", QUICK, resume=True) == first
    other = train_network("lenet1", *small, tmp_path / "run", replace(QUICK, seed=9), overwrite=True)
    assert other.checkpoint_sha256 != first.checkpoint_sha256
    assert Training.from_document(read_json(tmp_path / "run" / "train.json")) == other


@pytest.mark.parametrize(
    ("change", "says"), [({"seed": 7}, "option seed"), ({"epochs": 5}, "option epochs"), ({"threads": 2}, "threads")]
)
def test_resuming_with_other_options_names_the_difference(
    small: tuple[Dataset, Dataset], tmp_path: Path, change: dict[str, int], says: str
) -> None:
    _interrupt(tmp_path, small)
    with pytest.raises(CheckpointError, match=f"{says} was"):
        train_network("lenet1", *small, tmp_path, replace(QUICK, **change), resume=True)


def test_a_resumed_history_is_written_as_an_uninterrupted_one(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    _interrupt(tmp_path / "resumed", small)
    resumed = train_network("lenet1", *small, tmp_path / "resumed", QUICK, resume=True)
    train_network("lenet1", *small, tmp_path / "straight", QUICK)
    tables = [csv.reader((tmp_path / name / HISTORY).read_text().splitlines()) for name in ("resumed", "straight")]
    resumed_rows, straight_rows = (list(table) for table in tables)
    assert resumed_rows[0] == straight_rows[0]
    assert [row[:6] for row in resumed_rows] == [row[:6] for row in straight_rows]  # the rest are seconds
    assert resumed.seconds == pytest.approx(sum(row["seconds"] for row in resumed.history), abs=1e-3)
    training = sum(row["train_seconds"] for row in resumed.history)
    assert resumed.images_per_s == pytest.approx(450 * 2 / training, abs=0.1)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_overwrite_keeps_the_old_training_until_the_new_one_has_an_epoch(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    train_network("lenet1", *small, tmp_path, QUICK)
    before = _contents(tmp_path)
    assert set(before) == RESULTS
    with pytest.raises(InputError, match="no option 'activation'"):
        train_network("mnist-cnn", *small, tmp_path, QUICK, network_options={"activation": "x"}, overwrite=True)
    with pytest.raises(InputError, match="BatchNorm"):
        train_network("mnist-cnn", *small, tmp_path, replace(QUICK, batch_size=1), overwrite=True)
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="'mps' does not work here"):
            train_network("lenet1", *small, tmp_path, replace(QUICK, device="mps"), overwrite=True)
    other = replace(QUICK, seed=9)

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        raise _Stop

    with pytest.raises(_Stop):
        train_network("lenet1", *small, tmp_path, other, overwrite=True, progress=interrupt)
    assert _contents(tmp_path) == before
    _interrupt(tmp_path, small, other, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {STATE}
    assert train_network("lenet1", *small, tmp_path, other, resume=True).seed == 9


def test_a_state_counts_more_than_an_older_record_beside_it(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """As a kill between the new state and the removal of the old results leaves them."""
    train_network("lenet1", *small, tmp_path / "run", QUICK)
    other = replace(QUICK, seed=9)
    _interrupt(tmp_path / "other", small, other)
    (tmp_path / "other" / STATE).replace(tmp_path / "run" / STATE)
    resumed = train_network("lenet1", *small, tmp_path / "run", other, resume=True)
    assert resumed == read_record(tmp_path / "run" / RECORD)
    assert resumed.seed == 9
    assert {path.name for path in (tmp_path / "run").iterdir()} == RESULTS


def test_resume_with_overwrite_replaces_what_cannot_be_gone_on_with(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    first = train_network("lenet1", *small, tmp_path, QUICK)
    assert train_network("lenet1", *small, tmp_path, QUICK, resume=True, overwrite=True) == first
    other = train_network("lenet1", *small, tmp_path, replace(QUICK, seed=9), resume=True, overwrite=True)
    assert other.seed == 9


def test_a_damaged_finished_checkpoint_is_said(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    first = train_network("lenet1", *small, tmp_path, QUICK)
    content = bytearray((tmp_path / CHECKPOINT).read_bytes())
    content[-5] ^= 1  # one bit of a weight: still a readable checkpoint
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"damaged or replaced: its SHA-256 .* --overwrite"):
        train_network("lenet1", *small, tmp_path, QUICK, resume=True)
    again = train_network("lenet1", *small, tmp_path, QUICK, resume=True, overwrite=True)
    assert again.checkpoint_sha256 == first.checkpoint_sha256 == sha256_file(tmp_path / CHECKPOINT)


def test_threads_of_the_state_are_kept(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """One more than there are: what this machine would choose is another number."""
    threads = environment.available_cpus() + 1
    _interrupt(tmp_path, small, replace(QUICK, threads=threads))
    with pytest.raises(CheckpointError, match=f"threads was {threads} and is now 1"):
        train_network("lenet1", *small, tmp_path, QUICK, resume=True)
    record = train_network("lenet1", *small, tmp_path, replace(QUICK, threads=None), resume=True)
    assert record.threads == record.options["threads"] == threads


def _rewrite(path: Path, change: Callable[[Checkpoint], Checkpoint]) -> None:
    write_checkpoint(change(read_checkpoint(path)), path)


def _training(name: str, value: object) -> Callable[[Checkpoint], Checkpoint]:
    return lambda state: replace(state, training=dict(state.training) | {name: value})


def test_the_device_that_was_used_counts_not_its_name(
    small: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    _interrupt(tmp_path, small, replace(QUICK, device="auto"))
    state = (tmp_path / STATE).read_bytes()
    record = train_network("lenet1", *small, tmp_path, QUICK, resume=True)
    assert record.device == record.options["device"] == "cpu"
    (tmp_path / STATE).write_bytes(state)
    _rewrite(tmp_path / STATE, _training("device", "cuda"))
    for name in ("auto", "cpu"):
        with pytest.raises(CheckpointError, match="device was 'cuda' and is now 'cpu'"):
            train_network("lenet1", *small, tmp_path, replace(QUICK, device=name), resume=True)


def test_another_version_resumes_another_training_schema_does_not(
    small: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = train_network("lenet1", *small, tmp_path / "straight", QUICK)
    with monkeypatch.context() as older:
        older.setattr(checkpoint_room, "__version__", "0.0.1")
        _interrupt(tmp_path / "run", small)
    assert b'"0.0.1' in (tmp_path / "run" / STATE).read_bytes().replace(b"\\", b"")
    state = (tmp_path / "run" / STATE).read_bytes()
    resumed = train_network("lenet1", *small, tmp_path / "run", QUICK, resume=True)
    assert resumed.checkpoint_sha256 == straight.checkpoint_sha256
    (tmp_path / "run" / STATE).write_bytes(state)
    _rewrite(tmp_path / "run" / STATE, _training("training_schema", 0))
    with pytest.raises(CheckpointError, match="training_schema was 0"):
        train_network("lenet1", *small, tmp_path / "run", QUICK, resume=True)


def _tensor(name: str, tensor: torch.Tensor | None) -> Callable[[Checkpoint], Checkpoint]:
    def change(state: Checkpoint) -> Checkpoint:
        tensors = {key: value for key, value in state.tensors.items() if key != name}
        return replace(state, tensors=tensors if tensor is None else tensors | {name: tensor})

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: replace(state, state={}), "history is damaged; expected 1 to 2 epochs"),
        (lambda state: replace(state, state={"history": [{"epoch": 1}]}), "history is damaged"),
        (lambda state: replace(state, state={"history": state.state["history"] * 3}), "history is damaged"),
        (_tensor("optimizer.0.exp_avg", torch.zeros(2)), r"optimizer.0.exp_avg \(2,\) does not fit"),
        (_tensor("optimizer.99.exp_avg", torch.zeros(2)), "optimizer.99.exp_avg"),
        (_tensor("optimizer.first", torch.zeros(2)), "optimizer.first"),
        (_tensor("optimizer.0.exp_avg", None), r"of parameters \[0\] are missing"),
        (_tensor("model.stranger", torch.zeros(2)), "unexpected: stranger"),
        (_training("training_schema", 1), "training_schema was 1 and is now 2; another deploykit wrote it"),
        (_training("threads", "many"), "threads 'many'"),
    ],
)
def test_a_state_that_does_not_fit_is_named(
    small: tuple[Dataset, Dataset], tmp_path: Path, change: Callable[[Checkpoint], Checkpoint], says: str
) -> None:
    _interrupt(tmp_path, small)
    _rewrite(tmp_path / STATE, change)
    with pytest.raises(CheckpointError, match=says) as caught:
        train_network("lenet1", *small, tmp_path, QUICK, resume=True)
    assert "\n" not in str(caught.value)
    assert (tmp_path / STATE).exists()


# Forks once for each moment, so that torch and what it loads late are loaded once; no threads have started by then.
_KILLED = """
import os, signal, sys
from pathlib import Path
import altair, torch._dynamo, vl_convert
from deploykit import data, environment
from deploykit.models import lenet
from deploykit.train import train_network
from deploykit.training_recipes import TrainOptions

folder, moves = Path(sys.argv[1]), int(sys.argv[2])
splits = data.load("shapes", "train").take(150), data.load("shapes", "test").take(30)
options = TrainOptions(epochs=2, batch_size=50, augment="shapes", threads=1, device="cpu")
replace = Path.replace
environment.describe()

def die_at(number, after):
    left = [number]
    def moved(path, target):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(path, target)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return Path(target)
    Path.replace = moved

def die_within(stage, done, total, note=""):
    if stage == "epoch 2/2" and done > 50:
        os.kill(os.getpid(), signal.SIGKILL)

for number in range(moves + 2):
    child = os.fork()
    if child == 0:
        if number < moves + 1:
            die_at(max(number, 1), after=number == 0 or number == moves)
        train_network("lenet1", *splits, folder / str(number), options,
                      progress=die_within if number == moves + 1 else lambda *_: None)
        os._exit(0)
    print(number, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_sigkill_at_every_write_and_within_an_epoch(tmp_path: Path) -> None:
    """Two states, checkpoint, history, curves, record: killed before each move, and after the first and the last."""
    moves = 6
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _KILLED, str(tmp_path), str(moves)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [f"{number} {-signal.SIGKILL}" for number in range(moves + 2)]
    splits = data.load("shapes", "train").take(150), data.load("shapes", "test").take(30)
    options = replace(QUICK, batch_size=50)
    straight = train_network("lenet1", *splits, tmp_path / "straight", options)
    for number in range(moves + 2):
        folder = tmp_path / str(number)
        resumed = train_network("lenet1", *splits, folder, options, resume=True)
        assert resumed.checkpoint_sha256 == straight.checkpoint_sha256 == sha256_file(folder / CHECKPOINT)
        assert read_record(folder / RECORD) == resumed
        assert {path.name for path in folder.iterdir()} == RESULTS


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_ten_sigkills_and_resume(tmp_path: Path) -> None:
    """Killed ten times at moments drawn over the whole life of the process, from its start-up to its last write."""
    epochs, moments = 40, random.Random(5)
    command = [sys.executable, "-m", "deploykit", "train", "color-shape-mlp", "--data", "shapes", "--resume"]
    command += ["--threads", "1", "--epochs", str(epochs), "-o"]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "straight")], check=True, capture_output=True)
    life = time.monotonic() - start
    expected, kills, runs = sha256_file(tmp_path / "straight" / CHECKPOINT), 0, 0
    while kills < 10:
        folder = tmp_path / f"run {runs}"
        process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moments.uniform(0.0, life))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0
        _check_complete(folder, epochs, expected)
        runs += 1
    subprocess.run([*command, str(folder)], check=True, capture_output=True)
    _check_complete(folder, epochs, expected)


def _check_complete(folder: Path, epochs: int, digest: str) -> None:
    record = read_record(folder / RECORD)
    assert isinstance(record, Training)
    assert record.epochs == epochs == len(record.history)
    assert record.checkpoint_sha256 == sha256_file(folder / CHECKPOINT) == digest
    assert {path.name for path in folder.iterdir()} == RESULTS
