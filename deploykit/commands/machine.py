"""``doctor``."""

from __future__ import annotations

from deploykit.commands.options import Json
from deploykit.errors import AnswerIsNoError
from deploykit.terminal import print_json, print_line

__all__ = ["doctor"]


def doctor(as_json: Json = False) -> None:
    """Say what is installed, what clashes, and which providers really start here; exit code 1 on a problem.

    Example: deploykit doctor
    """
    from deploykit.doctor import diagnose

    diagnosis = diagnose()
    if as_json:
        print_json(diagnosis.to_document())
    else:
        marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
        for check in diagnosis.checks:
            print_line(f"{marks[check.status]}  {check.name}: {check.detail}")
            if check.fix:
                print_line(f"         → {check.fix}")
    problems = [check.name for check in diagnosis.checks if check.status == "problem"]
    if problems:
        raise AnswerIsNoError(f"{len(problems)} problem(s) found: {', '.join(problems)}")
