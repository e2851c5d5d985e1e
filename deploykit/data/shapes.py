"""Generated pictures: coloured geometric shapes, as in the lecture notes on small convolutional networks (chapter 18).

Nothing is downloaded. The same seed number gives the same pictures everywhere, up to changes in Pillow's drawing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from deploykit.data.dataset import Dataset

__all__ = ["TASKS", "ShapesTask", "draw", "load_shapes", "task_for_classes"]

SIDE = 28  # pixels of the picture's sides
PER_CLASS = MappingProxyType({"train": 600, "test": 100})  # the lecture notes' table of samples, section 18.2
_FINE = 4  # drawn this many times larger, then averaged: edges as a camera sees them

_SHAPES = ("line", "triangle", "diamond", "rectangle", "circle")
_COLORS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (255, 0, 0),
        "green": (0, 255, 0),
        "blue": (0, 0, 255),
        "yellow": (255, 255, 0),
        "cyan": (0, 255, 255),
        "magenta": (255, 0, 255),
    }
)
_Points = list[tuple[float, float]]


@dataclass(frozen=True)
class ShapesTask:
    """One question about the pictures: which colour, which shape, or both."""

    name: str
    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    labels: tuple[str, ...]
    channels: int

    def kind_of(self, target: int, random: np.random.RandomState) -> tuple[str, str | None]:
        """Shape and colour of a picture of class ``target``; what the class leaves open is drawn."""
        if self.name == "shapes-shape":
            return self.shapes[target], None
        if self.name == "shapes-color":
            return self.shapes[random.randint(len(self.shapes))], self.colors[target]
        color, shape = self.labels[target].split("-")
        return shape, color


def _color_shape_task() -> ShapesTask:
    shapes, colors = ("circle", "rectangle", "triangle"), ("red", "blue", "green")
    labels = tuple(f"{color}-{shape}" for shape in shapes for color in colors)
    return ShapesTask("shapes-color-shape", shapes, colors, labels, 3)


TASKS: Mapping[str, ShapesTask] = MappingProxyType(
    {
        "shapes-color": ShapesTask("shapes-color", _SHAPES, tuple(_COLORS), tuple(_COLORS), 3),
        "shapes-shape": ShapesTask("shapes-shape", _SHAPES, (), _SHAPES, 1),
        "shapes-color-shape": _color_shape_task(),
    }
)


def task_for_classes(classes: int | None) -> str:
    """What ``shapes`` alone means for a network of ``classes`` outputs."""
    fitting = [name for name, task in TASKS.items() if len(task.labels) == classes]
    return fitting[0] if fitting else "shapes-color-shape"


def load_shapes(task: str, split: str, seed: int = 0) -> Dataset:
    """The pictures of a task, 600 a class for ``"train"`` and 100 for ``"test"``, or both for ``"all"``.

    Args:
        task: A name of ``TASKS``.
        split: ``"train"``, ``"test"`` or ``"all"``.
        seed: Another number gives other pictures.
    """
    parts = [draw(TASKS[task], part, seed) for part in PER_CLASS if split in (part, "all")]
    images, targets = (np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for arrays in zip(*parts, strict=True))
    return Dataset.from_arrays(
        task if seed == 0 else f"{task}@{seed}",
        images,
        targets,
        TASKS[task].labels,
        split=split,
        has_splits=True,
        whole=None if split == "all" else partial(load_shapes, task, "all", seed),
    )


@lru_cache(maxsize=4)
def draw(task: ShapesTask, split: str, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All pictures of one split, ``(N, 28, 28, C)``, and their targets, ``(N,)``; classes take turns."""
    # RandomState's stream is frozen by NumPy's policy (NEP 19); each split has a stream of its own.
    random = np.random.RandomState([seed, list(TASKS).index(task.name), list(PER_CLASS).index(split)])
    count = PER_CLASS[split] * len(task.labels)
    targets = np.arange(count, dtype=np.int64) % len(task.labels)
    covers = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    inks = np.zeros((count, task.channels))
    for number, target in enumerate(targets):
        shape, color = task.kind_of(int(target), random)
        inks[number] = _ink(color, random)
        covers[number] = _cover(shape, random)
    images = np.zeros((count, SIDE, SIDE, task.channels), dtype=np.uint8)
    for channel in range(task.channels):  # the ground is black
        images[..., channel] = np.rint(covers * inks[:, channel, None, None])
    for array in (images, targets):
        array.flags.writeable = False  # it is kept and given again
    return images, targets


def _ink(color: str | None, random: np.random.RandomState) -> NDArray[np.float64]:
    """A shade of grey, ``(1,)``, or of the colour, ``(3,)``, from 0 to 1."""
    if color is None:
        return random.uniform(0.5, 1.0, 1)
    # Lit channels vary a little against each other, dark ones are not quite dark: reds, not one red. More shades than
    # these are beyond the two 1x1 kernels of the lecture notes' network.
    lit, dark, shade = random.uniform(0.9, 1.0, 3), random.uniform(0.0, 0.1, 3), random.uniform(0.8, 1.0)
    return np.asarray(shade * np.where(np.array(_COLORS[color]) > 0, lit, dark))


def _cover(shape: str, random: np.random.RandomState) -> NDArray[np.uint8]:
    """How much of each pixel the shape covers, 0 to 255, ``(28, 28)``."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (SIDE * _FINE, SIDE * _FINE))
    pen = ImageDraw.Draw(canvas)
    filled = random.uniform() < 0.6
    width = _FINE * random.randint(1, 3)  # outlines and lines of one or two pixels
    if shape == "line":
        pen.line(_fine(_line(random)), fill=255, width=width)
    elif shape == "circle":
        box = _fine(_circle(random))
        pen.ellipse(box, fill=255) if filled else pen.ellipse(box, outline=255, width=width)
    else:
        corners = _fine({"triangle": _triangle, "diamond": _diamond, "rectangle": _rectangle}[shape](random))
        pen.polygon(corners, fill=255) if filled else pen.polygon(corners, outline=255, width=width)
    return np.asarray(canvas.reduce(_FINE))


def _fine(points: _Points) -> list[tuple[int, int]]:
    # Whole numbers, so that nothing hangs on how a Pillow version rounds.
    return [(round(x * _FINE), round(y * _FINE)) for x, y in points]


def _placed(points: _Points, random: np.random.RandomState) -> _Points:
    """Moves the points to any place where they lie inside the picture, one pixel from its border."""
    columns, rows = [x for x, _ in points], [y for _, y in points]
    left = random.uniform(1.0, max(1.0, SIDE - 2.0 - (max(columns) - min(columns)))) - min(columns)
    top = random.uniform(1.0, max(1.0, SIDE - 2.0 - (max(rows) - min(rows)))) - min(rows)
    return [(x + left, y + top) for x, y in points]


def _turned(points: _Points, angle: float) -> _Points:
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(x * cosine - y * sine, x * sine + y * cosine) for x, y in points]


def _line(random: np.random.RandomState) -> _Points:
    half = random.uniform(4.0, 12.5)
    return _placed(_turned([(-half, 0.0), (half, 0.0)], random.uniform(0.0, math.pi)), random)


def _circle(random: np.random.RandomState) -> _Points:
    radius = random.uniform(4.0, 12.5)
    return _placed([(-radius, -radius), (radius, radius)], random)


def _rectangle(random: np.random.RandomState) -> _Points:
    x, y = random.uniform(3.0, 12.5, 2)
    return _placed([(-x, -y), (x, -y), (x, y), (-x, y)], random)


def _diamond(random: np.random.RandomState) -> _Points:
    x = random.uniform(4.5, 12.0)
    y = min(12.0, max(4.5, x * random.uniform(0.7, 1.4)))
    # Turned by 45 degrees it would be a rectangle.
    return _placed(_turned([(-x, 0.0), (0.0, -y), (x, 0.0), (0.0, y)], random.uniform(-0.2, 0.2)), random)


def _triangle(random: np.random.RandomState) -> _Points:
    radius = random.uniform(5.5, 12.0)
    angles = random.uniform(0.0, 2.0 * math.pi) + np.array([0.0, 1.0, 2.0]) * 2.0 * math.pi / 3.0
    angles += random.uniform(-0.3, 0.3, 3)
    return _placed([(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles], random)
