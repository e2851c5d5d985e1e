"""The web app in a real browser: real clicks and uploads give Python's labels, on a phone and a desktop, offline."""

import base64
import os
import shutil

import numpy as np
import pytest
from app_page import FORGET, PROBLEM, AppBrowser, served
from browser import BROWSER
from embed_models import gradient, odd_pictures, pixel_classifier
from PIL import Image
from test_embed_node import runtime_or_skip
from test_embed_python import BAD_PICTURES
from tiny_onnx import classifier

from deploykit import data
from deploykit.cli import main
from deploykit.data.picture import read_picture
from deploykit.embed import embed_onnx
from deploykit.embed.app_model import AppModel

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")
DIGITS = tuple("0123456789")


@pytest.fixture(scope="module", autouse=True)
def runtime():
    return runtime_or_skip()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embed") / "über app"
    model = pixel_classifier(folder.parent / "net.onnx")
    embed_onnx(model, folder, "web", golden=data.load("shapes-color"))
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """An app of a model for grey digits, which may also be drawn."""
    folder = tmp_path_factory.mktemp("digits") / "app"
    model = pixel_classifier(folder.parent / "net.onnx", channels=1, classes=10, side=28, labels=DIGITS)
    pictures = odd_pictures(folder.parent / "pictures")
    embed_onnx(model, folder, "web", golden=pictures[:3])
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = AppBrowser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture
def page(browser, app):
    """The page, ready."""
    with served(app) as url:
        assert browser.open(url) == "ready"
        yield browser


def test_folder_is_small(app):
    names = sorted(path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file())
    code = ["app.js", "classifier.js", "drawing.js", "index.html", "pictures.js", "start.js", "style.css"]
    assert [name for name in names if "/" not in name and name.endswith((".js", ".html", ".css"))] == sorted(code)
    assert sum((app / name).stat().st_size for name in names) < 16_000_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_starts_fits_and_tests_itself(browser, app, tmp_path, width, scheme):
    with served(app) as url:
        assert browser.open(url, width, scheme) == "ready", browser.run(PROBLEM)
        rows, problem = browser.upload(app / "golden" / "1.png")
        sent = [event for event in browser.events if event["method"] == "Network.requestWillBeSent"]
        asked = [event["params"]["request"]["url"] for event in sent]

        assert (problem, len(rows)) == ("", 5)
        assert browser.run("document.getElementById('verdict').textContent") == "3 of 3 passed"
        assert browser.run("document.querySelectorAll('#tests .passed').length") == 3
        assert browser.run("document.title") == "net"
        assert browser.run("document.documentElement.scrollWidth") <= width
        beyond = f"""Array.from(document.querySelectorAll('main :not(.away)')).filter((item) =>
            item.getBoundingClientRect().right > {width} + 1).map((item) => item.outerHTML.slice(0, 80))"""
        assert browser.run(beyond) == []
        small = """Array.from(document.querySelectorAll('button, .drop')).filter((item) => item.offsetParent &&
            item.getBoundingClientRect().height < 44).length"""
        assert browser.run(small) == 0  # of a finger's size
        assert url in asked
        assert [item for item in asked if not item.startswith((url, "blob:", "data:"))] == []

    browser.whole_page(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as picture:
        corner = picture.convert("L").getpixel((3, 3))
        assert picture.width == width
        assert corner < 40 if scheme == "dark" else corner > 215


def test_uploads_get_pythons_answers(page, app, tmp_path):
    opened = AppModel.open(app / "model.onnx")
    for path in odd_pictures(tmp_path / "pictures"):
        rows, problem = page.upload(path)
        values = opened.outputs(read_picture(path, 3)).astype(np.float64)
        chances = np.exp(values - values.max()) / np.exp(values - values.max()).sum()
        order = np.argsort(-chances)[:5]
        assert problem == ""
        assert [name for name, _ in rows] == [opened.artifact.labels[index] for index in order], path.name
        told = [float(share.removesuffix(" %")) for _, share in rows]
        assert np.abs(np.array(told) - 100 * chances[order]).max() < 0.3, path.name


def test_pixels_are_pillows(page, app, tmp_path):
    """To the bit where nothing was lost; JPEG is decoded by another library."""
    for path in odd_pictures(tmp_path / "pictures"):
        content = base64.b64encode(path.read_bytes()).decode()
        found = page.run(
            f"""(async () => {{
              const {{ decode }} = await import("./pictures.js");
              const {{ recoloured }} = await import("./classifier.js");
              const bytes = Uint8Array.from(atob("{content}"), (letter) => letter.charCodeAt(0));
              const pixels = await decode(new Blob([bytes]), "it", 1e8);
              return [pixels.height, pixels.width, Array.from(recoloured(pixels, 3))];
            }})()"""
        )
        height, width, values = found
        expected = read_picture(path, 3)
        assert (height, width) == expected.shape[:2], path.name
        difference = np.abs(np.array(values).reshape(expected.shape) - expected).max()
        assert difference <= (2 if path.suffix == ".jpg" else 0), path.name


def test_keyboard_alone_is_enough(page, app):
    page.run("document.activeElement.blur()")
    seen = []
    for _ in range(8):
        page.press("Tab", number=9)
        seen.append(page.run("document.activeElement.id"))
        if seen[-1] == "file":
            break
    assert seen == ["mode-picture", "mode-camera", "file"]
    outline = "getComputedStyle(document.getElementById('drop')).outlineStyle"
    assert page.run(outline) == "solid"
    page.run(FORGET)
    page.press("Enter", number=13, text="\r")
    page.give_to_chooser(app / "golden" / "2.png")
    rows, problem = page.answer()
    assert (len(rows), problem) == (5, "")
    assert page.run("document.getElementById('best').textContent").startswith(rows[0][0])


def test_dropped_picture_is_classified(page, app):
    page.run(FORGET)
    x, y = page.middle_of("#result-heading")
    dragged = {"items": [], "files": [str(app / "golden" / "3.png")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.ask("Input.dispatchDragEvent", type=kind, x=x, y=y, data=dragged)
    rows, problem = page.answer()
    assert (len(rows), problem) == (5, "")
    assert page.run("document.body.classList.contains('dragging')") is False


def test_camera_is_classified_and_stops(page):
    page.click("#mode-camera")
    page.run(FORGET)
    page.click("#camera-toggle")
    rows, problem = page.answer()
    assert (len(rows), problem) == (5, "")
    assert page.run("document.getElementById('video').videoWidth") > 0
    assert page.run("document.getElementById('latency').textContent").endswith("ms in this browser, one thread")
    tracks = "document.getElementById('video').srcObject?.active ?? false"
    assert page.run(tracks) is True
    page.click("#camera-toggle")
    assert page.run(tracks) is False


def test_drawing_is_classified(browser, digits):
    with served(digits) as url:
        assert browser.open(url) == "ready", browser.run(PROBLEM)
        assert browser.run("document.getElementById('draw-panel').hidden") is False
        x, y = browser.middle_of("#pad")
        browser.run(FORGET)
        browser.mouse("mousePressed", x, y - 80)
        for step in range(-80, 81, 20):
            browser.mouse("mouseMoved", x + 20, y + step, buttons=1)
        browser.mouse("mouseReleased", x + 20, y + 80)
        rows, problem = browser.answer()
        assert (len(rows), problem) == (5, "")
        ink = """Array.from(document.getElementById("pad").getContext("2d").getImageData(0, 0, 280, 280).data)
            .filter((value) => value > 250).length"""
        drawn = browser.run(ink)
        assert drawn > 280 * 280 + 4000  # alpha everywhere, and white

        browser.click("#clear")
        assert browser.run(ink) == 280 * 280
        assert browser.run("document.querySelectorAll('#bars li').length") == 0

        browser.run("document.getElementById('pad').focus()")
        browser.press(" ", "Space", 32)
        for _ in range(6):
            browser.press("ArrowDown", number=40)
        rows, problem = browser.answer()
        assert (len(rows), problem) == (5, "")
        browser.press(" ", "Space", 32)
        before = browser.run(ink)
        browser.press("ArrowDown", number=40)
        assert browser.run(ink) == before > 280 * 280


def test_drawing_is_centred_as_in_mnist(browser, digits):
    """A stroke in a corner is brought to a box of 200 of 280 pixels with its centre of mass in the middle."""
    with served(digits) as url:
        browser.open(url)
        x, y = browser.middle_of("#pad")
        browser.mouse("mousePressed", x - 120, y - 120)
        browser.mouse("mouseMoved", x - 120, y - 60, buttons=1)
        browser.mouse("mouseReleased", x - 120, y - 60)
        values = browser.run(
            """(async () => {
              const { drawingPad } = await import("./drawing.js");
              const copy = new OffscreenCanvas(280, 280);
              copy.addEventListener = () => {};
              const pad = drawingPad(copy, () => {});
              copy.getContext("2d").drawImage(document.getElementById("pad"), 0, 0);
              const { data } = pad.pixels();
              return Array.from({ length: 280 * 280 }, (_, at) => data[4 * at]);
            })()"""
        )
    grey = np.array(values, np.float64).reshape(280, 280)
    rows, _ = np.nonzero(grey > 127)
    assert abs((rows.max() - rows.min() + 1) - 200) <= 4
    ys, xs = np.mgrid[0:280, 0:280] + 0.5
    assert abs((grey * ys).sum() / grey.sum() - 140) < 1.5
    assert abs((grey * xs).sum() / grey.sum() - 140) < 1.5


SAID = {
    "not a picture": "no picture that this browser can read",
    "empty": "is empty",
    "huge": ("20000 x 20000 pixels", "no picture that this browser can read"),
}


@pytest.mark.parametrize("kind", SAID)
def test_bad_picture_is_told_and_the_page_goes_on(page, app, tmp_path, kind):
    BAD_PICTURES[kind][0](tmp_path / "bad.png")
    rows, problem = page.upload(tmp_path / "bad.png")
    expected = SAID[kind] if isinstance(SAID[kind], tuple) else (SAID[kind],)
    assert rows == [] and "bad.png" in problem
    assert any(text in problem for text in expected), problem
    assert page.run("document.getElementById('problem').getAttribute('role')") == "alert"

    rows, problem = page.upload(app / "golden" / "1.png")
    assert (len(rows), problem) == (5, "")


def test_picture_above_the_limit_is_told(page, tmp_path):
    Image.new("L", (10_000, 5_001)).save(tmp_path / "large.png")
    rows, problem = page.upload(tmp_path / "large.png")
    assert rows == [] and "large.png has 10000 x 5001 pixels; allowed: 50,000,000" in problem


def _swap_colours(folder):
    with Image.open(folder / "golden" / "1.png") as image:
        swapped = np.ascontiguousarray(np.asarray(image)[..., ::-1])
    Image.fromarray(swapped).save(folder / "golden" / "1.png")


WASM = "runtime/ort-wasm-simd-threaded.wasm"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / WASM).unlink(), "ort-wasm-simd-threaded.wasm is missing (HTTP 404)"),
        (lambda folder: os.truncate(folder / WASM, 1_000_000), "cannot be started"),
        (lambda folder: (folder / "runtime" / "ort.js").unlink(), "runtime/ort.js is missing"),
        (lambda folder: os.truncate(folder / "model.onnx", 4000), "cut short"),
        (
            lambda folder: (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size),
            "cannot be started",
        ),
        (lambda folder: (folder / "model.onnx").unlink(), "model.onnx is missing"),
        (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
        (lambda folder: (folder / "golden" / "golden.json").unlink(), "golden/golden.json is missing"),
        (lambda folder: (folder / "classifier.js").unlink(), "Copy the whole folder again"),
        (_swap_colours, "self-test failed"),
    ],
)
def test_damaged_folder_is_told_on_a_page_that_is_not_white(browser, app, tmp_path, change, said):
    copy = tmp_path / "copy"
    shutil.copytree(app, copy)
    change(copy)
    with served(copy) as url:
        assert browser.open(url, 390) == "failed"
        assert said in browser.run(PROBLEM), browser.run(PROBLEM)
        assert browser.run("document.querySelector('h1').getBoundingClientRect().height") > 20
        assert browser.run("document.documentElement.scrollWidth") <= 390


def test_page_opened_as_a_file_tells_what_to_do(browser, app):
    assert browser.open((app / "index.html").resolve().as_uri()) == "failed"
    assert "python -m http.server" in browser.run(PROBLEM)


def test_hostile_title_and_labels_are_text(browser, tmp_path):
    names = ["<img src=x onerror=alert(1)>", "сеть" * 40, *"abcd"]
    model = pixel_classifier(tmp_path / "net.onnx", labels=names)
    title = "<b>Bold</b> & plain"
    asked = ["embed", str(model), "--target", "web", "--data", "shapes-color", "--title", title]
    assert main([*asked, "-o", str(tmp_path / "app")]) == 0
    with served(tmp_path / "app") as url:
        assert browser.open(url, 390) == "ready", browser.run(PROBLEM)
        browser.upload(tmp_path / "app" / "golden" / "1.png")
        assert browser.run("document.title") == title
        assert browser.run("document.querySelectorAll('main img, h1 b').length") == 0
        assert browser.run("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: classifier(path), "deploykit wrap"),
        (lambda path: pixel_classifier(path, size=(28, 28)), "28 x 28 pixels only"),
    ],
)
def test_model_that_a_page_cannot_feed_is_refused(tmp_path, capsys, make, said):
    model = make(tmp_path / "net.onnx")
    picture = tmp_path / "p.png"
    Image.fromarray(gradient(28, 28)).save(picture)
    asked = ["embed", str(model), "--target", "web", "--golden", str(picture), "-o", str(tmp_path / "app")]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "app").exists()
