"""What stands beside the main table: operators, layers, their harm, zeros, and the same as JSON."""

import json
import re
from dataclasses import replace

import pytest
from full_records import compression, full_records, harms, layers, operators, tuning, verdict
from parsed_page import Page
from synthetic_records import all_records, bench, digest, profile, quantization, timing, write_records

from deploykit.report import collect, write_report
from deploykit.report.gated import gate_section
from deploykit.report.page_charts import Drawings
from deploykit.report.panels import bar, heaviest, section
from deploykit.report.tuned import tuning_section
from deploykit.report.views import sections
from deploykit.results import Candidate, FactoredLayer, LayerProfile, NodeTime, OperatorTime


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"), full_records())


def view(folder, heading):
    (found,) = (section for section in sections(collect([folder])) if section.heading == heading)
    return found


def texts(panel):
    return [[cell.text for cell in row] for row in panel.rows]


def shares(panel, column):
    place = [title for title, _ in panel.columns].index(column)
    return [row[place].share for row in panel.rows]


def test_views_are_there_for_what_was_recorded(folder, tmp_path):
    assert [section.heading for section in sections(collect([folder]))] == [
        "What tuning tried",
        "Where the time goes",
        "Which layers integers hurt",
        "What compression took away",
        "Layer by layer",
    ]
    write_records(tmp_path, all_records())
    assert sections(collect([tmp_path])) == []


def test_operators_are_bars_of_their_time(folder):
    panels = view(folder, "Where the time goes").panels

    # One of every network first, so that a page with room for few shows all networks.
    assert [panel.title for panel in panels[:4]] == [
        "lenet5.fp32.onnx",
        "mnist-cnn.fp32.onnx",
        "plain-mnist.fp32.onnx",
        "lenet5.int8.onnx",
    ]
    assert texts(panels[0])[:2] == [
        ["Conv", "cpu", "0.0453 ms", "62.00 %", "40"],
        ["Gemm", "cpu", "0.0154 ms", "21.00 %", "3"],
    ]
    assert shares(panels[0], "Time") == [1.0, 0.339, 0.194, 0.081]
    assert panels[0].about == "cpu, 1 thread, batch 1, 0.0877 ms under the profiler"


def test_operators_come_slowest_first_with_the_rest_and_the_nodes_told(tmp_path):
    many = tuple(OperatorTime(f"Op{index}", "cpu", float(index), index / 105, 1) for index in range(1, 15))
    nodes = (NodeTime("conv1", "Conv", "cpu", 4.0, 0.4), NodeTime("fc", "Gemm", "cpu", 1.0, 0.1))
    timed = timing("lenet5", "fp32", 5000, 2.0, 9_000_000, operators=many, nodes=nodes)
    write_records(tmp_path, {"a.json": bench(timed)})
    (panel,) = view(tmp_path, "Where the time goes").panels

    assert [row[0] for row in texts(panel)] == [f"Op{index}" for index in range(14, 2, -1)]
    assert panel.notes == (
        "2 more operators take 2.86 %.",
        "The nodes that take the most: conv1 (40.00 %), fc (10.00 %).",
    )


def test_harms_are_ranked_and_say_what_stays_in_float(folder):
    (panel,) = view(folder, "Which layers integers hurt").panels

    assert panel.title == "lenet5.int8.onnx"
    assert panel.about == "recipe mixed, 1 layer in float, 0.39 points of top-1 lost on 512 held-out samples"
    assert texts(panel)[:2] == [
        ["features.0.conv", "Conv", "0.08", "95.00 %", "12.5 %", "float"],
        ["features.3.conv", "Conv", "0.032", "97.50 %", "12.5 %", "integers"],
    ]
    assert shares(panel, "Noise") == sorted(shares(panel, "Noise"), reverse=True)
    assert shares(panel, "Noise")[0] == 1.0


def test_harms_in_any_order_and_with_gaps(tmp_path):
    odd = ({"layer": "a", "noise": 0.1}, {"layer": "b", "op": "Conv", "noise": 0.4, "agreement": 0.5, "cost": 0.2}, {})
    write_records(tmp_path, {"a.json": replace(quantization("lenet5", 10, 20), sensitivity=odd, kept_float=True)})
    (panel,) = view(tmp_path, "Which layers integers hurt").panels

    assert [row[:3] for row in texts(panel)] == [["b", "Conv", "0.4"], ["a", "–", "0.1"], ["–", "–", "0"]]
    assert panel.about == "recipe int8, all layers in float, as no integer form met what was asked"
    assert {row[-1] for row in texts(panel)} == {"float"}
    many = replace(quantization("lenet5", 10, 20), sensitivity=harms(50))
    write_records(tmp_path, {"a.json": many})
    (panel,) = view(tmp_path, "Which layers integers hurt").panels
    assert (len(panel.rows), panel.notes) == (40, ("10 layers with less noise are left out.",))


def test_layers_have_their_shapes_and_bars(folder):
    panel = view(folder, "Layer by layer").panels[0]

    assert panel.about == "12 layers, 61.7 k parameters, 417 k MACs"
    assert texts(panel)[1:3] == [
        ["features.1.conv", "Conv", "64 × 55 × 55", "2.00 k", "180 k", "fp32"],
        ["features.2.pool", "MaxPool", "64 × 54 × 54", "–", "–", "–"],
    ]
    assert shares(panel, "MACs")[:3] == [round(1 / 11, 3), round(2 / 11, 3), None]
    assert max(filter(None, shares(panel, "Parameters"))) == 1.0
    assert panel.notes == ("Operators: Conv 8, MaxPool 4, Gemm 1.",)


def test_zeros_and_float_islands_are_told(tmp_path):
    dense = LayerProfile("fc1", "Gemm", None, 1000, 1000, 1000, precision="int8", zeros=0.9)
    held = {"layers": (dense,), "float_islands": (("LRN",), ("Div", "Mul"))}
    write_records(tmp_path, {"a.json": profile("lenet5", "int8", 5000, 400, 10, 20, **held)})
    (panel,) = view(tmp_path, "Layer by layer").panels

    assert texts(panel) == [["fc1", "Gemm", "–", "1.00 k", "1.00 k", "int8", "90.00 %"]]
    assert panel.notes == ("Computed in float between integers: LRN; Div, Mul.",)


def test_a_network_of_many_layers_keeps_the_heaviest_in_order(tmp_path):
    write_records(tmp_path, {"a.json": profile("lenet5", "fp32", 5000, 400, 10, 20, layers=layers(300))})
    (panel,) = view(tmp_path, "Layer by layer").panels
    numbers = [int(row[0].split(".")[1]) for row in texts(panel)]

    assert len(numbers) == 160
    assert numbers == sorted(numbers)
    assert numbers[-1] == 298  # 299 is a pooling without weights
    assert panel.notes[-1] == "140 layers with the fewest parameters and MACs are left out."


def test_compressions_tell_zeros_and_ranks(tmp_path):
    thin = FactoredLayer("fc1", 400, 120, 24, 0.96, 0.2, 48_000, 12_480)
    records = {"a.json": compression("lenet5"), "b.json": replace(compression("vgg"), pruned=(), factored=(thin,))}
    write_records(tmp_path, records)
    pruned, factored = view(tmp_path, "What compression took away").panels

    assert pruned.about == "pruned, download 228 KB → 61.0 KB, top-1 99.21 % → 99.15 %"
    assert texts(pruned)[0] == ["fc1", "Linear", "48.0 k", "90.00 %"]
    assert texts(factored) == [["fc1", "120 × 400", "24", "96.00 %", "26.00 %"]]
    assert shares(factored, "MACs left") == [0.26]


def test_a_search_shows_the_best_then_the_front_then_the_rest(folder, tmp_path):
    panel = view(folder, "What tuning tried").panels[0]

    assert panel.title == "lenet5.onnx"
    assert panel.about == (
        "best int8 on cpu with 1 thread, 1.40× faster (1.38–1.42), for latency within 0.5 points of top-1 on 512"
        " samples of mnist"
    )
    assert [(row[0], row[1], row[-1]) for row in texts(panel)] == [
        ("int8 on cpu with 1 thread", "0.0522 ms", "best"),
        ("int8 on cpu with 2 threads", "0.0497 ms ⚠", "on the front"),
        ("float on cpu with 1 thread", "0.0731 ms", "on the front"),
        ("int8-vnni on openvino with 1 thread", "0.0612 ms", "measured"),
        ("fp16 on cpu with 1 thread", "0.0911 ms", "measured"),
        ("int8-arm on cpu with 1 thread", "0.0701 ms", "2.2 points lost; 0.5 allowed"),
    ]
    assert panel.notes == (
        "The fastest that is stable and loses at most 0.5 points.",
        "Not timed: int8 on cuda with 1 thread: openvino takes no node of it.",
        "Not timed: int8 on cpu with 4 threads: 4 threads on 2 CPUs.",
    )
    assert panel.charts == ()  # drawn on a page only
    markdown = write_report([folder], tmp_path / "r.md").read_text("utf-8")
    assert "**lenet5.onnx**: best int8 on cpu with 1 thread, 1.40× faster" in markdown
    assert "| int8 on cpu with 1 thread | 0.0522 ms | 70.1 KB | 1.12 MB | 99.18 % | best |" in markdown


def test_a_search_is_drawn_with_colours_by_recipe(folder, tmp_path):
    text = write_report([folder], tmp_path / "r.html").read_text("utf-8")
    data = json.loads(re.search(r'id="chart-data">(.*?)</script>', text, re.S)[1])
    searched = next(rows for rows in data["rows"] if rows[0]["network"] == "int8")

    assert [point["name"] for point in searched][:2] == ["int8 on cpu with 1 thread", "int8 on cpu with 2 threads"]
    assert [point["top1"] for point in searched] == [0.9918, 0.9918, 0.9922, 0.9914, 0.9921, 0.9702]
    parsed = Page(text).text
    assert parsed.count("Top-1 × latency of the candidates") == 2
    assert "int8-vnni" in parsed


def test_what_was_not_timed_stands_under_its_reason_once(folder):
    searched = tuning("lenet5")
    refused = tuple(
        Candidate(f"recipe-{index}", "cuda", 1, rejected_because="no GPU here" if index < 5 else None)
        for index in range(6)
    )
    (panel,) = tuning_section([replace(searched, candidates=searched.candidates[:2] + refused)]).panels

    assert len(panel.rows) == 2
    assert panel.notes[1:] == (
        "Not timed: recipe-0 on cuda with 1 thread, recipe-1 on cuda with 1 thread, recipe-2 on cuda with 1 thread and"
        " 2 more: no GPU here.",
        "Not timed: recipe-5 on cuda with 1 thread: no reason is recorded.",
    )


def test_candidates_of_one_accuracy_are_drawn_by_their_size(tmp_path):
    searched = tuning("lenet5")
    alike = tuple(replace(candidate, top1=0.99) for candidate in searched.candidates)
    drawings = Drawings()
    (panel,) = tuning_section([replace(searched, candidates=alike)], drawings).panels

    assert [chart.title for chart in panel.charts] == ["File × latency of the candidates, all of 99.00 % top-1"]
    assert set(panel.charts[0].colors) == {"float", "int8", "int8-vnni", "fp16", "int8-arm"}
    assert len(drawings.charts) == 1


def test_verdicts_stand_above_the_charts_with_the_worst_first(folder, tmp_path):
    panel = gate_section([verdict("pass"), verdict("inconclusive"), verdict("regression")]).panels[0]
    size, slowdown, drop = verdict().checks

    assert panel.title == "lenet5.int8.onnx"
    assert panel.about == (
        "regression against lenet5.fp32.onnx, on cpu, 1 thread, batch 1; changes below 11.30 % are not seen"
    )
    assert texts(panel) == [
        ["size", "pass", size.measured_text, "100 KB", "70.1 KB", "251 KB"],
        ["slowdown", "regression", slowdown.measured_text, slowdown.limit_text, "0.0547 ms", "0.0386 ms"],
        ["drop", "pass", drop.measured_text, drop.limit_text, "99.18 %", "99.21 %"],
    ]
    assert "41.6" in slowdown.measured_text
    assert [row[1].tone for row in panel.rows] == ["good", "bad", "good"]
    assert panel.notes == ("drop: on 900 pictures.", "others had the processor for 65% of the calls' time")
    text = write_report([folder], tmp_path / "r.html").read_text("utf-8")
    assert text.index(slowdown.measured_text) < text.index("What it costs")
    markdown = write_report([folder], tmp_path / "r.md").read_text("utf-8")
    assert markdown.index("| slowdown | regression |") < markdown.index("lenet5 int8 on ")
    document = json.loads(write_report([folder], tmp_path / "r.json").read_text("utf-8"))
    assert [item["verdict"] for item in document["verdicts"]] == ["regression"]
    assert len(document["tunings"]) == 2


def test_a_section_makes_only_what_it_shows():
    made = []
    items = [("a", 1), ("a", 2), ("b", 3)] + [("c", number) for number in range(4, 20)]

    found = section("Heading", "about", items, lambda item: made.append(item) or item, noun="things")
    assert made[:4] == [1, 3, 4, 2]
    assert (len(made), found.total) == (12, 19)
    assert section("Heading", "about", [], made.append, noun="things") is None


def test_bars_and_the_heaviest():
    assert [bar("x", value, 4.0).share for value in (None, 0.0, 1.0, 9.0)] == [None, 0.0, 0.25, 1.0]
    assert bar("x", 1.0, 0.0).share is None
    assert heaviest([5, 1, 9, 9], 2) == [2, 3]


def test_the_page_has_the_views_and_says_what_it_leaves_out(folder, tmp_path):
    text = write_report([folder], tmp_path / "r.html").read_text("utf-8")
    parsed = Page(text)

    for said in ("Where the time goes", "Which layers integers hurt", "Layer by layer", "Operators: Conv 8, MaxPool 4"):
        assert said in parsed.text, said
    assert ["features.0.conv", "Conv", "0.08", "95.00 %", "12.5 %", "float"] in parsed.rows
    assert re.search(r'<td class="b" style="--share:0\.339">0\.0154 ms</td>', text)
    assert " are shown" not in parsed.text


def test_json_has_all_of_it(folder, tmp_path):
    document = json.loads(write_report([folder], tmp_path / "r.json").read_text("utf-8"))

    operator = document["operators"][0]
    assert (operator["model_sha256"], operator["threads"]) == (digest("lenet5.fp32"), 1)
    assert set(operator["operators"][0]) == {"op_type", "provider", "ms", "share", "count"}
    assert len(document["layers"]) == 6
    assert document["layers"][0]["layers"][1]["macs"] == 180_000
    ranked = next(item for item in document["quantizations"] if item["sensitivity"])
    assert (ranked["float_layers"], ranked["sensitivity"][0]["noise"]) == (["features.0.conv"], 0.08)
    assert document["compressions"][0]["pruned"][0]["zeros"] == 43_200
    assert document["classes"][0]["per_class"]["0"] == pytest.approx(0.99, abs=0.01)
    assert document["machines"] == ["Intel Xeon Platinum 8488C", "Cortex-A76"]
    assert {"machine_name", "onnxruntime", "session", "steady_bytes", "latency_mean_ms"} <= set(document["rows"][0])
    assert operators(1.0)[0].op_type == operator["operators"][0]["op_type"]
