"""Watches the other processes that share the work: each says that it lives and, at its end, why it ended.

Without it a dead process shows as a hang of the others, or as a broken connection that does not say what broke it. What
is said goes through the key-value store that torch.distributed keeps for its own meeting.
"""

from __future__ import annotations

import _thread
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from deploykit.errors import RankError
from deploykit.files import remove_unfinished
from deploykit.process_start import started

__all__ = ["RankWatch", "Store"]

_LOOK_S = 0.5
_SILENCE_S = 20.0  # of a process elsewhere, or one that is stopped; here a process that is gone shows at once
_GRACE_S = 8.0  # for the main thread to end by itself, which a call that never returns does not let it
_MISREAD_S = 5.0  # by which the start of a process may be misread
_FAREWELL_S = 10.0
_PAUSE_S = 5.0  # between two looks: longer and this process was stopped itself
_NAMESPACE = "#"


class Store(Protocol):
    """What is used of ``torch.distributed.Store``."""

    def set(self, key: str, value: str) -> None:
        """Stores a value."""

    def get(self, key: str) -> bytes:
        """A value; waits for it."""

    def check(self, keys: list[str]) -> bool:
        """Whether all are there."""


@dataclass
class _Other:
    """What is known of another process."""

    rank: int
    host: str
    pid: int
    started: float
    beat: bytes = b""
    heard: float = field(default_factory=time.monotonic)
    ended: bool = False

    @property
    def gone(self) -> bool:
        """Whether it is a process of this machine that has ended."""
        return self.host == _here() and abs((started(self.pid) or 0.0) - self.started) > _MISREAD_S


class RankWatch:
    """A thread that finds out when another process of the job ends before its work is done.

    It interrupts the main thread, where ``verdict`` then says why. A main thread that does not come back, as it waits
    within a collective call, is ended with the whole process.

    Args:
        store: A client of its own, as the thread's calls would wait for the main thread's.
        rank: This process's.
        world: Number of processes.
        last_words: Called with the reason before the process is ended.
    """

    def __init__(self, store: Store, rank: int, world: int, last_words: Callable[[str], None]) -> None:
        self._store, self._rank, self._last_words = store, rank, last_words
        self._verdict: RankError | None = None
        self._stopped, self._lock, self._ending = threading.Event(), threading.Lock(), threading.Lock()
        self._looked = time.monotonic()
        store.set(f"who/{rank}", json.dumps([_here(), os.getpid(), started(os.getpid())]))
        others = [number for number in range(world) if number != rank]
        self._others = [_Other(number, *json.loads(store.get(f"who/{number}"))) for number in others]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        threading.Thread(target=self._watch_the_watch, daemon=True).start()

    def verdict(self, patience_s: float = 0.0) -> RankError | None:
        """Which process is gone, and why; looks for as long as it is told to, and once at least."""
        until = time.monotonic() + patience_s
        while self._verdict is None:
            if self._lock.acquire(timeout=_SILENCE_S):  # held where the store does not answer
                try:
                    self._verdict = self._verdict or self._look()
                finally:
                    self._lock.release()
            if time.monotonic() >= until:
                break
            self._stopped.wait(_LOOK_S / 5)
        return self._verdict

    def close(self, code: int, reason: str, *, passed_on: bool = False, wait_for_others: bool = False) -> None:
        """Tells the others that this process ends, and ends the thread.

        Args:
            code: Exit code; 0 says that this process's work is done.
            reason: One line, for another code.
            passed_on: Whether the reason is another process, which it names.
            wait_for_others: Until they have ended too, for the process whose end would take the store from them.
        """
        self._stopped.set()
        self._thread.join(4 * _LOOK_S)
        if self._thread.is_alive():
            return  # the store does not answer
        try:
            self._store.set(f"end/{self._rank}", json.dumps([code, reason, passed_on]))
            until = time.monotonic() + (_FAREWELL_S if wait_for_others else 0.0)
            while time.monotonic() < until and not all(other.gone or self._told(other) for other in self._others):
                time.sleep(_LOOK_S / 5)
        except RuntimeError:
            return  # the store has gone first; nobody is left to tell

    def _watch(self) -> None:
        beat = 0
        while self._verdict is None and not self._stopped.wait(_LOOK_S):
            beat += 1
            with self._lock:
                now = time.monotonic()
                if now - self._looked > _PAUSE_S:  # this process was stopped, and maybe the others with it
                    for other in self._others:
                        other.heard = now
                self._verdict = self._verdict or self._beat(beat) or self._look()
                self._looked = time.monotonic()
        self._end()

    def _watch_the_watch(self) -> None:
        """A store that does not answer, as its machine was lost, holds up the thread that asks it."""
        now = time.monotonic()
        while self._verdict is None and not self._stopped.wait(_LOOK_S):
            before, now = now, time.monotonic()
            if now - before > _PAUSE_S:
                self._looked = now
            if now - self._looked > _SILENCE_S:
                self._verdict = _NO_STORE
        self._end()

    def _end(self) -> None:
        if self._verdict is None or self._stopped.is_set() or not self._ending.acquire(blocking=False):
            return
        _thread.interrupt_main()
        if not self._stopped.wait(_GRACE_S):
            remove_unfinished()
            self._last_words(str(self._verdict))
            os._exit(self._verdict.exit_code)

    def _beat(self, beat: int) -> RankError | None:
        try:
            self._store.set(f"beat/{self._rank}", str(beat))
        except RuntimeError:
            return _NO_STORE
        return None

    def _look(self) -> RankError | None:
        try:
            found = [problem for other in self._others if (problem := self._problem(other)) is not None]
        except RuntimeError:
            return _NO_STORE
        return min(found, key=lambda problem: problem[0])[1] if found else None  # a cause before what passes it on

    def _problem(self, other: _Other) -> tuple[bool, RankError] | None:
        """Whether it only passes on what another process has done; and what that is."""
        if other.ended:
            return None
        gone = other.gone  # before what it said: a process that says why it ends does so first
        if (end := self._told(other)) is not None:
            code, reason, passed_on = end
            other.ended = code == 0
            text = reason if passed_on else f"rank {other.rank} ended: {reason}"
            return None if other.ended else (passed_on, RankError(text, code))
        if gone:
            return False, RankError(
                f"rank {other.rank} (process {other.pid}) is gone without a word, killed or out of memory; what was"
                " complete stays"
            )
        if self._store.check([key := f"beat/{other.rank}"]) and (beat := self._store.get(key)) != other.beat:
            other.beat, other.heard = beat, time.monotonic()
        if time.monotonic() - other.heard > _SILENCE_S:
            machine = other.host.partition(_NAMESPACE)[0]
            return False, RankError(
                f"rank {other.rank} (process {other.pid} on {machine}) has been silent for {_SILENCE_S:.0f} s; what was"
                " complete stays"
            )
        return None

    def _told(self, other: _Other) -> Sequence[Any] | None:
        key = f"end/{other.rank}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None


_NO_STORE = RankError(
    "the process that keeps the list of all processes (torchrun's agent, or rank 0) is gone; what was complete stays"
)


def _here() -> str:
    """The machine, and the space in which its process numbers count: containers may share a name."""
    try:
        return f"{platform.node()}{_NAMESPACE}{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return platform.node()
