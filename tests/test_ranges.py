from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deploykit.errors import InputError
from deploykit.histogram import Histogram
from deploykit.ranges import ChannelSums, Statistics

METHODS = ("minmax", "percentile", "entropy", "mse")


def _statistics(values: np.ndarray, *, histogram: bool = True, name: str = "y") -> Statistics:
    held = Histogram()
    held.add(values)
    sums = ChannelSums(values.reshape(-1, 2).sum(axis=0, dtype=np.float64), len(values) // 2)
    return Statistics(len(values) // 2, {name: (held.low, held.high)}, {name: held} if histogram else {}, {name: sums})


VALUES = np.random.default_rng(0).standard_normal(2000).astype(np.float32)


def test_parts_add_up_to_the_whole() -> None:
    whole, (first, second) = _statistics(VALUES), map(_statistics, np.split(VALUES, [600]))
    for merged in (first.merge(second), second.merge(first)):
        assert merged.samples == 1000
        for method in METHODS:
            assert merged.ranges(method) == whole.ranges(method)
        np.testing.assert_allclose(merged.channel_means("y"), VALUES.reshape(-1, 2).mean(0, dtype=np.float64))
    assert first.samples == 300  # left as it was
    assert first.ranges("mse") == _statistics(VALUES[:600]).ranges("mse")


@pytest.mark.parametrize("histogram", [True, False])
def test_statistics_come_back_from_a_file(histogram: bool, tmp_path: Path) -> None:
    held = _statistics(VALUES, histogram=histogram, name="größe/1")
    found = Statistics.load(held.save(tmp_path / "a b.npz"))
    assert (found.samples, dict(found.extremes)) == (1000, dict(held.extremes))
    for method in METHODS if histogram else ("minmax",):
        assert found.ranges(method) == held.ranges(method)
    np.testing.assert_array_equal(found.channel_means("größe/1"), held.channel_means("größe/1"))
    more = found.merge(_statistics(VALUES * 3.0, histogram=histogram, name="größe/1"))
    assert more.ranges()["größe/1"] == (3.0 * VALUES.min(), 3.0 * VALUES.max())


def _newer(path: Path) -> None:
    with np.load(_statistics(VALUES).save(path)) as arrays:
        held = dict(arrays)
    header = json.loads(str(held["header"])) | {"schema": "deploykit.statistics/9"}
    np.savez(path, **(held | {"header": np.array(json.dumps(header))}))


def _cut_short(path: Path) -> None:
    content = _statistics(VALUES).save(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_newer, "schema 'deploykit.statistics/9'; this version reads deploykit.statistics/2"),
        (_cut_short, "holds no statistics of a calibration"),
        (lambda path: path.write_bytes(b""), "holds no statistics of a calibration"),
        (lambda path: path.write_bytes(b"no archive"), "holds no statistics of a calibration"),
        (lambda path: np.savez(path, images=np.zeros(3)), "holds no statistics of a calibration"),
        (lambda path: np.savez(path, header=np.array([{}], object)), "holds no statistics of a calibration"),
        (lambda path: None, "no such file"),
    ],
    ids=["newer", "cut-short", "empty", "no-archive", "other-archive", "pickle", "missing"],
)
def test_other_files_are_refused(write: object, says: str, tmp_path: Path) -> None:
    write(tmp_path / "s.npz")  # type: ignore[operator]
    with pytest.raises(InputError, match=says) as caught:
        Statistics.load(tmp_path / "s.npz")
    assert "\n" not in str(caught.value)


def test_what_cannot_be_answered_is_said() -> None:
    with pytest.raises(InputError, match="by entropy need histograms"):
        _statistics(VALUES, histogram=False).ranges("entropy")
    with pytest.raises(InputError, match="'y' is in one only"):
        _statistics(VALUES).merge(_statistics(VALUES, name="z"))
    with pytest.raises(InputError, match="different tensors"):
        _statistics(VALUES).merge(_statistics(VALUES, histogram=False))
    with pytest.raises(InputError, match="means of 'z' were not collected; collected: y"):
        _statistics(VALUES).channel_means("z")
