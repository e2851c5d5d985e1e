"""Preprocessing as ONNX operators: the pixels that Pillow and torchvision's crop give, whatever the picture's size."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from pixel_networks import photo

from deploykit.graph.picture_input import PictureInput, pixels_model
from deploykit.preprocess import apply, fit_pictures
from deploykit.preprocessing_spec import Preprocess
from deploykit.raw_pictures import inputs_of
from deploykit.runtime import create_session

SIZES = [(28, 28), (101, 67), (33, 150), (57, 56), (31, 33), (90, 55), (29, 200), (3, 5)]
RESIZED = {
    "shorter side, then middle": Preprocess((28, 28), resize=32, crop="center"),
    "both sides": Preprocess((28, 36), resize=(28, 36)),
    "both sides, border of zeros": Preprocess((32, 32), "L", (28, 28), "center"),
    "both sides, cut and border": Preprocess((30, 20), "L", (40, 18), "center"),
    "shorter side, border": Preprocess((32, 48), resize=40, crop="center"),
    "colours reversed": Preprocess((28, 28), "BGR", 30, "center"),
}


def pixels_of(picture: PictureInput, image: np.ndarray) -> np.ndarray:
    model = ir.to_proto(pixels_model(picture))
    onnx.checker.check_model(model, full_check=True)
    return create_session(model.SerializeToString()).run(image)[0]


def python_pixels(pre: Preprocess, image: np.ndarray) -> np.ndarray:
    fitted = fit_pictures(pre, [image])
    return fitted[..., ::-1] if pre.channels == "BGR" else fitted  # the graph turns colours round later


@pytest.mark.parametrize("pre", RESIZED.values(), ids=RESIZED.keys())
def test_resized_pixels_are_pillows_within_a_level(pre: Preprocess) -> None:
    picture = PictureInput.of(pre)
    assert picture.any_size
    for size in SIZES:
        image = photo(*size, channels=pre.depth, seed=size[0])
        got, wanted = pixels_of(picture, image[None]), python_pixels(pre, image)
        assert got.shape == wanted.shape
        assert np.abs(got.astype(int) - wanted).max() <= 1, size


def test_a_picture_of_the_right_size_comes_through_unchanged() -> None:
    for pre in RESIZED.values():
        picture = PictureInput.of(pre)
        image = photo(*picture.fed.size, channels=pre.depth)
        assert (pixels_of(picture, image[None]) == python_pixels(pre, image)).all()


def test_middles_are_torchvisions_for_every_odd_and_even_rest() -> None:
    """Half of an odd number of spare pixels goes to the even neighbour; missing ones are zeros."""
    pre = Preprocess((20, 21), resize=None, crop="center")
    picture = PictureInput.of(pre)
    for size in [(20 + up, 21 + across) for up, across in zip(range(-7, 9), range(8, -8, -1), strict=True)]:
        image = photo(*size, seed=size[0])
        assert (pixels_of(picture, image[None]) == python_pixels(pre, image)).all(), size


def test_a_large_photo_made_small_is_smoothed_as_pillow_does() -> None:
    """Without antialiasing, or with weights beyond the edge, pixels are off by 10 and more."""
    pre = Preprocess((28, 28), resize=32, crop="center")
    image = np.random.default_rng(0).integers(0, 256, (601, 455, 3), np.uint8)
    assert np.abs(pixels_of(PictureInput.of(pre), image[None]).astype(int) - python_pixels(pre, image)).max() <= 1


@pytest.mark.parametrize("pre", RESIZED.values(), ids=RESIZED.keys())
def test_a_fixed_size_has_no_resize_and_no_crop(pre: Preprocess) -> None:
    picture = PictureInput.of(pre, fixed_size=True)
    model = ir.to_proto(pixels_model(picture))
    assert {node.op_type for node in model.graph.node} <= {"Pad", "Identity"}
    assert not picture.fed.any_size
    for size in SIZES:
        image = photo(*size, channels=pre.depth, seed=size[0])
        assert (pixels_of(picture, apply(picture.fed, [image])) == python_pixels(pre, image)).all()


def test_without_resize_and_crop_only_the_networks_size_is_taken() -> None:
    picture = PictureInput.of(Preprocess((28, 30)))
    assert not picture.any_size
    assert (picture.fed.size, picture.fed.dtype, picture.fed.layout) == ((28, 30), "uint8", "NHWC")


def test_stacks_of_pictures_of_one_size_become_one_input() -> None:
    pre = PictureInput.of(RESIZED["shorter side, then middle"]).fed
    pictures = [photo(40, 50), photo(40, 50, seed=1), photo(33, 50, seed=2), photo(40, 50, seed=3)]
    arrays = list(inputs_of(pre, pictures))
    assert [array.shape for array in arrays] == [(2, 40, 50, 3), (1, 33, 50, 3), (1, 40, 50, 3)]
    assert (np.concatenate([arrays[0], arrays[2]]) == np.stack([pictures[0], pictures[1], pictures[3]])).all()
    assert apply(pre, pictures).shape == (4, 32, 32, 3)  # where one array is wanted, they are brought to one size


def test_any_size_survives_its_json() -> None:
    pre = PictureInput.of(RESIZED["both sides"]).fed
    assert Preprocess.from_json(pre.to_json()) == pre
    assert "any_size" not in RESIZED["both sides"].to_json()  # files of before stay as they are
