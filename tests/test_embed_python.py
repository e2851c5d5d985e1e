"""The Python app: alone with onnxruntime, numpy and Pillow it answers as deploykit does, and says what is wrong."""

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from embed_models import gradient, odd_pictures, pixel_classifier
from PIL import Image
from tiny_onnx import classifier

from deploykit import data
from deploykit.artifact import Preprocess
from deploykit.cli import main
from deploykit.data.picture import read_picture
from deploykit.embed import embed_onnx
from deploykit.embed.app_model import AppModel

# Names every answer of an app's class, and what was loaded for it; run with -I, so that nothing else is on the path.
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from classify import Classifier
app = Classifier(threads=1)
outputs = [app.outputs(app.pixels(name)).tolist() for name in sys.argv[2:]]
strange = sorted({name.partition(".")[0] for name in sys.modules} & {"deploykit", "torch", "onnx", "onnxscript"})
print(json.dumps({"outputs": outputs, "strange": strange}))
"""


def answers_of(folder, pictures):
    command = [sys.executable, "-I", "-c", PROGRAM, str(folder), *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["strange"] == []
    return np.array(found["outputs"])


def run_app(folder, *arguments):
    command = [sys.executable, "-I", str(folder / "classify.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """An app whose model takes pixels, in a folder with a space and a letter beyond ASCII."""
    folder = tmp_path_factory.mktemp("embed") / "über app"
    model = pixel_classifier(folder.parent / "net.onnx")
    embed_onnx(model, folder, "python", golden=data.load("shapes-color"))
    return folder


PREPARED = {
    "shorter side, crop": Preprocess(size=(28, 28), resize=32, crop="center", mean=(0.5,) * 3, std=(0.25,) * 3),
    "both sides, BGR": Preprocess(
        size=(28, 28), resize=(28, 28), channels="BGR", scale=1.0, mean=(103.9, 116.8, 123.7)
    ),
    "padded": Preprocess(size=(28, 28), resize=20, crop="center", mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2)),
}


@pytest.mark.parametrize("how", PREPARED)
def test_app_prepares_pictures_as_deploykit_does(tmp_path, how):
    model, pictures = classifier(tmp_path / "net.onnx"), odd_pictures(tmp_path / "pictures")
    embed_onnx(model, tmp_path / "app", "python", golden=pictures[:3], preprocess=PREPARED[how])
    opened = AppModel.open(model, PREPARED[how])

    expected = np.array([opened.outputs(read_picture(path, 3)) for path in pictures])
    got = answers_of(tmp_path / "app", pictures)

    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len({tuple(row) for row in np.round(got, 4)}) == len(pictures)  # the pictures do differ


@pytest.mark.parametrize("channels", [1, 3])
def test_app_hands_pixels_to_a_model_that_takes_them(tmp_path, channels):
    model = pixel_classifier(tmp_path / "net.onnx", channels=channels)
    pictures = odd_pictures(tmp_path / "pictures")
    embed_onnx(model, tmp_path / "app", "python", golden=pictures[:3])
    opened = AppModel.open(model)

    expected = np.array([opened.outputs(read_picture(path, channels)) for path in pictures])

    assert opened.feeding.preprocess is None
    assert np.abs(answers_of(tmp_path / "app", pictures) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_folder_is_complete(app):
    names = sorted(path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file())
    golden = ["golden/1.png", "golden/2.png", "golden/3.png", "golden/golden.json"]
    alone = [
        "LICENSE",
        "README.md",
        "classify.py",
        *golden,
        "labels.txt",
        "model.json",
        "model.onnx",
        "requirements.txt",
    ]
    assert names == alone
    assert "Apache License" in (app / "LICENSE").read_text()
    assert len((app / "README.md").read_text().splitlines()) <= 12
    pinned = (app / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in pinned] == ["onnxruntime", "numpy", "Pillow"]
    assert all(line.partition("==")[2][0].isdigit() for line in pinned)
    expected = json.loads((app / "golden" / "golden.json").read_text())["pictures"]
    assert len({item["label"] for item in expected}) == 3


def test_self_test_passes_and_classifies(app):
    done = run_app(app, "--self-test", app / "golden" / "1.png", "--top", 2)

    assert done.returncode == 0, done.stderr
    assert "self-test: 3 of 3 passed" in done.stdout
    label = json.loads((app / "golden" / "golden.json").read_text())["pictures"][0]["label"]
    assert done.stdout.splitlines()[-1].startswith(f"{app / 'golden' / '1.png'}: {label} ")


def test_json_names_every_picture(app):
    done = run_app(app, "--json", app / "golden" / "2.png", app / "golden" / "3.png")
    found = json.loads(done.stdout)
    assert [len(item["answers"]) for item in found] == [5, 5]
    sums = [sum(answer["probability"] for answer in item["answers"]) for item in found]
    assert all(0.5 < total <= 1.0 for total in sums)


def tampered(app, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(app, copy)
    change(copy)
    return copy


def _swap_colours(folder):
    for path in (folder / "golden").glob("*.png"):
        with Image.open(path) as image:
            swapped = np.asarray(image)[..., ::-1]
        Image.fromarray(np.ascontiguousarray(swapped)).save(path)


def _other_weights(folder):
    pixel_classifier(folder / "model.onnx", seed=5)
    facts = json.loads((folder / "model.json").read_text())
    facts["model_bytes"] = (folder / "model.onnx").stat().st_size
    (folder / "model.json").write_text(json.dumps(facts))


@pytest.mark.parametrize("change", [_swap_colours, _other_weights])
def test_self_test_fails_where_answers_differ(app, tmp_path, change):
    done = run_app(tampered(app, tmp_path, change), "--self-test")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED" in done.stdout


def test_self_test_finds_a_wrong_preprocessing(tmp_path):
    """The fault that apps have most: means and deviations left out."""
    model = classifier(tmp_path / "net.onnx")
    embed_onnx(model, tmp_path / "app", "python", golden=data.load("shapes"))
    facts = json.loads((tmp_path / "app" / "model.json").read_text())
    facts["input"]["preprocess"] |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    (tmp_path / "app" / "model.json").write_text(json.dumps(facts))

    assert run_app(tmp_path / "app", "--self-test").returncode == 1


def huge_png(path):
    """A PNG whose head announces 20,000 × 20,000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))


def _cut(path):
    content = gradient(120, 90)
    Image.fromarray(content).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:900])


BAD_PICTURES = {
    "not a picture": (lambda path: path.write_text("hello"), "no picture"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "huge": (huge_png, "too large"),
    "cut short": (_cut, "truncated"),
    "missing": (lambda path: None, "No such file"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_one_line(app, tmp_path, kind):
    make, said = BAD_PICTURES[kind]
    make(tmp_path / "bad.jpg")
    good = app / "golden" / "1.png"
    done = run_app(app, tmp_path / "bad.jpg", good)

    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr and "bad.jpg" in done.stderr
    assert str(good) in done.stdout  # the other one is answered all the same


def _cut_model(folder):
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-700])


def _broken_model(folder):
    (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_cut_model, "cut short"),
        (_broken_model, "not a usable model"),
        (lambda folder: (folder / "model.onnx").unlink(), "cannot read"),
        (lambda folder: (folder / "labels.txt").unlink(), "cannot read"),
        (lambda folder: (folder / "labels.txt").write_text("a\nb\n"), "names 2 classes instead of 6"),
        (lambda folder: (folder / "model.json").write_text("{"), "damaged"),
    ],
)
def test_damaged_folder_is_one_line(app, tmp_path, change, said):
    done = run_app(tampered(app, tmp_path, change), "--self-test")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and said in done.stderr


def test_class_takes_arrays_bytes_and_pictures(app):
    program = """
import sys, numpy as np
from pathlib import Path
from PIL import Image
sys.path.insert(0, sys.argv[1])
from classify import Classifier, UnusableError
app, path = Classifier(), Path(sys.argv[1]) / "golden" / "1.png"
image = Image.open(path)
ways = [path, str(path), path.read_bytes(), image, np.asarray(image)]
assert len({app.classify(way)[0] for way in ways}) == 1, [app.classify(way) for way in ways]
for wrong in (np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3)), b""):
    try:
        app.classify(wrong)
    except UnusableError:
        continue
    raise SystemExit(f"{wrong!r} was taken")
"""
    done = subprocess.run([sys.executable, "-I", "-c", program, str(app)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_writes_and_tells(tmp_path, capsys):
    model = pixel_classifier(tmp_path / "net.onnx")
    asked = ["embed", str(model), "--target", "python", "--data", "shapes-color", "-o", str(tmp_path / "app"), "--json"]
    assert main(asked) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "deploykit.embedding/1"
    (made,) = record["apps"]
    assert made["total_bytes"] == sum(path.stat().st_size for path in (tmp_path / "app").rglob("*") if path.is_file())
    assert record["prepared_by"] == "graph" and len(record["golden"]) == 3
    assert {item["file"]: item["sha256"] for item in made["files"]}["model.onnx"] == record["model_sha256"]
    assert main(asked) == 2  # nothing is overwritten
    assert main([*asked, "--overwrite"]) == 0


def test_folder_of_others_is_never_replaced(tmp_path, capsys):
    model, folder = pixel_classifier(tmp_path / "net.onnx"), tmp_path / "photos"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    asked = ["embed", str(model), "--target", "python", "--data", "shapes-color", "-o", str(folder), "--overwrite"]
    assert main(asked) == 2
    assert "no app's folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--target", "pyton", "--data", "shapes-color"], "did you mean 'python'"),
        (["--target", "python"], "--data and --golden"),
        (["--target", "python", "--golden", "nowhere.png"], "nowhere.png"),
        (["--target", "python", "--data", "shapes-color", "--title", ""], "title"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(tmp_path, capsys, asked, said):
    model = pixel_classifier(tmp_path / "net.onnx")
    assert main(["embed", str(model), *asked, "-o", str(tmp_path / "app")]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: pixel_classifier(path, batch=4), "fixes its batch to 4"),
        (lambda path: pixel_classifier(path, classes=1), "at least two classes"),
        (lambda path: pixel_classifier(path, labels=["a", "b\nc", *"defg"][:6]), "one line of text"),
        (lambda path: pixel_classifier(path, labels=list("abc")), "3 labels but 6 outputs"),
    ],
)
def test_model_that_no_app_can_use_is_refused(tmp_path, capsys, make, said):
    model = make(tmp_path / "net.onnx")
    picture = odd_pictures(tmp_path / "pictures")[0]
    assert main(["embed", str(model), "--target", "python", "--golden", str(picture), "-o", str(tmp_path / "app")]) == 2
    assert said in capsys.readouterr().err


def test_fixed_size_is_told(tmp_path):
    model = pixel_classifier(tmp_path / "net.onnx", size=(28, 28))
    embed_onnx(model, tmp_path / "app", "python", golden=data.load("shapes-color"))
    Image.fromarray(gradient(30, 28)).save(tmp_path / "other.png")
    done = run_app(tmp_path / "app", tmp_path / "other.png", "--self-test")
    assert done.returncode == 2 and "takes 28 x 28 only" in done.stderr
    assert "3 of 3 passed" in done.stdout


def test_fixed_size_with_a_way_to_it(tmp_path):
    """Python's app brings pictures to the size as the file says; golden pictures have it, as C's app takes no other."""
    how = {"size": [28, 28], "resize": 32, "crop": "center", "channels": "RGB", "scale": 1.0}
    how |= {"layout": "NHWC", "dtype": "uint8"}
    model = pixel_classifier(tmp_path / "net.onnx", size=(28, 28), preprocess=how)
    pictures = odd_pictures(tmp_path / "pictures")
    embed_onnx(model, tmp_path / "apps", ["python", "c"], golden=pictures[:3])

    opened = AppModel.open(model)
    expected = np.array([opened.outputs(read_picture(path, 3)) for path in pictures])
    got = answers_of(tmp_path / "apps" / "python", pictures)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert run_app(tmp_path / "apps" / "python", "--self-test").returncode == 0
    for number in (1, 2, 3):
        with Image.open(tmp_path / "apps" / "c" / "golden" / f"{number}.ppm") as image:
            assert image.size == (28, 28)
    assert "pictures of 28 x 28 pixels" in (tmp_path / "apps" / "c" / "README.md").read_text()
    assert "pictures of any size" in (tmp_path / "apps" / "python" / "README.md").read_text()


def test_large_golden_pictures_are_made_smaller(tmp_path):
    Image.fromarray(gradient(900, 500)).save(tmp_path / "large.png")
    model = pixel_classifier(tmp_path / "net.onnx")
    embed_onnx(model, tmp_path / "app", "python", golden=[tmp_path / "large.png"])
    with Image.open(tmp_path / "app" / "golden" / "1.png") as image:
        assert image.size == (178, 320)
    assert Path(tmp_path / "app" / "golden" / "1.png").stat().st_size < 200_000
