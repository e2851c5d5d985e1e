"""What may import what: the contract, and what a light machine loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "onnx", "onnxruntime", "altair", "matplotlib", "rich.console", "PIL", "numpy")


def test_the_import_contract_holds() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_every_room_stands_in_the_contract() -> None:
    """A new module that no layer names would be free to import anything."""
    named = set((ROOT / ".importlinter").read_text().replace("|", " ").split())
    rooms = {
        f"deploykit.{path.stem}"
        for path in (ROOT / "deploykit").iterdir()
        if path.stem not in ("__init__", "__pycache__", "templates", "py")
    }
    assert rooms <= named, rooms - named


def _loaded(code: str) -> set[str]:
    """The modules that are loaded after ``code``, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import deploykit.cli", HEAVY),
        ("import deploykit.cli as c; c.main(['--help'])", HEAVY[:5]),
        ("import deploykit.models; deploykit.models.names(); deploykit.models.spec('lenet5')", HEAVY),
        (
            "import deploykit.bench, deploykit.evaluate, deploykit.report, deploykit.quantize, deploykit.doctor",
            HEAVY[:5],
        ),
        ("import deploykit.worker", HEAVY[:2]),
        ("import deploykit", HEAVY),
    ],
)
def test_light_imports(code: str, absent: tuple[str, ...]) -> None:
    assert not _loaded(code) & set(absent)


def test_no_traces_of_the_terminal_in_the_library() -> None:
    """Only terminal.py prints, and only cli.py exits."""
    for path in (ROOT / "deploykit").rglob("*.py"):
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "print" not in calls, path
        assert path.stem in ("cli", "worker") or "sys.exit" not in calls, path
        assert path.stem in ("terminal", "worker") or not {"sys.stdout.write", "sys.stderr.write"} & set(calls), path
