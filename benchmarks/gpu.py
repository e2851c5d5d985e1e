"""The whole programme for a GPU in one go: training, inference and the first complete table, as one JSON file.

    python benchmarks/gpu.py --data DIR [--minutes 10] [--only PART,…] [--output gpu.json]

Needs torch, numpy, Pillow, psutil and safetensors, and from the export on onnx, onnxscript, onnx-ir and onnxruntime;
deploykit itself need not be installed. What is missing is said at once, with the command that installs it. Parts, in
the order of their worth:

throughput  pictures a second learnt by deploykit's own training loop, with synthetic and with real pictures, and the
            model FLOPs utilisation; beside it a plain loop in eager float32, as torchvision's reference has it
lenet       LeNet-5 on MNIST: the seconds to 0.6 % error
cifar       ResNet-18 on CIFAR-10: seconds an epoch, and the accuracy at the end
inference   latency of batch 1 and 64: PyTorch eager and compiled, ONNX Runtime's CUDA provider in fp32, TF32 and fp16,
            with and without CUDA graphs
flowers     the reference networks on flowers at 128 pixels, quantized, evaluated and timed on this machine's CPU; takes
            what is left of the time, the networks in the order of their worth

Each part runs in a process of its own, within its share of --minutes; one that fails or runs out of time leaves what
it has, and the others go on. The file is written anew after each part. With --continue a file that is there is added
to: parts that are done stay, and flowers goes on with the networks that are missing.

    python benchmarks/gpu.py --device cpu --small

rehearses all of it on a CPU with tiny sizes; its file says so in every part, and holds no figure of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SCHEMA = "deploykit.gpu-benchmark/1"
ROOT = Path(__file__).resolve().parent.parent
TRAINING = {"torch": "torch", "numpy": "numpy", "PIL": "Pillow", "psutil": "psutil", "safetensors": "safetensors"}
EXPORT = {"onnx": "onnx", "onnxscript": "onnxscript", "onnx_ir": "onnx-ir", "onnxruntime": "onnxruntime-gpu"}
"""Modules -> the distributions that bring them."""

GRACE_S = 10.0  # after its time a part may still finish what it is writing
LEAST_S = 15.0  # with less left, a part is not begun


@dataclass(frozen=True)
class Part:
    """One part: its share of the time, and the modules that it needs beside ``TRAINING``."""

    share: float
    needs: tuple[str, ...] = ()


PARTS = {
    "throughput": Part(0.32),
    "lenet": Part(0.11),
    "cifar": Part(0.17),
    "inference": Part(0.20),  # PyTorch's figures need no more
    "flowers": Part(1.0, tuple(EXPORT)),
}


def main() -> int:
    """Runs the programme, or, with ``--run``, one part of it in this process."""
    arguments = parse()
    sys.path.insert(0, str(ROOT))
    if arguments.run:
        from gpu_parts import run_part

        return run_part(arguments.run, json.loads(arguments.settings.read_text(encoding="utf-8")))
    missing = {module: name for module, name in TRAINING.items() if find_spec(module) is None}
    if missing:
        return refuse(f"{', '.join(missing)} cannot be imported; run: pip install {' '.join(missing.values())}")
    device = look_at(arguments.device)
    if "error" in device:
        return refuse(device["error"])
    document = begin(arguments, device)
    started, deadline = time.time(), time.time() + 60.0 * arguments.minutes
    for name in arguments.only or PARTS:
        if name != "flowers" and arguments.go_on and document["parts"].get(name, {}).get("status") == "done":
            continue
        document["parts"][name] = run(name, arguments, device, deadline, document)
        document["seconds"] = round(time.time() - started, 1)
        write(arguments.output, document)
        print(f"{name}: {document['parts'][name]['status']}", file=sys.stderr, flush=True)
    print_table(document)
    return 0


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
        parser.error(f"--minutes {arguments.minutes:g}; allowed: more than 0")
    return arguments


def refuse(reason: str) -> int:
    """One line, and the exit code of wrong input."""
    print(f"error: {reason}", file=sys.stderr)
    return 2


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


def begin(arguments: argparse.Namespace, device: dict[str, Any]) -> dict[str, Any]:
    """The document before any part has run, or the one that is added to, which must be of the same device."""
    from deploykit import __version__, environment

    fresh = {
        "schema": SCHEMA,
        "deploykit": __version__,
        "environment": environment.describe(),
        "label": label(device, small=arguments.small),
        "rehearsal": arguments.small or device["type"] == "cpu",
        "device": device,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "minutes": arguments.minutes,
        "seconds": 0.0,
        "parts": {},
    }
    if arguments.go_on and arguments.output.exists():
        before: dict[str, Any] = json.loads(arguments.output.read_text(encoding="utf-8"))
        same = all(before.get(key) == fresh[key] for key in ("schema", "device", "rehearsal"))
        if not same:
            raise SystemExit(refuse(f"{arguments.output} is of another device or a rehearsal; give another --output"))
        return before
    return fresh


def label(device: dict[str, Any], *, small: bool) -> str:
    """What stands above every figure."""
    if device["type"] == "cpu":
        return "rehearsal on a CPU: no figure in this file is of a GPU"
    named = f"{device['name']}, torch {device['torch']}, CUDA {device['cuda']}"
    return f"rehearsal with tiny sizes on {named}: no figure in this file is a measurement" if small else named


def run(
    name: str, arguments: argparse.Namespace, device: dict[str, Any], deadline: float, document: dict[str, Any]
) -> dict[str, Any]:
    """One part in a process of its own: its status, its figures, and why there are no more of them."""
    began = time.time()
    left = deadline - began
    missing = [EXPORT[module] for module in PARTS[name].needs if find_spec(module) is None]
    if missing:
        return outcome(name, document, "skipped", f"needs pip install {' '.join(missing)}")
    if left < LEAST_S:
        return outcome(name, document, "skipped", "no time was left")
    until = min(deadline, began + PARTS[name].share * 60.0 * arguments.minutes)
    with tempfile.TemporaryDirectory(prefix="deploykit-gpu-", ignore_cleanup_errors=True) as work:
        result = Path(work) / "result.json"
        settings = {
            "device": device["type"],
            "name": device["name"],
            "small": arguments.small,
            "data": str(arguments.data.resolve()) if arguments.data else None,
            "until": until,
            "work": work,
            "result": str(result),
            "before": document["parts"].get(name, {}).get("figures", {}) if arguments.go_on else {},
        }
        told = Path(work) / "settings.json"
        told.write_text(json.dumps(settings), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), "--run", name, "--settings", str(told)]
        said = supervise(command, until)
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    if found.get("status") in (None, "running"):  # it did not end by itself
        found |= {"status": "partial" if found.get("figures") else "failed", "reason": said or "ran out of time"}
    made = outcome(name, document, found["status"], found.get("reason"))
    return made | {"seconds": round(time.time() - began, 1), "figures": found.get("figures", {})}


def outcome(name: str, document: dict[str, Any], status: str, reason: str | None) -> dict[str, Any]:
    """A part's entry without figures."""
    where = {"part": name, "device": document["device"]["name"], "rehearsal": document["rehearsal"]}
    return {"status": status, "reason": reason, "seconds": 0.0, **where, "figures": {}}


def supervise(command: list[str], until: float) -> str:
    """Runs a part until it ends, or until its time and a grace are over; what it died of, if it did."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = process.wait(timeout=max(1.0, until + GRACE_S - time.time()))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
        log.seek(0)
        text = log.read().decode(errors="replace")
    return "" if code in (0, None) else f"exit code {code}: {last_line(text)}"


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends what the part has started, and the part where it still runs."""
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(text: str) -> str:
    """The last line that says something, at a bounded length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def write(path: Path, document: dict[str, Any]) -> None:
    """Writes the file aside and moves it into place."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    aside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def print_table(document: dict[str, Any]) -> None:
    """The short form: one line a figure that the programme is about."""
    from gpu_parts import headlines

    print(document["label"])
    for name, part in document["parts"].items():
        reason = f" ({part['reason']})" if part["reason"] else ""
        print(f"\n{name}: {part['status']}{reason}, {part['seconds']:.0f} s")
        for line in headlines(name, part["figures"]):
            print(f"  {line}")


if __name__ == "__main__":
    raise SystemExit(main())
