"""Pictures of what a network sees: kernels, stages, and what decides."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import Trained
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny_onnx import save_graph
from torch import nn

from deploykit import data, models
from deploykit.artifact import Preprocess, load_model
from deploykit.cli import main
from deploykit.drawing import colorize, signed_colors
from deploykit.errors import InputError, OutputError
from deploykit.insight import Kernels, look_into_module, look_into_onnx
from deploykit.models.taps import GIVEN, trace_module
from deploykit.occlusion import occlude
from deploykit.preprocess import apply
from deploykit.sheets import draw_kernels
from deploykit.sources import open_source
from deploykit.stages import Operation, find_stages, narrow_values
from deploykit.visualize import VisualizeOptions, visualize_network


def _operations(*rows: str) -> list[Operation]:
    """``"conv b <- a : layer"`` and the like."""
    made = []
    for row in rows:
        flow, _, scope = row.partition(" : ")
        (kind, outputs), inputs = flow.split(" <- ")[0].split(" "), flow.split(" <- ")[1]
        made.append(Operation(kind, tuple(inputs.split(",")), tuple(outputs.split(",")), scope))
    return made


def _stages(operations: list[Operation], shapes: dict[str, tuple[int, ...]]) -> list[tuple[str, str]]:
    return [(stage.name, stage.value) for stage in find_stages(operations, "x", shapes)]


def test_a_block_ends_where_its_branches_are_joined() -> None:
    operations = _operations(
        "conv a <- x,w : c1",
        "other b <- a : act",
        "conv c <- b : block.conv1",
        "conv d <- c : block.conv2",
        "other e <- b,d : block",  # the shortcut
        "other f <- e : act",
        "pool g,indices <- f : s2",  # nobody reads the indices
        "other h <- g : flatten",
        "other i <- h,u : fc",
    )
    assert [value for _, value in narrow_values(operations, "x")] == ["a", "b", "e", "f", "g", "h"]
    maps = dict.fromkeys("abcdef", (1, 4, 8, 8)) | {"g": (1, 4, 4, 4), "h": (1, 64), "i": (1, 10)}
    assert _stages(operations, maps) == [("C1", "b"), ("block", "f"), ("S2", "g")]


def test_constants_are_not_live() -> None:
    operations = _operations("other k <- w : ", "conv a <- x,k : c", "other b <- a,k : c")
    assert [value for _, value in narrow_values(operations, "x", answers=["b"])] == ["a", "b"]


def test_a_chain_of_many_convolutions_is_thinned() -> None:
    names, rows, shapes = ["x"], [], {}
    for group in range(6):
        for index in range(4):
            names.append(f"v{group}{index}")
            rows.append(f"{'conv' if index < 3 else 'pool'} {names[-1]} <- {names[-2]} : features.{len(names)}")
            shapes[names[-1]] = (1, 8, 64 >> (group + index // 3), 64 >> (group + index // 3))
    found = _stages(_operations(*rows), shapes)
    assert found[:4] == [("conv3", "v02"), ("pool1", "v03"), ("conv6", "v12"), ("pool2", "v13")]
    assert len(found) == 11  # the last pooling leaves one pixel, which tells nothing new


def _names_of(network: str, side: int, **options: str) -> list[str]:
    module = models.build(network, **options).eval()
    trace = trace_module(module, torch.randn(1, models.spec(network).input[0], side, side))
    return [stage.name for stage in find_stages(trace.operations, GIVEN, trace.shapes, trace.answers)]


_INCEPTIONS = [f"inception{name}" for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")]
_V2_FIRST_BLOCKS = ["block1", "block2", "block3", "block4"]


@pytest.mark.parametrize(
    ("network", "side", "options", "expected"),
    [
        ("lenet1", 28, {}, ["H1", "H2", "H3", "H4"]),
        ("lenet5-1998", 32, {}, ["C1", "S2", "C3", "S4", "C5"]),
        ("lenet5", 32, {}, ["C1", "S2", "C3", "S4", "C5"]),
        ("color-shape-cnn", 28, {}, ["conv1", "pool1", "conv2", "pool2"]),
        ("color-mlp", 28, {}, []),
        ("resnet18", 64, {"width": "16"}, ["conv1", "maxpool", "conv2_x", "conv3_x", "conv4_x", "conv5_x"]),
        ("resnet50", 32, {"width": "16", "pictures": "small"}, ["conv1", *(f"conv{i}_x" for i in range(2, 6))]),
    ],
)
def test_stages_have_the_papers_names(network: str, side: int, options: dict[str, str], expected: list[str]) -> None:
    assert _names_of(network, side, **options) == expected


class _Constants(nn.Module):
    """Makes a constant at each step: a tensor that takes the place in memory of a value that is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
            x = x * torch.tensor([[0.5], [2.0]])[0]
        return x


def test_a_constant_is_not_taken_for_a_value_whose_place_it_has() -> None:
    trace = trace_module(_Constants().eval(), torch.randn(1, 1, 9, 9))
    assert len(find_stages(trace.operations, GIVEN, trace.shapes, trace.answers)) == 12


@pytest.mark.slow
def test_stages_of_the_networks_for_photos() -> None:
    stem = ["conv1", "maxpool1", "conv2_reduce", "conv2", "maxpool2"]
    pools = [*_INCEPTIONS[:2], "maxpool3", *_INCEPTIONS[2:7], "maxpool4", *_INCEPTIONS[7:]]
    assert _names_of("googlenet", 224) == [*stem, *pools]
    assert _names_of("vgg11", 224)[:6] == ["conv1", "pool1", "conv2", "pool2", "conv3", "conv4"]
    assert _names_of("densenet121", 64)[:4] == ["conv0", "pool0", "denseblock1", "transition1"]
    assert _names_of("squeezenet1.1", 64)[:4] == ["conv1", "pool1", "block1", "block2"]
    assert _names_of("mobilenet-v3-small", 64)[:5] == ["conv1", *_V2_FIRST_BLOCKS]
    assert _names_of("alexnet", 227) == ["C1", "pool1", "C2", "pool2", "C3", "C4", "C5", "pool5"]


class _Shared(nn.Module):
    """As tutorials write it: one pooling used twice, functions in forward, in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 5, 3)
        self.pool, self.fc = nn.MaxPool2d(2), nn.Linear(5 * 5 * 5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu_(self.conv1(x)))
        x = self.pool(torch.relu_(self.conv2(x)).mul_(2.0))
        return self.fc(x.flatten(1))


def test_the_maps_are_what_the_layers_give() -> None:
    module, x = _Shared().eval(), torch.randn(1, 1, 28, 28)
    insight = look_into_module(module, x.numpy())
    assert [stage.name for stage, _ in insight.stages] == ["conv1", "pool1", "conv2", "pool2"]
    with torch.no_grad():
        first = torch.relu(module.conv1(x))
        third = 2.0 * torch.relu(module.conv2(nn.functional.max_pool2d(first, 2)))
    np.testing.assert_array_equal(insight.stages[0][1], first[0].numpy())
    np.testing.assert_array_equal(insight.stages[2][1], third[0].numpy())
    assert insight.kernels is not None and insight.kernels.layer == "conv1"
    np.testing.assert_array_equal(insight.kernels.weights, module.conv1.weight.detach().numpy())


def test_module_and_onnx_show_the_same(trained: Trained) -> None:
    source = open_source(trained.folder)
    picture = data.load("shapes", "test", classes=9).pictures(np.arange(1))
    inputs = apply(source.card.preprocess, picture)
    module = look_into_module(source.module, inputs)
    for path, tolerance in ((trained.onnx, 1e-5), (trained.int8, 0.06)):
        graph = look_into_onnx(load_model(path), path, inputs)
        assert [stage.name for stage, _ in graph.stages] == [stage.name for stage, _ in module.stages]
        for (_, expected), (_, got) in zip(module.stages, graph.stages, strict=True):
            assert got.dtype == np.float32
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()
        assert np.abs(graph.kernels.weights - module.kernels.weights).max() <= tolerance
        assert graph.kernels.layer == "conv1"


def test_8_bit_operators_show_real_numbers(tmp_path: Path) -> None:
    """QLinearConv and a MaxPool on bytes: the values come back by scale and zero point."""
    weight = np.array([[[[-2]], [[1]], [[3]]], [[[1]], [[0]], [[-1]]]], np.int8)
    constants = {
        **{"xs": np.float32(0.1), "xz": np.uint8(10), "ys": np.float32(0.05), "yz": np.uint8(100)},
        **{"w": weight, "ws": np.array([0.5, 0.25], np.float32), "wz": np.zeros(2, np.int8)},
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("QLinearConv", ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"], ["c"]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("DequantizeLinear", ["p", "ys", "yz"], ["d"]),
        helper.make_node("Flatten", ["d"], ["y"]),
    ]
    path = save_graph(
        tmp_path / "q.onnx",
        nodes,
        [("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    x = np.random.default_rng(0).integers(-10, 20, (1, 3, 4, 4)).astype(np.float32) * 0.1
    insight = look_into_onnx(load_model(path), path, x)
    real = weight[:, :, 0, 0] * np.array([[0.5], [0.25]])
    np.testing.assert_allclose(insight.kernels.weights[:, :, 0, 0], real)
    conv = np.einsum("oc,chw->ohw", real, x[0])
    assert [(stage.kind, maps.shape) for stage, maps in insight.stages] == [("conv", (2, 4, 4)), ("pool", (2, 2, 2))]
    np.testing.assert_allclose(insight.stages[0][1], conv.clip(-5.0, 7.75), atol=0.026)
    np.testing.assert_allclose(
        insight.stages[1][1], conv.clip(-5.0, 7.75).reshape(2, 2, 2, 2, 2).max((2, 4)), atol=0.026
    )
    before = path.read_bytes()
    assert onnx.load(path).SerializeToString() == onnx.load_from_string(before).SerializeToString()


def _looks_at(top: int, left: int, side: int):
    """A network whose probability is the brightness of one place."""

    def probability(pictures: np.ndarray) -> np.ndarray:
        return pictures[:, top : top + side, left : left + side].mean((1, 2, 3)) / 255.0

    return probability


def test_occlusion_finds_the_place_that_is_looked_at() -> None:
    picture = np.full((40, 30, 1), 255, np.uint8)
    found = occlude(picture, _looks_at(25, 4, 4), grey=(0,), window=8, stride=3)
    assert found.probability == 1.0
    assert found.largest_drop == pytest.approx(1.0)  # one square covers it whole
    top, left, bottom, right = found.hottest
    assert top <= 25 and bottom >= 29 and left <= 4 and right >= 8
    row, column = np.unravel_index(found.drop.argmax(), found.drop.shape)
    assert 25 <= row < 29 and 4 <= column < 8
    assert found.drop[:10].max() == 0.0 and found.drop[:, 20:].max() == 0.0
    assert np.isfinite(found.drop).all()  # every pixel was covered, at the far borders too


def test_occlusion_holds_few_copies_and_few_positions() -> None:
    seen: list[tuple[int, ...]] = []

    def probability(pictures: np.ndarray) -> np.ndarray:
        seen.append(pictures.shape)
        return np.zeros(len(pictures))

    told: list[int] = []
    picture = np.zeros((224, 224, 3), np.uint8)
    found = occlude(
        picture, probability, grey=(1, 2, 3), progress=lambda stage, done, total, note="": told.append(done)
    )
    assert (found.window, found.stride) == (45, 13) and found.positions == 20 * 20
    assert max(np.prod(shape) for shape in seen) <= 1 << 20
    assert told[-1] == found.positions == sum(shape[0] for shape in seen) - 1
    for arguments, message in (
        ({"window": 225}, "window 225 on a network's picture of 224×224; allowed: 1 to 224"),
        ({"window": 4, "stride": 5}, "stride 5 with window 4; allowed: 1 to 4"),
    ):
        with pytest.raises(InputError, match=message):
            occlude(picture, probability, grey=(0, 0, 0), **arguments)
    with pytest.raises(InputError, match="positions on 400×400; allowed: 65,536"):
        occlude(np.zeros((400, 400, 1), np.uint8), probability, grey=(0,), window=9, stride=1)


def _cornered(trained: Trained, count: int) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Rows of the test pictures whose object is small and lies in a corner, and where; those answered right."""
    from deploykit.classifier import Classifier

    shapes = data.load("shapes", "test", classes=9)
    answers = Classifier.open(trained.onnx).predict(shapes.pictures(np.arange(len(shapes)))).argmax(1)
    found = []
    for row in np.flatnonzero(answers == shapes.targets):
        rows, columns = np.nonzero(shapes.pictures(np.array([row]))[0].max(-1) > 60)
        box = (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1)
        far = min(abs(rows.mean() - 14), abs(columns.mean() - 14)) - max(box[2] - box[0], box[3] - box[1])
        found.append((far, int(row), box))
    return [(row, box) for _, row, box in sorted(found, reverse=True)[:count]]


def _save(row: int, path: Path) -> Path:
    Image.fromarray(data.load("shapes", "test", classes=9).pictures(np.array([row]))[0]).save(path)
    return path


def _document(folder: Path) -> dict:
    return json.loads((folder / "index.json").read_text(encoding="utf-8"))


def test_what_decides_lies_on_the_object(trained: Trained, tmp_path: Path) -> None:
    for row, (top, left, bottom, right) in _cornered(trained, 4):
        picture = _save(row, tmp_path / f"{row}.png")
        for source in (trained.folder, trained.int8):
            record = visualize_network(source, picture, tmp_path / f"{row}-{Path(source).suffix}")
            up, west, down, east = record.hottest
            covered = max(0, min(down, bottom) - max(up, top)) * max(0, min(east, right) - max(west, left))
            assert covered > 0, (row, record.hottest)
            assert record.largest_drop > 0.05


def test_the_folder_holds_what_its_index_says(trained: Trained, tmp_path: Path) -> None:
    folder = tmp_path / "neue Bilder"
    row, _ = _cornered(trained, 1)[0]
    picture = _save(row, tmp_path / "Ecke ü.png")
    record = visualize_network(trained.folder, picture, folder, options=VisualizeOptions(window=5, stride=5))
    document = _document(folder)
    assert document["schema"] == "deploykit.pictures/1"
    assert document == json.loads(json.dumps(record.to_document()))
    assert [item["file"] for item in document["files"]] == [
        "kernels.png",
        "stage-01-conv1.png",
        "stage-02-pool1.png",
        "stage-03-conv2.png",
        "stage-04-pool2.png",
        "occlusion.png",
    ]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["index.json", *(item["file"] for item in document["files"])]
    )
    for item in document["files"]:
        content = (folder / item["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["file_bytes"], item["sha256"])
        with Image.open(folder / item["file"]) as image:
            assert (image.width, image.height) == (item["width"], item["height"])
    assert document["window"] == 5 and document["positions"] == 36
    assert document["picture"] == "Ecke ü.png" and document["picture_size"] == [28, 28]
    assert document["asked"] == document["predicted"] and document["predicted"]["name"] in record.asked.name
    _check_upright(folder / "occlusion.png", picture)


def _check_upright(sheet: Path, picture: Path) -> None:
    """The left panel is the picture itself, enlarged 15 times; its frame hides little."""
    pixels, original = np.asarray(Image.open(sheet)), np.asarray(Image.open(picture))
    below_caption = 12 + 3 * 18 + 6
    panel = pixels[below_caption : below_caption + 28 * 15, 12 : 12 + 28 * 15][7::15, 7::15]
    assert (panel == original).all(-1).mean() > 0.95


def test_the_maps_of_a_stage_are_drawn_upright(trained: Trained, tmp_path: Path) -> None:
    """Bright tiles of the first stage lie where the object lies, not mirrored or turned."""
    row, (top, left, bottom, right) = _cornered(trained, 1)[0]
    source = open_source(trained.folder)
    picture = data.load("shapes", "test", classes=9).pictures(np.array([row]))
    (stage, maps), *_ = look_into_module(source.module, apply(source.card.preprocess, picture)).stages
    assert stage.shape == (1, 8, 28, 28)
    change = np.abs(maps - np.median(maps, axis=(1, 2), keepdims=True)).sum(0)[2:-2, 2:-2]
    y, x = (int(place) + 2 for place in np.unravel_index(change.argmax(), change.shape))
    assert top - 1 <= y <= bottom and left - 1 <= x <= right


def test_nothing_is_overwritten_and_nothing_half_written_stays(trained: Trained, tmp_path: Path) -> None:
    picture, folder = _save(0, tmp_path / "p.png"), tmp_path / "made"
    with pytest.raises(InputError, match=r"unknown class 'red-cirle'; did you mean 'red-circle'\?"):
        visualize_network(trained.onnx, picture, folder, options=VisualizeOptions(target="red-cirle"))
    assert not folder.exists()
    record = visualize_network(trained.onnx, picture, folder, options=VisualizeOptions(target="3", window=9))
    assert (record.asked.index, record.window) == (3, 9)
    stale, mine = folder / "stage-09-old.png", folder / "stage-01-mine.txt"
    (folder / "stage-04-pool2.png").rename(stale)
    mine.write_text("kept")
    with pytest.raises(OutputError, match=r"index\.json exists already"):
        visualize_network(trained.onnx, picture, folder)
    text = (folder / "index.json").read_text(encoding="utf-8").replace("stage-04-pool2.png", stale.name)
    (folder / "index.json").write_text(text, encoding="utf-8")
    again = visualize_network(trained.onnx, picture, folder, overwrite=True)
    assert not stale.exists() and mine.exists()
    assert {path.name for path in folder.glob("*.png")} == {item.file for item in again.files}
    (folder / "index.json").unlink()
    with pytest.raises(OutputError, match=r"kernels\.png exists already"):
        visualize_network(trained.onnx, picture, folder)


def test_any_picture_is_looked_at(trained: Trained, tmp_path: Path) -> None:
    row, _ = _cornered(trained, 1)[0]
    plain = Image.open(_save(row, tmp_path / "plain.png"))
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees to the right, which brings it upright again
    turned.save(tmp_path / "turned.png", exif=exif)
    plain.quantize(64).save(tmp_path / "palette.png")
    plain.convert("CMYK").save(tmp_path / "cmyk.tif")
    wide = np.asarray(plain.convert("L")).astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "sixteen.png")
    plain.convert("L").resize((90, 40)).save(tmp_path / "grey.png")
    Image.new("RGB", (1, 1), "red").save(tmp_path / "one.png")
    options = VisualizeOptions(window=14, stride=14)  # four positions
    straight = visualize_network(trained.onnx, tmp_path / "plain.png", tmp_path / "o-plain", options=options)
    for name in ("turned.png", "palette.png", "cmyk.tif", "sixteen.png", "grey.png", "one.png"):
        record = visualize_network(trained.onnx, tmp_path / name, tmp_path / f"o-{name}", options=options)
        if name in ("turned.png", "palette.png", "cmyk.tif"):
            assert record.predicted.index == straight.predicted.index, name
            assert record.predicted.probability == pytest.approx(straight.predicted.probability, abs=0.02), name
        assert len(record.files) == 6


def test_colours() -> None:
    ramp = colorize(np.linspace(0.0, 1.0, 101), 0.0, 1.0).astype(np.float64)
    assert ramp[0].tolist() == [68, 1, 84] and ramp[-1].tolist() == [253, 231, 37]  # the ends of viridis
    lightness = ramp @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()
    assert colorize(np.array([5.0, 5.0]), 5.0, 5.0).tolist() == [[68, 1, 84]] * 2
    kernel = np.array([[[-1.0, 0.0]], [[0.5, 0.0]], [[0.0, 0.0]]])  # (3, 1, 2)
    assert signed_colors(kernel).tolist() == [[[0, 191, 128], [128, 128, 128]]]


def test_units_that_read_pixels_are_drawn_as_pictures() -> None:
    """One weight a pixel, laid out as the input is: a unit that looks at one pixel has one bright pixel."""
    weights = np.zeros((2, 3 * 4 * 5), np.float32)
    weights[1, 2 * 20 + 1 * 5 + 3] = 1.0  # blue, row 1, column 3, channels first
    preprocess = Preprocess(size=(4, 5))
    drawn = draw_kernels(Kernels(weights, "fc1"), preprocess)
    assert not isinstance(drawn, str) and "2 units of 4×5, in colour" in drawn.shows
    pixels = np.asarray(drawn.image)
    assert (pixels == (128, 128, 255)).all(-1).sum() == 24 * 24
    rows, columns = np.nonzero((pixels == (128, 128, 255)).all(-1))
    height, width = (np.nonzero((pixels == 128).all(-1))[axis] for axis in (0, 1))
    assert rows.min() - height.min() == 24 and columns.max() - width.max() == -24
    last = replace(preprocess, layout="NHWC")
    assert draw_kernels(Kernels(weights[:, ::-1], "fc1"), last) != drawn
    said = draw_kernels(Kernels(weights[:, :50], "fc1"), preprocess)
    assert isinstance(said, str) and "2×50" in said


def test_the_command_works_without_torch(trained: Trained, tmp_path: Path) -> None:
    picture = _save(0, tmp_path / "p.png")
    program = "import sys\nfor name in ('torch', 'onnxscript', 'safetensors', 'altair'): sys.modules[name] = None\n"
    program += "from deploykit.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["visualize", trained.int8, "--image", picture, "-o", tmp_path / "out", "--window", "9", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == _document(tmp_path / "out")
    assert done.stderr == ""


def test_errors_are_one_line(trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = _save(0, tmp_path / "p.png")
    (tmp_path / "text.png").write_text("no picture")
    out = ["-o", str(tmp_path / "never")]
    for arguments, message in (
        ([trained.onnx, "--image", tmp_path / "text.png"], "text.png is not a readable picture"),
        ([trained.onnx, "--image", picture, "--window", "0"], "window 0; allowed: 1 pixel or more"),
        ([trained.onnx, "--image", picture, "--class", "99"], "unknown class '99'"),
        ([trained.onnx, "--image", picture, "--classes", "3"], "is built already"),
        ([trained.folder, "--image", picture, "--preprocess", "unit"], "leave out --shape and --preprocess"),
        (["resnet81", "--image", picture], "did you mean 'resnet18'?"),
    ):
        assert main(["visualize", *map(str, arguments), *out]) == 2
        said = capfd.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "never").exists()


def test_fresh_weights_are_said_to_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = _save(0, tmp_path / "p.png")
    assert main(["visualize", "color-mlp", "--image", str(picture), "-o", str(tmp_path / "out"), "--window", "14"]) == 0
    said = capfd.readouterr()
    assert "color-mlp has fresh weights" in said.err and "no stages" in said.err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"kernels.png", "occlusion.png", "index.json"}
    assert _document(tmp_path / "out")["files"][0]["shape"] == [128, 784]
