"""The whole programme for a GPU in one go: training, inference and the first complete table, as one JSON file.

    python benchmarks/gpu.py --data DIR [--minutes 10] [--only PART,…] [--output gpu.json]

Needs torch, numpy, Pillow, psutil and safetensors, and from the export on onnx, onnxscript, onnx-ir and onnxruntime;
deploykit itself need not be installed. What is missing is said at once, with the command that installs it. Parts, in
the order of their worth:

throughput  pictures a second learnt by deploykit's own training loop, and the model FLOPs utilisation; beside it a
            plain loop in eager float32, as torchvision's reference has it, at the same batch sizes. Every network is
            measured at one batch size before any is at a second one; then come real pictures, at last torch.compile
lenet       LeNet-5 on MNIST: the seconds to 0.6 % error
inference   latency of batch 1 and 64, one network after the other: PyTorch eager and compiled, ONNX Runtime's CUDA
            provider in fp32, TF32 and fp16, with and without CUDA graphs
cifar       ResNet-18 on CIFAR-10: seconds an epoch, and the accuracy at the end
flowers     the reference networks on flowers at 128 pixels, quantized, evaluated and timed on this machine's CPU; takes
            what is left of the time, the networks in the order of their worth

Each part runs in a process of its own, within its share of --minutes, which count from the start of the script and hold
all of it; one that fails or runs out of time leaves what it has, and the others go on. The file is written anew every
few seconds. Ten minutes do not hold everything: with --continue a file that is there is added to. Parts that are done
stay, throughput, inference and flowers go on with what is missing, and no figure gives way to none. The first run has
the figures at the top of this list; how many more it takes until flowers has all its networks depends on the machine.

    python benchmarks/gpu.py --device cpu --small

rehearses all of it on a CPU with tiny sizes; its file says so in every part, and holds no figure of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_document import SCHEMA, holds_figure, is_document, merged, outcome
from gpu_plan import EXPORT, PARTS, TRAINING
from gpu_process import GRACE_S, ROOT, end_on_signals, last_line, supervise

CLOSING_S = 5.0  # to end the last part, to write the file and to print
LEAST_S = 15.0  # with less left, a part is not begun


def main() -> int:
    """Runs the programme, or, with ``--run``, one part of it in this process."""
    started = time.time()
    arguments = parse()
    sys.path.insert(0, str(ROOT))
    if arguments.run:
        from gpu_parts import run_part

        return run_part(arguments.run, json.loads(arguments.settings.read_text(encoding="utf-8")))
    end_on_signals()
    missing = {module: name for module, name in TRAINING.items() if find_spec(module) is None}
    if missing:
        return refuse(f"{', '.join(missing)} cannot be imported; run: pip install {' '.join(missing.values())}")
    before = look_back(arguments)
    device = look_at(arguments.device)
    if "error" in device:
        return refuse(device["error"])
    from deploykit.errors import OutputError

    document = begin(arguments, device, before)
    try:
        run_parts(arguments, document, started)
    except OutputError as problem:
        return refuse(str(problem))
    print_table(document)
    return 0


def run_parts(arguments: argparse.Namespace, document: dict[str, Any], started: float) -> None:
    """Those that are asked for and not done; the document and its file have each. Raises: OutputError."""
    deadline = started + 60.0 * arguments.minutes - GRACE_S - CLOSING_S
    for name in arguments.only or PARTS:
        if arguments.go_on and document["parts"].get(name, {}).get("status") == "done":
            continue
        run(name, arguments, deadline, document, lambda: save(arguments.output, document, started))
        print(f"{name}: {document['parts'][name]['status']}", file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with MNIST, CIFAR-10 and flowers, those that are there")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", type=lambda text: text.split(","), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a rehearsal, no measurement")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="add to --output where it is there")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--settings", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.only or () if name not in PARTS]:
        parser.error(f"--only {', '.join(unknown)}; allowed: {', '.join(PARTS)}")
    if arguments.device == "cpu" and not arguments.small:
        parser.error("--device cpu is for rehearsals; give --small with it")
    if not 0 < arguments.minutes <= 24 * 60:
        parser.error(f"--minutes {arguments.minutes:g}; allowed: more than 0, up to {24 * 60}")
    return arguments


def refuse(reason: str) -> int:
    """One line, and the exit code of wrong input."""
    print(f"error: {reason}", file=sys.stderr)
    return 2


def look_back(arguments: argparse.Namespace) -> dict[str, Any] | None:
    """The document that is to be added to, None where none is; ends the script where no file could be written."""
    from deploykit.errors import InputError
    from deploykit.files import check_writable, read_json

    try:
        check_writable(arguments.output)
        if not (arguments.go_on and arguments.output.exists()):
            return None
        found = read_json(arguments.output)
    except InputError as problem:
        raise SystemExit(refuse(str(problem))) from problem
    if not is_document(found):
        raise SystemExit(refuse(f"{arguments.output} is no file of this script; give another --output"))
    return found


def look_at(device: str) -> dict[str, Any]:
    """What torch says of the device, asked in another process, so that this one holds no memory on it."""
    code = (
        "import json, sys, torch\n"
        "cuda = sys.argv[1] == 'cuda'\n"
        "if cuda and not torch.cuda.is_available():\n"
        "    print(json.dumps({'error': f'torch {torch.__version__} finds no CUDA device; rehearse with --device cpu"
        " --small'}))\n"
        "else:\n"
        "    name = torch.cuda.get_device_name() if cuda else 'cpu'\n"
        "    print(json.dumps({'type': sys.argv[1], 'name': name, 'torch': torch.__version__,"
        " 'cuda': torch.version.cuda if cuda else None}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, device], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": f"torch cannot be used: {last_line(done.stderr)}"}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def begin(arguments: argparse.Namespace, device: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The document before any part has run, or the one that is added to, which must be of the same device."""
    from deploykit import __version__, environment

    run = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "minutes": arguments.minutes, "seconds": 0.0}
    fresh = {
        "schema": SCHEMA,
        "deploykit": __version__,
        "environment": environment.describe(),
        "label": label(device, small=arguments.small),
        "rehearsal": arguments.small or device["type"] == "cpu",
        "device": device,
        "seconds": 0.0,
        "runs": [run],
        "parts": {},
    }
    if before is None:
        return fresh
    if any(before.get(key) != fresh[key] for key in ("device", "rehearsal")):
        raise SystemExit(refuse(f"{arguments.output} is of another device or a rehearsal; give another --output"))
    for part in before["parts"].values():
        if part["status"] == "running":
            part |= {"status": "partial", "reason": "the script was ended while this ran"}
    return before | {"runs": [*before["runs"], run]}


def label(device: dict[str, Any], *, small: bool) -> str:
    """What stands above every figure."""
    if device["type"] == "cpu":
        return "rehearsal on a CPU: no figure in this file is of a GPU"
    named = f"{device['name']}, torch {device['torch']}, CUDA {device['cuda']}"
    return f"rehearsal with tiny sizes on {named}: no figure in this file is a measurement" if small else named


def run(
    name: str, arguments: argparse.Namespace, deadline: float, document: dict[str, Any], saving: Callable[[], None]
) -> None:
    """One part in a process of its own: its status, its figures, and why there are no more of them, in the document.

    While it runs, the document takes over what the part has written, and ``saving`` is called.

    Raises: OutputError.
    """
    from deploykit.errors import OutputError

    began = time.time()
    part, old = PARTS[name], document["parts"].get(name) if arguments.go_on else None
    before = old["figures"] if old and part.goes_on else {}
    spent = old["seconds"] if old and part.goes_on else 0.0

    def put(status: str, reason: str | None, figures: dict[str, Any]) -> None:
        entry = outcome(name, document, status, reason) | {"figures": figures}
        entry["seconds"] = round(spent + time.time() - began, 1)
        document["parts"][name] = merged(old, entry)
        saving()

    def meanwhile(result: Path) -> None:
        with contextlib.suppress(OutputError):  # a full disk may have room once the part's folder is gone
            put("running", "had not ended when this was written", written(result).get("figures", {}))

    missing = [EXPORT[module] for module in part.needs if find_spec(module) is None]
    if missing:
        put("skipped", f"needs pip install {' '.join(missing)}", {})
    elif deadline - began < LEAST_S:
        put("skipped", "no time was left", {})
    else:
        until = min(deadline, began + part.share * 60.0 * arguments.minutes)
        put(*in_a_process(name, arguments, until, document["device"], before, meanwhile))


def in_a_process(
    name: str,
    arguments: argparse.Namespace,
    until: float,
    device: dict[str, Any],
    before: dict[str, Any],
    meanwhile: Callable[[Path], None],
) -> tuple[str, str | None, dict[str, Any]]:
    """Runs a part. Its status, the reason where that is not ``done``, and its figures."""
    with tempfile.TemporaryDirectory(prefix="deploykit-gpu-", ignore_cleanup_errors=True) as work:
        result, told = Path(work) / "result.json", Path(work) / "settings.json"
        settings = {
            "device": device["type"],
            "name": device["name"],
            "small": arguments.small,
            "data": str(arguments.data.resolve()) if arguments.data else None,
            "until": until,
            "work": work,
            "result": str(result),
            "before": before,
        }
        told.write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), "--run", name, "--settings", str(told)]
        said = supervise(command, until, lambda: meanwhile(result))
        found = written(result)
    figures = found.get("figures", {})
    if found.get("status") in (None, "running"):  # it did not end by itself
        return "partial" if holds_figure(figures) else "failed", said or "ran out of time", figures
    return found["status"], found["reason"], figures


def written(result: Path) -> dict[str, Any]:
    """What the part has put into its file so far, which it moves into place."""
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    return found


def save(path: Path, document: dict[str, Any], started: float) -> None:
    """Writes the file, with the time that this run has taken and that all runs have. Raises: OutputError."""
    from deploykit.files import write_json

    document["runs"][-1]["seconds"] = round(time.time() - started, 1)
    document["seconds"] = round(sum(run["seconds"] for run in document["runs"]), 1)
    write_json(path, document)


def print_table(document: dict[str, Any]) -> None:
    """The short form: one line a figure that the programme is about."""
    from gpu_headlines import headlines

    print(document["label"])
    for name, part in document["parts"].items():
        reason = f" ({part['reason']})" if part["reason"] else ""
        print(f"\n{name}: {part['status']}{reason}, {part['seconds']:.0f} s")
        for line in headlines(name, part["figures"]):
            print(f"  {line}")


if __name__ == "__main__":
    raise SystemExit(main())
