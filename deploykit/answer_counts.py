"""What an evaluation counts of the answers to its pictures, and how the counts of several processes become one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.ranks import Ranks
from deploykit.results import Example

__all__ = ["Counts", "of_all"]


@dataclass
class Counts:
    """What the pictures seen so far say.

    Attributes:
        classes: Number of logits.
        members: Number of models.
        samples: Pictures.
        top1: Pictures whose class has the largest answer.
        top5: Pictures whose class is among the five largest.
        agreeing: Pictures to which a reference answers alike.
        seconds: That the models took.
        right: Right answers by class, ``(classes,)``.
        seen: Pictures by class, ``(classes,)``.
        alone: Right answers of each model, ``(members,)``.
    """

    classes: int
    members: int
    samples: int = 0
    top1: int = 0
    top5: int = 0
    agreeing: int = 0
    seconds: float = 0.0
    right: NDArray[np.int64] = field(init=False)
    seen: NDArray[np.int64] = field(init=False)
    alone: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.right, self.seen = np.zeros(self.classes, np.int64), np.zeros(self.classes, np.int64)
        self.alone = np.zeros(self.members, np.int64)

    def add(self, answer: NDArray[np.floating[Any]], targets: NDArray[np.int64]) -> None:
        """Counts answers ``(N, classes)`` to pictures of the classes ``(N,)``."""
        hit = answer.argmax(1) == targets
        # Rank among the answers; ties go to the lower index, as argmax decides them.
        order = np.argsort(-answer, axis=1, kind="stable")[:, :5]
        self.samples += len(targets)
        self.top1 += int(hit.sum())
        self.top5 += int((order == targets[:, None]).any(1).sum())
        np.add.at(self.seen, targets, 1)
        np.add.at(self.right, targets[hit], 1)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value if isinstance(value, int | float) else value.tolist() for name, value in vars(self).items()}

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds what another process has counted, as its ``to_json``."""
        for name in ("samples", "top1", "top5", "agreeing", "seconds"):
            setattr(self, name, getattr(self, name) + other[name])
        for name in ("right", "seen", "alone"):
            setattr(self, name, getattr(self, name) + np.array(other[name], np.int64))


def of_all(counts: Counts, examples: Sequence[Example], ranks: Ranks) -> tuple[Counts, list[Example]]:
    """What all processes have counted, and the pictures that they keep, in the order of the pictures.

    Raises: RankError when one of them is gone.
    """
    if ranks.world == 1:
        return counts, list(examples)
    mine = {"counts": counts.to_json(), "examples": [asdict(example) for example in examples]}
    found = [json.loads(part) for part in ranks.gather(json.dumps(mine).encode())]
    total = Counts(counts.classes, counts.members)
    for part in found:
        total.merge(part["counts"])
    return total, [Example(**example) for part in found for example in part["examples"]]
