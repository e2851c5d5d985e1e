"""Pictures in, labels out: ``python classify.py PICTURE…``, or ``Classifier().classify(picture)`` from a program.

Needs onnxruntime, numpy and Pillow (``requirements.txt``) and the files beside this one. What the model takes stands
in ``model.json``; ``python classify.py --self-test`` compares its answers with those in ``golden/``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

MOST_RESIZED = 178_956_970  # pixels; where Pillow refuses to open a picture
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
# What Pillow raises over garbled files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, MemoryError)
LUMA = np.array([19595, 38470, 7471], np.uint32)  # ITU-R 601 in 16-bit fixed point, as Pillow's convert("L")


class UnusableError(Exception):
    """A picture, a file of this folder or an argument that cannot be used, in one line."""


@dataclass(frozen=True)
class Answer:
    """One class: its name, its place among the outputs and its probability."""

    label: str
    index: int
    probability: float


class Classifier:
    """The model of a folder, with the way its pictures are prepared.

    Args:
        folder: Where model.json lies; this file's folder when None.
        threads: Threads of the runtime; None takes all cores.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, threads: int | None = None) -> None:
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        self.facts = _read_json(self.folder / "model.json")
        self.labels = _read(self.folder / "labels.txt").decode().rstrip("\n").split("\n")
        if len(self.labels) != self.facts["classes"]:
            raise UnusableError(f"labels.txt names {len(self.labels)} classes instead of {self.facts['classes']}")
        self.input: dict[str, Any] = self.facts["input"]
        self.session = self._open(threads)

    def _open(self, threads: int | None) -> Any:
        path, expected = self.folder / self.facts["model"], self.facts["model_bytes"]
        try:
            if (found := path.stat().st_size) != expected:
                raise UnusableError(
                    f"{path} has {found} bytes instead of {expected}: cut short or replaced; copy it again"
                )
        except OSError as problem:
            raise UnusableError(f"cannot read {path}: {problem.strerror}") from problem
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # what goes wrong is raised as well
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # ONNX Runtime's exceptions share no other base
            raise UnusableError(f"{path} is not a usable model: {_one_line(problem)}") from problem

    def classify(self, picture: Any, top: int = 5) -> list[Answer]:
        """The most probable classes, best first.

        Args:
            picture: A path, a file's bytes, a PIL image, or pixels (H, W, 1 or 3) uint8 in RGB order.
            top: How many.

        Raises: UnusableError.
        """
        chances = self.probabilities(self.outputs(self.pixels(picture)))
        best = np.argsort(-chances, kind="stable")[:top]
        return [Answer(self.labels[index], int(index), float(chances[index])) for index in best]

    def outputs(self, pixels: np.ndarray) -> np.ndarray:
        """What the model answers, (classes,), for pixels (H, W, C) uint8. Raises: UnusableError."""
        inputs = {self.input["name"]: self.prepared(pixels)}
        try:
            (answers,) = self.session.run([self.facts["output"]], inputs)
        except Exception as problem:  # as above
            raise UnusableError(f"the model cannot take this picture: {_one_line(problem)}") from problem
        return np.asarray(answers, np.float32).reshape(-1)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """(classes,), by softmax unless the model gives them already."""
        values = outputs.astype(np.float64)
        if self.facts["probabilities"]:
            return values
        powers = np.exp(values - values.max())
        return np.asarray(powers / powers.sum())

    def pixels(self, picture: Any) -> np.ndarray:
        """(H, W, C) uint8 with the model's channels: upright, without transparency. Raises: UnusableError."""
        depth = self.input["channels"]
        if isinstance(picture, np.ndarray):
            return _recoloured(_checked(picture), depth)
        if isinstance(picture, Image.Image):
            try:
                return _pixels_of(picture, depth)
            except ValueError as problem:
                raise UnusableError(f"this picture cannot be used: {_one_line(problem)}") from problem
        if isinstance(picture, (bytes, bytearray)):
            return _decoded(bytes(picture), "the picture", depth, self.facts["most_pixels"])
        path = Path(picture)
        return _decoded(_read(path), str(path), depth, self.facts["most_pixels"])

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """The model's input for one picture: the pixels as they are, or prepared as model.json says."""
        if (how := self.input["preprocess"]) is not None:
            return _normalized(how, _cropped(how, _resized(how, pixels)))
        if (size := self.input["size"]) is not None and list(pixels.shape[:2]) != size:
            received = f"{pixels.shape[0]} x {pixels.shape[1]}"
            raise UnusableError(f"the picture has {received} pixels; this model takes {size[0]} x {size[1]} only")
        return np.ascontiguousarray(pixels)[None]

    def self_test(self) -> list[tuple[str, str, str, float]]:
        """Of each golden picture: its file, the label expected, the label found, the largest difference of an output.

        Raises: UnusableError.
        """
        rows = []
        for golden in _read_json(self.folder / "golden" / "golden.json")["pictures"]:
            outputs = self.outputs(self.pixels(self.folder / "golden" / golden["file"]))
            expected = np.array(golden["outputs"], np.float32)
            if expected.shape != outputs.shape:
                raise UnusableError(f"the model gives {outputs.size} outputs; golden.json expects {expected.size}")
            worst = float(np.abs(outputs - expected).max())
            found = self.labels[int(outputs.argmax())]
            rows.append((golden["file"], golden["label"], found, worst if np.isfinite(worst) else float("inf")))
        return rows

    @property
    def tolerance(self) -> float:
        """The largest difference of an output that the self-test lets pass."""
        return float(_read_json(self.folder / "golden" / "golden.json")["tolerance"])


def _decoded(content: bytes, name: str, depth: int, most_pixels: int) -> np.ndarray:
    if not content:
        raise UnusableError(f"{name} is empty; give a picture")
    allowed = ", ".join(FORMATS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > most_pixels:
                    raise UnusableError(f"{name} has {image.width} x {image.height} pixels; allowed: {most_pixels:,}")
                image.load()
                return _pixels_of(image, depth)
    except Image.DecompressionBombError as problem:  # raised where it has more than twice Pillow's limit
        raise UnusableError(f"{name} is too large; allowed: {most_pixels:,} pixels") from problem
    except UnidentifiedImageError as problem:
        raise UnusableError(f"{name} is no picture of a known format, or damaged; allowed: {allowed}") from problem
    except DAMAGE as problem:
        raise UnusableError(f"{name} is not a readable picture: {_one_line(problem)}") from problem


def _pixels_of(image: Image.Image, depth: int) -> np.ndarray:
    """(H, W, depth): upright as EXIF says, eight bits, transparency dropped."""
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        exif, image = image.getexif(), ImageChops.invert(image)  # Pillow takes every CMYK JPEG for an inverted one
        image.info["exif"] = exif.tobytes()
    image = ImageOps.exif_transpose(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError(f"pixels from {wide.min()} to {wide.max()}; allowed: 8 or 16 bits a channel")
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers; allowed: 8 or 16 bits a channel")
    pixels = np.asarray(image.convert("L" if depth == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], depth)


def _checked(pixels: np.ndarray) -> np.ndarray:
    shaped = pixels[..., None] if pixels.ndim == 2 else pixels
    if shaped.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] not in (1, 3) or 0 in shaped.shape:
        raise UnusableError(
            f"pixels are {pixels.dtype} of shape {pixels.shape}; allowed: uint8 of shape (H, W, 1 or 3)"
        )
    return shaped


def _recoloured(pixels: np.ndarray, depth: int) -> np.ndarray:
    if depth == 3 and pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    if depth == 1 and pixels.shape[2] == 3:
        return ((pixels @ LUMA + 0x8000) >> 16).astype(np.uint8)[..., None]
    return pixels


def _resized(how: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """``resize`` of model.json: None, the shorter side, or [height, width]; Pillow's antialiased bilinear filter."""
    (height, width, depth), wanted = pixels.shape, how["resize"]
    if wanted is None:
        return pixels
    if isinstance(wanted, int):
        tall = height > width
        size = (wanted * height // width, wanted) if tall else (wanted, wanted * width // height)
    else:
        size = (wanted[0], wanted[1])
    if size == (height, width):
        return pixels
    if size[0] * size[1] > MOST_RESIZED or 0 in size:
        raise UnusableError(f"a picture of {height} x {width} pixels would become {size[0]} x {size[1]}")
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if depth == 1 else pixels))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(*size, depth)


def _cropped(how: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """The middle at ``size``, with zeros around where the picture is smaller."""
    size, (height, width, depth) = tuple(how["size"]), pixels.shape
    if (height, width) == size:
        return pixels
    if how["crop"] is None:
        raise UnusableError(f"the picture has {height} x {width} pixels; this model takes {size[0]} x {size[1]} only")
    canvas = np.zeros((*size, depth), np.uint8)
    (rows_from, rows_to), (columns_from, columns_to) = _window(height, size[0]), _window(width, size[1])
    canvas[rows_to, columns_to] = pixels[rows_from, columns_from]
    return canvas


def _window(have: int, want: int) -> tuple[slice, slice]:
    if have >= want:
        start = round((have - want) / 2.0)  # half to even, as torchvision's center_crop
        return slice(start, start + want), slice(0, want)
    start = (want - have) // 2
    return slice(0, have), slice(start, start + have)


def _normalized(how: dict[str, Any], pixels: np.ndarray) -> np.ndarray:
    """``(pixel * scale - mean) / std`` in the model's channel order, layout and type, with a batch of one."""
    ordered = pixels[..., ::-1] if how["channels"] == "BGR" else pixels
    if how["dtype"] != "uint8":
        factor = (np.float64(how["scale"]) / np.array(how["std"])).astype(np.float32)
        offset = (-np.array(how["mean"], np.float64) / np.array(how["std"])).astype(np.float32)
        ordered = (ordered * factor + offset).astype(how["dtype"])
    batch = ordered[None]
    return np.ascontiguousarray(batch.transpose(0, 3, 1, 2) if how["layout"] == "NCHW" else batch)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise UnusableError(f"cannot read {path}: {problem.strerror}") from problem


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(_read(path))
    except ValueError as problem:
        raise UnusableError(f"{path} is damaged: {_one_line(problem)}; copy it again") from problem
    return document


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:300] or type(problem).__name__


def _run_self_test(classifier: Classifier) -> int:
    rows, tolerance = classifier.self_test(), classifier.tolerance
    wrong = 0
    for file, expected, found, worst in rows:
        passed = expected == found and worst <= tolerance
        wrong += not passed
        print(
            f"{'passed' if passed else 'FAILED'}  {file}: {found}, expected {expected}; outputs differ by {worst:.3g}"
        )
    print(f"self-test: {len(rows) - wrong} of {len(rows)} passed (tolerance {tolerance:.3g})")
    return 1 if wrong else 0


def _classify_all(classifier: Classifier, pictures: list[str], top: int, as_json: bool) -> int:
    """One unreadable picture does not keep the others from being classified."""
    code, found = 0, []
    for picture in pictures:
        try:
            began = time.perf_counter()
            answers = classifier.classify(picture, top)
            took = (time.perf_counter() - began) * 1000.0
        except UnusableError as problem:
            print(f"error: {problem}", file=sys.stderr)
            code = 2
            continue
        found.append({"picture": picture, "ms": took, "answers": [vars(answer) for answer in answers]})
        if not as_json:
            best = ", ".join(f"{answer.label} {answer.probability:.1%}" for answer in answers)
            print(f"{picture}: {best} ({took:.1f} ms)")
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    return code


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 1: the self-test failed; 2: bad input."""
    parser = argparse.ArgumentParser(prog="classify.py", description="Says what is on pictures.")
    parser.add_argument("pictures", nargs="*", metavar="PICTURE")
    parser.add_argument("--self-test", action="store_true", help="compare with the answers in golden/")
    parser.add_argument("--top", type=int, default=5, help="how many classes")
    parser.add_argument("--threads", type=int, help="threads of the runtime; all cores by default")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if not given.pictures and not given.self_test:
        parser.error("no picture; give the path of one, or --self-test")
    try:
        classifier = Classifier(threads=given.threads)
        code = _run_self_test(classifier) if given.self_test else 0
    except UnusableError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return code or (_classify_all(classifier, given.pictures, given.top, given.json) if given.pictures else 0)


if __name__ == "__main__":
    sys.exit(main())
