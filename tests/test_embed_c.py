"""The C app: built by its CMake file, it answers what deploykit answers, and under valgrind makes no memory error."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from embed_models import gradient, odd_pictures, pixel_classifier
from onnxruntime_headers import fetch, header_folder, ort_root
from PIL import Image
from tiny_onnx import classifier

from deploykit import data
from deploykit.cli import main
from deploykit.data.picture import read_picture
from deploykit.embed import embed_onnx
from deploykit.embed.app_model import AppModel

TOOLS = [tool for tool in ("cmake", "cc") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the wheel's library is linked on Linux only"),
    pytest.mark.skipif(bool(TOOLS), reason=f"not on PATH: {', '.join(TOOLS)}"),
]

# The only thing that valgrind finds, in the runtime itself.
SUPPRESSIONS = """{
  the runtime copies four bytes onto themselves while it looks at the processor
  Memcheck:Overlap
  fun:__memcpy_chk
  obj:*libonnxruntime.so*
}
"""


def make_app(folder, **model):
    net = pixel_classifier(folder / "net.onnx", **model)
    golden = data.load("shapes-color") if not model else odd_pictures(folder / "golden pictures")[:3]
    embed_onnx(net, folder / "über app", "c", golden=golden)
    return folder / "über app"


def build(app, root, folder, *flags):
    for command in (
        ["cmake", "-S", app, "-B", folder, f"-DORT_ROOT={root}", *flags],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "classify"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    headers = header_folder()
    if headers is None:
        pytest.skip("no header onnxruntime_c_api.h: give ORT_ROOT, or run the slow test, which gets one")
    return ort_root(tmp_path_factory.mktemp("ort") / "root", headers)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return make_app(tmp_path_factory.mktemp("embed"))


@pytest.fixture(scope="module")
def program(app, root, tmp_path_factory):
    """Built with every warning an error."""
    flags = "-Wall -Wextra -Wshadow -Wconversion -Werror"
    return build(app, root, tmp_path_factory.mktemp("build"), f"-DCMAKE_C_FLAGS={flags}")


def run_app(program, folder, *arguments, **options):
    command = [str(program), "--folder", str(folder), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text="input" not in options, **options)


def test_folder_is_complete(app):
    names = sorted(path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file())
    golden = ["golden/1.ppm", "golden/2.ppm", "golden/3.ppm", "golden/golden.json", "golden/golden.txt"]
    facts = ["labels.txt", "model.json", "model.onnx", "model.txt"]
    assert names == ["CMakeLists.txt", "LICENSE", "README.md", "classify.c", *golden, *facts]
    expected = json.loads((app / "golden" / "golden.json").read_text())
    head, *rows = (app / "golden" / "golden.txt").read_text().splitlines()
    assert head == f"pictures 3 tolerance {expected['tolerance']:.9g}"
    for row, picture in zip(rows, expected["pictures"], strict=True):
        name, index, *values = row.split()
        assert (name, int(index)) == (picture["file"], picture["index"])
        assert np.array_equal(np.array(values, np.float32), np.array(picture["outputs"], np.float32))


def test_self_test_passes_and_classifies(program, app):
    done = run_app(program, app, "--self-test", "--top", 2, app / "golden" / "1.ppm")
    assert done.returncode == 0, done.stderr
    assert "self-test: 3 of 3 passed" in done.stdout
    label = json.loads((app / "golden" / "golden.json").read_text())["pictures"][0]["label"]
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"{app / 'golden' / '1.ppm'}: {label} ") and last.count("%") == 2


@pytest.mark.parametrize("depth", [1, 3])
def test_app_answers_as_deploykit_does(program, tmp_path, depth):
    """Grey and colour pictures for grey and colour models; the self-test compares every output."""
    folder = make_app(tmp_path, channels=depth)
    pictures = []
    for number, path in enumerate(odd_pictures(tmp_path / "pictures")):
        with Image.open(path) as image:
            plain = image.convert("L" if "grey" in path.name else "RGB")
        pictures.append(tmp_path / f"{number}.{'pgm' if plain.mode == 'L' else 'ppm'}")
        plain.save(pictures[-1])
    done = run_app(program, folder, "--self-test", "--top", 1, *pictures)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 passed" in done.stdout

    opened = AppModel.open(folder / "model.onnx")
    for path, line in zip(pictures, done.stdout.splitlines()[4:], strict=True):
        values = opened.outputs(read_picture(path, depth)).astype(np.float64)
        share = 100 * np.exp(values.max() - values.max()) / np.exp(values - values.max()).sum()
        assert line.startswith(f"{path}: {opened.artifact.labels[values.argmax()]} {share:.1f}%"), line


def test_stream_of_pictures_is_read_from_standard_input(program, app, tmp_path):
    stream = b"".join((app / "golden" / f"{number}.ppm").read_bytes() for number in (1, 2, 3)) + b"\n"
    done = run_app(program, app, "--top", 1, "-", input=stream)
    labels = [item["label"] for item in json.loads((app / "golden" / "golden.json").read_text())["pictures"]]
    assert [line.split()[1] for line in done.stdout.decode().splitlines()] == labels


BAD_PICTURES = {
    "not a picture": (b"hello", "no picture of a known format"),
    "empty": (b"", "is empty"),
    "huge": (b"P5 99999 99999 255\n", "99999 x 99999 pixels"),
    "larger than numbers": (b"P5 99999999999999999999 2 255\n", "head is damaged"),
    "negative": (b"P5 -3 2 255\nabcdef", "head is damaged"),
    "cut short": (b"P6 10 10 255\nabc", "is cut short"),
    "cut in its head": (b"P6 10 # a comment", "head is damaged"),
    "16 bits": (b"P5 1 1 65535\nab", "largest value is 65535"),
    "plain text": (b"P3 1 1 255\n1 2 3", "no picture of a known format"),
    "good, then cut": (b"P5 1 1 255\na P5 1 1 255\n", "is cut short"),
    "missing": (None, "No such file"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_bad_picture_is_one_line(program, app, tmp_path, kind):
    content, said = BAD_PICTURES[kind]
    if content is not None:
        (tmp_path / "bad.ppm").write_bytes(content)
    good = app / "golden" / "1.ppm"
    done = run_app(program, app, tmp_path / "bad.ppm", good)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert said in done.stderr and "bad.ppm" in done.stderr
    assert str(good) in done.stdout


def _replace_model(folder):
    content = b"x" * (folder / "model.onnx").stat().st_size
    (folder / "model.onnx").write_bytes(content)


DAMAGES = {
    "model cut short": (lambda folder: os.truncate(folder / "model.onnx", 4000), "cut short or replaced"),
    "model of nonsense": (_replace_model, "not a usable model"),
    "no model": (lambda folder: (folder / "model.onnx").unlink(), "cannot read"),
    "no labels": (lambda folder: (folder / "labels.txt").unlink(), "cannot read"),
    "too few labels": (lambda folder: (folder / "labels.txt").write_text("a\nb\n"), "names 2 classes instead of 6"),
    "no facts": (lambda folder: (folder / "model.txt").write_text("hello"), "model.txt is damaged"),
    "no golden picture": (lambda folder: (folder / "golden" / "2.ppm").unlink(), "cannot read"),
    "golden text cut": (lambda folder: os.truncate(folder / "golden" / "golden.txt", 60), "golden.txt is cut short"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_folder_is_one_line(program, app, tmp_path, kind):
    change, said = DAMAGES[kind]
    copy = tmp_path / "copy"
    shutil.copytree(app, copy)
    change(copy)
    done = run_app(program, copy, "--self-test")
    assert done.returncode == 2, done.stdout
    assert said in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_self_test_fails_where_answers_differ(program, app, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(app, copy)
    with Image.open(copy / "golden" / "1.ppm") as image:
        swapped = np.ascontiguousarray(np.asarray(image)[..., ::-1])
    Image.fromarray(swapped).save(copy / "golden" / "1.ppm")
    done = run_app(program, copy, "--self-test")
    assert done.returncode == 1 and "FAILED  1.ppm" in done.stdout and "2 of 3 passed" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("--nope",), ("--top", "0", "x"), ("--top",)])
def test_bad_usage_is_one_line(program, arguments):
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "usage" in done.stderr


def test_fixed_size_is_told(program, tmp_path):
    net = pixel_classifier(tmp_path / "net.onnx", size=(28, 28))
    embed_onnx(net, tmp_path / "app", "c", golden=data.load("shapes-color"))
    Image.fromarray(gradient(30, 28)).save(tmp_path / "other.ppm")
    done = run_app(program, tmp_path / "app", "--self-test", tmp_path / "other.ppm")
    assert "3 of 3 passed" in done.stdout
    assert done.returncode == 2 and "takes 28 x 28 only" in done.stderr


def test_missing_runtime_is_told_by_cmake(app, tmp_path):
    if header_folder() and "/usr" in str(header_folder()):
        pytest.skip("this machine has ONNX Runtime where CMake finds it")
    done = subprocess.run(["cmake", "-S", app, "-B", tmp_path / "build"], capture_output=True, text=True)
    assert done.returncode != 0 and "-DORT_ROOT" in done.stderr


def test_model_that_the_app_would_have_to_prepare_pictures_for_is_refused(tmp_path, capsys):
    model = classifier(tmp_path / "net.onnx")
    asked = ["embed", str(model), "--target", "c", "--data", "shapes", "-o", str(tmp_path / "app")]
    assert main(asked) == 2
    assert "deploykit wrap" in capsys.readouterr().err


@pytest.mark.slow
def test_no_memory_error_under_valgrind(app, tmp_path):
    """Good and bad pictures, good and damaged folders; nothing read or written astray, nothing lost."""
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind on PATH")
    root = ort_root(tmp_path / "root", header_folder() or fetch())
    program = build(app, root, tmp_path / "build", "-DCMAKE_BUILD_TYPE=Debug")
    (tmp_path / "own.supp").write_text(SUPPRESSIONS)
    flags = ["-q", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect"]
    watched = ["valgrind", *flags, f"--suppressions={tmp_path / 'own.supp'}", str(program)]
    pictures = []
    for kind, (content, _) in BAD_PICTURES.items():
        pictures.append(tmp_path / f"{kind}.ppm")
        if content is not None:
            pictures[-1].write_bytes(content)
    folders = [app]
    for kind, (change, _) in DAMAGES.items():
        folders.append(tmp_path / "folders" / kind)
        shutil.copytree(app, folders[-1])
        change(folders[-1])
    for folder in folders:
        arguments = ["--folder", folder, "--self-test", app / "golden" / "1.ppm", *pictures]
        done = subprocess.run([*watched, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert "==" not in done.stderr
    assert (
        "3 of 3 passed"
        in subprocess.run([*watched, "--folder", app, "--self-test"], capture_output=True, text=True).stdout
    )
