"""How the processes of one round of a job find each other in a key-value store that outlives rounds.

torchrun may start a job again in the same store: after a failure, and when machines come or go, which it does not
count. So each process says that it is here under a name of its own, and rank 0 publishes the list of names until all of
them have agreed to the same list; what an earlier round has left is in no such list.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid

from deploykit.errors import InputError
from deploykit.rank_watch import Store

__all__ = ["meet"]

_LOOK_S = 0.05


def meet(store: Store, rank: int, world: int, *, timeout_s: float) -> str:
    """Waits for all processes of this round. Returns a word that is theirs alone.

    Raises: InputError when they do not come in time.
    """
    me, until = uuid.uuid4().hex, time.monotonic() + timeout_s
    store.set(f"here/{rank}", me)
    while time.monotonic() < until:
        if rank == 0:
            _publish(store, world)
        names = json.loads(_read(store, "names") or "[]")
        if len(names) == world and names[rank] == me:
            word = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
            store.set(f"agreed/{me}", word)
            if rank == 0 and all(_read(store, f"agreed/{name}") == word for name in names):
                store.set("go", word)
            if _read(store, "go") == word:
                return word
        time.sleep(_LOOK_S)
    missing = ", ".join(str(other) for other in range(world) if _read(store, f"here/{other}") is None)
    lacking = f"missing: rank {missing}" if missing else "some were of an earlier round"
    raise InputError(f"rank {rank} waited {timeout_s:.0f} s for {world} processes; {lacking}; start all of them")


def _publish(store: Store, world: int) -> None:
    names = [_read(store, f"here/{rank}") for rank in range(world)]
    if all(names) and _read(store, "names") != (text := json.dumps(names)):
        store.set("names", text)


def _read(store: Store, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None
