import builtins
import itertools
import re

import pytest
from PIL import Image
from synthetic_records import training

from deploykit import charts
from deploykit.chart_style import AXES, PALETTE, THEMES, byte_unit, network_colors, precision_shapes
from deploykit.errors import InputError, MissingDependencyError, OutputError, UnknownNameError

ROWS = [
    {"name": "a", "network": "lenet5", "precision": "fp32", "latency_ms": 4.0, "file_bytes": 400_000, "top1": 0.992},
    {"name": "b", "network": "lenet5", "precision": "int8", "latency_ms": 2.0, "file_bytes": 100_000, "top1": 0.991},
    {"name": "c", "network": "mnist-cnn", "precision": "fp32", "latency_ms": 3.0, "file_bytes": 90_000, "top1": 0.985},
    {"name": "d", "network": "mnist-cnn", "precision": "int8", "latency_ms": 1.0, "file_bytes": None, "top1": 0.984},
]


def luminance(color):
    """Relative luminance (WCAG 2.2)."""
    channels = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#151b23"])
def test_every_colour_stands_out_from_both_pages(background):
    assert min(contrast(color, background) for color in PALETTE) >= 3.0


@pytest.mark.parametrize(("theme", "background"), [("light", "#ffffff"), ("dark", "#151b23"), ("paper", "#ffffff")])
def test_text_is_readable_in_every_theme(theme, background):
    axis = THEMES[theme]["axis"]
    assert min(contrast(axis[key], background) for key in ("labelColor", "titleColor")) >= 4.5


def test_pareto_front_is_what_nobody_beats():
    # c is slower and worse than b; d is the fastest, a the most accurate.
    assert charts.pareto_front(ROWS, "latency_ms") == [3, 1, 0]
    assert charts.pareto_front(ROWS, "file_bytes") == [2, 1, 0]


def test_pareto_front_agrees_with_the_definition_on_a_grid():
    rows = [{"latency_ms": x, "top1": y} for x, y in itertools.product((1.0, 2.0, 3.0), (0.1, 0.5, 0.5, 0.9))]
    rows += [{"latency_ms": None, "top1": 1.0}, {"top1": 1.0}, {"latency_ms": float("nan"), "top1": 1.0}]

    def beaten(row):
        return any(
            other["latency_ms"] <= row["latency_ms"]
            and other["top1"] >= row["top1"]
            and (other["latency_ms"], other["top1"]) != (row["latency_ms"], row["top1"])
            for other in rows[:12]
        )

    expected = {index for index, row in enumerate(rows[:12]) if not beaten(row)}
    assert set(charts.pareto_front(rows, "latency_ms")) == expected


def test_pareto_front_of_two_costs_minimises_both():
    rows = [
        {"latency_ms": 1.0, "file_bytes": 9},
        {"latency_ms": 2.0, "file_bytes": 5},
        {"latency_ms": 3.0, "file_bytes": 7},
    ]
    assert charts.pareto_front(rows, "latency_ms", "file_bytes") == [0, 1]


def test_tradeoff_chart_holds_the_rows_their_front_and_the_units():
    spec = charts.tradeoff_chart(ROWS, "file_bytes", title="Accuracy × size").to_dict()

    assert spec["datasets"]["rows"] == ROWS
    assert [row["name"] for row in spec["datasets"]["front"]] == ["c", "b", "a"]
    points = spec["layer"][2]["encoding"]
    assert points["x"]["title"] == "File size (KB)"
    assert points["y"]["title"] == "Top-1 accuracy (%)"
    calculated = {item["as"]: item["calculate"] for item in spec["layer"][2]["transform"] if "as" in item}
    assert calculated == {"file_bytes_shown": "datum['file_bytes'] * 0.001", "top1_shown": "datum['top1'] * 100.0"}
    assert points["color"]["scale"] == {"domain": ["lenet5", "mnist-cnn"], "range": list(PALETTE[:2])}
    assert points["shape"]["scale"] == {"domain": ["fp32", "int8"], "range": ["circle", "triangle-up"]}


def test_a_wide_range_gets_a_logarithmic_axis():
    def scale(latencies):
        rows = [{**ROWS[0], "latency_ms": latency} for latency in latencies]
        return charts.tradeoff_chart(rows, "latency_ms").to_dict()["layer"][0]["encoding"]["x"]["scale"]["type"]

    assert (scale([1.0, 3.0]), scale([0.05, 50.0]), scale([0.0, 50.0])) == ("linear", "log", "linear")


def test_a_group_of_charts_shares_colours_and_rows():
    spec = charts.tradeoff_chart(ROWS[2:], "latency_ms", networks=["lenet5", "mnist-cnn"], inline=False).to_dict()

    assert "datasets" not in spec
    assert spec["layer"][1]["encoding"]["color"]["scale"]["domain"] == ["lenet5", "mnist-cnn"]


def test_colours_and_shapes_do_not_depend_on_the_order():
    assert network_colors(["b", "a", "b"]) == network_colors(["a", "b"]) == {"a": PALETTE[0], "b": PALETTE[1]}
    assert precision_shapes(["int8", "fp32"]) == {"fp32": "circle", "int8": "triangle-up"}
    assert len(network_colors(map(str, range(25)))) == 25


@pytest.mark.parametrize(
    ("size", "unit", "shown"), [(999, "B", 999), (246_824, "KB", 246.824), (553e6, "MB", 553), (2.5e9, "GB", 2.5)]
)
def test_byte_unit(size, unit, shown):
    name, factor = byte_unit(size)
    assert name == unit
    assert size * factor == pytest.approx(shown)


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_training_curves_are_written(tmp_path, ending):
    chart = charts.training_curves(training("lenet5").history, "lenet5 on mnist")
    path = charts.save_chart(chart, tmp_path / f"кривые{ending}")

    assert [item.name for item in tmp_path.iterdir()] == [path.name]  # nothing half-written beside it
    if ending == ".png":
        with Image.open(path) as picture:
            assert picture.size[0] > 1200
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
    else:
        text = path.read_text(encoding="utf-8")
        assert len(re.findall(r'aria-roledescription="point"', text)) == 2 * 2 * 12  # panels, parts, epochs
        for said in ("lenet5 on mnist", "Loss", "Accuracy (%)", "Epoch", "train", "test"):
            assert said in text


def drawn(panel):
    (values,) = panel.to_dict()["datasets"].values()
    return values


def test_training_curves_of_a_partial_history():
    history = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": None}, {"epoch": 3, "train_loss": 1.0}]
    (panel,) = charts.training_panels(history)
    assert drawn(panel) == [
        {"epoch": 1, "part": "train", "value": 2.0},
        {"epoch": 3, "part": "train", "value": 1.0},
    ]


def test_epochs_are_whole_numbers(tmp_path):
    chart = charts.training_curves([{"test_top1": 0.2}, {"test_top1": 0.3}, {"test_top1": 0.5}], "three")
    text = charts.save_chart(chart, tmp_path / "three.svg").read_text(encoding="utf-8")
    assert re.search(r">2</text>", text)
    assert not re.search(r">[12]\.[05]</text>", text)


def test_accuracies_are_drawn_in_percent():
    panels = charts.training_panels([{"test_top1": 0.25}])
    assert [drawn(panel) for panel in panels] == [[{"epoch": 1, "part": "test", "value": 25.0}]]


def test_nothing_to_draw_is_refused():
    with pytest.raises(InputError, match="no curve to draw in a history of 1 epochs"):
        charts.training_curves([{"epoch": 1, "seconds": 2.0}], "empty")
    with pytest.raises(InputError, match="no row has numbers for both peak_bytes and top1; received 4 rows"):
        charts.tradeoff_chart(ROWS, "peak_bytes")
    with pytest.raises(UnknownNameError, match="did you mean 'latency_ms'"):
        charts.tradeoff_chart(ROWS, "latency")
    assert set(AXES) >= {"latency_ms", "file_bytes", "peak_bytes", "top1"}


def test_places_that_cannot_be_written(tmp_path):
    chart = charts.training_curves([{"train_loss": 1.0}], "one")
    with pytest.raises(InputError, match=r"as \.svg or \.png, received 'curves\.gif'"):
        charts.save_chart(chart, "curves.gif")
    (tmp_path / "kept.svg").write_text("kept")
    with pytest.raises(OutputError, match="exists already"):
        charts.save_chart(chart, tmp_path / "kept.svg", overwrite=False)
    assert (tmp_path / "kept.svg").read_text() == "kept"


@pytest.mark.parametrize(("package", "call"), [("altair", "draw"), ("vl_convert", "save")])
def test_a_missing_extra_is_named(monkeypatch, tmp_path, package, call):
    chart = charts.training_curves([{"train_loss": 1.0}], "one")
    real = builtins.__import__

    def without(name, *rest):
        if name == package:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit\[report\]'"):
        if call == "draw":
            charts.tradeoff_chart(ROWS, "latency_ms")
        else:
            charts.save_chart(chart, tmp_path / "one.svg")


def test_the_library_can_stand_inside_a_script_element():
    library = charts.chart_library()

    assert "vegaEmbed" in library
    assert "</script" not in library.lower()
    assert "<!--" not in library
