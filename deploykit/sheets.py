"""What is drawn of a network: a sheet of its first weights, one of the maps of each stage, one of what decides."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.drawing import colorize, heat_sheet, signed_colors, tile_sheet
from deploykit.insight import Insight, Kernels
from deploykit.occlusion import Occlusion
from deploykit.stages import Stage

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MOST_MAPS", "Drawn", "draw_kernels", "draw_occlusion", "draw_stages"]

MOST_MAPS = 64
"""Maps of a stage that are drawn."""

_MOST_KERNELS = 256
_NAME_CHARACTERS = 40  # of a stage's name in its file's


@dataclass(frozen=True)
class Drawn:
    """One sheet.

    Attributes:
        file: Its name.
        kind: ``"kernels"``, ``"stage"`` or ``"occlusion"``.
        shows: What it shows and how its colours are to be read.
        stage: Its name.
        layer: Its path in the network.
        shape: Of the weights, or of the maps (channels, height, width).
        channels: Which kernels or maps the tiles show, row by row.
    """

    file: str
    kind: str
    image: Image.Image
    shows: str
    stage: str | None = None
    layer: str | None = None
    shape: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None


def draw_kernels(kernels: Kernels | None, preprocess: Preprocess) -> Drawn | str:
    """The sheet of the first layer's weights, or why there is none."""
    if kernels is None:
        return "no kernels: the first layer has no weights of its own"
    tiles, what = _as_pictures(kernels, preprocess), f"layer {kernels.layer}" if kernels.layer else "layer"
    if tiles is None:
        shape = "×".join(map(str, kernels.weights.shape))
        return f"no kernels: the weights of the first {what} are {shape}, which are no pictures in grey or colour"
    chosen = _largest(np.sqrt(np.square(tiles).sum((1, 2, 3), dtype=np.float64)), _MOST_KERNELS)
    count, channels, height, width = tiles.shape
    kind = "kernels" if kernels.weights.ndim == 4 else "units"
    color = "in colour" if channels == 3 else "in grey"
    first = f"first {what}: {count} {kind} of {height}×{width}, {color}"
    second = "each on its own scale: middle grey is a weight of zero, the largest weight in size is at an end"
    if len(chosen) < count:
        second += f"; the {len(chosen)} with the largest norm"
    image = tile_sheet([signed_colors(tiles[index]) for index in chosen], list(map(str, chosen)), (first, second))
    return Drawn(
        file="kernels.png",
        kind="kernels",
        image=image,
        shows=f"{first}; {second}",
        layer=kernels.layer,
        shape=kernels.weights.shape,
        channels=tuple(chosen),
    )


def _as_pictures(kernels: Kernels, preprocess: Preprocess) -> NDArray[np.float32] | None:
    """(kernels, 1 or 3, height, width), red first; of a fully connected layer, one weight for each of its inputs."""
    weights, (height, width), depth = kernels.weights, preprocess.size, preprocess.depth
    if weights.ndim == 2 and weights.shape[1] == depth * height * width:
        if preprocess.layout == "NCHW":
            weights = weights.reshape(-1, depth, height, width)
        else:
            weights = weights.reshape(-1, height, width, depth).transpose(0, 3, 1, 2)
    if weights.ndim != 4 or weights.shape[1] not in (1, 3) or not weights.size:
        return None
    return weights[:, ::-1] if preprocess.channels == "BGR" else weights


def _largest(sizes: NDArray[np.float64], most: int) -> list[int]:
    """The places of the ``most`` largest, in their order."""
    ranked = np.argsort(-sizes, kind="stable")[:most]
    return sorted(map(int, ranked))


def draw_stages(insight: Insight, picture: str) -> Iterator[Drawn]:
    """A sheet for each stage, numbered in the order of the network."""
    for number, (stage, maps) in enumerate(insight.stages, 1):
        yield _draw_stage(number, stage, maps, picture)


def _draw_stage(number: int, stage: Stage, maps: NDArray[np.float32], picture: str) -> Drawn:
    maps = np.nan_to_num(maps)
    chosen = _largest(maps.mean((1, 2), dtype=np.float64), MOST_MAPS)
    count, height, width = maps.shape
    where = f" ({stage.layer})" if stage.layer not in ("", stage.name) else ""
    first = f"{stage.name}{where}: {count} maps of {height}×{width} for {picture}"
    one_pixel = (height, width) == (1, 1)
    scale = "all on one scale" if one_pixel else "each map on its own scale"
    second = f"{scale}: the least value is dark blue, the greatest yellow"
    if len(chosen) < count:
        second = f"the {len(chosen)} of {count} maps with the largest mean; {second}"
    ranges = [maps if one_pixel else maps[index] for index in chosen]
    tiles = [colorize(maps[index], own.min(), own.max()) for index, own in zip(chosen, ranges, strict=True)]
    image = tile_sheet(tiles, list(map(str, chosen)), (first, second))
    return Drawn(
        file=f"stage-{number:02d}-{_file_part(stage.name)}.png",
        kind="stage",
        image=image,
        shows=f"{first}; {second}",
        stage=stage.name,
        layer=stage.layer,
        shape=maps.shape,
        channels=tuple(chosen),
    )


def _file_part(name: str) -> str:
    """A stage's name with what every file system takes."""
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:_NAME_CHARACTERS]


def draw_occlusion(occlusion: Occlusion, seen: NDArray[np.uint8], *, picture: str, asked: str) -> Drawn:
    """The heat map over the picture as the network sees it, (H, W, 1 or 3), red first."""
    window, left_over = occlusion.window, occlusion.probability - occlusion.largest_drop
    first = f"what decides {asked} in {picture}, probability {100.0 * occlusion.probability:.3g} %"
    second = f"drop of that probability when a grey square of {window}×{window} covers a place"
    third = f"mean over the squares that cover a pixel; framed: the square that leaves {100.0 * left_over:.3g} %"
    image = heat_sheet(
        seen, occlusion.drop, box=occlusion.hottest, caption=(first, second, third), scale_title="drop, % points"
    )
    shows = f"{first}: {second} (Zeiler & Fergus 2014, section 4.2), {third}"
    return Drawn("occlusion.png", "occlusion", image, shows)
