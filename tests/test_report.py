import csv
import dataclasses
import io
import json
import re
import subprocess
import sys

import pytest
from full_records import rewriting
from parsed_page import Page
from synthetic_records import (
    ENVIRONMENT,
    FIGURES,
    accuracy,
    all_records,
    bench,
    digest,
    profile,
    quantization,
    timing,
    training,
    write_records,
)

from deploykit.charts import chart_library
from deploykit.errors import InputError, OutputError
from deploykit.figures import byte_text, count_text, millisecond_text, percent_text, ratio_text
from deploykit.files import write_json
from deploykit.report import Collection, Row, collect, write_report
from deploykit.report.summary import headlines, pairs, sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("records"), all_records())


@pytest.fixture(scope="module")
def page(folder, tmp_path_factory):
    return write_report([folder], tmp_path_factory.mktemp("page") / "report.html", title="MNIST").read_text("utf-8")


def test_rows_join_all_records_of_a_file(folder):
    collection = collect([folder])
    rows = {(row.network, row.precision): row for row in collection.rows}

    assert collection.records == len(all_records()) == 19
    assert list(rows) == [(network, precision) for network, precision, *_ in FIGURES]
    for network, precision, size, download, top1, median, peak, parameters, macs in FIGURES:
        row = rows[network, precision]
        assert (row.file_bytes, row.download_bytes, row.top1, row.latency_ms) == (size, download, top1, median)
        assert (row.peak_bytes, row.parameters, row.macs) == (peak, parameters, macs)
        assert (row.sha256, row.name) == (digest(f"{network}.{precision}"), f"{network}.{precision}.onnx")
        assert (row.dataset, row.samples, row.threads, row.provider) == ("mnist test", 10_000, 1, "cpu")
    assert rows["lenet5", "int8"].recipe == "int8"
    assert rows["lenet5", "int8"].parent_sha256 == rows["lenet5", "fp32"].sha256
    assert [training.network for training in collection.trainings] == ["lenet5", "mnist-cnn", "plain-mnist"]


def test_csv_has_the_records_numbers(folder, tmp_path):
    text = write_report([folder], tmp_path / "r.csv").read_text("utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))

    assert list(lines[0]) == [field.name for field in dataclasses.fields(Row)]
    assert [float(line["latency_ms"]) for line in lines] == [figure[5] for figure in FIGURES]
    assert [int(line["file_bytes"]) for line in lines] == [figure[2] for figure in FIGURES]
    assert [line["agreement"] for line in lines] == ["", "0.9986"] * 3
    assert [line["stable"] for line in lines] == ["true"] * 5 + ["false"]
    assert lines[5]["warnings"] == "latency: the runs spread by 14 %"


def test_json_has_the_records_numbers(folder, tmp_path):
    document = json.loads(write_report([folder], tmp_path / "r.json", title="MNIST").read_text("utf-8"))

    assert (document["schema"], document["title"]) == ("deploykit.report/1", "MNIST")
    assert document["environment"] == ENVIRONMENT
    assert [row["top1"] for row in document["rows"]] == [figure[4] for figure in FIGURES]
    assert [row["peak_bytes"] for row in document["rows"]] == [figure[6] for figure in FIGURES]
    assert document["trainings"][0]["history"][-1]["epoch"] == 12
    assert "lenet5 int8 is 3.6× smaller" in document["summary"][0]


def test_markdown_has_a_table_and_footnotes(folder, tmp_path):
    text = write_report([folder], tmp_path / "r.md", title="MNIST").read_text("utf-8")
    table = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[:7]]

    assert text.startswith("## MNIST\n")
    assert cells[0][:5] == ["Model", "Precision", "Top-1", "Agreement", "Latency"]
    assert cells[2][:5] == ["lenet5.int8.onnx", "int8", "99.18 %", "99.86 %", "0.0522 ms"]
    assert cells[6][4] == "0.0251 ms ⚠<sup>1</sup>"
    assert "All rows: mnist test, cpu, threads 1, batch 1" in text
    assert "<sup>1</sup> the runs spread by 14 %" in text


def test_markdown_cells_stay_cells(tmp_path):
    name = "a|b\n<script>_x_`*[.onnx"
    write_records(tmp_path, {"a.json": accuracy("n|<b>", "fp32", 5000, 0.5, model=name)})
    text = write_report([tmp_path], tmp_path / "r.md", title="# t").read_text("utf-8")
    (row,) = (line for line in text.splitlines() if "50.00 %" in line)

    assert "<script>" not in text
    assert r"a\|b &lt;script&gt;\_x\_\`\*\[.onnx" in row


def test_page_shows_every_figure_with_its_unit(page):
    parsed = Page(page)
    titles = [title.strip() for title in parsed.rows[0]]
    lenet5 = dict(zip(titles, (cell.strip() for cell in parsed.rows[2]), strict=True))

    assert lenet5 == {
        "Model": "lenet5.int8.onnx",
        "Precision": "int8",
        "Top-1": "99.18 %",
        "Top-5": "99.93 %",
        "Agreement": "99.86 %",
        "Latency": "0.0522 ms",
        "p90": "0.0574 ms",
        "p99": "0.0731 ms",
        "Pictures/s": "19.2 k",
        "Load": "9.13 ms",
        "First run": "0.412 ms",
        "Peak memory": "1.12 MB",
        "File": "70.1 KB",
        "Download": "52.3 KB",
        "Parameters": "61.7 k",
        "MACs": "417 k",
        "Weights": "66.1 KB",
        "Activations": "37.6 KB",
        "Notes": "",
    }
    spoilt = dict(zip(titles, (cell.strip() for cell in parsed.rows[6]), strict=True))
    assert spoilt["Latency"] == "0.0251 ms ⚠"
    assert spoilt["Notes"] == "latency: the runs spread by 14 %"


def test_page_holds_charts_pictures_classes_and_environment(page):
    parsed = Page(page)
    data = json.loads(re.search(r'id="chart-data">(.*?)</script>', page, re.S)[1])

    assert [point["latency_ms"] for point in data["rows"][0]] == [figure[5] for figure in FIGURES]
    assert [chart.get("front") for chart in data["charts"]][:3] == [[5, 4, 2, 1, 0], [3, 2, 1, 0], [3, 2, 1, 0]]
    assert len(data["charts"]) == 3 + 2 * 3
    assert parsed.elements.count("img") == 6 * 12
    for said in (
        "wrong: is 0",
        "10 of these 12 right",
        "all rows: mnist test, cpu, threads 1, batch 1",
        "Intel(R) Xeon(R) Platinum 8488C",
        "1.31.1",
        "6 model files · 3 networks · 19 records · mnist test",
        "lenet5 int8 is 3.6× smaller, 1.40× faster and 1.26× lighter in memory than fp32, "
        "accuracy 99.21 → 99.18 % on mnist test.",
    ):
        assert said in parsed.text, said


def test_page_loads_nothing(page):
    parsed = Page(page)
    outside = page.replace(chart_library(), "")

    assert parsed.addresses
    assert [address for address in parsed.addresses if not address.startswith(("data:image/png;base64,", "#"))] == []
    assert {"link", "iframe", "object", "base"}.isdisjoint(parsed.elements)
    assert "default-src 'none'" in outside
    assert "@import" not in outside
    assert "url(" not in outside
    # The one address is the name of the charts' language, which nothing fetches.
    named = re.sub(r"https://vega\.github\.io/schema/vega-lite/v[\d.]+\.json", "", outside)
    assert re.findall(r"https?://", named) == []


def test_hostile_values_are_text(tmp_path):
    attack = '<script>alert("x")</script><img src=x onerror=y>'
    records = {
        "a.json": accuracy(attack, "fp32", 5000, 0.5, dataset=attack, warnings=(attack,), per_class={attack: 0.5}),
        "b.json": bench(timing(attack, "fp32", 5000, 2.0, 9_000_000, warnings=(attack,))),
        "c.json": training(attack, warnings=(attack,)),
        "d.json": profile(attack, "fp32", 5000, 400, 10, 20, environment={attack: attack, "list": [attack]}),
    }
    write_records(tmp_path, records)
    clean = accuracy("x", "fp32", 5000, 0.5)
    write_records(tmp_path, {"e.json": clean})
    parsed = Page(write_report([tmp_path], tmp_path / "r.html", title=attack).read_text("utf-8"))

    assert parsed.elements.count("script") == 3  # the library, the data, the page's own
    assert parsed.elements.count("img") == 2 * 12
    assert "x" not in parsed.addresses
    assert parsed.text.count(attack) > 10


def test_setting_of_a_timing_is_a_row_of_its_own(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": accuracy("lenet5", "fp32", 5000, 0.99),
            "b.json": bench(
                timing("lenet5", "fp32", 5000, 2.0, 9_000_000),
                timing("lenet5", "fp32", 5000, 1.2, 9_000_000, threads=2),
                timing("lenet5", "fp32", 5000, 1.0, 20_000_000, provider="openvino", precision="bf16"),
            ),
        },
    )
    rows = collect([tmp_path]).rows

    assert [(row.provider, row.threads, row.latency_ms) for row in rows] == [
        ("cpu", 1, 2.0),
        ("cpu", 2, 1.2),
        ("openvino", 1, 1.0),
    ]
    assert [row.top1 for row in rows] == [0.99] * 3
    assert rows[2].caveats("accuracy") == ["measured on cpu, not on openvino"]
    assert rows[0].warnings == ()


def test_datasets_and_providers_of_an_accuracy_are_rows(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": accuracy("lenet5", "fp32", 5000, 0.99),
            "b.json": accuracy("lenet5", "fp32", 5000, 0.97, dataset="digits", dataset_digest=digest("digits")),
            "c.json": accuracy("lenet5", "fp32", 5000, 0.985, provider="openvino"),
            "part.json": accuracy("lenet5", "fp32", 5000, 0.5, samples=10),
        },
    )
    rows = collect([tmp_path]).rows

    # Of the two on mnist and cpu, the one over all pictures stands.
    assert [(row.dataset, row.provider, row.top1) for row in rows] == [
        ("digits test", "cpu", 0.97),
        ("mnist test", "cpu", 0.99),
        ("mnist test", "openvino", 0.985),
    ]
    assert headlines(rows)[0].title == "Smallest file"  # accuracies on two datasets do not compare


def test_an_unstable_timing_is_said_and_does_not_win(folder):
    rows = collect([folder]).rows
    best = {headline.title: headline.row for headline in headlines(rows)}

    assert min(rows, key=lambda row: row.latency_ms).stable is False
    assert (best["Fastest"].network, best["Fastest"].precision) == ("plain-mnist", "fp32")
    assert (best["Most accurate"].network, best["Smallest file"].network) == ("lenet5", "mnist-cnn")
    assert "1.57× faster (unstable timing)" in sentences(rows)[2]


def test_no_speed_is_claimed_where_the_intervals_overlap(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": bench(
                timing("lenet5", "fp32", 5000, 1.000, 9_000_000),
                timing("lenet5", "int8", 2500, 0.985, 9_000_000),
            )
        },
    )
    assert sentences(collect([tmp_path]).rows) == [
        "lenet5 int8 is 2.0× smaller, not measurably faster or slower and no lighter in memory than fp32."
    ]


def test_pairs_follow_the_parent_and_the_setting():
    def row(name, precision="fp32", parent=None, **more):
        values = {"network": "n", "precision": precision, "sha256": name, "parent_sha256": parent, "file_bytes": 10}
        return Row(name=name, **(values | more))

    rows = [row("a"), row("b"), row("c", "int8", "b"), row("d", "int8"), row("e", "int8", threads=2, provider="cpu")]
    assert [(one.name, base.name) for one, base in pairs(rows)] == [("c", "b"), ("d", "a")]


def test_a_network_without_a_name_takes_its_parents(tmp_path):
    nameless = {"network": None, "model": "odd.onnx"}
    write_records(
        tmp_path,
        {
            "a.json": quantization("lenet5", 2500, 5000),
            "b.json": accuracy("lenet5", "fp32", 5000, 0.99),
            "c.json": bench(timing("lenet5", "int8", 2500, 1.0, 9_000_000, **nameless)),
            "d.json": bench(timing("foreign", "fp32", 2500, 1.0, 9_000_000, network=None)),
        },
    )
    assert [(row.name, row.network) for row in collect([tmp_path]).rows] == [
        ("foreign.fp32.onnx", "foreign.fp32.onnx"),
        ("lenet5.fp32.onnx", "lenet5"),
        ("odd.onnx", "lenet5"),
    ]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": accuracy("lenet5", "fp32", 5000, 0.99, model="runs/lenet5/model.onnx"),
            "b.json": accuracy("alexnet", "fp32", 5000, 0.99, model=r"C:\runs\alexnet\model.onnx"),
        },
    )
    assert [row.name for row in collect([tmp_path]).rows] == ["runs/alexnet/model.onnx", "runs/lenet5/model.onnx"]


def test_a_trained_network_alone_is_a_report(tmp_path):
    write_records(tmp_path, {"train.json": training("lenet5")})
    for ending in (".html", ".md", ".csv", ".json"):
        text = write_report([tmp_path / "train.json"], tmp_path / f"r{ending}").read_text("utf-8")
        assert ("99.12 %" in text) == (ending in (".html", ".md"))
        assert "1 records" not in text


def test_missing_figures_are_dashes_and_no_column(tmp_path):
    unknown = dict.fromkeys(("file_bytes", "download_bytes", "macs", "connections", "sha256"))
    record = profile("lenet5", "fp32", 250_824, 0, 61_706, 0, environment={}, **unknown)
    write_records(tmp_path, {"a.json": record})
    parsed = Page(write_report([tmp_path], tmp_path / "r.html").read_text("utf-8"))

    assert [title.strip() for title in parsed.rows[0]] == ["Model", "Precision", "Parameters", "Weights", "Activations"]
    assert [cell.strip() for cell in parsed.rows[1]][2:4] == ["61.7 k", "247 KB"]


def test_nan_is_a_dash(tmp_path):
    write_records(tmp_path, {"a.json": accuracy("lenet5", "fp32", 5000, float("nan"))})
    (row,) = collect([tmp_path]).rows
    assert row.top1 is None
    assert write_report([tmp_path], tmp_path / "r.md").exists()


def test_folders_are_searched_and_strangers_passed_over(tmp_path):
    deep = tmp_path / "runs" / "мой запуск"
    deep.mkdir(parents=True)
    write_records(deep, {"a.json": accuracy("lenet5", "fp32", 5000, 0.99)})
    (tmp_path / "package.json").write_text('{"name": "app"}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{ // settings of an editor")
    write_json(tmp_path / "report.json", {"schema": "deploykit.report/1", "rows": []})
    (tmp_path / ".hidden.json").write_bytes((deep / "a.json").read_bytes().replace(b"lenet5", b"hidden"))
    (tmp_path / "link.json").symlink_to(deep / "a.json")

    collection = collect([tmp_path, deep / "a.json"])
    assert (collection.records, collection.warnings) == (1, ())
    assert isinstance(collection, Collection)


def damaged(path):
    text = path.read_text("utf-8")
    path.write_text(text[: len(text) // 2], "utf-8")


def of_another_version(path):
    path.write_text(path.read_text("utf-8").replace("deploykit.accuracy/1", "deploykit.accuracy/7"), "utf-8")


def of_another_type(path):
    path.write_text(path.read_text("utf-8").replace('"top1": 0.99', '"top1": "high"'), "utf-8")


def without_a_key(path):
    path.write_text(path.read_text("utf-8").replace('"dataset_digest"', '"other"'), "utf-8")


def with_a_number_that_json_lacks(path):
    path.write_text(path.read_text("utf-8").replace('"memory_bytes": 8000000000', '"memory_bytes": NaN'), "utf-8")


FAULTS = [
    (with_a_number_that_json_lacks, "it holds NaN, which JSON lacks"),
    (damaged, "is not JSON"),
    (of_another_version, "has schema 'deploykit.accuracy/7'; this deploykit reads 'deploykit.accuracy/1'"),
    (of_another_type, "'top1' is a str; expected a float"),
    (without_a_key, "lacks the keys dataset_digest"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_faulty_record_is_refused_by_name_and_a_warning_in_a_folder(tmp_path, fault, message):
    write_records(tmp_path, {"bad.json": accuracy("lenet5", "fp32", 5000, 0.99), "good.json": training("lenet5")})
    fault(tmp_path / "bad.json")

    with pytest.raises(InputError, match=re.escape(message)) as refused:
        collect([tmp_path / "bad.json", tmp_path])
    assert "\n" not in str(refused.value)
    assert "bad.json" in str(refused.value)

    (warning,) = collect([tmp_path]).warnings
    assert message in warning
    assert "bad.json" in warning
    shown = Page(write_report([tmp_path], tmp_path / "r.html").read_text("utf-8")).text
    assert warning in shown


def test_a_record_that_reports_do_not_show_is_left_out_by_name(tmp_path):
    path = tmp_path / "net.rewriting.json"
    write_records(tmp_path, {path.name: rewriting(), "a.json": training("lenet5")})

    assert collect([tmp_path]).warnings == ()
    assert collect([path, tmp_path]).warnings == (f"left out: {path} is a rewriting record, which reports do not show",)
    with pytest.raises(InputError, match=r"no deploykit record .* is a rewriting record, which reports do not show"):
        collect([path])


def test_what_cannot_be_reported_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"name": "app"}')
    write_records(tmp_path, {"a.json": training("lenet5")})
    refusals = [
        ([tmp_path / "nothing"], "r.html", "no such file or folder"),
        ([tmp_path / "empty"], "r.html", "no deploykit record in"),
        ([], "r.html", "no deploykit record in no path"),
        ([tmp_path / "other.json"], "r.html", "has schema ''; this deploykit reads"),
        ([tmp_path], "r.pdf", r"a report ends in \.html, \.md, \.csv, \.json; received 'r\.pdf'"),
        ([tmp_path], "report", "received 'report'"),
    ]
    for paths, output, message in refusals:
        with pytest.raises(InputError, match=message):
            write_report(paths, tmp_path / "out" / output)
        assert not (tmp_path / "out" / output).exists()


def test_nothing_is_overwritten_unasked(folder, tmp_path):
    target = tmp_path / "r.csv"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_report([folder], target)
    assert target.read_text() == "mine"
    assert write_report([folder], target, overwrite=True) == target
    assert target.read_text().startswith("name,network")


def test_a_record_is_never_replaced_by_a_report(tmp_path):
    record = write_json(tmp_path / "timing.json", {"schema": "deploykit.timing/1", "results": []})
    before = record.read_bytes()
    with pytest.raises(OutputError, match="a record of measurements"):
        write_report([tmp_path], record, overwrite=True)
    assert record.read_bytes() == before


def test_a_second_report_of_the_same_folder_is_the_same(tmp_path):
    write_records(tmp_path, {"a.json": accuracy("lenet5", "fp32", 5000, 0.99)})
    first = write_report([tmp_path], tmp_path / "r.json").read_bytes()
    assert write_report([tmp_path], tmp_path / "r.json", overwrite=True).read_bytes() == first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent_text(0.989), "98.90 %"),
        (percent_text(None), "–"),
        (count_text(61_706), "61.7 k"),
        (count_text(999), "999"),
        (count_text(999_999), "1.00 M"),
        (count_text(15_470_264_320), "15.5 G"),
        (byte_text(246_824), "247 KB"),
        (byte_text(0), "0 B"),
        (byte_text(553_430_176), "553 MB"),
        (millisecond_text(0.1234), "0.123 ms"),
        (millisecond_text(0.00012), "0.000120 ms"),
        (millisecond_text(1234.5), "1,230 ms"),
        (millisecond_text(99.97), "100 ms"),
        (millisecond_text(0), "0 ms"),
        (ratio_text(3.578), "3.6×"),
        (ratio_text(1.4004), "1.40×"),
        (ratio_text(128.4), "128×"),
    ],
)
def test_numbers_as_people_read_them(text, expected):
    assert text == expected


def test_reporting_imports_no_framework(folder, tmp_path):
    script = (
        "import sys; from deploykit.report import write_report\n"
        "assert not {'altair', 'jinja2', 'vl_convert'} & set(sys.modules)\n"
        "write_report([sys.argv[1]], sys.argv[2])\n"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'onnxruntime'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "r.html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
