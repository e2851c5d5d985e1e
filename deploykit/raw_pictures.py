"""What pictures become for a model: one array, or several where it takes them as they are and their sizes differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploykit.artifact import Preprocess
from deploykit.data.dataset import Pictures
from deploykit.preprocess import apply

__all__ = ["inputs_of"]

_MOST_BYTES = 64 * 2**20  # of the pictures in one array


def inputs_of(pre: Preprocess, pictures: Pictures) -> Iterator[NDArray[Any]]:
    """The model's inputs for some pictures, (n, …) each, in the order of the pictures.

    One array, as ``preprocess.apply`` gives it, unless ``pre.any_size``: then neighbours of the same size share one,
    and nothing is resized or cut.

    Raises: as ``preprocess.apply``.
    """
    if not pre.any_size:
        yield apply(pre, pictures)
        return
    for run in _alike(pictures):
        height, width = run.shape[1:3]
        yield apply(replace(pre, size=(height, width), resize=None, crop=None), run)


def _alike(pictures: Pictures) -> Iterator[NDArray[np.uint8]]:
    """Runs of pictures of the same shape, each of a bounded size."""
    for _, group in groupby(pictures, key=np.shape):
        run = list(group)
        step = max(1, _MOST_BYTES // max(1, run[0].nbytes))
        for start in range(0, len(run), step):
            yield np.stack(run[start : start + step])
