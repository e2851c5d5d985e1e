"""Preprocessing against references written by hand: Pillow picture by picture, torchvision's crop, plain formulas."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from deploykit.artifact import Artifact, Preprocess, TensorSpec
from deploykit.errors import DataError, InputError, UnknownNameError
from deploykit.preprocess import PRESETS, apply, fit_pictures, for_network, normalize, preprocess_for, preset


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, shape).astype(np.uint8)


def pillow_reference(picture: np.ndarray, pre: Preprocess) -> np.ndarray:
    """What torchvision's Resize and CenterCrop do to a PIL picture, written out."""
    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    image = image.convert("L" if pre.depth == 1 else "RGB")
    if isinstance(pre.resize, int):
        width, height = image.size
        short = pre.resize
        target = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        image = image.resize(target, Image.Resampling.BILINEAR)
    elif pre.resize is not None:
        image = image.resize(pre.resize[::-1], Image.Resampling.BILINEAR)
    crop_height, crop_width = pre.size
    width, height = image.size
    if crop_width > width or crop_height > height:
        left, top = max(0, (crop_width - width) // 2), max(0, (crop_height - height) // 2)
        padded = Image.new(image.mode, (max(width, crop_width), max(height, crop_height)))
        padded.paste(image, (left, top))
        image, (width, height) = padded, padded.size
    top, left = round((height - crop_height) / 2.0), round((width - crop_width) / 2.0)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    pixels = np.asarray(image).reshape(*pre.size, pre.depth)
    return pixels[..., ::-1] if pre.channels == "BGR" else pixels


sides = st.integers(1, 24)
resizes = st.one_of(st.none(), sides, st.tuples(sides, sides))


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.sampled_from([1, 3]), st.tuples(sides, sides), resizes, st.sampled_from(["L", "RGB", "BGR"]))
def test_every_picture_is_fitted_as_pillow_and_torchvision_do(height, width, depth, size, resize, channels):
    pre = Preprocess(size=size, channels=channels, resize=resize, crop="center")
    pictures = noise(3, height, width, depth, seed=height * 100 + width)
    expected = np.stack([pillow_reference(picture, pre) for picture in pictures])
    assert np.array_equal(fit_pictures(pre, pictures), expected)
    assert np.array_equal(fit_pictures(pre, list(pictures)), expected)


def test_list_of_different_sizes_is_fitted_one_by_one():
    pre = preset("imagenet", size=(32, 32))
    pictures = [noise(40, 50, 3), noise(90, 33, 3), noise(32, 32, 1)]
    fitted = fit_pictures(pre, pictures)
    assert fitted.shape == (3, 32, 32, 3) and fitted.dtype == np.uint8
    for picture, result in zip(pictures, fitted, strict=True):
        assert np.array_equal(result, pillow_reference(picture, pre))


def test_no_pictures_give_an_empty_batch():
    pre = preset("unit", size=(8, 8), depth=1)
    assert apply(pre, []).shape == (0, 1, 8, 8)
    assert apply(pre, np.zeros((0, 5, 5, 3), np.uint8)).shape == (0, 1, 8, 8)


def test_luma_is_pillows_for_every_kind_of_pixel():
    pixels = noise(1, 200, 200, 3)
    grey = fit_pictures(Preprocess(size=(200, 200), channels="L"), pixels)
    assert np.array_equal(grey[0, ..., 0], np.asarray(Image.fromarray(pixels[0]).convert("L")))


def test_28_is_padded_to_32_with_two_zeros_on_each_side():
    pre = for_network((1, 32, 32), 28, (0.1307,), (0.3081,))
    pixels = noise(4, 28, 28, 1) | 1
    fitted = fit_pictures(pre, pixels)
    assert np.array_equal(fitted[:, 2:30, 2:30], pixels)
    assert np.count_nonzero(fitted) == pixels.size


def test_10000_digits_are_padded_quickly():
    pixels = noise(10_000, 28, 28, 1)
    pre = for_network((1, 32, 32), 28, (0.1307,), (0.3081,))
    start = time.process_time()
    fit_pictures(pre, pixels)
    assert time.process_time() - start < 0.3


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-3)])
@pytest.mark.parametrize("count", [1, 7, 150])
def test_normalize_is_the_formula(layout, dtype, tolerance, count):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pre = Preprocess(size=(48, 40), mean=mean, std=std, layout=layout, dtype=dtype)
    pixels = noise(count, 48, 40, 3)
    result = normalize(pre, pixels)
    expected = (pixels / 255.0 - np.array(mean)) / np.array(std)
    expected = expected.transpose(0, 3, 1, 2) if layout == "NCHW" else expected
    assert result.dtype == dtype and result.shape == expected.shape and result.flags.c_contiguous
    assert np.abs(result - expected).max() <= tolerance * 3


@pytest.mark.parametrize(("name", "low", "high"), [("unit", 0.0, 1.0), ("signed", -1.0, 1.0), ("raw", 0.0, 255.0)])
def test_presets_span_their_range(name, low, high):
    pixels = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    result = normalize(preset(name, size=(1, 2), depth=1), pixels)
    assert result.ravel().tolist() == pytest.approx([low, high], abs=1e-6)


@pytest.mark.parametrize(("size", "resize"), [(224, 256), (299, 342), (32, 37)])
def test_imagenet_resizes_to_256_of_224(size, resize):
    pre = preset("imagenet", size=(size, size))
    assert (pre.resize, pre.crop, pre.channels) == (resize, "center", "RGB")
    white = normalize(pre, np.full((1, size, size, 3), 255, np.uint8))[0, :, 0, 0]
    assert white.tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)  # (1 - mean) / std, by hand


def test_uint8_input_gets_the_pixels():
    pre = preset("raw", size=(4, 4), layout="NHWC", dtype="uint8")
    pixels = noise(2, 4, 4, 3)
    assert np.array_equal(apply(pre, pixels), pixels)
    for name in ("imagenet", "unit", "signed"):
        with pytest.raises(InputError, match="allowed: scale 1, mean 0, std 1"):
            preset(name, size=(4, 4), dtype="uint8")


def test_presets_refuse_what_does_not_fit():
    with pytest.raises(UnknownNameError, match="did you mean 'imagenet'"):
        preset("imagnet", size=(4, 4))
    with pytest.raises(InputError, match="imagenet preset is for colour"):
        preset("imagenet", size=(4, 4), depth=1)
    with pytest.raises(InputError, match="takes 4 channels"):
        preset("unit", size=(4, 4), depth=4)
    assert set(PRESETS) == {"imagenet", "unit", "signed", "raw"}


@pytest.mark.parametrize(
    ("picture_size", "content", "resize", "crop"),
    [
        ((28, 28), 28, (28, 28), "center"),
        ((30, 28), None, (32, 32), None),
        (None, None, 32, "center"),
        ((480, 640), None, 32, "center"),
        (None, 28, 28, "center"),
    ],
)
def test_training_stretches_what_is_nearly_square(picture_size, content, resize, crop):
    pre = for_network((3, 32, 32), content, (0.5,) * 3, (0.5,) * 3, picture_size=picture_size)
    assert (pre.size, pre.resize, pre.crop, pre.channels) == ((32, 32), resize, crop, "RGB")
    shape = (1, *(picture_size or (50, 60)), 3)
    assert apply(pre, noise(*shape)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("pictures", "match"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 3), np.uint8), r"shape \(8, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \(2, 3, 8, 8\)"),
        ([np.zeros((8, 8), np.uint8)], r"allowed: uint8 of shape \(H, W"),
        (np.zeros((1, 9, 8, 3), np.uint8), "9 x 8 pixels after resize None; the network takes 8 x 8"),
        (np.zeros((1, 0, 8, 3), np.uint8), "allowed: uint8 of shape"),
    ],
)
def test_pictures_that_cannot_be_fitted_are_refused(pictures, match):
    with pytest.raises(DataError, match=match):
        fit_pictures(Preprocess(size=(8, 8)), pictures)


def test_picture_that_would_become_huge_is_refused():
    pre = preset("imagenet", size=(224, 224))
    with pytest.raises(DataError, match="1 x 30000 pixels would become 256 x 7680000"):
        fit_pictures(pre, [np.zeros((1, 30_000, 3), np.uint8)])


def test_pixels_of_another_size_are_not_normalised():
    with pytest.raises(DataError, match=r"the network takes \(N, 8, 8, 3\)"):
        normalize(Preprocess(size=(8, 8)), noise(1, 8, 9, 3))


def artifact(shape, preprocess=None, dtype="float32"):
    from pathlib import Path

    tensor = TensorSpec("input", dtype, shape)
    return Artifact(Path("m.onnx"), "0" * 64, 1, (tensor,), (), 17, 8, preprocess=preprocess)


def test_model_is_fed_as_it_says_unless_told_otherwise():
    own = Preprocess(size=(8, 8))
    assert preprocess_for(artifact(("N", 3, 8, 8), own)) is own
    other = Preprocess(size=(8, 8), scale=1.0)
    assert preprocess_for(artifact(("N", 3, 8, 8), own), other) is other
    with pytest.raises(InputError, match="name it with --preprocess: imagenet, unit, signed, raw"):
        preprocess_for(artifact(("N", 3, 8, 8)))


@pytest.mark.parametrize(
    ("shape", "layout", "size", "channels"),
    [
        (("N", 3, 16, 8), "NCHW", (16, 8), "RGB"),
        ((1, 1, 28, 28), "NCHW", (28, 28), "L"),
        ((None, 16, 8, 3), "NHWC", (16, 8), "RGB"),
    ],
)
def test_preset_takes_its_size_from_the_model(shape, layout, size, channels):
    pre = preprocess_for(artifact(shape), "unit")
    assert (pre.layout, pre.size, pre.channels) == (layout, size, channels)


@pytest.mark.parametrize("shape", [None, ("N", 3, "H", "W"), (1, 784), (1, 4, 8, 8)])
def test_preset_needs_a_picture_input_of_known_size(shape):
    with pytest.raises(InputError, match="preset 'unit' does not fit"):
        preprocess_for(artifact(shape), "unit")
    with pytest.raises(UnknownNameError):
        preprocess_for(artifact(shape), "units")
