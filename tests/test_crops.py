"""The crops of each protocol, by coordinates worked out by hand and by Pillow's own crops."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageOps

from deploykit.artifact import Preprocess
from deploykit.crops import crop_batches, views
from deploykit.errors import DataError, InputError

PHOTO = Preprocess(size=(224, 224), resize=256, crop="center")


def coordinates(height: int, width: int) -> np.ndarray:
    """Each pixel is its own place: red the row, green the column, blue the column's and row's hundreds."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, rows // 256 * 16 + columns // 256], axis=-1).astype(np.uint8)


def place(pixel: np.ndarray) -> tuple[int, int]:
    red, green, blue = (int(value) for value in pixel)
    return red + blue // 16 * 256, green + blue % 16 * 256


def test_ten_small_crops_written_out() -> None:
    picture = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]], np.uint8)[..., None]
    pre = Preprocess(size=(2, 2), channels="L", crop="center")
    wanted = [
        [[0, 1], [4, 5]],
        [[2, 3], [6, 7]],
        [[4, 5], [8, 9]],
        [[6, 7], [10, 11]],
        [[1, 2], [5, 6]],  # half a row of room above: rounded to even, as torchvision does
        [[1, 0], [5, 4]],
        [[3, 2], [7, 6]],
        [[5, 4], [9, 8]],
        [[7, 6], [11, 10]],
        [[2, 1], [6, 5]],
    ]
    assert [view[..., 0].tolist() for view in views(pre, picture, 10)] == wanted


def test_ten_crops_of_a_photo_lie_where_the_paper_puts_them() -> None:
    """256 × 300 is what the resize leaves, so that pixels tell their places."""
    shown = list(views(PHOTO, coordinates(256, 300), 10))
    starts = [(0, 0), (0, 76), (32, 0), (32, 76), (16, 38)]
    assert [place(view[0, 0]) for view in shown[:5]] == starts
    assert [place(view[-1, -1]) for view in shown[:5]] == [(row + 223, column + 223) for row, column in starts]
    for crop, mirrored in zip(shown[:5], shown[5:], strict=True):
        assert np.array_equal(mirrored, crop[:, ::-1])


def test_144_crops_are_144_and_those_at_256_lie_where_they_should() -> None:
    shown = list(views(PHOTO, coordinates(256, 300), 144))
    assert {view.shape for view in shown} == {(224, 224, 3)}
    assert len({view.tobytes() for view in shown}) == len(shown) == 144
    for square, left in enumerate((0, 22, 44)):
        group = shown[12 * square : 12 * square + 12]
        corners = [(0, left), (0, left + 32), (32, left), (32, left + 32), (16, left + 16)]
        assert [place(view[0, 0]) for view in group[:5]] == corners
        for crop, mirrored in zip(group[:6], group[6:], strict=True):
            assert np.array_equal(mirrored, crop[:, ::-1])


def test_a_tall_picture_is_cut_from_top_to_bottom() -> None:
    shown = list(views(PHOTO, coordinates(301, 256), 144))
    # 45 rows of room: half to even gives 22.
    assert [place(shown[first][0, 0]) for first in (0, 12, 24)] == [(0, 0), (22, 0), (45, 0)]
    assert len({view.tobytes() for view in shown}) == 144


def test_the_three_squares_of_a_square_picture_are_one() -> None:
    picture = np.random.default_rng(5).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert len({view.tobytes() for view in views(PHOTO, picture, 144)}) == 48


@pytest.mark.parametrize("size", [(375, 500), (640, 427), (90, 61), (224, 224)])
def test_144_crops_by_pillow_alone(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image, wanted = Image.fromarray(picture), []
    for scale in (256, 288, 320, 352):
        width, height = (scale * side // min(image.size) for side in image.size)
        whole = image.resize((width, height), Image.Resampling.BILINEAR)
        for share in (0, 1, 2):
            left, top = (round((side - scale) * share / 2) for side in whole.size)
            square = whole.crop((left, top, left + scale, top + scale))
            room = scale - 224
            boxes = [*product((0, room), repeat=2), (room // 2, room // 2)]
            crops = [square.crop((x, y, x + 224, y + 224)) for x, y in boxes]
            crops.append(square.resize((224, 224), Image.Resampling.BILINEAR))
            wanted += crops + [ImageOps.mirror(crop) for crop in crops]
    assert sorted(np.asarray(crop).tobytes() for crop in wanted) == sorted(
        view.tobytes() for view in views(PHOTO, picture, 144)
    )


def _resized(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("changes", "resized"),
    [
        ({"resize": 224}, (341, 256)),  # of 300 × 400: no room above and below
        ({"resize": 256}, (341, 256)),
        ({"resize": 250}, (333, 250)),  # room enough, so it stays
        ({"resize": (224, 224)}, (256, 256)),  # the network knows stretched pictures
        ({"resize": (240, 300)}, (300, 240)),
        ({"resize": None}, (400, 300)),
    ],
)
def test_ten_crops_are_cut_from_the_models_own_resize_where_it_leaves_room(
    changes: dict[str, object], resized: tuple[int, int]
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    pre = Preprocess(size=(224, 224), crop="center", **changes)  # type: ignore[arg-type]
    shown, whole = list(views(pre, picture, 10)), _resized(picture, *resized)
    assert np.array_equal(shown[0], whole[:224, :224])
    assert np.array_equal(shown[3], whole[-224:, -224:])


def test_a_network_with_a_border_keeps_it_around_every_crop() -> None:
    """LeNet-5's 28 pixels in 32: crops are of the 28, out of 32 of an enlarged picture."""
    pre = Preprocess(size=(32, 32), channels="L", resize=(28, 28), crop="center")
    picture = np.random.default_rng(2).integers(100, 256, (28, 28, 1), dtype=np.uint8)
    larger = _resized(picture[..., 0], 32, 32)
    for crops in (10, 144):
        shown = np.stack(list(views(pre, picture, crops)))
        assert shown.shape == (crops, 32, 32, 1)
        assert shown[:, 2:30, 2:30].min() >= 100
        shown[:, 2:30, 2:30] = 0
        assert not shown.any()
    first, last = (list(views(pre, picture, 10))[index][2:30, 2:30, 0] for index in (0, 8))
    assert np.array_equal(first, larger[:28, :28])
    assert np.array_equal(last, larger[4:, 4:][:, ::-1])


def test_other_inputs_are_shown_the_same_in_proportion() -> None:
    """CIFAR's 32: 37 pixels for ten crops; 37, 41, 46 and 50 for 144."""
    pre = Preprocess(size=(32, 32), resize=(32, 32))
    picture = np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(list(views(pre, picture, 10))[3], _resized(picture, 37, 37)[-32:, -32:])
    many = list(views(pre, picture, 144))
    for index, side in enumerate((37, 41, 46, 50)):
        assert np.array_equal(many[36 * index + 3], _resized(picture, side, side)[-32:, -32:])


def test_inputs_that_are_not_square_are_shown_rectangles() -> None:
    pre = Preprocess(size=(112, 224), resize=None, crop="center")
    shown = list(views(pre, coordinates(128, 300), 144))
    assert {view.shape for view in shown} == {(112, 224, 3)}
    assert [place(shown[first][0, 0]) for first in (0, 12, 24)] == [(0, 0), (0, 22), (0, 44)]


@pytest.mark.parametrize("crops", [1, 10, 144])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (50, 1), (2, 3), (31, 33), (7, 300)])
@pytest.mark.parametrize("channels", ["L", "RGB", "BGR"])
def test_odd_pictures_have_as_many_crops_as_others(crops: int, size: tuple[int, int], channels: str) -> None:
    for resize, depth in product((None, 9, (6, 6), (20, 8)), (1, 3)):
        pre = Preprocess(size=(8, 8), channels=channels, resize=resize, crop="center")
        picture = np.full((*size, depth), (10, 20, 30)[:depth], np.uint8)
        shown = list(views(pre, picture, crops))
        assert len(shown) == crops
        assert {(view.shape, view.dtype) for view in shown} == {((8, 8, pre.depth), np.dtype(np.uint8))}
        grey = (10,) if depth == 1 else (18,)  # ITU-R 601 luma
        colour = {"L": grey, "RGB": (10, 20, 30), "BGR": (30, 20, 10)}[channels] if depth == 3 else (10,) * pre.depth
        assert all(tuple(view[3, 3]) == colour for view in shown)


def test_one_crop_is_what_the_preprocessing_says() -> None:
    picture = coordinates(256, 300)
    (only,) = views(PHOTO, picture, 1)
    assert place(only[0, 0]) == (16, 38)


def test_batches_hold_all_views_in_order_whatever_their_size() -> None:
    pre = Preprocess(size=(8, 8), resize=8, crop="center")
    pictures = [np.random.default_rng(4).integers(0, 256, (9, 8 + extra, 3), dtype=np.uint8) for extra in range(5)]
    for crops in (1, 10, 144):
        wanted = np.stack([view for picture in pictures for view in views(pre, picture, crops)])
        for size in (1, 7, 64, 10_000):
            stacks = list(crop_batches(pre, pictures, crops, size))
            assert [len(stack) for stack in stacks[:-1]] == [size] * (len(stacks) - 1)
            assert np.array_equal(np.concatenate(stacks), wanted)


def test_views_are_made_when_they_are_asked_for() -> None:
    """144 views of a photo are 22 MB; of a batch of them only one stack is held."""
    pre = Preprocess(size=(8, 8), resize=8, crop="center")
    good = np.zeros((9, 9, 3), np.uint8)
    stacks = crop_batches(pre, [good, good.astype(np.float32)], 144, 100)
    assert len(next(stacks)) == 100
    with pytest.raises(DataError, match="float32"):
        next(stacks)


def test_what_cannot_be_cropped_is_refused() -> None:
    pre = Preprocess(size=(8, 8), resize=8, crop="center")
    with pytest.raises(InputError, match="crops 5; allowed: 1, 10, 144"):
        list(crop_batches(pre, [np.zeros((9, 9, 3), np.uint8)], 5, 64))
    for shape in ((9, 9), (0, 9, 3), (9, 9, 2)):
        with pytest.raises(DataError, match="allowed"):
            list(views(pre, np.zeros(shape, np.uint8), 10))
    with pytest.raises(DataError, match=r"1 x 2000000 pixels would become .* allowed: 178956970 pixels"):
        list(views(PHOTO, np.zeros((1, 2_000_000, 3), np.uint8), 10))
    padless = Preprocess(size=(8, 8))
    with pytest.raises(DataError, match="has no crop"):
        list(views(padless, np.zeros((6, 6, 3), np.uint8), 10))
