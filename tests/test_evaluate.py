from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_onnx import save_graph

from deploykit import data
from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.cli import main
from deploykit.commands.options import load_for_model, load_for_models
from deploykit.data.dataset import Dataset
from deploykit.errors import DeploykitError, InputError, UnknownNameError
from deploykit.evaluate import Classifier, EvaluateOptions, evaluate_ensemble, evaluate_onnx
from deploykit.graph.profile import profile_onnx
from deploykit.preprocess import apply
from deploykit.report import collect, write_report
from deploykit.report.rows import protocol_label
from deploykit.results import Accuracy, read_record


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


def _told(path: Path, **metadata: object) -> Path:
    model = onnx.load(path)
    for key, value in metadata.items():
        model.metadata_props.add(key=f"deploykit.{key}", value=json.dumps(value))
    onnx.save(model, path)
    return path


UNIT = Preprocess(size=(8, 8), channels="L")


def test_a_reference_keeps_its_own_preprocessing(tmp_path: Path) -> None:
    """``preprocess`` is for the model that does not say it; with "raw" the reference would call everything bright."""
    model = _bright_or_dark(tmp_path / "m.onnx", gain=1 / 255)  # takes 0–255
    reference = _told(_bright_or_dark(tmp_path / "r.onnx"), preprocess=UNIT.to_json())
    assert evaluate_onnx(model, _halves(), reference=reference, preprocess="raw").agreement == 1.0
    silent = _bright_or_dark(tmp_path / "s.onnx", gain=1 / 255)
    assert evaluate_onnx(model, _halves(), reference=silent, preprocess="raw").agreement == 1.0


def _turned(path: Path) -> Path:
    """``_bright_or_dark`` with its two logits exchanged."""
    model = onnx.load(_bright_or_dark(path))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., ::-1].copy(), tensor.name))
    onnx.save(model, path)
    return path


def test_agreement_is_by_the_names_of_the_classes(tmp_path: Path) -> None:
    about = {"preprocess": UNIT.to_json()}
    model = _told(_bright_or_dark(tmp_path / "m.onnx"), labels=["dark", "bright"], **about)
    turned = _told(_turned(tmp_path / "t.onnx"), labels=["bright", "dark"], **about)
    record = evaluate_onnx(model, _halves(), reference=turned)
    assert (record.top1, record.agreement, record.warnings) == (1.0, 1.0, ())
    wide = _told(_bright_or_dark(tmp_path / "w.onnx", outputs=3), labels=["dark", "bright", "other"], **about)
    assert evaluate_onnx(model, _halves(), reference=wide).agreement == 1.0
    other = _told(_bright_or_dark(tmp_path / "o.onnx"), labels=["night", "day"], **about)
    assert "o.onnx: night, …; m.onnx: dark" in evaluate_onnx(model, _halves(), reference=other).warnings[0]
    foreign = _bright_or_dark(tmp_path / "f.onnx", outputs=3)
    with pytest.raises(InputError, match=r"f\.onnx tells 3 classes apart, m\.onnx has 2"):
        evaluate_onnx(model, _halves(), reference=foreign, preprocess="unit")


def test_repeated_class_names_of_data_are_refused(tmp_path: Path) -> None:
    twice = replace(_halves(), labels=("same", "same"))
    with pytest.raises(InputError, match="halves has the class 'same' more than once"):
        evaluate_onnx(_bright_or_dark(tmp_path / "m.onnx"), twice, preprocess="unit")


def test_every_stage_calls_a_precision_by_the_same_name(trained: Trained, tmp_path: Path) -> None:
    data_ = data.load("shapes", "test").take(20)
    foreign = tmp_path / "int8.onnx"
    model = load_model(trained.int8)
    kept = [prop for prop in model.metadata_props if prop.key != "deploykit.precision"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, foreign)
    plain = _bright_or_dark(tmp_path / "plain.onnx")
    timings = bench_onnx([foreign, plain], BenchOptions(threads=1, samples=5, min_time_s=0)).results
    assert [timing.precision for timing in timings] == ["int8", "fp32"]
    assert [profile_onnx(path).precision for path in (foreign, plain)] == ["int8", "fp32"]
    assert evaluate_onnx(foreign, data_).precision == "int8"
    assert evaluate_onnx(plain, _halves(), preprocess="unit").precision == "fp32"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"threads": 0}, InputError, "threads 0; allowed: 1 to"),
        ({"provider": "cpux"}, UnknownNameError, "did you mean 'cpu'"),
        ({"batch_size": 0}, InputError, "batch size 0"),
    ],
)
def test_options_are_checked_before_any_work(
    options: dict[str, object], error: type[DeploykitError], says: str
) -> None:
    with pytest.raises(error, match=says):
        EvaluateOptions(**options)  # type: ignore[arg-type]


FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
MEAN = helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)


ODD = {
    "int-output": ([MEAN, helper.make_node("ArgMax", ["m"], ["y"], axis=1, keepdims=0)], ["N", 1, 8, 8], FLOAT),
    "picture-output": ([helper.make_node("Relu", ["x"], ["y"])], ["N", 1, 8, 8], FLOAT),
    "scalar-output": ([helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)], ["N", 1, 8, 8], FLOAT),
    "sequence-output": ([MEAN, helper.make_node("SequenceConstruct", ["m"], ["y"])], ["N", 1, 8, 8], FLOAT),
    "int-input": ([helper.make_node("Cast", ["x"], ["y"], to=FLOAT)], ["N", 1, 8, 8], INT64),
    "rank-2-input": ([helper.make_node("Relu", ["x"], ["y"])], ["N", 64], FLOAT),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("preprocess", ["unit", UNIT])
def test_odd_models_end_in_one_line(name: str, preprocess: str | Preprocess, tmp_path: Path) -> None:
    model = _odd(tmp_path / "odd.onnx", *ODD[name])
    with pytest.raises(DeploykitError) as caught:
        evaluate_onnx(model, _halves(), preprocess=preprocess)
    assert "\n" not in str(caught.value)


def _odd(path: Path, nodes: list[onnx.NodeProto], shape: list[object], kind: int) -> Path:
    """The answer's type is what the nodes make of it."""
    entry = helper.make_tensor_value_info("x", kind, shape)
    if nodes[-1].op_type == "SequenceConstruct":
        answer = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    else:
        answer = helper.make_tensor_value_info("y", INT64 if nodes[-1].op_type == "ArgMax" else FLOAT, None)
    graph = helper.make_graph(nodes, "odd", [entry], [answer])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]), path)
    return path


def test_the_first_of_several_outputs_and_channels_last(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.array([[-1.0, 1.0]], np.float32), "w")
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1),
        helper.make_node("Shape", ["x"], ["size"]),
    ]
    bias = numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "b")
    ends = [("y", FLOAT, ["N", 2]), ("best", INT64, ["N", 1]), ("size", INT64, [4])]
    for name, sides in (("fixed", 8), ("free", None)):
        model = save_graph(
            tmp_path / f"{name}.onnx", nodes, [("x", FLOAT, ["N", sides, sides, 1])], ends, [weight, bias]
        )
        given = Preprocess(size=(8, 8), channels="L", layout="NHWC")
        assert evaluate_onnx(model, _halves(), preprocess=given).top1 == 1.0
    with pytest.raises(InputError, match="known H and W"):
        evaluate_onnx(tmp_path / "free.onnx", _halves(), preprocess="unit")


def test_a_folder_that_has_changed_since_the_training_is_doubted(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label, grey in (("dark", 20), ("bright", 230)):
        (folder / label).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (8, 8), grey + index).save(folder / label / f"{index}.png")
    digest = data.load(folder, "all").digest
    artifact = replace(Artifact.read(trained.onnx), dataset="photos", training={"dataset_digest": digest})
    same = load_for_model(artifact, str(folder), "auto", None)
    assert (same.split, len(same), same.notes) == ("test", 4, ())
    Image.new("L", (8, 8), 5).save(folder / "dark" / "new.png")
    changed = load_for_model(artifact, str(folder), "auto", None)
    assert changed.split == "test"
    assert "some of these may have been trained on" in changed.notes[-1]
    model = _bright_or_dark(tmp_path / "m.onnx")
    assert evaluate_onnx(model, changed, preprocess="unit").warnings == changed.notes
    elsewhere = replace(artifact, dataset="other")
    assert load_for_model(elsewhere, str(folder), "auto", None).split == "all"


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _passes_by_hand(model: Path, picture: np.ndarray) -> np.ndarray:
    """Softmax of ten forward passes, one at a time, on crops made with Pillow: 28 pixels of 32."""
    pre = Artifact.read(model).preprocess
    assert pre is not None and pre.size == (28, 28)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    large = np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BILINEAR))
    crops = [large[row : row + 28, column : column + 28] for row, column in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
    answers = []
    for crop in (*crops, *(np.fliplr(crop) for crop in crops)):
        scaled = (crop * pre.scale - np.array(pre.mean)) / np.array(pre.std)
        answers.append(session.run(None, {"input": scaled.astype(np.float32).transpose(2, 0, 1)[None]})[0][0])
    return softmax(np.stack(answers))


def test_ten_crops_are_the_mean_of_ten_forward_passes(trained: Trained) -> None:
    test = data.load("shapes", "test").take(60)
    by_hand = np.stack([_passes_by_hand(trained.onnx, picture).mean(0) for picture in test.pictures(range(60))])
    averaged = Classifier.open(trained.onnx).averaged(test.pictures(range(60)), 10, 64)
    np.testing.assert_allclose(averaged, by_hand, atol=1e-5)
    record = evaluate_onnx(trained.onnx, test, options=EvaluateOptions(crops=10))
    hits = by_hand.argmax(1) == test.targets
    assert record.top1 == pytest.approx(hits.mean())
    assert 0.2 < record.top1 < 1.0  # so that it could have been wrong
    assert (record.crops, record.models, record.forward_passes, record.members) == (10, 1, 10, ())
    assert record.picture_ms is not None and record.picture_ms > 0.0


def test_an_ensemble_is_the_mean_of_its_models(trained: Trained) -> None:
    test = data.load("shapes", "test").take(60)
    pair = (trained.onnx, trained.int8)
    both = np.stack(
        [
            np.mean([_passes_by_hand(model, picture).mean(0) for model in pair], axis=0)
            for picture in test.pictures(range(60))
        ]
    )
    options = EvaluateOptions(crops=10, examples=60)
    record = evaluate_ensemble(pair, test, options=options, reference=trained.onnx)
    assert record.top1 == pytest.approx((both.argmax(1) == test.targets).mean())
    assert [example.probability for example in record.examples] == pytest.approx(both.max(1).tolist(), abs=1e-5)
    assert (record.crops, record.models, record.forward_passes) == (10, 2, 20)
    alone = [evaluate_onnx(model, test, options=options) for model in pair]
    assert [member.top1 for member in record.members] == [single.top1 for single in alone]
    assert [member.model_sha256 for member in record.members] == [single.model_sha256 for single in alone]
    assert record.model_sha256 not in {single.model_sha256 for single in alone}
    assert record.file_bytes == sum(model.stat().st_size for model in pair)
    assert (record.model, record.precision) == ("net.onnx + net.int8.onnx", "fp32+int8")
    assert record.agreement is not None and 0.9 < record.agreement <= 1.0
    document = json.loads(json.dumps(record.to_document()))
    assert Accuracy.from_document(document) == record
    assert document["forward_passes"] == 20 and document["members"][1]["precision"] == "int8"


@pytest.mark.parametrize("crops", [10, 144])
def test_crops_change_nothing_in_who_counts(crops: int, trained: Trained) -> None:
    test = data.load("shapes", "test").take(310 // crops)
    first, *others = (
        evaluate_onnx(trained.onnx, test, options=EvaluateOptions(crops=crops, batch_size=size), reference=trained.onnx)
        for size in (7, 50, 1000)
    )
    assert (first.samples, first.forward_passes, first.agreement) == (310 // crops, crops, 1.0)
    for other in others:
        assert (other.samples, other.agreement) == (first.samples, 1.0)
        assert (other.top1, other.top5, other.per_class) == (first.top1, first.top5, first.per_class)
        assert [example.predicted for example in other.examples] == [example.predicted for example in first.examples]


def _fixed_answer(path: Path, logits: list[float], *, after: tuple[str, ...] = (), names: tuple[str, ...] = ()) -> Path:
    """The same logits for every picture, then the operators ``after``."""
    weights = [
        numpy_helper.from_array(np.zeros((1, len(logits)), np.float32), "w"),
        numpy_helper.from_array(np.array(logits, np.float32), "b"),
        numpy_helper.from_array(np.array(1 / 255, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.uint8), "zero"),
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y0"]),
    ]
    for index, kind in enumerate(after):
        extra = [] if kind in ("Softmax", "Identity", "Exp") else ["scale", "zero"]
        nodes.append(helper.make_node(kind, [f"y{index}", *extra], [f"y{index + 1}"]))
    ends = [("x", FLOAT, ["N", 1, 8, 8])], [(f"y{len(after)}", FLOAT, ["N", len(logits)])]
    used = weights[:2] + (weights[2:] if "QuantizeLinear" in after else [])
    about = {"preprocess": UNIT.to_json()} | ({"labels": list(names)} if names else {})
    return _told(save_graph(path, nodes, *ends, used), **about)


def test_probabilities_are_averaged_not_logits(tmp_path: Path) -> None:
    """One model that shouts against two that are fairly sure: its logit of 10 counts as a probability below 1."""
    loud = _fixed_answer(tmp_path / "loud.onnx", [10.0, 0.0])
    sure = [_fixed_answer(tmp_path / f"sure{index}.onnx", [0.0, 3.0 + index]) for index in range(2)]
    assert np.mean([[10.0, 0.0], [0.0, 3.0], [0.0, 4.0]], axis=0).argmax() == 0
    record = evaluate_ensemble([loud, *sure], _halves())
    assert record.per_class == {"dark": 0.0, "bright": 1.0}
    wanted = softmax(np.array([[10.0, 0.0], [0.0, 3.0], [0.0, 4.0]])).mean(0)[1]
    assert record.examples[0].probability == pytest.approx(wanted, abs=1e-6)
    assert [member.top1 for member in record.members] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "after", [("Softmax",), ("Softmax", "Identity"), ("Softmax", "QuantizeLinear", "DequantizeLinear")]
)
def test_probabilities_stay_what_they_are(after: tuple[str, ...], tmp_path: Path) -> None:
    """A quantized softmax of many classes does not sum to one: 1/300 of each becomes 1/255."""
    logits = [0.0, 3.0]
    plain = _fixed_answer(tmp_path / "logits.onnx", logits)
    done = _fixed_answer(tmp_path / "done.onnx", logits, after=after)
    wanted = softmax(np.array(logits))[1]
    for models in ([plain, done], [done, _fixed_answer(tmp_path / "d.onnx", [1e-7, 3.0], after=after)]):
        assert evaluate_ensemble(models, _halves()).examples[0].probability == pytest.approx(wanted, abs=2e-3)
    wide = _fixed_answer(tmp_path / "wide.onnx", [0.0] * 300, after=after)
    picture = _halves().pictures(range(1))
    averaged = Classifier.open(wide).told_by(picture).averaged(picture, 10, 64)
    np.testing.assert_allclose(averaged, 1 / 255 if "QuantizeLinear" in after else 1 / 300, rtol=1e-5)


def test_a_distribution_is_known_without_a_softmax_node(tmp_path: Path) -> None:
    done = _fixed_answer(tmp_path / "d.onnx", list(np.log([0.2, 0.8])), after=("Exp",))
    assert evaluate_onnx(done, _halves(), options=EvaluateOptions(crops=10)).examples[0].probability == pytest.approx(
        0.8
    )


def test_members_are_matched_by_the_names_of_their_classes(tmp_path: Path) -> None:
    about = {"preprocess": UNIT.to_json()}
    model = _told(_bright_or_dark(tmp_path / "m.onnx"), labels=["dark", "bright"], **about)
    turned = _told(_turned(tmp_path / "t.onnx"), labels=["bright", "dark"], **about)
    silent = _bright_or_dark(tmp_path / "s.onnx", gain=1 / 255)
    for models in ((model, turned), (turned, model), (turned, silent), (silent, turned)):
        record = evaluate_ensemble(models, _halves(), preprocess="raw", reference=turned)
        assert (record.top1, record.agreement, record.warnings) == (1.0, 1.0, ())
        assert [member.top1 for member in record.members] == [1.0, 1.0]
    # Their own names agree, whatever the dataset calls its classes.
    night = _told(_bright_or_dark(tmp_path / "n.onnx"), labels=["night", "day"], **about)
    day = _told(_turned(tmp_path / "d.onnx"), labels=["day", "night"], **about)
    record = evaluate_ensemble((night, day), _halves())
    assert record.top1 == 1.0 and "matched by position" in record.warnings[0]


def test_members_may_differ_in_input(tmp_path: Path) -> None:
    """8 × 8 floats, 16 × 16 bytes with channels last, and a batch of 16."""
    weight = numpy_helper.from_array(np.array([[-1.0, 1.0]], np.float32), "w")
    bias = numpy_helper.from_array(np.array([127.5, -127.5], np.float32), "b")
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("ReduceMean", ["f"], ["m"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    ends = [("x", TensorProto.UINT8, ["N", 16, 16, 1])], [("y", FLOAT, ["N", 2])]
    raw = Preprocess(size=(16, 16), channels="L", resize=16, scale=1.0, layout="NHWC", dtype="uint8")
    bytes_ = _told(save_graph(tmp_path / "b.onnx", nodes, *ends, [weight, bias]), preprocess=raw.to_json())
    plain = _told(_bright_or_dark(tmp_path / "m.onnx"), preprocess=UNIT.to_json())
    fixed = _told(_bright_or_dark(tmp_path / "f.onnx", batch=16), preprocess=UNIT.to_json())
    for crops in (1, 10, 144):
        options = EvaluateOptions(crops=crops, batch_size=50)
        record = evaluate_ensemble((plain, bytes_, fixed), _halves(13), options=options)
        assert (record.samples, record.top1, record.forward_passes) == (13, 1.0, 3 * crops)
        assert [member.top1 for member in record.members] == [1.0] * 3


def test_ensembles_that_do_not_fit_are_refused(trained: Trained, tmp_path: Path) -> None:
    about = {"preprocess": UNIT.to_json()}
    model = _told(_bright_or_dark(tmp_path / "m.onnx"), labels=["dark", "bright"], **about)
    other = _told(_bright_or_dark(tmp_path / "o.onnx"), labels=["night", "day"], **about)
    wide = _told(_bright_or_dark(tmp_path / "w.onnx", outputs=3), labels=["dark", "bright", "other"], **about)
    foreign = _bright_or_dark(tmp_path / "f.onnx", outputs=3)
    same = "the models of an ensemble must have the same classes"
    with pytest.raises(InputError, match=rf"o\.onnx tells 2 classes \(night, day\) apart, .*m\.onnx 2 .*; {same}"):
        evaluate_ensemble((model, other), _halves())
    for second in (wide, foreign):
        with pytest.raises(InputError, match=rf"tells 3 classes.* apart, .*m\.onnx 2 classes \(dark, bright\); {same}"):
            evaluate_ensemble((model, second), _halves(), preprocess="unit")
    with pytest.raises(InputError, match="an ensemble of 1 models; allowed: two or more"):
        evaluate_ensemble((model,), _halves())
    record = evaluate_ensemble((model, model), _halves())
    assert record.warnings == ("m.onnx and m.onnx are the same file, which counts twice",)


def test_the_command_counts_its_models(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(trained.onnx), str(trained.int8)]
    for arguments, says in (
        (pair, "evaluate received 2 models; allowed: one, or several as an ensemble with --ensemble"),
        ([pair[0], "--ensemble"], "allowed: two or more"),
        ([pair[0], "--crops", "12"], "crops 12; allowed: 1, 10, 144"),
    ):
        assert main(["evaluate", *arguments, "--data", "shapes"]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    output = tmp_path / "both.json"
    assert main(["evaluate", *pair, "--ensemble", "--crops", "10", "--data", "shapes", "-o", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "20 forward passes a picture (10 crops × 2 models), " in printed
    record = read_record(output)
    assert isinstance(record, Accuracy) and record.samples == 900
    for member in record.members:
        line = next(line for line in printed.splitlines() if line.startswith(member.model))
        assert f"{100 * member.top1:.2f} %" in line


def test_reports_set_the_cost_beside_the_accuracy(trained: Trained, tmp_path: Path) -> None:
    """A latency is that of one forward pass, so it stands beside the accuracy of one."""
    test = data.load("shapes", "test").take(50)
    folder = tmp_path / "records"
    folder.mkdir()
    records = {
        "one": evaluate_onnx(trained.onnx, test),
        "ten": evaluate_onnx(trained.onnx, test, options=EvaluateOptions(crops=10)),
        "both": evaluate_ensemble((trained.onnx, trained.int8), test),
        "bench": bench_onnx([trained.onnx], BenchOptions(threads=1, samples=5, min_time_s=0)),
    }
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record.to_document()))
    rows = {(row.crops, row.models): row for row in collect([folder]).rows}
    assert set(rows) == {(1, 1), (10, 1), (1, 2)}
    assert [row.latency_ms is not None for row in (rows[1, 1], rows[10, 1], rows[1, 2])] == [True, False, False]
    assert (rows[10, 1].forward_passes, rows[1, 2].forward_passes) == (10, 2)
    assert rows[1, 2].name == "net.onnx + net.int8.onnx"
    text = write_report([folder], tmp_path / "r.md").read_text("utf-8")
    assert "| Passes | A picture |" in text
    assert isinstance(ten := records["ten"], Accuracy)
    assert protocol_label(ten) == "shapes-color-shape test, 10 crops"
    (folder / "ten.json").unlink(), (folder / "both.json").unlink()
    assert "Passes" not in write_report([folder], tmp_path / "s.md").read_text("utf-8")


def test_an_ensemble_is_measured_on_what_none_was_trained_on(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for label, grey in (("dark", 20), ("bright", 230)):
        (folder / label).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (8, 8), grey + index).save(folder / label / f"{index}.png")
    elsewhere = replace(Artifact.read(trained.onnx), dataset="other", training=None)
    digest = data.load(folder, "all").digest
    here = replace(elsewhere, dataset="photos", training={"dataset_digest": digest})
    assert load_for_models([elsewhere, elsewhere], str(folder), "auto", None).split == "all"
    assert load_for_models([elsewhere, here], str(folder), "auto", None).split == "test"
