"""A training that two real processes share over gloo, beside the same training in one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_ranks import DEPLOYKIT, Of, finish, start

from deploykit.errors import InputError
from deploykit.ranks import ALONE
from deploykit.shared_training import Team
from deploykit.training_recipes import TrainOptions

LENET = ["train", "lenet5", "--data", "shapes", "--threads", "1"]
AVERAGED = ["--epochs", "2", "--ema", "0.99", "--clip-norm", "1.0"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def history(folder: Path) -> list[dict[str, float]]:
    with (folder / "history.csv").open() as handle:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(handle)]


def assert_same_course(found: Path, wanted: Path, tolerance: float) -> None:
    for mine, other in zip(history(found), history(wanted), strict=True):
        for key in ("train_loss", "test_loss", "learning_rate"):
            assert mine[key] == pytest.approx(other[key], rel=tolerance), key
        for key in ("train_top1", "test_top1"):  # one answer more or less of a hundred
            assert mine[key] == pytest.approx(other[key], abs=max(0.011, tolerance)), key


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet-5 after two epochs in one process: no dropout, no BatchNorm, so that only sums are in another order."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run([*DEPLOYKIT, *LENET, *AVERAGED, "-o", str(folder)], check=True, capture_output=True)
    return folder


def test_two_processes_learn_as_one_with_the_same_batch(alone: Path, tmp_path: Path) -> None:
    told = [*LENET, *AVERAGED, "-o", str(tmp_path / "run"), "--json"]
    first, second = finish(start([*DEPLOYKIT, *told]))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1:] == ("", "")  # rank 0 prints
    record = json.loads(first[1])
    assert record == json.loads((tmp_path / "run" / "train.json").read_text())
    assert any("2 processes shared" in text for text in record["warnings"])
    assert record["options"]["batch_size"] == json.loads((alone / "train.json").read_text())["options"]["batch_size"]
    assert_same_course(tmp_path / "run", alone, 5e-3)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in alone.iterdir())


SYNCHRONISED = """
import sys
from copy import deepcopy
import torch
from torch import nn
from deploykit.process_group import joined
from deploykit.ranks import job
from deploykit.shared_batchnorm import synchronise

with joined(job(), print) as ranks:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4)
    whole = nn.Sequential(*layers).double()
    parted = synchronise(deepcopy(whole), torch.device("cpu"))
    pictures, wanted = torch.randn(7, 3, 9, 9).double() + 5.0, torch.randn(7, 4, 5, 5).double()
    ((whole(pictures) - wanted) ** 2).sum().backward()
    here = slice(0, 3) if ranks.rank == 0 else slice(3, 7)
    ((parted(pictures[here]) - wanted[here]) ** 2).sum().backward()
    for (name, one), two in zip(whole.named_parameters(), parted.parameters(), strict=True):
        torch.testing.assert_close(ranks.sum(two.grad), one.grad, rtol=1e-9, atol=1e-9, msg=name)
    assert list(whole.state_dict()) == list(parted.state_dict())
    for name, value in parted.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-12, atol=1e-12, msg=name)
    torch.testing.assert_close(parted.eval()(pictures), whole.eval()(pictures))
    print("alike")
"""


@pytest.mark.slow
def test_batchnorm_over_both_processes_is_that_of_the_whole_batch() -> None:
    for code, out, err in finish(start([sys.executable, "-W", "ignore", "-c", SYNCHRONISED])):
        assert (code, out) == (0, "alike\n"), err


@pytest.mark.slow
def test_a_network_with_batchnorm_learns_as_one_process_where_it_is_synchronised(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 130)
    pictures = random.integers(0, 80, (130, 16, 16, 3)) + 80 * labels[:, None, None, None]
    np.savez(tmp_path / "tones.npz", images=pictures.astype(np.uint8), labels=labels)
    told = ["train", "resnet18", "--data", str(tmp_path / "tones.npz"), "--threads", "1", "--epochs", "2"]
    told += ["--batch-size", "50", "--learning-rate", "0.01", "--warmup-epochs", "0"]
    subprocess.run([*DEPLOYKIT, *told, "-o", str(tmp_path / "one")], check=True, capture_output=True)
    for name, more in (("synchronised", ["--sync-batchnorm"]), ("apart", [])):
        for code, _, err in finish(start([*DEPLOYKIT, *told, *more, "-o", str(tmp_path / name)])):
            assert code == 0, err
    assert_same_course(tmp_path / "synchronised", tmp_path / "one", 0.01)
    loss = {name: history(tmp_path / name)[0]["train_loss"] for name in ("one", "synchronised", "apart")}
    assert abs(loss["synchronised"] - loss["one"]) < abs(loss["apart"] - loss["one"]) / 5


def wait_for(path: Path, processes: Sequence[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        time.sleep(0.05)  # what is waited for needs the processors
        assert time.monotonic() < until and all(process.poll() is None for process in processes)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_killed_process_ends_the_other_and_a_restart_goes_on(tmp_path: Path) -> None:
    told = [*DEPLOYKIT, *LENET, "--epochs", "4", "-o", str(tmp_path / "run")]
    whole = [*DEPLOYKIT, *LENET, "--epochs", "4", "-o", str(tmp_path / "whole")]
    processes = start(told)
    wait_for(tmp_path / "run" / "state.safetensors", processes)
    began = time.monotonic()
    processes[1].kill()
    first, _ = finish(processes)
    assert time.monotonic() - began < 30
    assert first[0] == 3 and first[1] == ""
    assert first[2].startswith(f"error: rank 1 (process {processes[1].pid}) is gone without a word")
    assert len(first[2].splitlines()) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [
        "state.safetensors"
    ]  # no lock, nothing half-written
    for code, _, err in finish(start([*told, "--resume"])):
        assert code == 0, err
    for code, _, err in finish(start(whole)):
        assert code == 0, err
    assert_same_course(tmp_path / "run", tmp_path / "whole", 1e-6)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_one_process_goes_on_where_two_were(tmp_path: Path) -> None:
    told = [*DEPLOYKIT, *LENET, "--epochs", "4", "--mixup", "0.2", "-o", str(tmp_path / "run")]
    processes = start(told)
    wait_for(tmp_path / "run" / "state.safetensors", processes)
    processes[1].kill()
    finish(processes)
    done = subprocess.run([*told, "--resume", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["history"]) == 4 and record["mfu"] is None
    assert any("were trained by 2 processes, and later ones by others" in text for text in record["warnings"])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_alike(tmp_path: Path) -> None:
    told = [*LENET, "--epochs", "1", "--learning-rate", "1e30", "--warmup-epochs", "0", "-o", str(tmp_path / "run")]
    for code, _, err in finish(start([*DEPLOYKIT, *told])):
        assert code == 2 and "loss became" in err


@pytest.mark.slow
def test_a_restarted_job_keeps_what_was_there_before_it(alone: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(alone, tmp_path / "before"))
    told = [*DEPLOYKIT, *LENET, *AVERAGED, "-o", str(folder)]
    again = os.environ | {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}
    os.utime(folder / "train.json", (1e9, 1e9))
    done = subprocess.run(told, env=again, capture_output=True, text=True)
    assert done.returncode == 2 and "holds a training already" in done.stderr
    os.utime(folder / "train.json")  # as if an earlier round of this job had written it
    done = subprocess.run(told, env=again, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / "train.json").read_bytes() == (alone / "train.json").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_torchrun_restarts_from_the_last_epoch(tmp_path: Path) -> None:
    command = [
        *TORCHRUN,
        "--max-restarts",
        "1",
        "-m",
        "deploykit",
        *LENET,
        "--epochs",
        "6",
        "-o",
        str(tmp_path / "run"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(tmp_path / "run" / "state.safetensors", [agent])
    os.kill(_child_of(agent.pid, rank=1), signal.SIGKILL)
    out, err = agent.communicate(timeout=240)
    assert agent.returncode == 0, err
    assert "is gone without a word" in err and "test accuracy" in out
    assert len(history(tmp_path / "run")) == 6


def _child_of(agent: int, rank: int) -> int:
    import psutil

    found = [child.pid for child in psutil.Process(agent).children() if child.environ().get("RANK") == str(rank)]
    (pid,) = found
    return pid


def test_processes_of_other_options_are_refused_by_name(tmp_path: Path) -> None:
    command = 'exec "$0" -m deploykit train lenet5 --data shapes --epochs 1 --seed "$RANK" -o "$1"'
    first, second = finish(start(["sh", "-c", command, sys.executable, str(tmp_path / "run")]))
    assert (first[0], second[0]) == (2, 2)
    assert "the processes differ in training options seed: rank" in first[2] + second[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_step_has_a_picture_for_each_process(tmp_path: Path) -> None:
    told = [*LENET, "--epochs", "1", "--batch-size", "1", "-o", str(tmp_path / "run")]
    first, second = finish(start([*DEPLOYKIT, *told]))
    assert (first[0], second[0]) == (2, 2)
    assert "1 pictures a step for 2 processes; allowed: one or more for each" in first[2]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_training_that_is_finished_is_returned_to_all(alone: Path) -> None:
    before = (alone / "train.json").read_bytes()
    told = [*LENET, *AVERAGED, "-o", str(alone), "--resume", "--json"]
    first, second = finish(start([*DEPLOYKIT, *told]))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert json.loads(first[1]) == json.loads(before)
    assert (alone / "train.json").read_bytes() == before


def test_synchronised_batchnorm_sees_a_batch_at_once() -> None:
    with pytest.raises(InputError, match="accumulate 2 with synchronised BatchNorm"):
        TrainOptions(accumulate=2, sync_batchnorm=True)


def test_parts_of_a_batch_draw_what_the_whole_batch_draws() -> None:
    import torch

    from deploykit.augment import AUGMENTATIONS, Part, part_of_batch

    pictures = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for name, augment in AUGMENTATIONS.items():
        torch.manual_seed(5)
        whole = augment(pictures, (16, 16))
        for start_row, stop in ((0, 4), (4, 10)):
            generators = {"cpu": torch.Generator().manual_seed(5)}
            with part_of_batch(Part(10, start_row, generators)):
                part = augment(pictures[start_row:stop], (16, 16))
            torch.testing.assert_close(part, whole[start_row:stop], rtol=1e-5, atol=1e-3, msg=name)


def test_a_team_of_one_changes_nothing() -> None:
    team = Team(ALONE)
    assert team.alone and team.first and team.notes() == () and team.part(7) == slice(0, 7)
    assert list(team.mine([1, 2, 3])) == [1, 2, 3] and team.all([1.0, 2.0]) == [1.0, 2.0]
    assert team.told({"a": 1}) == {"a": 1} and team.gathered(["x", "x"]) == ["x"]


def test_a_team_shares_cpus_and_memory_but_not_gpus() -> None:
    import torch

    from deploykit.pixels import default_cap, default_workers

    team, cpu = Team(Of(0, 2)), torch.device("cpu")
    assert team.workers(None, cpu) == max(1, default_workers(cpu) // 2) and team.workers(5, cpu) == 5
    cap = team.cap(None, cpu)
    assert cap is not None and cap == pytest.approx(default_cap(cpu) / 2, rel=0.2)
    assert team.cap(None, torch.device("cuda")) is None and team.cap(7, cpu) == 7
    assert team.peak(3.0) == 6.0 and team.peak(None) is None
    assert np.array_equal(np.r_[team.part(9)], np.arange(4))
