"""What each target's folder holds: the model and its facts, the golden test, and the files of ``templates/embed``."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import distribution, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deploykit import __version__
from deploykit.embed import web_runtime
from deploykit.embed.app_model import AppModel
from deploykit.embed.golden import Golden
from deploykit.embed.options import EmbedOptions
from deploykit.errors import InputError, UnknownNameError
from deploykit.files import dump_json

__all__ = ["TARGETS", "AppContent", "Target", "content_of", "target_named"]

SCHEMA = "deploykit.app/1"
"""Of ``model.json``."""

_TEMPLATES = Path(__file__).parent.parent / "templates" / "embed"
_MOST_PIXELS = 89_478_485  # of a picture; above it Pillow warns of a decompression bomb


_DIGITS = tuple("0123456789")  # such models, of grey pictures, are also shown drawings, white on black as MNIST
_MOST_WEB_PIXELS = 50_000_000  # WebAssembly has at most 4 GB, and a model may hold a picture several times as float32
_SHARP = "0.35.5"  # the version that the Node app was tested with


class _Text(string.Template):
    """A template whose placeholders are ``%%name``: ``$`` and braces mean something in the languages that are made."""

    delimiter = "%%"


@dataclass(frozen=True)
class Target:
    """One kind of app.

    Attributes:
        name: Also the folder of its templates.
        what: What it is, for messages.
        pictures: Format of the golden pictures, Pillow's name.
        pixels_only: Whether it takes only models whose graph prepares the pictures, and why.
        any_size_only: Whether it takes only models that take pictures of any size.
        runtime: The package that runs the model.
        most_pixels: Largest picture.
        copied: Template files that are taken as they are, by name in the app; those without a folder lie in the
            target's own.
        filled: Template files with placeholders.
        plain_facts: Whether what the code has to know also stands in text files that need no parser of JSON.
        needs_web_runtime: Whether onnxruntime-web's files go into the folder.
    """

    name: str
    what: str
    pictures: str
    runtime: str
    copied: tuple[str, ...]
    filled: tuple[str, ...] = ("README.md",)
    plain_facts: bool = False
    needs_web_runtime: bool = False
    pixels_only: str = ""
    any_size_only: bool = False
    most_pixels: int = _MOST_PIXELS

    def check(self, model: AppModel) -> None:
        """Raises: InputError where the model cannot be used in such an app."""
        if self.pixels_only and not model.feeding.takes_pixels:
            raise InputError(
                f"{model.artifact.path} takes {model.feeding.dtype} that the app would have to prepare, and"
                f" {self.pixels_only}; put the preprocessing into the graph:"
                f" deploykit wrap {model.artifact.path} -o {model.artifact.name}.wrapped.onnx"
            )
        if self.pixels_only and model.artifact.outputs[0].dtype != "float32":
            raise InputError(
                f"{model.artifact.path} answers {model.artifact.outputs[0].dtype}; {self.what} reads float32"
            )
        if self.any_size_only and (size := model.feeding.size) is not None:
            raise InputError(
                f"{model.artifact.path} takes pictures of {size[0]} x {size[1]} pixels only, and {self.what} is shown"
                " pictures of any size; wrap or export it without --fixed-size"
            )


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target(
                name="python",
                what="a Python file with a class and a command line",
                pictures="PNG",
                runtime="onnxruntime",
                copied=("classify.py",),
                filled=("README.md", "requirements.txt"),
            ),
            Target(
                name="web",
                what="a page",
                pictures="PNG",
                runtime=web_runtime.PACKAGE,
                copied=(
                    "index.html",
                    "style.css",
                    "start.js",
                    "app.js",
                    "pictures.js",
                    "drawing.js",
                    "javascript/classifier.js",
                ),
                needs_web_runtime=True,
                pixels_only="browsers resize otherwise than Python",
                any_size_only=True,
                most_pixels=_MOST_WEB_PIXELS,
            ),
            Target(
                name="c",
                what="a C program",
                pictures="PPM",
                runtime="onnxruntime",
                copied=("classify.c", "CMakeLists.txt"),
                plain_facts=True,
                pixels_only="C has no pictures to resize",
            ),
            Target(
                name="node",
                what="a module and a command line for Node.js",
                pictures="PNG",
                runtime=web_runtime.PACKAGE,
                copied=("classify.js", "pictures.js", "javascript/classifier.js"),
                filled=("README.md", "package.json"),
                needs_web_runtime=True,
                pixels_only="JavaScript resizes otherwise than Python",
                most_pixels=_MOST_WEB_PIXELS,
            ),
        )
    }
)
"""The kinds of apps, by name."""


def target_named(name: str) -> Target:
    """Raises: UnknownNameError."""
    if name not in TARGETS:
        raise UnknownNameError("target", name, TARGETS)
    return TARGETS[name]


@dataclass(frozen=True)
class AppContent:
    """The files of an app: contents, and files that are copied, by path in the folder."""

    contents: Mapping[str, bytes]
    copies: Mapping[str, Path] = field(default_factory=dict)
    runtime_version: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All paths, in order."""
        return tuple(sorted({*self.contents, *self.copies}))


def content_of(target: Target, model: AppModel, golden: Golden, options: EmbedOptions) -> AppContent:
    """The files of an app. Raises: InputError."""
    target.check(model)
    title = options.title or model.artifact.name
    runtime, copies = _runtime(target, options)
    facts = _facts(target, model, golden, title, runtime)
    contents = {
        "model.json": _json(facts),
        "labels.txt": ("\n".join(golden.labels) + "\n").encode(),
        "LICENSE": _licence(),
        **_golden_files(target, golden),
        **_template_files(target, _words(target, model, golden, title, runtime)),
        **(_plain_facts(target, model, golden) if target.plain_facts else {}),
    }
    return AppContent(contents, {"model.onnx": model.artifact.path, **copies}, runtime)


def _runtime(target: Target, options: EmbedOptions) -> tuple[str, dict[str, Path]]:
    """The version that the app is pinned to, and the runtime's files where they go into the folder."""
    if not target.needs_web_runtime:
        return _installed("onnxruntime", "onnxruntime-gpu"), {}
    found = web_runtime.web_runtime(options.runtime)
    files = {f"runtime/{name}": path for name, path in found.files.items()}
    return found.version, {**files, "runtime/LICENSE": _TEMPLATES / "runtime" / "LICENSE"}


def _facts(target: Target, model: AppModel, golden: Golden, title: str, runtime: str) -> dict[str, Any]:
    """``model.json``: all that the app's code has to know."""
    artifact = model.artifact
    return {
        "schema": SCHEMA,
        "title": title,
        "target": target.name,
        "model": "model.onnx",
        "model_bytes": artifact.file_bytes,
        "model_sha256": artifact.sha256,
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
    return {"PNG": ".png", "PPM": ".pgm" if grey else ".ppm"}[target.pictures]


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
    size = model.feeding.size
    return {
        "title": title,
        "classes": str(len(golden.labels)),
        "examples": ", ".join(golden.labels[:3]) + (", …" if len(golden.labels) > 3 else ""),
        "sha256": model.artifact.sha256,
        "pictures": "pictures of any size"
        if model.feeding.any_size or size is None
        else f"pictures of {size[0]} x {size[1]} pixels",
        "golden": str(len(golden.pictures)),
        "runtime_version": runtime,
        "numpy_version": version("numpy"),
        "pillow_version": version("pillow"),
        "sharp_version": _SHARP,
        "package_name": re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "app",
        "deploykit_version": __version__,
    }


def _installed(*names: str) -> str:
    """The version of the first of these distributions that is installed."""
    from importlib.metadata import PackageNotFoundError

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
