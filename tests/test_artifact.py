from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tiny_onnx import conv_chain, relu

from deploykit.artifact import Artifact, Preprocess, load_model
from deploykit.errors import InputError, ModelFileError
from deploykit.runtime import create_session

FULL = Preprocess(size=(32, 24), channels="RGB", resize=40, crop="center", mean=(0.5, 0.4, 0.3), std=(1.0, 2.0, 3.0))


def test_preprocess_round_trip_and_interface_keys() -> None:
    value = json.loads(json.dumps(FULL.to_json()))
    assert Preprocess.from_json(value) == FULL
    assert set(value) == {"layout", "size", "resize", "crop", "channels", "scale", "mean", "std", "dtype"}
    assert Preprocess(size=(8, 8), channels="L").mean == (0.0,)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": "CMYK"}, "allowed: L, RGB, BGR"),
        ({"layout": "HWC"}, "allowed: NCHW, NHWC"),
        ({"dtype": "int4"}, "float32"),
        ({"size": [32]}, "height, width"),
        ({"size": [0, 4]}, "height, width"),
        ({"resize": 0}, "positive"),
        ({"crop": "left"}, "center"),
        ({"mean": [1, 2]}, "3 numbers"),
        ({"std": [0, 1, 1]}, "positive"),
        ({"colour": "red"}, "unknown keys"),
        ({"scale": "x"}, "scale 'x'; allowed: a finite number"),
        ({"scale": float("nan")}, "scale nan; allowed: a finite number"),
        ({"scale": 10**400}, "allowed: a finite number"),
        ({"mean": ["a"]}, r"mean \('a',\); allowed: a list of finite numbers"),
        ({"std": 2}, "std 2; allowed: a list of finite numbers"),
        ({"size": 5}, r"size 5; expected \[height, width\]"),
        ({"resize": "x"}, "resize 'x'; allowed: null, a positive number"),
        ({"channels": {}}, "channels {}; allowed: L, RGB, BGR"),
    ],
)
def test_preprocess_says_what_is_wrong(change: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Preprocess.from_json(FULL.to_json() | change)
    assert len(str(caught.value)) < 200


def test_stamped_model_knows_itself_and_keeps_other_keys(tmp_path: Path) -> None:
    path = conv_chain(tmp_path / "a ü.onnx", metadata={"onnx.infer": "x", "deploykit.recipe": "stale"})
    bare = Artifact.read(path)
    assert bare.recipe == "stale"
    model = load_model(path)
    about = Artifact(
        **{
            **bare.__dict__,
            "network": "lenet5",
            "preprocess": FULL,
            "labels": ("a", "ü"),
            "recipe": None,
            "parity": {"max_abs": 1e-6},
        }
    )
    about.stamp(model)
    onnx.save(model, path)
    again = Artifact.read(path)
    assert (again.network, again.preprocess, again.labels, again.recipe) == ("lenet5", FULL, ("a", "ü"), None)
    assert again.parity == {"max_abs": 1e-6}
    keys = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert keys["onnx.infer"] == "x"
    assert keys["Image.BitmapPixelFormat"] == "Rgb8"


def test_foreign_model_is_read_without_metadata(tmp_path: Path) -> None:
    artifact = Artifact.read(relu(tmp_path / "m.onnx", shape=("N", 3, None)))
    assert artifact.inputs[0].shape == ("N", 3, None)
    assert (artifact.network, artifact.preprocess, artifact.labels, artifact.opset) == (None, None, (), 17)


def _cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def test_damaged_files_are_named_in_one_line(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("this is not a model\n" * 20)
    empty = tmp_path / "empty.onnx"
    empty.touch()
    no_nodes = tmp_path / "nodes.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), str(no_nodes))
    unknown_operator = tmp_path / "bad.onnx"
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])] for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", *ends)), str(unknown_operator))
    cut = [_cut(conv_chain(tmp_path / f"cut{share}.onnx"), share) for share in (0.1, 0.5, 0.9, 0.99)]
    for path in (text, empty, no_nodes, *cut, tmp_path, tmp_path / "absent.onnx"):
        with pytest.raises(ModelFileError) as caught:
            Artifact.read(path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    model = load_model(conv_chain(tmp_path / "a.onnx", layers=3))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, location="b.data", size_threshold=0)
    assert np.isfinite(onnx.numpy_helper.to_array(load_model(tmp_path / "b.onnx").graph.initializer[0])).all()
    (tmp_path / "b.data").unlink()
    with pytest.raises(ModelFileError, match=r"b\.data"):
        load_model(tmp_path / "b.onnx")


@pytest.mark.parametrize(
    ("key", "value"), [("preprocess", "{"), ("labels", "{}"), ("parity", "[]"), ("preprocess", "{}")]
)
def test_damaged_metadata_is_named(tmp_path: Path, key: str, value: str) -> None:
    path = conv_chain(tmp_path / "a.onnx", metadata={f"deploykit.{key}": value})
    with pytest.raises(InputError, match=r"preprocess|labels|parity"):
        Artifact.read(path)


def test_preprocessing_of_the_wrong_type_names_the_file(tmp_path: Path) -> None:
    text = json.dumps(FULL.to_json() | {"scale": float("nan")})  # Python's JSON knows NaN
    with pytest.raises(ModelFileError, match=r"a\.onnx: metadata deploykit\.preprocess: .*scale nan"):
        Artifact.read(conv_chain(tmp_path / "a.onnx", metadata={"deploykit.preprocess": text}))


@pytest.mark.parametrize("ending", ["json", "textproto", "onnxtxt"])
def test_the_ending_chooses_no_parser(ending: str, tmp_path: Path) -> None:
    text = tmp_path / f"a.{ending}"
    text.write_text('{"not": "a model"}')
    with pytest.raises(ModelFileError, match="not a readable ONNX model"):
        load_model(text)
    model = conv_chain(tmp_path / "b.onnx").rename(tmp_path / f"b.{ending}")
    assert len(load_model(model).graph.node) == 2


@pytest.mark.parametrize("name", ["a" * 5000, "/".join(["b" * 200] * 40)])
def test_a_path_that_is_too_long_is_one_short_line(name: str, tmp_path: Path) -> None:
    for read in (load_model, create_session):
        with pytest.raises(ModelFileError) as caught:
            read(tmp_path / name)  # type: ignore[operator]
        assert "too long" in str(caught.value)
        assert len(str(caught.value)) < 300


def test_repeated_labels_are_refused(tmp_path: Path) -> None:
    """Two classes of one name would be one row of a table."""
    path = conv_chain(tmp_path / "a.onnx", metadata={"deploykit.labels": '["cat", "dog", "cat"]'})
    with pytest.raises(ModelFileError, match="'cat' more than once"):
        Artifact.read(path)


def _stamped(path: Path, preprocess: Preprocess | None) -> dict[str, str]:
    model = load_model(path)
    replace(Artifact.read(path), preprocess=preprocess).stamp(model)
    onnx.save(model, path)
    return {prop.key: prop.value for prop in model.metadata_props}


def test_image_keys_follow_the_preprocessing(tmp_path: Path) -> None:
    path = conv_chain(tmp_path / "a.onnx", metadata={"Image.NominalPixelRange": "theirs"})
    assert _stamped(path, None)["Image.NominalPixelRange"] == "theirs"
    unit = Preprocess(size=(24, 24), channels="L")
    assert _stamped(path, unit)["Image.NominalPixelRange"] == "Normalized_0_1"
    assert "Image.NominalPixelRange" not in _stamped(path, FULL)  # 0 to 1 no longer
    assert not [key for key in _stamped(path, None) if key.startswith("Image.")]


@pytest.mark.parametrize(
    ("scale", "mean", "std", "expected"),
    [
        (1.0, 0.0, 1.0, "NominalRange_0_255"),
        (1 / 127.5, 1.0, 1.0, "Normalized_1_1"),
        (1 / 255, 0.5, 0.5, "Normalized_1_1"),
        (1 / 255, 0.1307, 0.3081, None),
    ],
)
def test_nominal_pixel_range(scale: float, mean: float, std: float, expected: str | None, tmp_path: Path) -> None:
    """Names of the ONNX standard's MetadataProps."""
    preprocess = Preprocess(size=(24, 24), scale=scale, mean=(mean,) * 3, std=(std,) * 3)
    path = conv_chain(tmp_path / "a.onnx")
    assert _stamped(path, preprocess).get("Image.NominalPixelRange") == expected
