from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_onnx import conv_chain, relu

from deploykit import data
from deploykit.artifact import Artifact, Preprocess
from deploykit.calibrate import Calibration, calibration_from_arrays, calibration_from_dataset
from deploykit.data.dataset import Dataset
from deploykit.errors import DataError, InputError
from deploykit.preprocess import apply
from deploykit.sample_rows import SpooledRows, rows_of

RANDOM = np.random.default_rng(0)
SIGNED = Preprocess(size=(24, 24), channels="L", scale=1 / 255, mean=(0.5,), std=(0.25,))  # -2 to 2
COLOR = Preprocess(size=(24, 24), channels="RGB", scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)


def _artifact(folder: Path, preprocess: Preprocess | None = None, channels: int = 1) -> Artifact:
    return replace(Artifact.read(relu(folder / "m.onnx", shape=("N", channels, 24, 24))), preprocess=preprocess)


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return _artifact(tmp_path, SIGNED)


def _rows(count: int, channels: int = 1) -> np.ndarray:
    """Pictures of gradients, as ``SIGNED`` gives them."""
    across = np.linspace(-2.0, 2.0, 24, dtype=np.float32)
    starts = RANDOM.uniform(-0.5, 0.5, (count, channels, 1, 1)).astype(np.float32)
    return np.clip(starts + across, -2.0, 2.0) * np.ones((1, 1, 24, 1), np.float32)


@dataclass(frozen=True)
class CountingReader:
    """Grey noise that is made when it is read; remembers how much was asked for at once."""

    asked: list[int]

    def read(self, rows: np.ndarray, shortest: int | None = None) -> np.ndarray:
        self.asked.append(len(rows))
        return np.stack([np.random.default_rng(row).integers(0, 256, (24, 24, 1), np.uint8) for row in rows])

    def fingerprint(self, rows: np.ndarray) -> str:
        return "0"


def _dataset(count: int) -> Dataset:
    targets = np.arange(count) % 4
    return Dataset("made", "train", tuple("abcd"), targets, 1, (24, 24), True, CountingReader([]), np.arange(count))


def test_pictures_are_read_when_they_are_used(artifact: Artifact) -> None:
    dataset = _dataset(500)
    samples = calibration_from_dataset(artifact, dataset, samples=300)
    asked = dataset.reader.asked  # type: ignore[attr-defined]
    assert (len(samples), sum(asked)) == (300, 32)  # the first ones are looked at
    for _ in range(2):
        asked.clear()
        batches = list(samples.batches(40))
        assert asked == [len(batch) for batch in batches] == [40] * 7 + [20]
    chosen = dataset.take(300)
    np.testing.assert_array_equal(np.concatenate(batches), apply(SIGNED, chosen.pictures(slice(None))))
    assert samples.digest == chosen.digest
    assert samples.warnings == ()


def test_memory_does_not_grow_with_the_number_of_samples(artifact: Artifact) -> None:
    def peak(count: int) -> int:
        samples = calibration_from_dataset(artifact, _dataset(count), samples=count)
        tracemalloc.start()
        for _ in samples.batches(8):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(64)
    few, many = peak(64), peak(1024)
    assert many < few + 24 * 24 * 4 * 16  # 1,024 samples are 2.4 MB, and sixteen 37 KB


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7), st.booleans())
def test_rows_are_cut_anew(lengths: list[int], size: int, once: bool) -> None:
    rows = np.arange(2 * sum(lengths), dtype=np.float32).reshape(-1, 2)
    parts = np.split(rows, np.cumsum(lengths)[:-1])
    source = rows_of(iter(parts) if once else parts)
    for _ in range(2):
        batches = list(source.batches(size))
        assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
        np.testing.assert_array_equal(np.concatenate([*batches, np.zeros((0, 2), np.float32)]), rows)


def test_generators_are_written_to_a_file(artifact: Artifact) -> None:
    rows = _rows(70)
    samples = calibration_from_arrays(artifact, (part for part in np.split(rows, 7)))
    assert isinstance(samples.rows, SpooledRows)
    assert len(samples) == 70
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(samples.batches(16))), rows)


class Fickle:
    """Gives one array fewer, or a spoilt one, each time it is iterated."""

    def __init__(self, arrays: list[np.ndarray], spoil: bool) -> None:
        self.arrays, self.spoil, self.times = arrays, spoil, 0

    def __iter__(self) -> Iterator[np.ndarray]:
        self.times += 1
        if self.times > 1:
            self.arrays = [self.arrays[0] * np.nan, *self.arrays[1:]] if self.spoil else self.arrays[1:]
        return iter(self.arrays)


@pytest.mark.parametrize(("spoil", "says"), [(False, "gave 20 calibration samples after 40"), (True, "NaN")])
def test_samples_that_change_are_refused(artifact: Artifact, spoil: bool, says: str) -> None:
    samples = calibration_from_arrays(artifact, Fickle([_rows(20), _rows(20)], spoil))
    with pytest.raises(DataError, match=says):
        list(samples.batches(8))


NAN_LAST = _rows(40)
NAN_LAST[-1, 0, 3, 3] = np.nan


@pytest.mark.parametrize(
    ("arrays", "error", "says"),
    [
        ([], DataError, "no calibration samples"),
        (iter(()), DataError, "no calibration samples"),
        ([_rows(0)], DataError, "no calibration samples"),
        ([NAN_LAST], DataError, "NaN or infinite"),
        ([_rows(4), _rows(4)[:, :, :12]], InputError, r"batches of samples differ: float32 of shape \(1, 12, 24\)"),
        ([np.float32(3.0)], InputError, r"single float32; expected an array \(n, …\)"),
        ([_rows(4).transpose(0, 2, 3, 1)], InputError, r"\(24, 24, 1\).*takes \(1, 24, 24\); they are NHWC"),
        ([_rows(4).astype(np.float64)], InputError, "are float64; m.onnx takes float32"),
    ],
    ids=["none", "empty-generator", "no-rows", "nan-at-the-end", "ragged", "number", "layout", "type"],
)
def test_bad_samples_are_one_line(artifact: Artifact, arrays: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        calibration_from_arrays(artifact, arrays)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def _warned(artifact: Artifact, rows: np.ndarray) -> tuple[str, ...]:
    return calibration_from_arrays(artifact, [rows]).warnings


def test_samples_as_the_model_wants_them_are_not_doubted(tmp_path: Path, artifact: Artifact) -> None:
    assert _warned(artifact, _rows(32)) == ()
    assert _warned(_artifact(tmp_path, COLOR, 3), _rows(32, 3)) == ()
    for task in ("shapes-color", "shapes-shape"):
        dataset = data.load(task, "train")
        pre = Preprocess(size=(28, 28), channels="RGB", mean=(0.5,) * 3, std=(0.5,) * 3)
        shaped = replace(Artifact.read(relu(tmp_path / "s.onnx", shape=("N", 3, 28, 28))), preprocess=pre)
        assert calibration_from_dataset(shaped, dataset, samples=64).warnings == ()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda rows: (rows + 2.0) / 4.0 * 255.0, "from 0 to 255.*gives -2 to 2: they seem to be prepared in another"),
        (lambda rows: rows * 10.0, "prepared in another way"),
        (lambda rows: rows / 255.0, "fill a small part"),
        (lambda rows: np.zeros_like(rows), "fill a small part"),
    ],
    ids=["pixels", "other-deviation", "scaled-twice", "black"],
)
def test_samples_of_another_range_are_doubted(artifact: Artifact, spoil: object, says: str) -> None:
    (warning,) = _warned(artifact, spoil(_rows(32)))  # type: ignore[operator]
    assert "\n" not in warning
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(warning)


def test_reshaped_instead_of_transposed(tmp_path: Path) -> None:
    across = np.linspace(-2.0, 1.0, 24, dtype=np.float32)
    colors = np.array([0.0, 0.5, 1.0], np.float32)
    pictures = np.tile(across[None, None, :, None] + colors, (32, 24, 1, 1))  # NHWC, its channels differ
    color = _artifact(tmp_path, COLOR, 3)
    assert _warned(color, np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))) == ()
    (warning,) = _warned(color, pictures.reshape(32, 3, 24, 24))
    assert "NHWC in the shape of NCHW" in warning


def test_foreign_models_are_not_doubted(tmp_path: Path) -> None:
    assert _warned(_artifact(tmp_path), 255.0 * _rows(32)) == ()


def test_few_samples_and_missing_classes(artifact: Artifact) -> None:
    samples = calibration_from_dataset(artifact, _dataset(100), samples=3)
    assert [warning.split(";")[0] for warning in samples.warnings] == [
        "1 of 4 classes have no calibration sample: " + samples.warnings[0][-1],
        "only 3 calibration samples",
    ]


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError):
        data.load(str(tmp_path / "pictures"), "train")


def test_models_with_several_inputs_are_refused(tmp_path: Path) -> None:
    both = Artifact.read(conv_chain(tmp_path / "m.onnx"))
    with pytest.raises(InputError, match="has 2 inputs"):
        calibration_from_arrays(replace(both, inputs=both.inputs * 2), [np.zeros((1, 16, 24, 24), np.float32)])


def test_length_is_the_number_of_samples(artifact: Artifact) -> None:
    samples = calibration_from_arrays(artifact, [_rows(33)])
    assert isinstance(samples, Calibration)
    assert len(samples) == sum(map(len, samples.batches(10))) == 33
