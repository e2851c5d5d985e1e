"""Models and pictures for the tests of apps: a classifier that takes pixels, and pictures that are easily misread."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_onnx import save_graph

COLORS = {  # of the pictures of shapes-color, and the filter that answers to each
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "cyan": (-1, 1, 1),
    "magenta": (1, -1, 1),
}


def pixel_classifier(
    path,
    *,
    channels=3,
    classes=6,
    side=24,
    size=("H", "W"),
    batch="N",
    labels=None,
    seed=0,
    parent=None,
    preprocess=None,
):
    """Takes uint8 (N, H, W, C) of any size: antialiased resize, (x - 0.5) / 0.25, two convolutions, a matrix.

    With three channels and six classes it tells the colours of shapes-color apart; the other half of it is random.
    """
    random = np.random.default_rng(seed)
    first = random.standard_normal((12, channels, 3, 3)) * np.sqrt(2.0 / (9 * channels))
    second, head = random.standard_normal((12, 12, 3, 3)) * 0.05, random.standard_normal((12, classes)) * 0.3
    if channels == 3 and classes == 6:
        first[:6] = np.array(list(COLORS.values()))[:, :, None, None] / 9.0
        second[range(6), range(6), 1, 1] += 1.0
        head[range(6), range(6)] += 2.0
    weights = {
        "first": first.astype(np.float32),
        "second": second.astype(np.float32),
        "head": head.astype(np.float32),
        "side": np.array([side, side], np.int64),
        "scale": np.float32(1 / 255 / 0.25),
        "offset": np.float32(-0.5 / 0.25),
    }
    nodes = [
        helper.make_node("Cast", ["x"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", ["planes", "", "", "side"], ["small"], mode="linear", antialias=1, axes=[2, 3]),
        helper.make_node("Mul", ["small", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["normal"]),
        helper.make_node("Conv", ["normal", "first"], ["c1"], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "second"], ["c2"]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalMaxPool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    ends = (
        [("x", TensorProto.UINT8, [batch, *size, channels])],
        [("logits", TensorProto.FLOAT, [batch, classes]), ("probabilities", TensorProto.FLOAT, [batch, classes])],
    )
    names = labels or (tuple(COLORS) if classes == 6 else [f"class {index}" for index in range(classes)])
    told = {"deploykit.labels": json.dumps(list(names)), "deploykit.network": "tiny-pixels"}
    if preprocess:
        told["deploykit.preprocess"] = json.dumps(preprocess)
    if parent:
        told["deploykit.parent_sha256"] = parent
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return save_graph(path, nodes, *ends, tensors, opset=18, metadata=told)


def gradient(height, width, channels=3, seed=1):
    """(H, W, C) uint8 with structure at every scale and a different one in every corner and channel."""
    rows, columns = np.mgrid[0:height, 0:width]
    random = np.random.default_rng(seed)
    planes = [
        128 + 60 * np.sin(rows / (3 + 2 * plane)) + 50 * np.cos(columns / (4 + plane)) + 40 * (rows > height / 2)
        for plane in range(channels)
    ]
    return np.clip(np.stack(planes, -1) + random.normal(0, 12, (height, width, channels)), 0, 255).astype(np.uint8)


def odd_pictures(folder):
    """Pictures that apps misread: their paths by what is odd about them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    color, grey = Image.fromarray(gradient(61, 47)), Image.fromarray(gradient(33, 52, 1)[..., 0])
    alpha = np.dstack([gradient(40, 31), gradient(40, 31, 1, seed=2)])
    turned = Image.Exif()
    turned[0x0112] = 6
    made = {
        "plain.png": (color, {}),
        "odd size.jpg": (Image.fromarray(gradient(53, 99)), {"quality": 92}),
        "grey.png": (grey, {}),
        "grey.jpg": (grey, {"quality": 95}),
        "rgba.png": (Image.fromarray(alpha), {}),
        "grey alpha.png": (Image.fromarray(alpha[..., 2:4]), {}),
        "palette.png": (color.quantize(32), {"transparency": 3}),
        "turned.jpg": (color, {"exif": turned, "quality": 95}),
        "turned.png": (color, {"exif": turned}),
        "one pixel.png": (Image.fromarray(gradient(1, 1)), {}),
        "large.png": (Image.fromarray(gradient(300, 420)), {}),
    }
    for name, (image, options) in made.items():
        image.save(folder / name, **options)
    return [folder / name for name in made]
