"""Two real processes that share a command's work over gloo, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained

from deploykit.errors import InputError
from deploykit.ranks import ALONE, Job, job, part_of, threads_each

DEPLOYKIT = [sys.executable, "-m", "deploykit"]


def start(command: Sequence[str], world: int = 2, **more: str) -> list[subprocess.Popen[str]]:
    """The processes of one job, as torchrun would start them, without its agent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **more}
    return [
        subprocess.Popen(
            list(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | meeting | {"RANK": str(rank)},
        )
        for rank in range(world)
    ]


def finish(processes: Sequence[subprocess.Popen[str]], limit_s: float = 120) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    said = [process.communicate(timeout=limit_s) for process in processes]
    return [(process.returncode, *both) for process, both in zip(processes, said, strict=True)]


class Of:
    """A place in a job that needs no others."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world, self.local_world = rank, world, world

    def gather(self, part: bytes) -> list[bytes]:
        raise AssertionError("nothing is gathered here")


@pytest.mark.parametrize(("count", "world", "step"), [(10, 2, 1), (10, 3, 4), (7, 2, 64), (100, 7, 8), (1, 4, 1)])
def test_shares_hold_everything_once_in_order_and_in_whole_batches(count: int, world: int, step: int) -> None:
    parts = [part_of(count, Of(rank, world), step=step) for rank in range(world)]
    assert [item for part in parts for item in part] == list(range(count))
    assert all(part.start % step == 0 for part in parts if part)
    batches = [-(-len(part) // step) for part in parts]
    assert max(batches) - min(batches) <= 1


def test_a_process_alone_has_all_and_its_own_number_of_threads() -> None:
    assert part_of(10, ALONE) == range(10)
    assert threads_each(ALONE, 8) is None
    assert (threads_each(Of(0, 2), 8), threads_each(Of(0, 4), 2)) == (4, 1)


def test_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} or name.startswith(("MASTER", "TORCHEL")):
            monkeypatch.delenv(name)
    assert job() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert job() == Job(rank=3, world=4, local_rank=3, local_world=4, attempt=0, keeps_store=False)
    for name, value in {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "5"}.items():
        monkeypatch.setenv(name, value)
    assert job() == Job(rank=3, world=4, local_rank=1, local_world=2, attempt=5, keeps_store=False)
    monkeypatch.setenv("RANK", "0")
    assert (found := job()) is not None and found.keeps_store
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert (found := job()) is not None and not found.keeps_store
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(InputError, match="RANK 4 of WORLD_SIZE 4"):
        job()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(InputError, match="RANK is 'first'"):
        job()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert job() is None


@pytest.mark.slow
def test_two_processes_count_what_one_does(trained: Trained, tmp_path: Path) -> None:
    told = ["evaluate", str(trained.int8), "--data", "shapes", "--reference", str(trained.onnx), "--batch-size", "7"]
    alone = json.loads(subprocess.check_output([*DEPLOYKIT, *told, "--json"], text=True))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "deploykit", *told]
    found = subprocess.run(
        [*command, "-o", str(tmp_path / "shared.json"), "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr
    shared = json.loads(found.stdout)  # one document: rank 0's
    assert json.loads((tmp_path / "shared.json").read_text()) == shared
    assert any("2 processes shared" in text for text in shared["warnings"])
    own = {"seconds", "picture_ms", "warnings", "created"}
    assert {key: value for key, value in shared.items() if key not in own} == {
        key: value for key, value in alone.items() if key not in own
    }
    assert shared["samples"] > 100 and len(shared["examples"]) == 16


def test_two_processes_calibrate_to_the_same_file(trained: Trained, tmp_path: Path) -> None:
    told = ["quantize", str(trained.onnx), "--calibrate", "shapes", "--samples", "50", "--effort", "high"]
    alone, shared = tmp_path / "alone.onnx", tmp_path / "shared.onnx"
    subprocess.run([*DEPLOYKIT, *told, "--any-speed", "-o", str(alone)], check=True, capture_output=True)
    first, second = finish(start([*DEPLOYKIT, *told, "--any-speed", "-o", str(shared)]))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1] == "" and str(shared) in first[1]
    assert shared.read_bytes() == alone.read_bytes()
    assert sorted(path.name for path in tmp_path.glob("shared*")) == ["shared.onnx", "shared.quantization.json"]


def test_what_cannot_be_shared_is_refused_by_each(trained: Trained) -> None:
    for code, out, err in finish(start([*DEPLOYKIT, "inspect", str(trained.onnx)])):
        assert (code, out) == (2, "")
        assert err == (
            "error: inspect runs in one process; received 2 of torchrun; allowed with several: train, evaluate,"
            " quantize\n"
        )


@pytest.mark.slow
def test_what_one_refuses_ends_all_with_its_reason(trained: Trained, tmp_path: Path) -> None:
    taken = tmp_path / "there.json"
    taken.write_text("{}")
    told = ["evaluate", str(trained.onnx), "--data", "shapes", "-o", str(taken)]
    first, second = finish(start([*DEPLOYKIT, *told]))
    assert first[0] == 2 and first[2].startswith(f"error: {taken} exists")
    assert second[0] == 2 and second[2].startswith(f"error: rank 0 ended: {taken} exists")
    assert taken.read_text() == "{}"


MEETING = """
import os, signal, sys, time
from deploykit.errors import DataError, DeploykitError
from deploykit.process_group import joined
from deploykit.ranks import job

def last_words(reason):
    print("last words:", reason, file=sys.stderr, flush=True)

try:
    with joined(job(), last_words) as ranks:
        assert ranks.gather(b"x" * (3 * ranks.rank)) == [b"x" * (3 * rank) for rank in range(ranks.world)]
        if ranks.rank == 1:
            exec(sys.argv[1])
        else:
            exec(sys.argv[2])
        print("done", flush=True)
except DeploykitError as problem:
    print(problem, file=sys.stderr)
    sys.exit(problem.exit_code)
"""
WAITS_IN_A_CALL = "ranks.gather(b'')"
WAITS_IN_PYTHON = "while True: time.sleep(0.1)"


def meet(second: str, first: str, world: int = 2) -> list[subprocess.Popen[str]]:
    """Processes of which the second does something after all have met, and the others wait."""
    return start([sys.executable, "-c", MEETING, second, first], world)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("waits", [WAITS_IN_A_CALL, WAITS_IN_PYTHON])
def test_a_killed_process_ends_the_other_soon(waits: str) -> None:
    began = time.monotonic()
    first, second = finish(meet("os.kill(os.getpid(), signal.SIGKILL)", waits))
    assert second[0] == -signal.SIGKILL
    assert first[0] == 3 and "done" not in first[1]
    assert "rank 1 (process" in first[2] and "is gone without a word" in first[2]
    assert len(first[2].splitlines()) == 1 and time.monotonic() - began < 30


@pytest.mark.slow
def test_a_process_that_fails_ends_the_other_with_its_reason() -> None:
    first, second = finish(meet("raise DataError('picture 7 is cut short')", WAITS_IN_A_CALL))
    assert (first[0], second[0]) == (2, 2)
    assert second[2] == "picture 7 is cut short\n"
    assert first[2] == "rank 1 ended: picture 7 is cut short\n"


@pytest.mark.slow
def test_a_process_that_is_done_does_not_end_the_other() -> None:
    first, second = finish(meet("pass", "time.sleep(2)"))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1:] == second[1:] == ("done\n", "")


@pytest.mark.slow
def test_of_three_processes_the_first_cause_is_told_once() -> None:
    done = finish(meet("raise DataError('picture 7 is cut short')", WAITS_IN_A_CALL, world=3))
    assert [code for code, _, _ in done] == [2, 2, 2]
    assert [err for _, _, err in done] == [
        "rank 1 ended: picture 7 is cut short\n",
        "picture 7 is cut short\n",
        "rank 1 ended: picture 7 is cut short\n",
    ]


@pytest.mark.slow
def test_any_failure_is_told_in_one_line() -> None:
    first, _ = finish(meet("raise ValueError('two\\nlines')", WAITS_IN_A_CALL))
    assert (first[0], first[2]) == (2, "rank 1 ended: ValueError: two lines\n")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize(("stopped", "said"), [(1, "silent for 20 s"), (0, "keeps the list of all processes")])
def test_a_process_that_stops_answering_ends_the_other(stopped: int, said: str) -> None:
    acts = ["os.kill(os.getpid(), signal.SIGSTOP)", WAITS_IN_A_CALL]
    processes = meet(*acts) if stopped else meet(*reversed(acts))
    other = processes[1 - stopped]
    try:
        _, err = other.communicate(timeout=60)
        assert other.returncode == 3 and said in err
    finally:
        processes[stopped].kill()
        processes[stopped].communicate()


def test_rounds_of_a_job_meet_anew_in_the_same_store() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from torch.distributed import HashStore

    from deploykit.rank_meeting import meet as meeting

    store = HashStore()
    with ThreadPoolExecutor(6) as pool:

        def words(world: int) -> set[str]:
            found = [pool.submit(meeting, store, rank, world, timeout_s=30.0) for rank in range(world)]
            return {each.result() for each in found}

        rounds = [words(2), words(3), words(2)]
        assert [len(found) for found in rounds] == [1, 1, 1] and len(set.union(*rounds)) == 3
    store.delete_key("here/1")
    with pytest.raises(InputError, match="missing: rank 1"):
        meeting(store, 0, 2, timeout_s=0.3)


def test_statistics_of_shares_are_those_of_all(trained: Trained) -> None:
    from deploykit.collect import collect_statistics

    parts: list[bytes] = []

    class Pair(Of):
        """Two shares, one after the other in this process."""

        def gather(self, part: bytes) -> list[bytes]:
            parts.append(part)
            return list(parts)

    pictures = np.random.default_rng(0).random((37, 3, 28, 28), dtype=np.float32)

    class Samples:
        def __len__(self) -> int:
            return len(pictures)

        def batches(self, size: int, part: range | None = None):
            chosen = range(len(pictures)) if part is None else part
            for start in chosen[::size]:
                yield pictures[start : min(start + size, chosen.stop)]

    def found(ranks):
        return collect_statistics(trained.onnx, None, Samples(), histogram=True, batch_size=4, ranks=ranks)

    alone = found(ALONE)
    found(Pair(0, 2))
    both = found(Pair(1, 2))
    assert both.samples == 37 and both.to_bytes() == alone.to_bytes()
