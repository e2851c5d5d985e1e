"""ONNX Runtime's own format, and the snippets for phones, as far as a computer can check them."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from embed_models import odd_pictures, pixel_classifier
from tiny_onnx import classifier

from deploykit import data
from deploykit.cli import main
from deploykit.embed import EmbedOptions, embed_onnx, verify_bundle
from deploykit.embed.app_model import AppModel
from deploykit.embed.golden import chosen_from
from deploykit.embed.ort_format import ort_form
from deploykit.errors import ParityError
from deploykit.runtime import create_session


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return pixel_classifier(tmp_path_factory.mktemp("model") / "net.onnx")


@pytest.fixture(scope="module")
def phones(model, tmp_path_factory):
    """The folders for Android and iOS, and the archive of both."""
    folder = tmp_path_factory.mktemp("phones")
    golden = data.load("shapes-color")
    return embed_onnx(model, folder / "apps", ["android", "ios"], golden=golden, bundle=folder / "app.zip"), folder


def test_ort_form_is_added_and_answers_alike(model, tmp_path):
    golden = data.load("shapes-color")
    made = embed_onnx(model, tmp_path / "app", "python", golden=golden, options=EmbedOptions(ort_format=True))

    assert made.apps[0].ort_max_abs < 1e-4
    opened, session = AppModel.open(model), create_session(tmp_path / "app" / "model.ort")
    picture = golden.pictures([7])[0]
    assert np.allclose(session.run(picture[None])[0][0], opened.outputs(picture), atol=1e-4)
    lines = (tmp_path / "app" / "required_operators.config").read_text().splitlines()
    assert lines[:2] == ["# Generated from model/s:", "# - model.ort"]
    operators = {name for line in lines[2:] for name in line.split(";")[2].split(",")}
    assert {"Resize", "Cast", "GlobalMaxPool"} <= operators


@pytest.mark.slow
def test_ort_form_is_the_same_every_time(model):
    probe = "import ctypes, sys; sys.exit(ctypes.CDLL(None).personality(0x0040000) == -1)"
    if sys.platform != "linux" or subprocess.run([sys.executable, "-c", probe]).returncode:
        pytest.skip("this system does not let a process be loaded at the same addresses each time")
    opened = AppModel.open(model)
    golden = chosen_from(opened, data.load("shapes-color"))
    first, second = (ort_form(opened, golden, arm=False) for _ in range(2))
    assert (first.content, first.operators) == (second.content, second.operators)


def test_ort_form_of_a_quantized_model_answers_alike(trained, tmp_path):
    golden = data.load("shapes")
    options = EmbedOptions(ort_format=True)
    made = embed_onnx(trained.int8, tmp_path / "app", "python", golden=golden, options=options)
    assert made.precision == "int8" and made.apps[0].ort_max_abs <= made.tolerance


def test_ort_form_that_answers_otherwise_is_refused(model):
    opened = AppModel.open(model)
    golden = chosen_from(opened, data.load("shapes-color"))
    first, *others = golden.pictures
    moved = replace(golden, pictures=(replace(first, outputs=first.outputs + 2 * golden.tolerance), *others))
    with pytest.raises(ParityError, match="differs by"):
        ort_form(opened, moved, arm=False)


def constants(text):
    """``name = value`` of a snippet's constants, whatever the language's keywords."""
    return dict(re.findall(r"(?:const val|static let) (\w+)(?:: Float)? = (\S+)", text))


@pytest.mark.parametrize(
    ("target", "file", "names"),
    [
        ("android", "Classifier.kt", ("INPUT", "OUTPUT", "CHANNELS", "HEIGHT", "CLASSES", "GIVES_PROBABILITIES")),
        ("ios", "Classifier.swift", ("input", "output", "channels", "height", "classes", "givesProbabilities")),
    ],
)
def test_constants_are_the_models(phones, target, file, names):
    record, folder = phones
    found = constants((folder / "apps" / target / file).read_text())
    assert [found[name] for name in names] == ['"x"', '"logits"', "3", "0", "6", "false"]
    tolerance = float(found["TOLERANCE" if target == "android" else "tolerance"])
    assert tolerance == pytest.approx(record.tolerance, rel=1e-6)
    readme = (folder / "apps" / target / "README.md").read_text()
    assert re.search(r"\*\*It was n(ot|either compiled nor) run on a phone\*\*", readme)
    assert "%%" not in readme + (folder / "apps" / target / file).read_text()


def test_golden_tensors_give_the_outputs(phones):
    """What the phone's test does, done here with the model that goes there."""
    _, folder = phones
    for target in ("android", "ios"):
        app = folder / "apps" / target
        facts = json.loads((app / "model.json").read_text())
        golden = json.loads((app / "golden" / "golden.json").read_text())
        assert facts["model"] == "model.ort" and not (app / "model.onnx").exists()
        session = create_session(app / "model.ort")
        for item in golden["pictures"]:
            pixels = np.fromfile(app / "golden" / item["file"], np.uint8)
            rows = pixels.reshape(1, item["height"], item["width"], item["channels"])
            got = session.run(rows)[0][0]
            assert np.abs(got - np.array(item["outputs"])).max() <= golden["tolerance"]


def test_bundle_of_phones_is_verified(phones):
    found = verify_bundle(phones[1] / "app.zip")
    assert (found.verdict, len(found.golden)) == ("same", 6)


@pytest.mark.slow
def test_names_and_sizes_reach_the_snippets(tmp_path):
    """A grey model of a fixed size; a dollar sign begins a variable in Kotlin."""
    import onnx

    path = pixel_classifier(tmp_path / "net.onnx", channels=1, size=(28, 26))
    model = onnx.load(path)
    for node in model.graph.node:
        node.input[:] = ["picture$raw" if name == "x" else name for name in node.input]
    model.graph.input[0].name = "picture$raw"
    onnx.save(model, path)
    from PIL import Image

    Image.new("L", (26, 28), 90).save(tmp_path / "p.png")
    embed_onnx(path, tmp_path / "apps", ["android", "ios"], golden=[tmp_path / "p.png"])
    kotlin = constants((tmp_path / "apps" / "android" / "Classifier.kt").read_text())
    swift = constants((tmp_path / "apps" / "ios" / "Classifier.swift").read_text())
    assert (kotlin["INPUT"], swift["input"]) == ('"picture\\$raw"', '"picture$raw"')
    assert [kotlin[name] for name in ("CHANNELS", "HEIGHT", "WIDTH")] == ["1", "28", "26"]
    assert (tmp_path / "apps" / "ios" / "golden" / "1.bin").read_bytes() == bytes([90]) * (28 * 26)


def test_model_that_a_phone_would_have_to_prepare_pictures_for_is_refused(tmp_path, capsys):
    model = classifier(tmp_path / "net.onnx")
    picture = odd_pictures(tmp_path / "pictures")[0]
    asked = ["embed", str(model), "--target", "ios", "--golden", str(picture), "-o", str(tmp_path / "app")]
    assert main(asked) == 2
    assert "deploykit wrap" in capsys.readouterr().err


def test_command_tells_what_the_ort_form_answers(model, tmp_path, capsys):
    asked = ["embed", str(model), "--target", "python", "--data", "shapes-color", "-o", str(tmp_path / "app")]
    assert main([*asked, "--ort-format"]) == 0
    assert re.search(r"model\.ort answers as the model within \d", capsys.readouterr().out)
