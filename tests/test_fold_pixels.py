"""Normalisation that goes into the first layer: exact inside the picture, and bounded at a padded border."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from pixel_networks import photo, pixel_network, preprocess

from deploykit.artifact import Artifact
from deploykit.graph.fold_pixels import FoldedPixels, fold_pixels
from deploykit.graph.picture_input import PictureInput, insert_picture_input
from deploykit.runtime import create_session


def both_forms(path: Path, *, fixed: bool = True) -> tuple[onnx.ModelProto, onnx.ModelProto, FoldedPixels | None]:
    """A network with its preprocessing in the graph, and that with the normalisation folded."""
    pre = Artifact.read(path).preprocess
    assert pre is not None
    graph = ir.from_proto(onnx.load(path))
    insert_picture_input(graph, PictureInput.of(pre, fixed_size=fixed))
    plain = ir.to_proto(graph)
    again = ir.from_proto(plain)
    folded = fold_pixels(again)
    return plain, ir.to_proto(again), folded


def run(model: onnx.ModelProto, images: np.ndarray, *, also: str | None = None) -> np.ndarray:
    wanted = onnx.ModelProto()
    wanted.CopyFrom(model)
    if also is not None:
        wanted.graph.output.insert(0, helper.make_tensor_value_info(also, onnx.TensorProto.FLOAT, [None] * 4))
    onnx.checker.check_model(wanted)
    return create_session(wanted.SerializeToString(), optimize=False).run(images)[0]


def images(count: int = 4, channels: int = 3) -> np.ndarray:
    return np.stack([photo(28, 28, channels, seed=seed) for seed in range(count)])


@pytest.mark.parametrize("channels", ["L", "RGB", "BGR"])
def test_without_padding_the_folded_network_is_the_same(tmp_path: Path, channels: str) -> None:
    path = pixel_network(tmp_path / "net.onnx", preprocess(channels=channels), pads=0)
    plain, folded, found = both_forms(path)
    assert found is not None and found.border == 0.0
    operators = [node.op_type for node in folded.graph.node]
    assert operators[:3] == ["Transpose", "DequantizeLinear", "Conv"]
    assert not {"Cast", "Mul", "Add", "Gather"} & set(operators)
    pictures = images(channels=1 if channels == "L" else 3)
    wanted = run(plain, pictures)
    assert np.abs(run(folded, pictures) - wanted).max() < 2e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("channels", ["L", "RGB", "BGR"])
@pytest.mark.parametrize("pads", [1, [2, 0, 0, 1]])
def test_padding_differs_at_the_border_alone_and_by_half_a_level(tmp_path: Path, channels: str, pads: object) -> None:
    """Colours get a border of the mean pixel in whole numbers; one channel the zero point, which is that number."""
    pre = preprocess(channels=channels)
    path = pixel_network(tmp_path / "net.onnx", pre, pads=pads)
    plain, folded, found = both_forms(path)
    means = np.array(pre["mean"]) * 255
    assert found is not None and found.border == pytest.approx(np.abs(means - np.rint(means)).max(), abs=1e-3)
    assert ("Concat" in [node.op_type for node in folded.graph.node]) == (channels != "L")
    pictures = images(channels=1 if channels == "L" else 3)
    wanted, got = (run(model, pictures, also="c0") for model in (plain, folded))
    difference = np.abs(wanted - got)
    assert difference[..., 2:-2, 2:-2].max() < 2e-5 * np.abs(wanted).max()
    step = 1 / 255 / min(pre["std"])
    weights = next(numpy_helper.to_array(t) for t in plain.graph.initializer if t.name == "w0")
    most = np.abs(weights).reshape(16, -1).sum(axis=1) * found.border * step
    assert (difference.max(axis=(0, 2, 3)) <= most + 1e-5).all()
    assert difference.max() > 0  # the border is what the bound is for


def test_the_border_keeps_any_batch(tmp_path: Path) -> None:
    _, folded, found = both_forms(pixel_network(tmp_path / "net.onnx", preprocess(), pads=1))
    assert found is not None
    pictures = images(5)
    together, alone = run(folded, pictures), [run(folded, picture[None]) for picture in pictures]
    assert np.abs(together - np.concatenate(alone)).max() < 1e-5


def test_without_a_known_size_means_that_lie_too_far_apart_are_not_folded(tmp_path: Path) -> None:
    """One number for all channels would stand for colours that are up to 10 levels off."""
    pre = preprocess(resize=32, crop="center")
    assert both_forms(pixel_network(tmp_path / "padded.onnx", pre, pads=1), fixed=False)[2] is None
    assert both_forms(pixel_network(tmp_path / "bare.onnx", pre, pads=0), fixed=False)[2] is not None
    near = preprocess(resize=32, crop="center", mean=[0.5, 0.505, 0.51])
    found = both_forms(pixel_network(tmp_path / "near.onnx", near, pads=1), fixed=False)[2]
    assert found is not None and 1.0 < found.border <= 2.0


def test_a_matrix_behind_a_view_takes_equal_statistics(tmp_path: Path) -> None:
    """One number for all pixels goes into its bias; one a channel does not."""
    grey = pixel_network(tmp_path / "grey.onnx", preprocess(channels="L"), head="flat")
    plain, folded, found = both_forms(grey)
    assert found is not None and found.border == 0.0
    wanted = run(plain, images(channels=1))
    assert np.abs(run(folded, images(channels=1)) - wanted).max() < 2e-5 * np.abs(wanted).max()
    assert both_forms(pixel_network(tmp_path / "colour.onnx", preprocess(), head="flat"))[2] is None


def test_what_else_reads_the_picture_keeps_it_as_it_is(tmp_path: Path) -> None:
    """A second reader would see unnormalised pixels; then nothing is folded, and the graph stays."""
    path = pixel_network(tmp_path / "net.onnx", preprocess(), pads=0)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("ReduceMax", ["x"], ["brightest"], keepdims=0))
    model.graph.output.append(helper.make_tensor_value_info("brightest", onnx.TensorProto.FLOAT, []))
    onnx.save(model, path)
    plain, same, found = both_forms(path)
    assert found is None
    assert [node.op_type for node in same.graph.node] == [node.op_type for node in plain.graph.node]


def test_a_network_that_reads_floats_is_left_alone(tmp_path: Path) -> None:
    graph = ir.from_proto(onnx.load(pixel_network(tmp_path / "net.onnx", preprocess())))
    assert fold_pixels(graph) is None
