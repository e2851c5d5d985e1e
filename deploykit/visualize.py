"""Pictures of what a network sees: its first kernels, the maps of each stage, and the regions that decide a class."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.classifier import Classifier
from deploykit.data.paths import printable, user_path
from deploykit.data.picture import read_picture
from deploykit.drawing import png_bytes
from deploykit.errors import InputError, UnknownNameError
from deploykit.files import sha256_file
from deploykit.insight import Insight, answer_of_module, look_into_module, look_into_onnx
from deploykit.occlusion import Occlusion, occlude
from deploykit.picture_folder import ClassAnswer, PictureFile, Pictures, writable_folder, write_folder
from deploykit.preprocess import PRESETS, fit_pictures, normalize, preset
from deploykit.progress import Progress, silent
from deploykit.sheets import Drawn, draw_kernels, draw_occlusion, draw_stages
from deploykit.sources import Source, open_source

__all__ = ["VisualizeOptions", "visualize_network"]

_MOST_NAMED = 30  # classes that a message lists
_GREY = 128
_UNSURE = 0.01  # a class below this probability has little to lose
_SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class VisualizeOptions:
    """What to draw, validated.

    Attributes:
        target: The class whose regions are looked for: a name, or a number from 0; None takes the predicted one.
        window: Side of the square that covers, in pixels of the network's input; None takes a fifth of the shorter.
        stride: Pixels between its positions; None takes the smallest with at most 400 positions.
    """

    target: str | None = None
    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        for name in ("window", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} {value}; allowed: 1 pixel or more")


@dataclass(frozen=True)
class _View:
    """A network of whatever source, as far as pictures of it go. ``answer`` gives probabilities (N, classes)."""

    name: str
    sha256: str | None
    network: str | None
    preprocess: Preprocess
    labels: tuple[str, ...]
    answer: Callable[[NDArray[Any]], NDArray[np.float64]]
    look: Callable[[NDArray[Any]], Insight]
    warnings: tuple[str, ...] = ()


def visualize_network(
    source: str | os.PathLike[str] | Source,
    picture: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    preprocess: Preprocess | str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    options: VisualizeOptions | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Pictures:
    """Draws a network's first kernels, what one picture makes of each stage, and what decides a class.

    Args:
        source: An ``.onnx`` of any precision, or what ``open_source`` takes or gives.
        picture: A picture file.
        folder: Gets ``kernels.png``, ``stage-NN-NAME.png``, ``occlusion.png`` and ``index.json``, or none of them.
        preprocess: For networks that do not say theirs: itself, or a preset's name.
        input_shape: (C, H, W), for those that do not say it.
        options: Class, window and stride.
        overwrite: Replace the pictures of an earlier call.
        progress: Told the positions of the square.

    Raises:
        InputError: The preprocessing is unknown, no such class, a window or stride that does not fit, or a network that
            fails or does not classify.
        DataError: The picture is damaged or too large.
        OutputError: The folder holds pictures already, or cannot be written.
    """
    options, target = options or VisualizeOptions(), Path(folder)
    view = _view(source, preprocess, input_shape)
    with writable_folder(target, overwrite):
        scene = _Scene.of(view, user_path(picture))
        asked = _asked(options.target, view.labels, scene.chances)
        insight, grey = view.look(scene.inputs), _grey(view.preprocess)
        occlusion = occlude(
            scene.seen,
            lambda covered: view.answer(normalize(view.preprocess, covered))[:, asked.index],
            grey=grey,
            window=options.window,
            stride=options.stride,
            progress=progress,
        )
        sheets, notes = _sheets(view, insight, occlusion, scene, asked)
        pngs = {sheet.file: png_bytes(sheet.image) for sheet in sheets}
        record = replace(
            _record(view, scene, asked, occlusion),
            grey=grey,
            files=tuple(_described(sheet, pngs[sheet.file]) for sheet in sheets),
            warnings=(*view.warnings, *notes),
        )
        write_folder(target, record, pngs, overwrite)
    return record


@dataclass(frozen=True, eq=False)
class _Scene:
    """A picture before a network: as it is (H, W, C), as the network gets it, and what the network answers."""

    path: Path
    size: tuple[int, int]
    seen: NDArray[np.uint8]
    inputs: NDArray[Any]
    chances: NDArray[np.float64]

    @classmethod
    def of(cls, view: _View, path: Path) -> _Scene:
        whole = read_picture(path, view.preprocess.depth)
        seen = fit_pictures(view.preprocess, [whole])
        inputs = normalize(view.preprocess, seen)
        chances = view.answer(inputs)[0]
        if view.labels and len(view.labels) != len(chances):
            raise InputError(
                f"{view.name} has {len(view.labels)} labels but gives {len(chances)} logits; both must be equal"
            )
        return cls(path, (whole.shape[0], whole.shape[1]), seen[0], inputs, chances)

    @property
    def name(self) -> str:
        return printable(self.path.name)


def _record(view: _View, scene: _Scene, asked: ClassAnswer, occlusion: Occlusion) -> Pictures:
    return Pictures(
        deploykit=__version__,
        environment=environment.describe(),
        source=view.name,
        source_sha256=view.sha256,
        network=view.network,
        picture=scene.name,
        picture_sha256=sha256_file(scene.path),
        picture_size=scene.size,
        seen_size=view.preprocess.size,
        predicted=_class_answer(int(scene.chances.argmax()), view.labels, scene.chances),
        asked=asked,
        window=occlusion.window,
        stride=occlusion.stride,
        positions=occlusion.positions,
        hottest=occlusion.hottest,
        largest_drop=occlusion.largest_drop,
        preprocess=view.preprocess.to_json(),
    )


def _view(
    source: str | os.PathLike[str] | Source, given: Preprocess | str | None, shape: tuple[int, int, int] | None
) -> _View:
    if isinstance(source, Source):
        return _view_of_module(source.described(input_shape=shape, preprocess=given))
    if os.fspath(source).lower().endswith(".onnx"):
        return _view_of_onnx(Path(source), given, shape)
    return _view_of_module(open_source(source).described(input_shape=shape, preprocess=given))


def _view_of_onnx(path: Path, given: Preprocess | str | None, shape: tuple[int, int, int] | None) -> _View:
    if shape and not isinstance(given, str):
        raise InputError(f"--shape {shape} is for models that do not say their preprocessing; give --preprocess too")
    if shape and isinstance(given, str):
        tensor = Artifact.read(path).inputs[0]
        axes = tensor.shape or ()
        layout = "NHWC" if len(axes) == 4 and axes[3] == shape[0] and axes[1] != shape[0] else "NCHW"
        given = preset(given, size=shape[1:], depth=shape[0], layout=layout, dtype=tensor.dtype)
    classifier = Classifier.open(path, preprocess=given)

    def answer(inputs: NDArray[Any]) -> NDArray[np.float64]:
        return _probabilities(classifier.logits(inputs), classifier.gives_probabilities)

    artifact = classifier.artifact
    return _View(
        name=path.name,
        sha256=artifact.sha256,
        network=artifact.network,
        preprocess=classifier.preprocess,
        labels=artifact.labels,
        answer=answer,
        look=lambda inputs: look_into_onnx(load_model(path), path, inputs),
        warnings=classifier.session.notes,
    )


def _view_of_module(source: Source) -> _View:
    preprocess = source.card.preprocess
    if preprocess is None:
        raise InputError(
            f"{source.name} does not say how its pictures are prepared; name it with --preprocess"
            f" ({', '.join(PRESETS)}) and --shape, such as 3x224x224"
        )
    notes = list(source.notes)
    if source.kind == "network" and source.card.parent_sha256 is None:
        notes.append(f"{source.name} has fresh weights: it has learned nothing, and its pictures mean little")
    return _View(
        name=source.path.name if source.path else source.name,
        sha256=source.card.parent_sha256,
        network=source.card.network,
        preprocess=preprocess,
        labels=source.card.labels,
        answer=lambda inputs: _probabilities(answer_of_module(source.module, inputs)),
        look=lambda inputs: look_into_module(source.module, inputs),
        warnings=tuple(notes),
    )


def _probabilities(values: NDArray[Any], given: bool = False) -> NDArray[np.float64]:
    """Softmax of (N, classes), unless the output is a distribution already."""
    values = values.astype(np.float64)
    if given or (values.min() >= 0.0 and bool((np.abs(values.sum(1) - 1.0) < _SUMS_TO_ONE).all())):
        return values
    powers = np.exp(values - values.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _class_answer(index: int, labels: Sequence[str], chances: NDArray[np.float64]) -> ClassAnswer:
    return ClassAnswer(index, labels[index] if labels else None, float(chances[index]))


def _asked(text: str | None, labels: Sequence[str], chances: NDArray[np.float64]) -> ClassAnswer:
    """The predicted one when nothing is asked; by name first, since digits are names as well as numbers."""
    if text is None:
        return _class_answer(int(chances.argmax()), labels, chances)
    if text in labels:
        return _class_answer(list(labels).index(text), labels, chances)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
    if 0 <= number < len(chances):
        return _class_answer(number, labels, chances)
    if 0 < len(labels) <= _MOST_NAMED:
        raise UnknownNameError("class", text[:100], labels)
    near = difflib.get_close_matches(text[:100], labels, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    names = "the network's class names, or " if labels else ""
    raise InputError(f"unknown class {text[:100]!r}; {hint}allowed: {names}a number from 0 to {len(chances) - 1}")


def _grey(preprocess: Preprocess) -> tuple[int, ...]:
    """The colour that is zero for the network, its training pictures' mean; middle grey where it knows none."""
    if not any(preprocess.mean) or preprocess.scale == 0.0:
        return (_GREY,) * preprocess.depth
    return tuple(int(np.clip(round(mean / preprocess.scale), 0, 255)) for mean in preprocess.mean)


def _sheets(
    view: _View, insight: Insight, occlusion: Occlusion, scene: _Scene, asked: ClassAnswer
) -> tuple[list[Drawn], list[str]]:
    """What is drawn, and what has to be said of it."""
    notes: list[str] = []
    kernels = draw_kernels(insight.kernels, view.preprocess)
    if isinstance(kernels, str):
        notes.append(kernels)
    stages = list(draw_stages(insight, scene.name))
    if not stages:
        notes.append("no stages: the network has no feature maps of channels, height and width")
    if asked.probability < _UNSURE:
        notes.append(f"{asked} has a probability of {asked.probability:.2g} in {scene.name}: there is little to drop")
    elif occlusion.largest_drop <= 0.0:
        notes.append(f"no square lowers the probability of {asked}")
    red_first = scene.seen[..., ::-1] if view.preprocess.channels == "BGR" else scene.seen
    decides = draw_occlusion(occlusion, red_first, picture=scene.name, asked=str(asked))
    return [*([] if isinstance(kernels, str) else [kernels]), *stages, decides], notes


def _described(sheet: Drawn, content: bytes) -> PictureFile:
    return PictureFile(
        file=sheet.file,
        kind=sheet.kind,
        file_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        width=sheet.image.width,
        height=sheet.image.height,
        shows=sheet.shows,
        stage=sheet.stage,
        layer=sheet.layer,
        shape=sheet.shape,
        channels=sheet.channels,
    )
