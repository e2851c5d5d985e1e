from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator
from tiny_onnx import conv_chain, matmul, save_graph

from deploykit import collect, data
from deploykit.artifact import Artifact
from deploykit.calibrate import calibration_from_arrays, calibration_from_dataset
from deploykit.collect import collect_statistics
from deploykit.errors import DataError, DeploykitError, InputError, ModelFileError
from deploykit.files import sha256_file
from deploykit.graph import more_outputs
from deploykit.ranges import Statistics

METHODS = ("minmax", "percentile", "entropy", "mse")
ROWS = np.random.default_rng(0).standard_normal((40, 16, 24, 24)).astype(np.float32)


class Rows:
    """Samples without checks."""

    def __init__(self, rows: np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[np.ndarray]:
        yield from np.split(self.rows, range(size, len(self.rows), size))


def _all_tensors(path: Path, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Every tensor of a chain, by a plain session without optimisations."""
    model = onnx.load(path)
    given = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": rows})
    return {"x": rows} | {value.name: tensor for value, tensor in zip(session.get_outputs(), found, strict=True)}


def _same(one: Statistics, other: Statistics) -> bool:
    return dict(one.extremes) == dict(other.extremes) and all(
        (held.exponent, held.counts.tobytes())
        == (other.histograms[name].exponent, other.histograms[name].counts.tobytes())
        for name, held in one.histograms.items()
    )


@pytest.mark.parametrize("histogram", [False, True])
def test_statistics_are_those_of_all_values(histogram: bool, tmp_path: Path) -> None:
    path = conv_chain(tmp_path / "m.onnx", layers=3)
    found = collect_statistics(
        path, None, Rows(ROWS), histogram=histogram, channel_means=["y0", "y2"], batch_size=7, threads=2
    )
    wanted = _all_tensors(path, ROWS)
    assert set(found) == set(wanted) == {"x", "y0", "y1", "y2"}
    for name, values in wanted.items():
        assert found.extremes[name] == pytest.approx((values.min(), values.max()), rel=1e-5)
        if histogram:
            assert found.histograms[name].total == values.size
    for name in ("y0", "y2"):
        means = wanted[name].mean(axis=(0, 2, 3), dtype=np.float64)
        np.testing.assert_allclose(found.channel_means(name), means, atol=1e-6)
    assert found.samples == 40


class Reader(CalibrationDataReader):
    def __init__(self, batches: Iterator[np.ndarray]) -> None:
        self.feeds = ({"x": batch} for batch in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def test_minmax_is_that_of_onnx_runtimes_calibrator(tmp_path: Path) -> None:
    path = conv_chain(tmp_path / "m.onnx", layers=3)
    calibrator = create_calibrator(
        path, calibrate_method=CalibrationMethod.MinMax, augmented_model_path=str(tmp_path / "a.onnx")
    )
    calibrator.collect_data(Reader(Rows(ROWS).batches(4)))
    wanted = {name: held.range_value for name, held in calibrator.compute_data().data.items()}
    found = collect_statistics(path, list(wanted), Rows(ROWS), histogram=False).ranges()
    for name, ends in wanted.items():
        assert found[name] == pytest.approx(tuple(float(end.item()) for end in ends), rel=1e-5)


def test_a_trained_network(trained: Trained) -> None:
    """Ranges by histogram lie within the extremes, and differ from method to method."""
    samples = calibration_from_dataset(Artifact.read(trained.onnx), data.load("shapes", "train"), samples=64)
    found = collect_statistics(trained.onnx, None, samples, histogram=True)
    outer = found.ranges()
    relus = [name for node in onnx.load(trained.onnx).graph.node if node.op_type == "Relu" for name in node.output]
    assert relus and all(outer[name][0] == 0.0 for name in relus)
    for method in METHODS[1:]:
        for name, (low, high) in found.ranges(method).items():
            slack = (outer[name][1] - outer[name][0]) / 255
            assert outer[name][0] - slack <= low <= 0.0 < high <= outer[name][1] + slack
    assert any(found.ranges("mse")[name][1] < outer[name][1] for name in relus)


def test_shards_and_order_give_the_same_bits(tmp_path: Path) -> None:
    path = conv_chain(tmp_path / "m.onnx")

    def collect(rows: np.ndarray, batch_size: int = 4) -> Statistics:
        return collect_statistics(path, None, Rows(rows), histogram=True, batch_size=batch_size)

    whole = collect(ROWS)
    first, second = collect(ROWS[:12]), collect(ROWS[12:])
    assert _same(first.merge(second), whole)
    assert _same(second.merge(first), whole)
    assert _same(collect(np.random.default_rng(1).permutation(ROWS)), whole)
    assert _same(collect(ROWS, batch_size=9), whole)
    for method in METHODS:
        assert first.merge(second).ranges(method) == whole.ranges(method)


def test_copies_that_fill_a_fixed_batch_do_not_count(tmp_path: Path) -> None:
    fixed, free = conv_chain(tmp_path / "3.onnx", batch=3), conv_chain(tmp_path / "n.onnx")
    eight = Rows(ROWS[:8])
    found, wanted = (
        collect_statistics(path, None, eight, histogram=True, channel_means=["y1"]) for path in (fixed, free)
    )
    assert found.histograms["y1"].total == 8 * 16 * 24 * 24
    assert _same(found, wanted)
    np.testing.assert_allclose(found.channel_means("y1"), wanted.channel_means("y1"), atol=1e-7)


def _logarithm(path: Path) -> Path:
    """NaN where the input is above zero, -inf where it is zero, which the output does not show any more."""
    nodes = [
        helper.make_node("Neg", ["x"], ["minus"]),
        helper.make_node("Log", ["minus"], ["log"]),
        helper.make_node("Exp", ["log"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, ["N", 600])], [("y", TensorProto.FLOAT, ["N", 600])]
    return save_graph(path, nodes, *ends)


@pytest.mark.parametrize("spoilt", [0.5, 0.0], ids=["nan", "infinite"])
@pytest.mark.parametrize("histogram", [False, True])
def test_activations_that_are_not_finite_are_named(histogram: bool, spoilt: float, tmp_path: Path) -> None:
    rows = np.full((9, 600), -0.5, np.float32)
    rows[7, 311] = spoilt
    with pytest.raises(DataError, match="'log' becomes NaN or infinite") as caught:
        collect_statistics(_logarithm(tmp_path / "m.onnx"), None, Rows(rows), histogram=histogram, batch_size=4)
    assert "\n" not in str(caught.value)


def test_means_that_are_not_finite_are_named(tmp_path: Path) -> None:
    path = _logarithm(tmp_path / "m.onnx")
    with pytest.raises(DataError, match="'log' becomes NaN"):
        collect_statistics(path, [], Rows(np.ones((2, 600), np.float32)), histogram=False, channel_means=["log"])


def _shape_of(path: Path) -> Path:
    nodes = [helper.make_node("Shape", ["x"], ["shape"]), helper.make_node("Relu", ["x"], ["y"])]
    ends = [("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 3])]
    return save_graph(path, nodes, *ends)


@pytest.mark.parametrize(
    ("tensors", "means", "rows", "error", "says"),
    [
        (["nowhere"], [], 4, InputError, "no tensor 'nowhere' in the model"),
        (["shape"], [], 4, InputError, "'shape' is int64; allowed: float16, float32, float64"),
        (["y"], ["nowhere"], 4, InputError, "no tensor 'nowhere'"),
        (["y"], [], 0, DataError, "no calibration samples"),
    ],
)
def test_bad_calls_are_one_line(
    tensors: list[str], means: list[str], rows: int, error: type[DeploykitError], says: str, tmp_path: Path
) -> None:
    path = _shape_of(tmp_path / "m.onnx")
    samples = Rows(np.ones((rows, 3), np.float32)[: rows or 0])
    if not rows:
        samples.batches = lambda size: iter(())  # type: ignore[method-assign]
    with pytest.raises(error, match=says) as caught:
        collect_statistics(path, tensors, samples, histogram=False, channel_means=means)
    assert "\n" not in str(caught.value)


def test_all_tensors_are_those_in_float_that_vary(tmp_path: Path) -> None:
    assert set(collect_statistics(_shape_of(tmp_path / "m.onnx"), None, Rows(ROWS[:4, 0, 0, :3]), histogram=False)) == {
        "x",
        "y",
    }


def test_local_functions(tmp_path: Path) -> None:
    """Tensors of the main graph are looked at; those within a function have no names there."""
    nodes = [helper.make_node("Twice", ["x"], ["t"], domain="own"), helper.make_node("Relu", ["t"], ["y"])]
    ends = [("x", TensorProto.FLOAT, ["N", 3])], [("y", TensorProto.FLOAT, ["N", 3])]
    model = onnx.load(save_graph(tmp_path / "m.onnx", nodes, *ends))
    inner = [helper.make_node("Neg", ["a"], ["m"]), helper.make_node("Sub", ["a", "m"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Twice", ["a"], ["b"], inner, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    found = collect_statistics(model, None, Rows(ROWS[:4, 0, 0, :3]), histogram=False, channel_means=["t"])
    assert set(found) == {"x", "t", "y"}
    assert found.extremes["t"] == tuple(2 * end for end in found.extremes["x"])


def test_sizes_that_only_samples_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of any size: one is run to find out how many tensors fit."""
    path = conv_chain(tmp_path / "m.onnx", size="side")
    sizes: list[int] = []

    class Watched(Rows):
        def batches(self, size: int) -> Iterator[np.ndarray]:
            sizes.append(size)
            return super().batches(size)

    monkeypatch.setattr(collect, "_BATCH_BYTES", 4 * 3 * 16 * 24 * 24 * 4)  # four samples of three tensors
    found = collect_statistics(path, None, Watched(ROWS), histogram=True)
    assert sizes == [1, 4]
    assert found.histograms["y1"].total == ROWS.size


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    ends = [(name, TensorProto.FLOAT, ["N", 3]) for name in "ab"], [("y", TensorProto.FLOAT, ["N", 3])]
    path = save_graph(tmp_path / "m.onnx", [helper.make_node("Add", ["a", "b"], ["y"])], *ends)
    with pytest.raises(InputError, match="has 2 inputs"):
        collect_statistics(path, None, Rows(ROWS[:4, 0, 0, :3]), histogram=False)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such model file"):
        collect_statistics(tmp_path / "none.onnx", None, Rows(ROWS), histogram=False)


def test_every_way_to_give_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a message, weights beside the file; by way of memory and of a temporary file."""
    together, apart = conv_chain(tmp_path / "m.onnx"), tmp_path / "apart" / "m.onnx"
    apart.parent.mkdir()
    onnx.save(onnx.load(together), apart, save_as_external_data=True, location="m.data", size_threshold=0)
    before = sha256_file(together)
    wanted = collect_statistics(together, None, Rows(ROWS[:5]), histogram=True)
    for most in (1 << 20, 0):
        monkeypatch.setattr(more_outputs, "_IN_MEMORY_BYTES", most)
        for model in (together, onnx.load(together), apart, onnx.load(apart)):
            assert _same(collect_statistics(model, None, Rows(ROWS[:5]), histogram=True), wanted)
    assert sha256_file(together) == before
    assert len(onnx.load(together).graph.output) == 1


def test_fully_connected_layers_and_progress(tmp_path: Path) -> None:
    path, seen = matmul(tmp_path / "m.onnx", 24, 5), []
    rows = ROWS[:10, 0, 0]

    def progress(stage: str, done: int, total: int, note: str = "") -> None:
        seen.append((stage, done, total))

    found = collect_statistics(
        path, ["y"], Rows(rows), histogram=False, channel_means=["y"], batch_size=4, progress=progress
    )
    weight = numpy_helper.to_array(onnx.load(path).graph.initializer[0])
    np.testing.assert_allclose(found.channel_means("y"), (rows @ weight).mean(axis=0), rtol=1e-4, atol=1e-5)
    assert seen == [("calibrate", 4, 10), ("calibrate", 8, 10), ("calibrate", 10, 10)]


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path: Path) -> None:
    """In a process of its own: 120 samples, whose tensors would take 354 MB, add little to what 40 need."""
    path = conv_chain(tmp_path / "m.onnx", layers=4, size=96)
    program = f"""
import numpy as np
from deploykit.artifact import Artifact
from deploykit.calibrate import calibration_from_arrays
from deploykit.collect import collect_statistics
from deploykit.process_memory import peak_bytes, reset_peak

class Made:
    def __init__(self, count): self.count = count
    def __iter__(self):
        return (np.random.default_rng(i).standard_normal((1, 16, 96, 96), np.float32) for i in range(self.count))

def collect(count):
    reset_peak()
    samples = calibration_from_arrays(Artifact.read({str(path)!r}), Made(count))
    collect_statistics({str(path)!r}, None, samples, histogram=True, threads=1, batch_size=4).ranges("mse")
    return peak_bytes()

collect(40)
print(collect(40), collect(120))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    few, many = map(int, done.stdout.split())
    assert many < few + 80_000_000  # the 80 samples more have 236 MB of tensors; freed blocks vary by some 30 MB


def test_samples_come_from_a_calibration(tmp_path: Path) -> None:
    path = conv_chain(tmp_path / "m.onnx")
    samples = calibration_from_arrays(Artifact.read(path), (part for part in np.split(ROWS, 4)))
    found = collect_statistics(path, None, samples, histogram=True)
    assert _same(found, collect_statistics(path, None, Rows(ROWS), histogram=True))
