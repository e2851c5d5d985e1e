"""Networks that take pictures in unusual ways, for the tests of what puts preprocessing into a graph."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_onnx import save_graph

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def preprocess(size=(28, 28), channels="RGB", **more):
    """``deploykit.preprocess``, with ImageNet's statistics for colour."""
    numbers = IMAGENET if channels != "L" else {"mean": [0.13], "std": [0.31]}
    said = {"layout": "NCHW", "size": list(size), "resize": list(size), "crop": None, "channels": channels}
    return said | {"scale": 1 / 255, "dtype": "float32"} | numbers | more


def pixel_network(path, pre, *, pads=1, classes=5, head="pool", opset=17, dtype=np.float32, seed=0):
    """Conv → Relu → Conv → Relu → average → matrix, with biases; ``head="flat"`` is Flatten → Gemm alone.

    It takes what ``pre`` says; channels last are turned by the network itself.
    """
    height, width = pre["size"]
    depth = 1 if pre["channels"] == "L" else 3
    generator = np.random.default_rng(seed)
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    last = pre["layout"] == "NHWC"
    shape = ["N", height, width, depth] if last else ["N", depth, height, width]

    def weight(name, *sizes, scale):
        return numpy_helper.from_array((generator.standard_normal(sizes) * scale).astype(dtype), name)

    nodes, read = [], "x"
    if last:
        nodes.append(helper.make_node("Transpose", ["x"], ["planes"], perm=[0, 3, 1, 2]))
        read = "planes"
    if head == "flat":
        width_in = depth * height * width
        weights = [weight("w", classes, width_in, scale=width_in**-0.5), weight("b", classes, scale=0.1)]
        nodes.append(helper.make_node("Flatten", [read], ["flat"]))
        nodes.append(helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1))
    else:
        weights = [weight("w0", 16, depth, 3, 3, scale=0.2), weight("b0", 16, scale=0.1)]
        weights += [weight("w1", 16, 16, 3, 3, scale=0.1), weight("b1", 16, scale=0.1)]
        weights += [weight("w", classes, 16, scale=0.5), weight("b", classes, scale=0.1)]
        nodes.append(
            helper.make_node(
                "Conv", [read, "w0", "b0"], ["c0"], name="first", pads=[pads] * 4 if isinstance(pads, int) else pads
            )
        )
        nodes.append(helper.make_node("Relu", ["c0"], ["r0"]))
        nodes.append(helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", ["c1"], ["r1"]))
        nodes.append(helper.make_node("GlobalAveragePool", ["r1"], ["pooled"]))
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
        nodes.append(helper.make_node("Gemm", ["flat", "w", "b"], ["y"], transB=1))
    metadata = {"deploykit.preprocess": json.dumps(pre)}
    ends = ([("x", kind, shape)], [("y", kind, ["N", classes])])
    return save_graph(path, nodes, *ends, weights, opset=opset, metadata=metadata)


def photo(height, width, channels=3, seed=0):
    """(H, W, C) uint8 with edges, gradients and noise, as photos have them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(x / (5 + k + seed % 7) + k) * np.cos(y / (9 - k)) for k in range(channels)]
    picture = np.stack(waves, -1) + generator.normal(0, 20, (height, width, channels))
    picture[height // 3 : height // 2, width // 4 : width // 2] = generator.integers(0, 256, channels)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_odd_pictures(folder: Path) -> list[Path]:
    """What phones, scanners and screenshots give: odd sizes, grey, with transparency, turned by EXIF data."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = Image.fromarray(photo(97, 143))
    turned = Image.Exif()
    turned[0x0112] = 6  # shown turned by a quarter
    alpha = Image.fromarray(np.dstack([photo(61, 75, seed=1), photo(61, 75, 1, seed=2)]), "RGBA")
    written = []
    for name, picture, more in (
        ("odd.png", colour, {}),
        ("tall.jpg", Image.fromarray(photo(331, 57, seed=3)), {"quality": 90}),
        ("grey.png", Image.fromarray(photo(45, 88, 1, seed=4)[..., 0]), {}),
        ("transparent.png", alpha, {}),
        ("turned.jpg", colour, {"exif": turned, "quality": 92}),
        ("tiny.png", Image.fromarray(photo(5, 9, seed=5)), {}),
    ):
        picture.save(folder / name, **more)
        written.append(folder / name)
    return written
