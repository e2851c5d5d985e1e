"""Which layers stay in float: the search against brute force, and the harm of a layer that is known to hurt."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_graph

from deploykit import data
from deploykit.errors import InputError
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.sensitivity import LayerHarm, cheapest_within


def _ranking(noise: list[float], costs: list[float]) -> list[LayerHarm]:
    harms = [LayerHarm(f"l{i}", "Conv", n, 1.0, c) for i, (n, c) in enumerate(zip(noise, costs, strict=True))]
    return sorted(harms, key=lambda harm: -harm.noise)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=7), st.integers(0, 300))
@settings(max_examples=80, deadline=None)
def test_no_layer_is_kept_that_is_not_needed(noise: list[int], budget: int) -> None:
    """Noise that adds up, costs alike: the fewest layers are the noisiest ones, as brute force finds them."""
    total = dict(zip((f"l{i}" for i in range(len(noise))), noise, strict=True))

    def holds(kept: Collection[str]) -> bool:
        return sum(value for name, value in total.items() if name not in kept) <= budget

    kept = cheapest_within(_ranking([float(n) for n in noise], [0.1] * len(noise)), holds)
    assert kept is not None and holds(kept)
    sizes = [len(some) for size in range(len(noise) + 1) for some in itertools.combinations(total, size) if holds(some)]
    assert len(kept) == min(sizes)


def test_cheap_layers_come_before_dear_ones() -> None:
    noise = {"dear": 5.0, "cheap": 4.0, "quiet": 0.1}
    harms = [
        LayerHarm("dear", "Conv", 5.0, 1.0, 0.9),
        LayerHarm("cheap", "Gemm", 4.0, 1.0, 0.01),
        LayerHarm("quiet", "Conv", 0.1, 1.0, 0.09),
    ]
    kept = cheapest_within(harms, lambda names: sum(v for k, v in noise.items() if k not in names) <= 5.5)
    assert kept == ("cheap",)
    assert cheapest_within(harms, lambda names: False) is None
    assert cheapest_within(harms, lambda names: True) == ()
    assert cheapest_within(harms, lambda names: len(names) == 3, most=2) is None


def _one_bad_layer(path: Path) -> Path:
    """Two branches into a sum; one reads values of which one, that it has no use for, leaves the others no levels."""
    random = np.random.default_rng(0)
    shapes = {"good": (32, 64), "bad": (32, 64), "out": (64, 6)}
    arrays = {name: random.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}
    arrays["bad"][0] = 0
    stored = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    stored.append(numpy_helper.from_array(np.array([100.0] + [1.0] * 31, np.float32), "spread"))
    nodes = [
        helper.make_node("Mul", ["x", "spread"], ["wide"]),
        helper.make_node("MatMul", ["wide", "bad"], ["b"], name="bad_product"),
        helper.make_node("MatMul", ["x", "good"], ["g"], name="good_product"),
        helper.make_node("Sub", ["g", "b"], ["s"]),
        helper.make_node("Relu", ["s"], ["r"]),
        helper.make_node("MatMul", ["r", "out"], ["y"], name="last_product"),
    ]
    ends = [("x", TensorProto.FLOAT, ["N", 32])], [("y", TensorProto.FLOAT, ["N", 6])]
    return save_graph(path, nodes, *ends, stored, opset=17)


def test_the_layer_that_hurts_is_found_and_left_in_float(tmp_path: Path) -> None:
    rows = np.random.default_rng(1).standard_normal((300, 32)).astype(np.float32)
    model = _one_bad_layer(tmp_path / "m.onnx")
    plain = quantize_onnx(model, tmp_path / "p.onnx", calibration=[rows])
    options = QuantizeOptions(recipe="mixed", max_drop=0.02)
    record = quantize_onnx(model, tmp_path / "q.onnx", calibration=[rows], options=options)
    assert record.sensitivity[0]["layer"] == "bad_product"
    assert record.float_layers == ("bad_product",) and record.precision == "mixed"
    assert record.held_out_drop is not None and record.held_out_drop <= 0.02
    assert record.agreement > plain.agreement
    assert record.to_document()["sensitivity"][0]["noise"] > 10 * record.sensitivity[1]["noise"]


def test_a_budget_that_is_met_leaves_nothing_in_float(trained: Trained, tmp_path: Path) -> None:
    """Held-out pictures are not those of the calibration, and their labels count."""
    options = QuantizeOptions(recipe="mixed", max_drop=0.05, samples=40, held_out=90)
    record = quantize_onnx(trained.onnx, tmp_path / "q.onnx", calibration=data.load("shapes", "train"), options=options)
    assert (record.float_layers, record.kept_float, record.held_out_samples) == ((), False, 90)
    assert record.held_out_drop is not None and record.held_out_drop <= 0.05
    assert len(record.sensitivity) == 4
    assert sum(harm["cost"] for harm in record.sensitivity) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_drop": 1.5}, "largest drop 1.5; allowed"),
        ({"max_drop": -0.1}, "largest drop -0.1; allowed"),
        ({"recipe": "mixed"}, "mixed without a largest drop"),
        ({"recipe": "fp16", "max_drop": 0.01}, "fp16 has no layers to leave in float"),
        ({"held_out": 0}, "0 held-out samples"),
    ],
)
def test_budgets_are_checked(options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        QuantizeOptions(**options)
