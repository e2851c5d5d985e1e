from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import save_graph

from deploykit import data
from deploykit.artifact import Artifact, Preprocess
from deploykit.data.dataset import Dataset
from deploykit.errors import InputError
from deploykit.evaluate import EvaluateOptions, evaluate_onnx
from deploykit.preprocess import apply


def test_figures_equal_a_count_by_hand(trained: Trained) -> None:
    """A bare session and numpy, one picture at a time."""
    test = data.load("shapes", "test")
    artifact = Artifact.read(trained.onnx)
    assert artifact.preprocess is not None
    session = onnxruntime.InferenceSession(str(trained.onnx), providers=["CPUExecutionProvider"])
    inputs = apply(artifact.preprocess, test.pictures(np.arange(len(test))))
    logits = np.concatenate([session.run(None, {"input": row[None]})[0] for row in inputs])
    ranks = (logits > logits[np.arange(len(test)), test.targets][:, None]).sum(1)
    record = evaluate_onnx(trained.onnx, test, reference=trained.int8, options=EvaluateOptions(batch_size=77))
    assert record.samples == 900
    assert record.top1 == pytest.approx((ranks == 0).mean())
    assert record.top5 == pytest.approx((ranks < 5).mean())
    per_class = {name: (ranks[test.targets == i] == 0).mean() for i, name in enumerate(test.labels)}
    assert record.per_class == pytest.approx(per_class)
    assert record.top1 == pytest.approx(trained.training.test_top1)  # PyTorch said the same
    assert record.agreement is not None and 0.95 < record.agreement <= 1.0
    assert (record.provider, record.network, record.dataset) == ("cpu", "color-shape-cnn", "shapes-color-shape")


def test_every_picture_once_whatever_the_batch(trained: Trained) -> None:
    test = data.load("shapes", "test").take(101)
    records = [evaluate_onnx(trained.onnx, test, options=EvaluateOptions(batch_size=size)) for size in (1, 10, 1000)]
    assert {record.samples for record in records} == {101}
    assert len({record.top1 for record in records}) == 1


def test_agreement_with_itself_is_one(trained: Trained) -> None:
    test = data.load("shapes", "test").take(90)
    assert evaluate_onnx(trained.onnx, test, reference=trained.onnx).agreement == 1.0


def test_examples_are_pictures_with_their_predictions(trained: Trained) -> None:
    import base64
    import io

    from PIL import Image

    test = data.load("shapes", "test")
    record = evaluate_onnx(trained.onnx, test, options=EvaluateOptions(examples=6))
    assert len(record.examples) == 6
    for example in record.examples:
        picture = Image.open(io.BytesIO(base64.b64decode(example.png_base64)))
        assert picture.size == (28, 28)
        assert example.label in test.labels and example.predicted in test.labels
        assert 0.0 < example.probability <= 1.0
    assert len({example.label for example in record.examples}) > 3


def _bright_or_dark(path: Path, *, batch: str | int = "N", outputs: int = 2, gain: float = 1.0) -> Path:
    """A foreign model without metadata: the mean of the picture against a half."""
    weight = np.zeros((1, outputs), np.float32)
    weight[0, :2] = -gain, gain
    bias = np.zeros(outputs, np.float32)
    bias[:2] = 0.5, -0.5
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    ends = [("x", TensorProto.FLOAT, [batch, 1, 8, 8])], [("y", TensorProto.FLOAT, [batch, outputs])]
    return save_graph(path, nodes, *ends, [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")])


def _halves(count: int = 40) -> Dataset:
    targets = np.arange(count) % 2
    images = np.where(targets[:, None, None, None] == 1, 200, 50).astype(np.uint8) * np.ones((1, 8, 8, 1), np.uint8)
    return Dataset.from_arrays("halves", images, targets, ("dark", "bright"))


def test_foreign_models_need_their_preprocessing_said(tmp_path: Path) -> None:
    model = _bright_or_dark(tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"--preprocess: .*unit"):
        evaluate_onnx(model, _halves())
    assert evaluate_onnx(model, _halves(), preprocess="unit").top1 == 1.0
    wrong = evaluate_onnx(model, _halves(), preprocess="raw")  # 0–255: everything looks bright
    assert wrong.top1 == 0.5
    assert wrong.per_class == {"dark": 0.0, "bright": 1.0}
    given = Preprocess(size=(8, 8), channels="L", scale=1 / 255)
    assert evaluate_onnx(model, _halves(), preprocess=given).top1 == 1.0
    assert evaluate_onnx(model, _halves(), preprocess="unit").top5 is None


def test_a_fixed_batch_is_filled_up_and_cut(tmp_path: Path) -> None:
    record = evaluate_onnx(_bright_or_dark(tmp_path / "m.onnx", batch=16), _halves(41), preprocess="unit")
    assert (record.samples, record.top1) == (41, 1.0)


def test_what_does_not_fit_is_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tells 9 classes apart, shapes-color has 6"):
        evaluate_onnx(trained.onnx, data.load("shapes-color"))
    with pytest.raises(InputError, match="tells 3 classes apart, halves has 2"):
        evaluate_onnx(_bright_or_dark(tmp_path / "three.onnx", outputs=3), _halves(), preprocess="unit")
    with pytest.raises(InputError, match="NaN"):
        evaluate_onnx(_bright_or_dark(tmp_path / "nan.onnx", gain=float("nan")), _halves(), preprocess="unit")


def test_labels_are_matched_by_name(trained: Trained) -> None:
    """A dataset with the model's classes in another order is the same dataset."""
    test = data.load("shapes", "test").take(180)
    order = np.random.default_rng(0).permutation(9)
    position = np.argsort(order)
    shuffled = Dataset.from_arrays(
        "shuffled",
        np.asarray(test.pictures(np.arange(180))),
        position[test.targets],
        tuple(test.labels[index] for index in order),
    )
    first, second = evaluate_onnx(trained.onnx, test), evaluate_onnx(trained.onnx, shuffled)
    assert second.top1 == first.top1
    assert second.per_class == first.per_class
