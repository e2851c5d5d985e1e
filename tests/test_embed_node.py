"""The Node app: runs with nothing installed, reads pictures as deploykit does, and says what is wrong."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
from embed_models import gradient, odd_pictures, pixel_classifier
from PIL import Image
from png_files import SAMPLES, write_png
from test_embed_python import BAD_PICTURES

from deploykit import data
from deploykit.cli import main
from deploykit.data.picture import read_picture
from deploykit.embed import EmbedOptions, embed_onnx
from deploykit.embed.app_model import AppModel
from deploykit.errors import InputError
from deploykit.onnxruntime_web import VERSION, web_runtime

NODE = shutil.which("node")

# Of each picture the outputs, and the pixels as the model gets them.
PROGRAM = """
import { pathToFileURL } from "node:url";
const [folder, depth, ...pictures] = process.argv.slice(2);
const { load } = await import(pathToFileURL(`${folder}/classify.js`).href);
const { recoloured } = await import(pathToFileURL(`${folder}/classifier.js`).href);
const app = await load(folder);
const found = [];
for (const picture of pictures) {
  const pixels = await app.pixels(picture);
  const bytes = Buffer.from(recoloured(pixels, Number(depth))).toString("base64");
  found.push({ outputs: [...await app.outputs(pixels)], size: [pixels.height, pixels.width], bytes });
}
console.log(JSON.stringify(found));
"""


def runtime_or_skip():
    """onnxruntime-web out of the cache or from npm; without both these tests skip by name."""
    try:
        return web_runtime()
    except InputError as problem:
        pytest.skip(str(problem))


@pytest.fixture(scope="module", autouse=True)
def runtime():
    if NODE is None:
        pytest.skip("no node on PATH")
    return runtime_or_skip()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "über app"
    model = pixel_classifier(folder.parent / "net.onnx")
    embed_onnx(model, folder, "node", golden=data.load("shapes-color"))
    return folder


def run_app(folder, *arguments):
    return subprocess.run([NODE, str(folder / "classify.js"), *map(str, arguments)], capture_output=True, text=True)


def shown(folder, tmp_path, pictures, depth=3):
    """What the app makes of pictures, run from elsewhere."""
    (tmp_path / "program.mjs").write_text(PROGRAM)
    command = [NODE, str(tmp_path / "program.mjs"), str(folder), str(depth), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pixels_of(found, depth=3):
    import base64

    return np.frombuffer(base64.b64decode(found["bytes"]), np.uint8).reshape(*found["size"], depth)


def test_folder_is_complete_and_small(app):
    names = sorted(path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file())
    golden = ["golden/1.png", "golden/2.png", "golden/3.png", "golden/golden.json"]
    code = ["LICENSE", "README.md", "classifier.js", "classify.js"]
    facts = ["labels.txt", "model.json", "model.onnx", "package.json", "pictures.js"]
    assert names == [*code, *golden, *facts, "runtime/LICENSE", "runtime/ort-wasm-simd-threaded.wasm", "runtime/ort.js"]
    assert sum((app / name).stat().st_size for name in names) < 16_000_000
    assert json.loads((app / "model.json").read_text())["runtime"] == {"package": "onnxruntime-web", "version": VERSION}
    assert json.loads((app / "package.json").read_text())["name"] == "net"


def test_self_test_passes_and_classifies(app):
    done = run_app(app, "--self-test", app / "golden" / "1.png", "--top", 2)
    assert done.returncode == 0, done.stderr
    assert "self-test: 3 of 3 passed" in done.stdout
    label = json.loads((app / "golden" / "golden.json").read_text())["pictures"][0]["label"]
    assert done.stdout.splitlines()[-1].startswith(f"{app / 'golden' / '1.png'}: {label} ")


@pytest.mark.parametrize("depth", [1, 3])
def test_app_answers_as_deploykit_does(tmp_path, depth):
    model = pixel_classifier(tmp_path / "net.onnx", channels=depth)
    pictures = [path for path in odd_pictures(tmp_path / "pictures") if path.suffix == ".png"]
    embed_onnx(model, tmp_path / "app", "node", golden=pictures[:3])
    opened = AppModel.open(model)

    expected = np.array([opened.outputs(read_picture(path, depth)) for path in pictures])
    got = np.array([item["outputs"] for item in shown(tmp_path / "app", tmp_path, pictures, depth)])

    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_every_kind_of_png_gives_pillows_pixels(app, tmp_path):
    random, pictures = np.random.default_rng(3), []
    kinds = [(color, depth) for color in (0, 2, 3, 4, 6) for depth in (1, 2, 4, 8, 16)]
    palette = random.integers(0, 256, 3 * 256, np.uint8).tobytes()
    for color, depth in kinds:
        if (depth == 16 and color == 3) or (depth < 8 and color not in (0, 3)):
            continue  # the standard has none
        for interlaced in (False, True):
            samples = random.integers(0, 1 << depth, (13, 11, SAMPLES[color]))
            path = tmp_path / f"{color} {depth} {interlaced}.png"
            colors = palette[: 3 << depth] if color == 3 else b""
            pictures.append(write_png(path, samples, depth, color, interlaced=interlaced, palette=colors))
    assert len(pictures) == 2 * (5 + 4 + 2 + 2 + 2)

    for path, found in zip(pictures, shown(app, tmp_path, pictures), strict=True):
        assert np.array_equal(pixels_of(found), read_picture(path, 3)), path.name


def test_every_orientation_is_turned_upright(app, tmp_path):
    pictures = []
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pictures.append(tmp_path / f"{orientation}.png")
        Image.fromarray(gradient(9, 14)).save(pictures[-1], exif=exif)
    for path, found in zip(pictures, shown(app, tmp_path, pictures), strict=True):
        assert np.array_equal(pixels_of(found), read_picture(path, 3)), path.name


def test_pgm_and_ppm_are_read(app, tmp_path):
    pictures = [tmp_path / "grey.pgm", tmp_path / "color.ppm"]
    Image.fromarray(gradient(9, 14, 1)[..., 0]).save(pictures[0])
    Image.fromarray(gradient(9, 14)).save(pictures[1])
    for path, found in zip(pictures, shown(app, tmp_path, pictures), strict=True):
        assert np.array_equal(pixels_of(found), read_picture(path, 3)), path.name


@pytest.mark.slow
def test_other_formats_are_read_by_sharp(app, tmp_path):
    """``npm install`` as the README says it; skipped where the registry cannot be reached."""
    copy = tmp_path / "app"
    shutil.copytree(app, copy)
    done = subprocess.run([shutil.which("npm"), "install", "--silent"], cwd=copy, capture_output=True, text=True)
    if done.returncode or not (copy / "node_modules" / "sharp").is_dir():
        pytest.skip(f"npm cannot install sharp: {done.stderr[-200:]}")
    pictures = [path for path in odd_pictures(tmp_path / "pictures") if path.suffix == ".jpg"]
    assert len(pictures) == 3
    opened = AppModel.open(copy / "model.onnx")
    for path, found in zip(pictures, shown(copy, tmp_path, pictures), strict=True):
        expected = read_picture(path, 3)
        assert found["size"] == list(expected.shape[:2])
        assert np.abs(pixels_of(found).astype(int) - expected).max() <= 2, path.name
        assert np.argmax(found["outputs"]) == opened.outputs(expected).argmax()


def tampered(app, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(app, copy)
    change(copy)
    return copy


def test_self_test_fails_where_answers_differ(app, tmp_path):
    def swap(folder):
        path = folder / "golden" / "1.png"
        with Image.open(path) as image:
            swapped = np.ascontiguousarray(np.asarray(image)[..., ::-1])
        Image.fromarray(swapped).save(path)

    done = run_app(tampered(app, tmp_path, swap), "--self-test")
    assert done.returncode == 1 and "FAILED  1.png" in done.stdout and "2 of 3 passed" in done.stdout


SAID = {
    "not a picture": "no picture of a known format",
    "empty": "is empty",
    "huge": "20000 x 20000 pixels; allowed: 50000000",
    "missing": "no such file",
}


@pytest.mark.parametrize("kind", SAID)
def test_bad_picture_is_one_line(app, tmp_path, kind):
    BAD_PICTURES[kind][0](tmp_path / "bad.png")
    good = app / "golden" / "1.png"
    done = run_app(app, tmp_path / "bad.png", good)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert SAID[kind] in done.stderr and "bad.png" in done.stderr
    assert str(good) in done.stdout


def test_damaged_png_is_one_line(app, tmp_path):
    """Cut at every part of the file, and with single bytes changed: read, or refused in a line; never a crash."""
    Image.fromarray(gradient(20, 17)).save(tmp_path / "whole.png")
    content, pictures = (tmp_path / "whole.png").read_bytes(), []
    random = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(content[: random.integers(9, len(content))] if number % 2 else content)
        if not number % 2:
            damaged[random.integers(8, len(damaged))] ^= 1 << random.integers(0, 8)
        pictures.append(tmp_path / f"{number}.png")
        pictures[-1].write_bytes(damaged)
    done = run_app(app, *pictures)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), lines
    assert len(lines) + len(done.stdout.splitlines()) == len(pictures)
    assert len(lines) >= 30  # all that were cut, at least


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-700]), "cut short"),
        (
            lambda folder: (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size),
            "cannot be started",
        ),
        (lambda folder: (folder / "labels.txt").write_text("a\nb\n"), "names 2 classes instead of 6"),
        (lambda folder: (folder / "model.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "runtime" / "ort-wasm-simd-threaded.wasm").unlink(), "cannot read"),
        (lambda folder: (folder / "runtime" / "ort.js").unlink(), "runtime cannot be started"),
        (
            lambda folder: os.truncate(folder / "runtime" / "ort-wasm-simd-threaded.wasm", 1_000_000),
            "cannot be started",
        ),
    ],
)
def test_damaged_folder_is_one_line(app, tmp_path, change, said):
    done = run_app(tampered(app, tmp_path, change), "--self-test")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and done.stderr.count("error: ") == 1


@pytest.mark.parametrize("arguments", [(), ("--nope",), ("--top", "0", "x.png")])
def test_bad_usage_is_one_line(app, arguments):
    done = run_app(app, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert "usage" in done.stderr or "allowed" in done.stderr


def test_model_that_the_app_would_have_to_prepare_pictures_for_is_refused(tmp_path, capsys):
    from tiny_onnx import classifier

    model = classifier(tmp_path / "net.onnx")
    asked = ["embed", str(model), "--target", "node", "--data", "shapes", "-o", str(tmp_path / "app")]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert "deploykit wrap" in error and error.count("\n") == 1


def _package(path, version="1.99.0", name="onnxruntime-web"):
    (path / "dist").mkdir(parents=True)
    (path / "package.json").write_text(json.dumps({"name": name, "version": version}))
    for file in ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"):
        (path / file).write_bytes(b"of " + file.encode())
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_runtime_of_the_user_is_taken(tmp_path, monkeypatch, packed):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    given = _package(tmp_path / "package")
    if packed:
        given = tmp_path / "runtime.tgz"
        subprocess.run(["tar", "czf", given, "-C", tmp_path, "package"], check=True)
    model = pixel_classifier(tmp_path / "net.onnx")
    options = EmbedOptions(runtime=given)
    record = embed_onnx(model, tmp_path / "app", "node", golden=data.load("shapes-color"), options=options)
    assert record.apps[0].runtime_version == "1.99.0"
    assert (tmp_path / "app" / "runtime" / "ort.js").read_bytes() == b"of dist/ort.wasm.bundle.min.mjs"
    assert any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: _package(path, version=VERSION), "is not that of onnxruntime-web"),
        (lambda path: _package(path, name="onnxruntime-node"), "is the package onnxruntime-node"),
        (lambda path: path.mkdir(), "package.json"),
        (lambda path: None, "no such file or folder"),
        (lambda path: path.write_text("hello"), "cut short"),
    ],
)
def test_runtime_that_is_another_is_refused(tmp_path, monkeypatch, make, said):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    make(tmp_path / "given")
    with pytest.raises(InputError, match=said):
        web_runtime(tmp_path / "given")


def test_missing_npm_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"npm is not installed.*--runtime"):
        web_runtime()
