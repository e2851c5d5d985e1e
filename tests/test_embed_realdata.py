"""Real pictures through every app: digits in LeNet-5 and photos in a 224-pixel network, with the same labels in all.

``DEPLOYKIT_SCREENSHOTS`` names a folder that gets the screenshots; ``docs/`` has those of such a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from app_page import PROBLEM, AppBrowser, served
from browser import BROWSER
from onnxruntime_headers import fetch, header_folder, ort_root
from PIL import Image, ImageDraw
from test_embed_c import TOOLS, build
from test_embed_node import NODE, runtime_or_skip

from deploykit import data
from deploykit.classifier import Classifier
from deploykit.data.dataset import Dataset
from deploykit.data.picture import read_picture
from deploykit.embed import EmbedOptions, embed_onnx
from deploykit.export import export_onnx
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.sources import example_inputs, open_source
from deploykit.train import train_network
from deploykit.training_recipes import recipe_for
from deploykit.wrap import wrap_onnx

pytestmark = [pytest.mark.realdata, pytest.mark.timeout(1800)]
TARGETS = ("python", "web", "node", "c")

PYTHON = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from classify import Classifier
app, pictures = Classifier(threads=1), np.load(sys.argv[2])
np.save(sys.argv[3], [int(app.outputs(app.pixels(picture)).argmax()) for picture in pictures])
"""
NODE_PROGRAM = """
import { readFile, writeFile } from "node:fs/promises";
import { pathToFileURL } from "node:url";
const [folder, file, height, width, channels, output] = process.argv.slice(2);
const { load } = await import(pathToFileURL(`${folder}/classify.js`).href);
const [app, bytes, found] = [await load(folder), new Uint8Array(await readFile(file)), []];
const size = height * width * channels;
const shape = { width: Number(width), height: Number(height), channels: Number(channels) };
for (let at = 0; at < bytes.length; at += size) {
  const data = bytes.subarray(at, at + size);
  const [best] = await app.classify({ data, ...shape }, 1);
  found.push(best.index);
}
await writeFile(output, JSON.stringify(found));
"""


@dataclass(frozen=True)
class Apps:
    """The apps of one int8 model that takes pixels, the pictures they are shown, and what deploykit answers."""

    folder: Path
    pictures: np.ndarray
    expected: np.ndarray
    labels: tuple[str, ...]


def made(
    folder: Path, title: str, network: str, train: Dataset, test: Dataset, shown: Dataset, **recipe: object
) -> Apps:
    train_network(network, train, test, folder / "run", recipe_for(train.name).changed(**recipe))
    source = open_source(folder / "run")
    example, pictures = example_inputs(source, test)
    export_onnx(source.module, folder / "net.onnx", example=example, card=source.card, pictures=pictures)
    wrap_onnx(folder / "net.onnx", folder / "pixels.onnx", samples=test)
    keep = QuantizeOptions(never_slower=False)
    quantize_onnx(folder / "pixels.onnx", folder / "int8.onnx", calibration=train, options=keep)
    options = EmbedOptions(title=title)
    embed_onnx(folder / "int8.onnx", folder / "apps", TARGETS, golden=test, options=options)
    pictures = np.asarray(shown.pictures(range(len(shown))))
    classifier = Classifier.open(folder / "int8.onnx", threads=1)
    parts = [classifier.predict(pictures[at : at + 200]).argmax(1) for at in range(0, len(pictures), 200)]
    return Apps(folder, pictures, np.concatenate(parts), tuple(classifier.artifact.labels))


@pytest.fixture(scope="module")
def data_folder() -> Path:
    if not (named := os.environ.get("DEPLOYKIT_DATA")):
        pytest.skip("DEPLOYKIT_DATA does not name a folder with real data")
    runtime_or_skip()
    return Path(named)


@pytest.fixture(scope="module")
def digits(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Apps:
    """LeNet-5 on MNIST; the apps are shown all 10,000 test pictures."""
    train, test = (data.load("mnist", split, data_dir=data_folder) for split in ("train", "test"))
    folder = tmp_path_factory.mktemp("digits")
    return made(folder, "Handwritten digits", "lenet5", train.take(20_000), test, test, epochs=2, augment="none")


@pytest.fixture(scope="module")
def flowers(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Apps:
    """ResNet-18 on photos of 128 pixels, which its graph resizes and cuts to 224; trained for two short epochs."""
    train, test = (data.load(data_folder / "flowers5_128px.tar", split) for split in ("train", "test"))
    folder = tmp_path_factory.mktemp("flowers")
    found = made(
        folder, "Flowers", "resnet18", train.take(960), test.take(100), test.take(200), epochs=2, augment="none"
    )
    assert len(set(found.expected)) >= 4  # answers that are all the same would prove nothing
    return found


@pytest.fixture(scope="module", params=["digits", "flowers"])
def apps(request: pytest.FixtureRequest) -> Apps:
    return request.getfixturevalue(request.param)


def test_python_answers_alike_everywhere(apps: Apps, tmp_path: Path) -> None:
    app = apps.folder / "apps" / "python"
    np.save(tmp_path / "pictures.npy", apps.pictures)
    command = [sys.executable, "-I", "-c", PYTHON, app, tmp_path / "pictures.npy", tmp_path / "found.npy"]
    subprocess.run(list(map(str, command)), check=True)
    assert np.array_equal(np.load(tmp_path / "found.npy"), apps.expected)
    assert subprocess.run([sys.executable, "-I", str(app / "classify.py"), "--self-test"]).returncode == 0


@pytest.mark.skipif(NODE is None, reason="no node on PATH")
def test_node_answers_alike(apps: Apps, tmp_path: Path) -> None:
    app = apps.folder / "apps" / "node"
    (tmp_path / "pictures.bin").write_bytes(apps.pictures.tobytes())
    (tmp_path / "program.mjs").write_text(NODE_PROGRAM)
    _, *shape = apps.pictures.shape
    command = [NODE, tmp_path / "program.mjs", app, tmp_path / "pictures.bin", *shape, tmp_path / "found.json"]
    subprocess.run(list(map(str, command)), check=True)
    found = np.array(json.loads((tmp_path / "found.json").read_text()))
    assert np.array_equal(found, apps.expected), np.flatnonzero(found != apps.expected)
    assert subprocess.run([NODE, str(app / "classify.js"), "--self-test"]).returncode == 0


@pytest.mark.skipif(sys.platform != "linux" or bool(TOOLS), reason="needs Linux, CMake and a C compiler")
def test_c_answers_alike(apps: Apps, tmp_path: Path) -> None:
    app = apps.folder / "apps" / "c"
    program = build(app, ort_root(tmp_path / "root", header_folder() or fetch()), tmp_path / "build")
    _, height, width, channels = apps.pictures.shape
    head = f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode()
    stream = b"".join(head + picture.tobytes() for picture in apps.pictures)
    command = [str(program), "--folder", str(app), "--self-test", "--top", "1", "-"]
    done = subprocess.run(command, input=stream, capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[3].startswith("self-test: 3 of 3 passed")
    found = [line.removeprefix("-: ").rsplit(" ", 3)[0] for line in lines[4:]]
    assert found == [apps.labels[index] for index in apps.expected]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    if BROWSER is None:
        pytest.skip("no chromium or chrome on PATH")
    running = AppBrowser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def test_page_answers_alike(apps: Apps, browser: AppBrowser, tmp_path: Path) -> None:
    """200 uploads as PNG, by clicks."""
    with served(apps.folder / "apps" / "web") as url:
        assert browser.open(url) == "ready", browser.run(PROBLEM)
        assert browser.run("document.getElementById('verdict').textContent") == "3 of 3 passed"
        browser.click("#mode-picture")
        for number, (picture, index) in enumerate(zip(apps.pictures[:200], apps.expected, strict=False)):
            path = tmp_path / f"{number}.png"
            Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(path)
            rows, problem = browser.upload(path)
            assert (problem, rows[0][0]) == ("", apps.labels[index]), number


def test_page_of_lenet5_is_small(digits: Apps) -> None:
    web = digits.folder / "apps" / "web"
    assert sum(path.stat().st_size for path in web.rglob("*") if path.is_file()) <= 16_000_000
    assert (web / "model.onnx").stat().st_size <= 80_000


def test_screenshots(digits: Apps, flowers: Apps, browser: AppBrowser, tmp_path: Path) -> None:
    """A digit drawn by hand on a phone, and a picture of several hundred pixels on a desktop."""
    folder = Path(os.environ.get("DEPLOYKIT_SCREENSHOTS") or tmp_path)
    with served(digits.folder / "apps" / "web") as url:
        assert browser.open(url, 390, "light") == "ready", browser.run(PROBLEM)
        x, y = browser.middle_of("#pad")
        stroke = [
            (-50, -70),
            (-10, -85),
            (40, -75),
            (50, -40),
            (20, -10),
            (-15, -2),
            (25, 8),
            (55, 40),
            (40, 75),
            (-5, 88),
            (-55, 75),
        ]
        browser.mouse("mousePressed", x + stroke[0][0], y + stroke[0][1])
        for dx, dy in stroke[1:]:
            browser.mouse("mouseMoved", x + dx, y + dy, buttons=1)
        browser.mouse("mouseReleased", x + stroke[-1][0], y + stroke[-1][1])
        rows, problem = browser.answer()
        assert (problem, rows[0][0]) == ("", "3")
        browser.whole_page(folder / "web-phone.png")
    drawn_flower(tmp_path / "flower.png")
    classifier = Classifier.open(flowers.folder / "int8.onnx", threads=1)
    expected = flowers.labels[classifier.predict([read_picture(tmp_path / "flower.png", 3)]).argmax()]
    with served(flowers.folder / "apps" / "web") as url:
        assert browser.open(url, 1280, "dark") == "ready", browser.run(PROBLEM)
        rows, problem = browser.upload(tmp_path / "flower.png")
        assert (problem, rows[0][0]) == ("", expected)
        browser.whole_page(folder / "web-desktop.png")


def drawn_flower(path: Path) -> None:
    """A daisy of ellipses: the photos are other people's, and stay out of the repository."""
    image = Image.new("RGB", (960, 720), (74, 112, 52))
    petal = Image.new("RGBA", (960, 720), (0, 0, 0, 0))
    ImageDraw.Draw(petal).ellipse((440, 60, 520, 330), fill=(246, 244, 238, 255), outline=(206, 204, 190, 255), width=4)
    for turn in range(0, 360, 24):
        turned = petal.rotate(turn, center=(480, 360), resample=Image.Resampling.BICUBIC)
        image.paste(turned, (0, 0), turned)
    ImageDraw.Draw(image).ellipse((405, 285, 555, 435), fill=(240, 190, 40), outline=(204, 150, 24), width=8)
    image.resize((480, 360), Image.Resampling.LANCZOS).save(path)
