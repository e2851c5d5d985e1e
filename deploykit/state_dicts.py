"""State dicts out of files of others: PyTorch's ``.pth`` without running what a pickle asks for, and ``.safetensors``.

What a file is, its first bytes say; its name does not matter. The tensors map the file where its format allows it, so
that reading takes no memory of its own: copy them before the file may change.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.extras import require

if TYPE_CHECKING:
    import torch

__all__ = ["holds_safetensors", "read_pickled", "read_safetensors"]

_WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params")
_DEEPEST = 3  # wrappers in wrappers that are opened
_PARALLEL = frozenset({"module", "_orig_mod"})  # what DataParallel, DDP and torch.compile put into names
_OUTER = ("model", "net", "network", "backbone")  # what a training script's own class puts before them
_HEADER_LENGTH_BYTES = 8
_ADVICE = "expected a state dict: torch.save(model.state_dict(), PATH), or a .safetensors file"

# What torch.load and the unpickler below it raise on files that are cut short, altered or of another format.
_UNREADABLE = (
    *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OSError, EOFError),
    *(pickle.PickleError, struct.error, zipfile.BadZipFile, MemoryError, OverflowError, ImportError),
)


def holds_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors do: the header's length, and a brace.

    Raises: CheckpointError when it is missing, empty, a folder or cannot be read.
    """
    first = _first_bytes(path)
    length = int.from_bytes(first[:_HEADER_LENGTH_BYTES], "little")
    return first[_HEADER_LENGTH_BYTES : _HEADER_LENGTH_BYTES + 1] == b"{" and length <= path.stat().st_size


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors, which map the file, and the metadata of the header. Raises: CheckpointError."""
    require("safetensors.torch", extra="torch", purpose="reading weights")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 no iterator
            return tensors, dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a readable safetensors file ({reason}); the file is damaged, cut short or of another format"
        ) from problem


def read_pickled(path: Path) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The state dict of a file that ``torch.save`` wrote, and notes on what was taken off around it.

    Nothing that the file asks for is run: PyTorch's restricted unpickler builds tensors and plain containers only.

    Raises: CheckpointError when the file asks for more, or is something else than a state dict.
    """
    _check_kind(path)
    found, entry = _unwrapped(_loaded(path), path)
    tensors, prefix = _plain_names(_only_tensors(found, path))
    notes = (f"the weights were taken from the file's entry {entry!r}",) if entry else ()
    return tensors, (*notes, *((f"{prefix!r} was dropped from the names",) if prefix else ()))


def _first_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder; expected a .pth or .safetensors file")
        with path.open("rb") as handle:
            first = handle.read(64)
    except FileNotFoundError as problem:
        raise CheckpointError(f"no such file of weights: {path}") from problem
    except OSError as problem:
        raise CheckpointError(f"cannot read {str(path)[:160]}: {problem.strerror}") from problem
    if not first:
        raise CheckpointError(f"{path} is empty; {_ADVICE}")
    return first


def _check_kind(path: Path) -> None:
    """Raises CheckpointError for files that are known to be something else, with a better word than torch has."""
    first = _first_bytes(path)
    text = first.lstrip().lower()
    for begins, kind in (
        (b"<", "a web page"),
        (b"version https://git-lfs", "a Git LFS pointer"),
        (b"{", "a JSON text"),
    ):
        if text.startswith(begins):
            raise CheckpointError(f"{path} is {kind}, not weights: a download that did not give the file; {_ADVICE}")
    if not first.startswith(b"PK\x03\x04"):
        return
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is cut short: its end is missing; get the file again")
    try:
        with zipfile.ZipFile(path) as archive:
            members = {Path(name).name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as problem:
        raise CheckpointError(f"{path} is damaged ({problem}); get the file again") from problem
    if "constants.pkl" in members:
        raise CheckpointError(f"{path} is a TorchScript archive, a program with its weights; {_ADVICE}")
    if "data.pkl" not in members:
        raise CheckpointError(f"{path} is a zip archive without PyTorch's data.pkl; {_ADVICE}")


def _loaded(path: Path) -> Any:
    """Whatever plain data the file holds."""
    torch = require("torch", extra="torch", purpose="reading weights")
    mapped = zipfile.is_zipfile(path)  # the older format cannot be mapped
    try:
        # A Namespace is the options of a training script, as torchvision's own saves them: data without a method.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of the pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except _UNREADABLE as problem:
        raise CheckpointError(_refusal(path, problem)) from problem


def _refusal(path: Path, problem: BaseException) -> str:
    """PyTorch explains at length how to switch the protection off; what matters is the name that the file asks for."""
    if asked := re.search(r"GLOBAL ([\w.]+)", str(problem)):
        return (
            f"{path} refused, and nothing in it was run: besides tensors it asks for {asked[1]}, so it is a pickled"
            f" program or object; {_ADVICE}"
        )
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    reason = next((line for line in lines if not line.startswith("Weights only load failed")), "its end is missing")
    # The unpickler's KeyError is a bare number: the byte that it took for an instruction.
    known = reason.isdigit() or any(line.startswith("Unsupported operand") for line in lines)
    reason = "not a pickle of tensors" if known else reason.split(". ")[0].rstrip(".")
    return f"{path} is not readable ({reason[:160]}); the file is damaged, cut short or of another format; {_ADVICE}"


def _unwrapped(found: Any, path: Path) -> tuple[Mapping[Any, Any], str]:
    """The mapping of tensors inside, and the entry where it stood, such as ``"state_dict"``."""
    entry = ""
    for _ in range(_DEEPEST):
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{path} holds {_kind(found)}; {_ADVICE}")
        inner = _wrapped_entry(found)
        if inner is None:
            break
        found, entry = found[inner], f"{entry}.{inner}" if entry else inner
    if not any(_is_tensor(value) for value in found.values()):
        keys = ", ".join(str(key)[:40] for key in list(found)[:5])
        raise CheckpointError(f"{path} holds a dict without tensors (its keys: {keys or 'none'}); {_ADVICE}")
    return found, entry


def _wrapped_entry(found: Mapping[Any, Any]) -> Any:
    """The key of a dict of tensors in this dict; None where it holds the tensors itself, or none that is the only."""
    inner = [key for key, value in found.items() if isinstance(value, Mapping) and _has_tensors(value)]
    known = [key for key in _WRAPPERS if key in inner]
    if known:
        return known[0]
    beside = any(_is_tensor(value) for value in found.values())
    return inner[0] if len(inner) == 1 and not beside else None


def _has_tensors(value: Mapping[Any, Any], depth: int = _DEEPEST) -> bool:
    inner = [item for item in value.values() if isinstance(item, Mapping)] if depth else []
    return any(map(_is_tensor, value.values())) or any(_has_tensors(item, depth - 1) for item in inner)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _kind(value: Any) -> str:
    return "a single tensor" if _is_tensor(value) else f"a {type(value).__name__}"


def _only_tensors(found: Mapping[Any, Any], path: Path) -> dict[str, torch.Tensor]:
    others = [str(name) for name, value in found.items() if not (isinstance(name, str) and _is_tensor(value))]
    if others:
        more = f" … ({len(others)})" if len(others) > 5 else ""
        raise CheckpointError(f"{path} holds entries that are no tensors: {', '.join(others[:5])}{more}; {_ADVICE}")
    unfit = [name for name, value in found.items() if not _is_plain(value)]
    if unfit:
        raise CheckpointError(
            f"{path}: {', '.join(unfit[:5])} hold quantized, sparse, complex or no values; allowed: plain tensors"
        )
    return dict(found)


def _is_plain(value: torch.Tensor) -> bool:
    import torch

    odd = value.is_quantized or value.is_complex() or value.is_meta
    return value.layout is torch.strided and not odd


def _plain_names(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors by the names of the bare network, and what was taken off of them."""
    dropped: dict[str, None] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name == "n_averaged":  # the counter of torch.optim.swa_utils.AveragedModel
            continue
        parts = name.split(".")
        dropped |= dict.fromkeys(f"{part}." for part in parts if part in _PARALLEL)
        plain[".".join(part for part in parts if part not in _PARALLEL)] = tensor
    first = {name.split(".")[0] for name in plain}
    if len(first) == 1 and (outer := first.pop()) in _OUTER:
        dropped[f"{outer}."] = None
        plain = {name.removeprefix(f"{outer}."): tensor for name, tensor in plain.items()}
    return plain, " and ".join(dropped)
