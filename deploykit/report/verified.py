"""What the verifications of a file say, in the words of a row."""

from __future__ import annotations

from collections.abc import Sequence

from deploykit.results import Verification

__all__ = ["told_by"]


def told_by(records: Sequence[Verification]) -> tuple[str | None, list[str]]:
    """Where the predictions are the same, such as ``"unoptimised, haswell"``, and a text for each place but those."""
    same, doubts = [], []
    for record in records:
        for run in record.runs:
            name = run.cpu if run.optimised else "unoptimised"
            if run.flips is None:
                doubts.append(f"not verified on {name}: {run.error}")
            elif run.flips > record.allowed_flips:
                doubts.append(f"{run.flips} of {record.samples} predictions differ on {name}")
            else:
                same.append(name)
    return ", ".join(dict.fromkeys(same)) or None, doubts
