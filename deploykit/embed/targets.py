"""The kinds of apps: what each is, which models it takes, and which template files make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from deploykit import onnxruntime_web
from deploykit.embed.app_model import AppModel
from deploykit.errors import InputError, UnknownNameError

__all__ = ["TARGETS", "Target", "target_named"]

_MOST_PIXELS = 89_478_485  # of a picture; above it Pillow warns of a decompression bomb
_MOST_WEB_PIXELS = 50_000_000  # WebAssembly has at most 4 GB, and a model may hold a picture several times as float32


@dataclass(frozen=True)
class Target:
    """One kind of app.

    Attributes:
        name: Also the folder of its templates.
        what: What it is, for messages.
        pictures: Format of the golden pictures, Pillow's name; ``RAW`` for their pixels alone.
        pixels_only: Whether it takes only models whose graph prepares the pictures, and why.
        any_size_only: Whether it takes only models that take pictures of any size.
        runtime: The package that runs the model.
        most_pixels: Largest picture.
        copied: Template files that are taken as they are, by name in the app; those without a folder lie in the
            target's own.
        filled: Template files with placeholders.
        plain_facts: Whether what the code has to know also stands in text files that need no parser of JSON.
        needs_web_runtime: Whether onnxruntime-web's files go into the folder.
        on_phones: Whether it takes the model as ``.ort``, optimised for ARM, in place of the ``.onnx``.
    """

    name: str
    what: str
    pictures: str
    runtime: str
    copied: tuple[str, ...]
    filled: tuple[str, ...] = ("README.md",)
    plain_facts: bool = False
    needs_web_runtime: bool = False
    on_phones: bool = False
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
                runtime=onnxruntime_web.PACKAGE,
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
                runtime=onnxruntime_web.PACKAGE,
                copied=("classify.js", "pictures.js", "javascript/classifier.js"),
                filled=("README.md", "package.json"),
                needs_web_runtime=True,
                pixels_only="JavaScript resizes otherwise than Python",
                most_pixels=_MOST_WEB_PIXELS,
            ),
            Target(
                name="android",
                what="a class in Kotlin",
                pictures="RAW",
                runtime="onnxruntime-android",
                copied=(),
                filled=("README.md", "Classifier.kt"),
                on_phones=True,
                pixels_only="Android resizes otherwise than Python",
            ),
            Target(
                name="ios",
                what="a class in Swift",
                pictures="RAW",
                runtime="onnxruntime-objc",
                copied=(),
                filled=("README.md", "Classifier.swift"),
                on_phones=True,
                pixels_only="iOS resizes otherwise than Python",
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
