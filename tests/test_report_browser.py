"""The report in a real browser: drawn, within the window, in both schemes, sortable, and asking the network nothing."""

import pytest
from browser import BROWSER, Browser
from full_records import earlier_records, full_records
from PIL import Image
from synthetic_records import accuracy, all_records, bench, timing, write_records

from deploykit.report import write_report

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on PATH")


class ReportBrowser(Browser):
    def open(self, page, width, scheme):
        self.show(page.resolve().as_uri(), width, scheme, DRAWN)


# Answers once the page says that every chart is drawn.
DRAWN = """new Promise((done) => {
  const look = () => (document.body && document.body.dataset.charts ? done(true) : setTimeout(look, 20));
  look();
})"""


# A value once the browser has drawn what was asked for before.
SETTLED = "new Promise((done) => setTimeout(() => requestAnimationFrame(() => done(%s)), 100))"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = write_records(tmp_path_factory.mktemp("records"), all_records())
    return write_report([folder], folder / "report.html", title="Three networks on MNIST")


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    """Two machines, every view, and a baseline."""
    now, before = tmp_path_factory.mktemp("now"), tmp_path_factory.mktemp("before")
    write_records(now, full_records()), write_records(before, earlier_records())
    return write_report([now], now / "report.html", baseline=[before], title="Everything at once")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = ReportBrowser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


def column(browser, index):
    return browser.run(
        f"Array.from(document.querySelectorAll('#figures tbody tr'), (row) => row.cells[{index}].textContent.trim())"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_drawn_and_fits(browser, page, tmp_path, width, scheme):
    browser.open(page, width, scheme)

    assert browser.run("document.body.dataset.scheme") == scheme
    assert browser.run("window.innerWidth") == width
    assert beyond_the_window(browser, width) == []

    # Three charts of costs and two curves for each of three networks; six models a chart, and those on the front twice.
    assert browser.run("document.querySelectorAll('.chart svg').length") == 3 + 2 * 3
    marks = "document.querySelectorAll('#%s [aria-roledescription=point]').length"
    assert [browser.run(marks % f"chart-{index}") for index in range(3)] == [6 + 5, 6 + 4, 6 + 4]
    narrow = browser.run("Array.from(document.querySelectorAll('.chart svg'), (svg) => svg.clientWidth < 150)")
    assert not any(narrow)

    look_at(browser, tmp_path / "page.png", width, scheme)


def look_at(browser, path, width, scheme):
    """Takes the picture: as wide as the window, in the scheme's colours, and not blank."""
    browser.screenshot(path)
    with Image.open(path) as picture:
        corner, colors = picture.convert("L").getpixel((3, 3)), picture.convert("RGB").getcolors(1 << 24)
        assert picture.width == width
        assert corner < 40 if scheme == "dark" else corner > 215
        assert len(colors) > 200  # the edges of text and marks blend into many; a blank page has a handful


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark"), (1280, "light")])
def test_every_view_is_drawn_and_fits(browser, full_page, tmp_path, width, scheme):
    browser.open(full_page, width, scheme)
    browser.run("document.querySelectorAll('details').forEach((item) => { item.open = true; })")

    assert beyond_the_window(browser, width) == []
    # Three charts for each of two machines, one for each of two searches, and two curves for each of three networks.
    assert browser.run("document.querySelectorAll('.chart svg').length") == 2 * 3 + 2 + 2 * 3
    # Those in parts that were closed when they were drawn have taken the width that they have now.
    fills = (
        "Array.from(document.querySelectorAll('.chart'), (box) => box.firstElementChild.clientWidth / box.clientWidth)"
    )
    assert all(0.95 <= share <= 1.0 for share in browser.run(SETTLED % fills))
    # What a cell shows stays in it: neither text nor bar is cut off, and rows of the diff stand beside their labels.
    cut = "Array.from(document.querySelectorAll('%s')).filter((item) => item.scrollWidth > item.clientWidth + 1).length"
    assert [browser.run(cut % cells) for cells in (".bars td", ".bars th", "#figures td", "#figures th")] == [0] * 4
    widest = (
        "Math.max(...Array.from(document.querySelectorAll('.bars td.b'), (cell) => parseFloat(getComputedStyle(cell)"
    )
    assert browser.run(f"{widest}.width)))") > 100
    label = "getComputedStyle(document.querySelector('.diff td'), '::before').content"
    assert (browser.run(label) == '"Setting"') == (width == 390)
    assert browser.run("getComputedStyle(document.querySelector('.diff .bad')).color") == (
        "rgb(255, 143, 133)" if scheme == "dark" else "rgb(185, 50, 38)"
    )
    look_at(browser, tmp_path / "full.png", width, scheme)


def beyond_the_window(browser, width):
    """The elements that reach out of a window of this width, those inside a scrolled box left out."""
    assert browser.run("document.documentElement.scrollWidth") <= width
    return browser.run(
        """Array.from(document.querySelectorAll('main *')).filter((item) =>
           !item.closest('.scroll') && item.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
           .map((item) => item.outerHTML.slice(0, 80))"""
    )


def test_an_unstable_timing_is_an_outline(browser, page):
    browser.open(page, 1280, "light")
    mark = "document.querySelector('#chart-%d [aria-label*=\"plain-mnist.int8.onnx\"]').getAttribute('fill-opacity')"

    assert browser.run(mark % 0) == "0.08"
    assert browser.run(mark % 1) in (None, "1")  # a size is certain
    stable = "document.querySelector('#chart-0 [aria-label*=\"lenet5.int8.onnx\"]').getAttribute('fill-opacity')"
    assert browser.run(stable) == "1"


def test_the_filter_hides_rows_that_lack_a_word(browser, full_page):
    browser.open(full_page, 1280, "light")
    browser.run(
        """(() => { const field = document.getElementById('filter'); field.value = 'cortex INT8';
             field.dispatchEvent(new Event('input')); })()"""
    )
    shown = browser.run(
        """Array.from(document.querySelectorAll('#figures tbody tr')).filter((row) => !row.hidden)
           .map((row) => row.cells[0].textContent.trim())"""
    )
    assert shown == ["lenet5.int8.onnx", "mnist-cnn.int8.onnx", "plain-mnist.int8.onnx"]
    assert browser.run("document.getElementById('found').textContent") == "3 of 12"


def test_page_changes_with_the_scheme(browser, page):
    browser.open(page, 1280, "light")
    ink = "getComputedStyle(document.querySelector('#chart-0 .role-axis-title text')).fill"
    before = browser.run(ink)
    browser.run("delete document.body.dataset.charts")
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.run(DRAWN)

    assert (before, browser.run(ink)) == ("rgb(28, 36, 48)", "rgb(232, 237, 244)")


def test_a_heading_sorts_up_and_then_down_by_mouse_or_keyboard(browser, page):
    browser.open(page, 1280, "light")
    titles = browser.run("Array.from(document.querySelectorAll('#figures thead button'), (item) => item.textContent)")
    latency = titles.index("Latency")
    rising = ["0.0251 ms ⚠", "0.0394 ms", "0.0418 ms", "0.0437 ms", "0.0522 ms", "0.0731 ms"]

    browser.run(f"document.querySelectorAll('#figures thead button')[{latency}].click()")
    assert column(browser, latency) == rising
    browser.run(f"document.querySelectorAll('#figures thead button')[{latency}].focus()")
    for kind in ("keyDown", "keyUp"):
        enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        browser.ask("Input.dispatchKeyEvent", type=kind, **enter)
    assert column(browser, latency) == rising[::-1]
    assert browser.run(f"document.querySelectorAll('#figures th')[{latency}].getAttribute('aria-sort')") == "descending"

    # The first and the last file have no agreement to sort by and stay at the end, either way.
    agreement = titles.index("Agreement")
    for _ in range(2):
        browser.run(f"document.querySelectorAll('#figures thead button')[{agreement}].click()")
        assert column(browser, agreement)[3:] == ["–"] * 3


def test_hovering_a_point_shows_its_record(browser, page):
    browser.open(page, 1280, "light")
    place = browser.run(
        """(() => { const mark = document.querySelector('#chart-0 [aria-label*="lenet5.int8.onnx"]');
             mark.scrollIntoView({block: 'center'});
             const box = mark.getBoundingClientRect();
             return [box.x + box.width / 2, box.y + box.height / 2]; })()"""
    )
    browser.ask("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    shown = browser.run("document.getElementById('vg-tooltip-element').innerText")

    for text in (
        "lenet5.int8.onnx",
        "int8",
        "99.18 %",
        "0.0522 ms (0.05168–0.05272)",
        "stable",
        "70.1 KB",
        "1.12 MB",
        "cpu, 1 thread, batch 1",
    ):
        assert text in shown, text


def test_a_long_table_scrolls_below_its_headings(browser, tmp_path):
    timings = [timing(f"network-{index:02d}", "fp32", 5000, 1.0 + index, 9_000_000) for index in range(40)]
    write_records(tmp_path, {"a.json": bench(*timings)})
    browser.open(write_report([tmp_path], tmp_path / "r.html"), 1280, "light")

    tops = """(() => { const box = document.querySelector('#table .tall'); box.scrollTop = 600;
              const top = (name) => Math.round(document.querySelector(name).getBoundingClientRect().top);
              return [box.scrollTop > 0, top('#figures thead th') - Math.round(box.getBoundingClientRect().top),
                      top('#figures tbody th') < top('#figures thead th')]; })()"""
    scrolled, gap, first_is_above = browser.run(tops)
    assert (scrolled, first_is_above) == (True, True)
    assert 0 <= gap <= 2


def test_page_asks_the_network_nothing(browser, page):
    browser.events.clear()
    browser.open(page, 1280, "light")
    requests = [event["params"]["request"]["url"] for event in browser.events if "requestWillBeSent" in event["method"]]

    assert page.resolve().as_uri() in requests
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_long_and_hostile_names_neither_overflow_nor_run(browser, tmp_path):
    network = "сеть-" + "очень" * 30 + """<img src=x onerror="document.title='taken'">模型"""
    name = f"{network}.fp32.onnx"
    changes = {"model": name}
    write_records(
        tmp_path,
        {
            "a.json": accuracy(network, "fp32", 5000, 0.5, **changes),
            "b.json": bench(timing(network, "fp32", 5000, 2.0, 9_000_000, **changes)),
        },
    )
    browser.open(write_report([tmp_path], tmp_path / "r.html", title="<b>Bold</b> & plain"), 390, "dark")

    assert browser.run("document.title") == "<b>Bold</b> & plain"
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("document.querySelector('#figures tbody th').textContent") == name


def test_figures_are_there_without_scripts(browser, page):
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.ask("Page.navigate", url=page.resolve().as_uri())
        while browser.run("document.readyState") != "complete":
            pass
        text = browser.run("document.querySelector('#figures tbody').innerText")
        notice = browser.run("document.querySelector('noscript').innerText")
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)

    assert "lenet5.fp32.onnx" in text
    assert "99.21 %" in text
    assert "need JavaScript" in notice
