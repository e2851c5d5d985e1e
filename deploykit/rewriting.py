"""Rewriting: an ONNX file with fewer and better operators, written only if it computes what the one before does."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from deploykit import __version__, environment
from deploykit.artifact import Artifact, Preprocess, check_model, load_model
from deploykit.data.dataset import Dataset
from deploykit.equality import TOLERANCE, Equality, Feed, check_equal
from deploykit.errors import DataError, InputError, ModelFileError, ParityError
from deploykit.feeds import feeds_of
from deploykit.figures import byte_text
from deploykit.files import atomic_path, check_writable
from deploykit.graph.opset import opset_of_proto, upgraded
from deploykit.graph.rewrites import REWRITES, rewrite_model
from deploykit.graph.weights import nodes_of, stored_bytes
from deploykit.preprocess import preprocess_for
from deploykit.rewritings import Rewriting
from deploykit.runtime import filled
from deploykit.sample_rows import PictureRows, Rows, rows_of

if TYPE_CHECKING:
    import onnx

__all__ = ["rewrite_onnx"]

_MOST_BYTES = 2**31  # of one protobuf message
_BATCHES = (1, 3)  # sizes of the random inputs, where the model leaves its batch free
_REAL_BATCH = 16


def rewrite_onnx(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    without: Collection[str] = (),
    also: Collection[str] = (),
    samples: Dataset | Iterable[NDArray[Any]] | None = None,
    preprocess: Preprocess | str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    overwrite: bool = False,
) -> Rewriting:
    """Raises a model to a recent operator set, rewrites it, and compares both before anything is written.

    Args:
        model: Any ``.onnx`` from opset 7 on, below 2 GiB; never changed.
        output: The ``.onnx`` to write.
        without: Names of ``REWRITES`` that are left out.
        also: Names of those that are off by default and wanted.
        samples: Real inputs for the comparison: pictures, or batches (n, …) that are preprocessed already.
        preprocess: For foreign models and pictures: a ``Preprocess`` or the name of a preset.
        shapes: Input shapes by name, where the file leaves other axes than the batch free.
        tolerance: Largest difference of an output, over its largest value.
        seed: Fixes the random inputs.
        overwrite: Replace an existing file.

    Returns:
        The record: what was changed, and the largest differences.

    Raises:
        ParityError: An output differs by more than the tolerance; nothing is written.
        ModelFileError: Unreadable, too old, too large, or with operators that ONNX Runtime does not know.
        InputError: Unknown names, samples that do not fit, a tolerance that is no number, free axes without a shape.
        OutputError: ``output`` exists or cannot be written.
    """
    start, target = time.perf_counter(), Path(output)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(f"tolerance {tolerance}; allowed: finite numbers of 0 or more")
    if target.resolve() == Path(model).resolve():
        raise InputError(f"{target} is the model itself, which is never changed; give another output path")
    check_writable(target, overwrite=overwrite)
    source = load_model(model)
    parent = Artifact.of_model(source, Path(model))
    made, changes = _rewritten(source, parent, without, also)
    counted: dict[str, Any] = {
        "changes": changes,
        "nodes_before": _count(source),
        "nodes_after": _count(made),
        "opset_before": opset_of_proto(source),
        "opset_after": opset_of_proto(made),
    }
    del source  # its weights are not needed while two sessions hold theirs
    random = _RandomFeeds(parent, shapes or {}, seed, freed=bool(changes.get("free_batch")))
    real = None if samples is None else _real_feeds(parent, samples, preprocess)
    with atomic_path(target, overwrite=overwrite) as aside:
        aside.write_bytes(made.SerializeToString(deterministic=True))
        check_model(made, aside)
        child = replace(Artifact.of_model(made, aside), path=target)
        del made
        figures = _figures(parent, aside, random, real, tolerance)
    return Rewriting(
        deploykit=__version__,
        environment=environment.describe(),
        model=target.name,
        model_sha256=child.sha256,
        parent=parent.path.name,
        parent_sha256=parent.sha256,
        file_bytes=child.file_bytes,
        parent_bytes=stored_bytes(parent.path),
        tolerance=tolerance,
        seconds=round(time.perf_counter() - start, 3),
        **counted,
        **figures,
    )


def _rewritten(
    source: onnx.ModelProto, parent: Artifact, without: Collection[str], also: Collection[str]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The rewritten model with its lineage. Raises: ModelFileError, UnknownNameError."""
    if (size := source.ByteSize()) >= _MOST_BYTES:
        raise ModelFileError(f"{parent.path} has {byte_text(size)} with its weights; allowed: below 2 GiB")
    wanted = [name for name, rewrite in REWRITES.items() if rewrite.default]
    raised = upgraded(source, parent.path)
    made, changes = rewrite_model(raised, without=without, only=(*wanted, *also))
    # Parity with PyTorch, and of pictures, was measured with the file before.
    replace(parent, version=__version__, parent_sha256=parent.sha256, parity=None, graph_parity=None).stamp(made)
    return made, changes


def _count(model: onnx.ModelProto) -> int:
    return sum(1 for _ in nodes_of(model.graph))


def _figures(
    parent: Artifact, made: Path, random: Iterable[Feed], real: _RowFeeds | None, tolerance: float
) -> dict[str, Any]:
    """What the record says of the comparison. Raises: ParityError."""
    by_chance = _compared(parent, made, random, tolerance, "random inputs")
    found: dict[str, Any] = {
        "random_samples": by_chance.samples,
        "max_abs": by_chance.max_abs,
        "max_rel": by_chance.max_rel,
    }
    if real is not None:
        measured = _compared(parent, made, real, tolerance, real.name)
        found |= {"samples_name": real.name, "real_samples": measured.samples}
        found |= {"real_max_abs": measured.max_abs, "real_max_rel": measured.max_rel}
    return found


def _compared(parent: Artifact, made: Path, feeds: Iterable[Feed], tolerance: float, what: str) -> Equality:
    try:
        return check_equal(parent.path, made, feeds, tolerance=tolerance)
    except ParityError as problem:
        raise ParityError(f"{parent.path}, rewritten, on {what}: {problem}; nothing was written") from problem


class _RandomFeeds:
    """Seeded inputs, the same in every iteration: two runs, of different sizes where the model leaves them free."""

    def __init__(
        self, artifact: Artifact, shapes: Mapping[str, tuple[int, ...]], seed: int, *, freed: bool = False
    ) -> None:
        fixed = _fixed_batch(artifact, shapes)
        sizes = _BATCHES if fixed is None else (fixed, fixed)
        self._feeds = [feeds_of(artifact, batch=size, shapes=shapes) for size in sizes]
        self._times = _BATCHES if freed else (1, 1)  # a freed model has to answer for each sample as it did for one
        self._seed = seed

    def __iter__(self) -> Iterator[Feed]:
        generator = np.random.default_rng(self._seed)
        for feeds, times in zip(self._feeds, self._times, strict=True):
            yield {
                feed.name: np.concatenate([_random(generator, np.dtype(feed.dtype), feed.shape) for _ in range(times)])
                if feed.shape
                else _random(generator, np.dtype(feed.dtype), ())
                for feed in feeds
            }


def _fixed_batch(artifact: Artifact, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    if not artifact.inputs:
        return None
    first = artifact.inputs[0]
    shape = shapes.get(first.name) or first.shape
    return shape[0] if shape and isinstance(shape[0], int) else None


def _random(generator: np.random.Generator, dtype: np.dtype[Any], shape: Sequence[int]) -> NDArray[Any]:
    """Floats as normalised pictures have them, bytes as pixels are, and 0 or 1, which any index may be, of others."""
    if dtype.kind == "f":
        return np.asarray(generator.standard_normal(shape)).astype(dtype)
    return np.asarray(generator.integers(0, 256 if dtype == np.uint8 else 2, shape)).astype(dtype)


@dataclass(frozen=True)
class _RowFeeds:
    """Real inputs for the only input, in batches that the model takes."""

    rows: Rows
    input: str
    size: int
    fixed: bool
    name: str

    def __iter__(self) -> Iterator[Feed]:
        for batch in self.rows.batches(self.size):
            # A model with a fixed batch gets its last one filled up with copies.
            yield {self.input: filled(batch, self.size) if self.fixed else batch}


def _real_feeds(
    artifact: Artifact, samples: Dataset | Iterable[NDArray[Any]], preprocess: Preprocess | str | None
) -> _RowFeeds:
    if len(artifact.inputs) != 1:
        raise InputError(f"{artifact.path} has {len(artifact.inputs)} inputs; real samples are for models with one")
    fixed = _fixed_batch(artifact, {})
    if isinstance(samples, Dataset):
        rows: Rows = PictureRows(samples, preprocess_for(artifact, preprocess))
        name = f"{samples.name}/{samples.split}"
    else:
        rows, name = rows_of(samples), "arrays"
    if next(rows.batches(1), None) is None:
        raise DataError("no samples to compare on; give one or more, or none at all")
    return _RowFeeds(rows, artifact.inputs[0].name, fixed or _REAL_BATCH, bool(fixed), name)
