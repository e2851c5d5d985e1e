"""What may import what: the contract, and what a light machine loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Trained

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
        ("import deploykit.gate, deploykit.ci_outputs", HEAVY[:5]),
        ("import deploykit.worker", HEAVY[:2]),
        ("import deploykit", HEAVY),
    ],
)
def test_light_imports(code: str, absent: tuple[str, ...]) -> None:
    assert not _loaded(code) & set(absent)


@pytest.mark.slow
def test_the_base_install_measures_without_torch(trained: Trained, tmp_path: Path) -> None:
    """A real process in which torch, onnxscript, safetensors, altair and jinja2 cannot be imported."""
    heavy = ("torch", "onnxscript", "safetensors", "altair", "vl_convert", "jinja2")
    program = f"import sys\nfor name in {heavy}: sys.modules[name] = None\n"
    program += "from deploykit.cli import main\nsys.exit(main(sys.argv[1:]))"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True)

    onnx = trained.onnx
    for arguments in (
        ("models",),
        ("inspect", onnx, "--layers"),
        ("evaluate", onnx, "--data", "shapes", "-o", tmp_path / "a.json"),
        ("quantize", onnx, "-o", tmp_path / "q.onnx", "--calibrate", "shapes"),
        ("bench", onnx, "--samples", "10", "--min-time", "0.01", "-o", tmp_path / "b.json"),
        ("gate", onnx, "--max-size", "1MB"),
        ("report", tmp_path, "-o", tmp_path / "r.md"),
        ("data", "list"),
    ):
        done = run(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    for arguments, extra in (
        (("inspect", "lenet5"), "torch"),
        (("inspect", trained.folder), "torch"),
        (("export", "lenet5", "-o", tmp_path / "m.onnx"), "torch"),
        (("train", "lenet5", "--data", "shapes", "-o", tmp_path / "run"), "torch"),
        (("run", "lenet5", "--data", "shapes", "-o", tmp_path / "chain"), "torch"),
        (("report", tmp_path, "-o", tmp_path / "r.html"), "report"),
    ):
        done = run(*arguments)
        assert done.returncode == 2 and f"deploykit[{extra}]" in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1
        assert "internal error" not in done.stderr


def test_no_traces_of_the_terminal_in_the_library() -> None:
    """Only terminal.py prints, and only cli.py exits."""
    for path in (ROOT / "deploykit").rglob("*.py"):
        if "templates" in path.parts:
            continue  # programs of their own, which are copied into apps
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert "print" not in calls, path
        assert path.stem in ("__main__", "worker") or "sys.exit" not in calls, path
        assert path.stem in ("__main__", "terminal", "worker") or not {"sys.stdout.write", "sys.stderr.write"} & set(
            calls
        ), path
