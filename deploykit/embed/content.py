"""What an app's folder holds: the model and its facts, the golden test, and the files of ``templates/embed``."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from typing import Any

from deploykit import __version__
from deploykit.embed.app_model import AppModel
from deploykit.embed.golden import Golden
from deploykit.embed.options import EmbedOptions
from deploykit.embed.ort_format import OrtForm, ort_form
from deploykit.embed.targets import Target
from deploykit.errors import InputError
from deploykit.files import dump_json
from deploykit.onnxruntime_web import web_runtime

__all__ = ["SCHEMA", "AppContent", "content_of"]

SCHEMA = "deploykit.app/1"
"""Of ``model.json``."""

_TEMPLATES = Path(__file__).parent.parent / "templates" / "embed"
_DIGITS = tuple("0123456789")  # such models, of grey pictures, are also shown drawings, white on black as MNIST
_SHARP = "0.35.5"  # the version that the Node app was tested with
_ONNX, _ORT = "model.onnx", "model.ort"


class _Text(string.Template):
    """A template whose placeholders are ``%%name``: ``$`` and braces mean something in the languages that are made."""

    delimiter = "%%"


@dataclass(frozen=True)
class AppContent:
    """The files of an app.

    Attributes:
        contents: Contents by path in the folder.
        copies: Files that are copied, by path in the folder.
        runtime_version: The version of the runtime that the app is pinned to.
        ort_max_abs: Largest difference between the ``.ort`` and the model on the golden pictures; None without it.
    """

    contents: Mapping[str, bytes]
    copies: Mapping[str, Path] = field(default_factory=dict)
    runtime_version: str = ""
    ort_max_abs: float | None = None


@dataclass(frozen=True)
class _Shipped:
    """The model's file that the app's code opens."""

    name: str
    file_bytes: int
    sha256: str


def content_of(target: Target, model: AppModel, golden: Golden, options: EmbedOptions) -> AppContent:
    """The files of an app.

    Raises:
        InputError: The model cannot be used in such an app, or the runtime cannot be had.
        ParityError: The ``.ort`` file answers otherwise than the model.
    """
    target.check(model)
    runtime, copies = _runtime(target, options)
    form = ort_form(model, golden, arm=target.on_phones) if target.on_phones or options.ort_format else None
    shipped = _shipped(target, model, form)
    words = _words(target, model, golden, options.title or model.artifact.name, runtime)
    contents = {
        "model.json": _json(_facts(target, model, golden, shipped, words["title"], runtime)),
        "labels.txt": ("\n".join(golden.labels) + "\n").encode(),
        "LICENSE": _licence(),
        **_golden_files(target, golden),
        **_template_files(target, words),
        **(_plain_facts(target, model, golden) if target.plain_facts else {}),
        **({_ORT: form.content, "required_operators.config": form.operators} if form else {}),
    }
    if not target.on_phones:
        copies[_ONNX] = model.artifact.path
    return AppContent(contents, copies, runtime, form.max_abs if form else None)


def _shipped(target: Target, model: AppModel, form: OrtForm | None) -> _Shipped:
    if form is not None and target.on_phones:
        return _Shipped(_ORT, len(form.content), hashlib.sha256(form.content).hexdigest())
    return _Shipped(_ONNX, model.artifact.file_bytes, model.artifact.sha256)


def _runtime(target: Target, options: EmbedOptions) -> tuple[str, dict[str, Path]]:
    """The version that the app is pinned to, and the runtime's files where they go into the folder."""
    if not target.needs_web_runtime:
        return _installed("onnxruntime", "onnxruntime-gpu"), {}
    found = web_runtime(options.runtime)
    files = {f"runtime/{name}": path for name, path in found.files.items()}
    return found.version, {**files, "runtime/LICENSE": _TEMPLATES / "runtime" / "LICENSE"}


def _facts(
    target: Target, model: AppModel, golden: Golden, shipped: _Shipped, title: str, runtime: str
) -> dict[str, Any]:
    """``model.json``: all that the app's code has to know."""
    artifact = model.artifact
    return {
        "schema": SCHEMA,
        "title": title,
        "target": target.name,
        "model": shipped.name,
        "model_bytes": shipped.file_bytes,
        "model_sha256": shipped.sha256,
        "source_sha256": artifact.sha256,
        "network": artifact.network,
        "dataset": artifact.dataset,
        "precision": model.precision,
        "recipe": artifact.recipe,
        "parent_sha256": artifact.parent_sha256,
        "input": model.feeding.to_json(),
        "output": model.output,
        "classes": len(golden.labels),
        "probabilities": model.probabilities,
        "most_pixels": target.most_pixels,
        "digits": model.feeding.channels == 1 and golden.labels == _DIGITS,
        "runtime": {"package": target.runtime, "version": runtime},
        "made_by": f"deploykit {__version__}",
    }


def _ending(target: Target, golden: Golden) -> str:
    grey = golden.pictures[0].pixels.shape[2] == 1
    return {"PNG": ".png", "PPM": ".pgm" if grey else ".ppm", "RAW": ".bin"}[target.pictures]


def _plain_facts(target: Target, model: AppModel, golden: Golden) -> dict[str, bytes]:
    """``model.txt`` and ``golden/golden.txt``: words and numbers, as C's fscanf reads them."""
    words = (
        f"model_bytes {model.artifact.file_bytes}",
        f"classes {len(golden.labels)}",
        f"gives_probabilities {int(model.probabilities)}",
    )
    lines = [f"pictures {len(golden.pictures)} tolerance {golden.tolerance:.9g}"]
    for name, picture in zip(golden.names(_ending(target, golden)), golden.pictures, strict=True):
        lines.append(f"{name} {picture.winner} " + " ".join(f"{value:.9g}" for value in picture.outputs))
    return {"model.txt": ("\n".join(words) + "\n").encode(), "golden/golden.txt": ("\n".join(lines) + "\n").encode()}


def _golden_files(target: Target, golden: Golden) -> dict[str, bytes]:
    ending = _ending(target, golden)
    files = {"golden/golden.json": _json(golden.to_json(ending))}
    for name, picture in zip(golden.names(ending), golden.pictures, strict=True):
        files[f"golden/{name}"] = picture.encoded(target.pictures)
    return files


def _template_files(target: Target, words: Mapping[str, str]) -> dict[str, bytes]:
    folder = _TEMPLATES / target.name
    files = {Path(name).name: ((_TEMPLATES if "/" in name else folder) / name).read_bytes() for name in target.copied}
    for name in target.filled:
        files[name] = _Text((folder / name).read_text(encoding="utf-8")).substitute(words).encode()
    return files


def _words(target: Target, model: AppModel, golden: Golden, title: str, runtime: str) -> dict[str, str]:
    """What the placeholders of templates stand for."""
    size, feeding = model.feeding.size, model.feeding
    return {
        "title": title,
        "kotlin_input": _kotlin(feeding.name),
        "kotlin_output": _kotlin(model.output),
        "swift_input": json.dumps(feeding.name, ensure_ascii=False),
        "swift_output": json.dumps(model.output, ensure_ascii=False),
        "channels": str(feeding.channels),
        "height": str(size[0] if size else 0),
        "width": str(size[1] if size else 0),
        "class_count": str(len(golden.labels)),
        "gives_probabilities": str(model.probabilities).lower(),
        "tolerance": f"{golden.tolerance:.9g}",
        "classes": str(len(golden.labels)),
        "examples": ", ".join(golden.labels[:3]) + (", …" if len(golden.labels) > 3 else ""),
        "sha256": model.artifact.sha256,
        "pictures": _pictures(target, model),
        "golden": str(len(golden.pictures)),
        "runtime_version": runtime,
        "numpy_version": version("numpy"),
        "pillow_version": version("pillow"),
        "sharp_version": _SHARP,
        "package_name": re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "app",
        "deploykit_version": __version__,
    }


def _pictures(target: Target, model: AppModel) -> str:
    """Which pictures the app takes, in words."""
    size, how = model.feeding.size, model.feeding.preprocess
    if size is None and how is not None and not model.feeding.any_size and how.crop is None:
        size = how.size
    exact = size is not None and (target.pixels_only or not model.feeding.any_size)
    return f"pictures of {size[0]} x {size[1]} pixels" if exact and size else "pictures of any size"


def _kotlin(name: str) -> str:
    """A string in Kotlin, where a dollar sign begins a variable."""
    return json.dumps(name, ensure_ascii=False).replace("$", "\\$")


def _installed(*names: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise InputError(f"none of {', '.join(names)} is installed; expected one")


def _licence() -> bytes:
    """The licence of deploykit itself, which the app's code is under."""
    return (distribution("deploykit").read_text("licenses/LICENSE") or "Apache-2.0\n").encode()


def _json(document: dict[str, Any]) -> bytes:
    return (dump_json(json.loads(json.dumps(document))) + "\n").encode()
