import csv
import io
import json
import random
import subprocess
import sys

import pytest
from full_records import earlier_records
from synthetic_records import EDGE, ENVIRONMENT, accuracy, all_records, bench, digest, timing, write_records

from deploykit.errors import InputError
from deploykit.report import collect, collect_both, write_report
from deploykit.report.changed import delta_text, diff_sentence, in_order

FIGURES = ("latency_ms", "file_bytes", "peak_bytes", "top1")


def records(
    median=2.0, size=5000, peak=9_000_000, top1=0.99, *, environment=ENVIRONMENT, sha256=None, scored=(), **timed
):
    """A file's timing and accuracy."""
    named = {"model_sha256": sha256 or digest("net")}
    setting = {"environment": environment}
    return {
        "bench.json": bench(timing("lenet5", "int8", size, median, peak, **named, **timed), **setting),
        "accuracy.json": accuracy("lenet5", "int8", size, top1, **named, **dict(scored), **setting),
    }


def compared(folder, before, now):
    """The changes between two sets of records."""
    for name, written in (("before", before), ("now", now)):
        (folder / name).mkdir()
        write_records(folder / name, written)
    return collect_both([folder / "now"], [folder / "before"])[1]


def the_change(folder, before, now):
    (change,) = compared(folder, before, now).changes
    return change


def verdicts(change):
    return {figure: change.deltas[figure].verdict for figure in FIGURES}


def test_the_same_again_is_no_change(tmp_path):
    change = the_change(tmp_path, records(), records())

    assert verdicts(change) == dict(zip(FIGURES, ("unclear", "same", "same", "same"), strict=True))
    assert not change.changed
    texts = [delta_text(change.deltas[figure]) for figure in FIGURES]
    assert texts == ["2.00 → 2.00 ms, no clear change", "5.00 KB", "9.00 MB", "99.00 %"]


@pytest.mark.parametrize(("provider", "compares"), [("web", True), ("cpu", False)])
def test_a_browser_runs_another_runtime_than_the_installed_one(tmp_path, provider, compares):
    def under(version):
        versions = ENVIRONMENT["versions"] | {"onnxruntime-gpu": version, "onnxruntime-web": "1.30.0", "browser": "C 1"}
        return records(provider=provider, environment=ENVIRONMENT | {"versions": versions})

    delta = the_change(tmp_path, under("1.31.1"), under("1.32.0")).deltas["latency_ms"]
    assert delta.keys == (() if compares else ("onnxruntime",))


def test_ratios_and_differences_are_those_of_the_figures(tmp_path):
    change = the_change(tmp_path, records(), records(2.5, 4000, 12_000_000, 0.985, sha256=digest("new")))
    deltas = change.deltas

    assert (deltas["latency_ms"].ratio, deltas["file_bytes"].ratio) == (1.25, 0.8)
    assert deltas["top1"].difference == pytest.approx(-0.005)
    assert verdicts(change) == dict(zip(FIGURES, ("worse", "better", "worse", "worse"), strict=True))
    assert [delta_text(deltas[figure]) for figure in FIGURES] == [
        "2.00 → 2.50 ms, 1.25× slower",
        "5.00 → 4.00 KB, 1.25× smaller",
        "9.00 → 12.0 MB, 1.33× more",
        "99.00 → 98.50 %, −0.50",
    ]


def with_version(name, version):
    return ENVIRONMENT | {"versions": ENVIRONMENT["versions"] | {name: version}}


APART = {
    "another machine": ({"environment": EDGE}, {}, "cpu", "cpu (Intel(R) Xeon(R) Platinum 8488C | Cortex-A76)"),
    "fewer CPUs": (
        {"environment": ENVIRONMENT | {"available_cpus": 1}},
        {},
        "available_cpus",
        "available_cpus (2 | 1)",
    ),
    "another system": ({"environment": ENVIRONMENT | {"os": "Windows 11"}}, {}, "os", "os (Linux | Windows)"),
    "another GPU driver": (
        {"environment": ENVIRONMENT | {"gpus": [{"name": "L4", "driver": "570"}]}},
        {"environment": ENVIRONMENT | {"gpus": [{"name": "L4", "driver": "550"}]}},
        "gpus",
        "gpus (L4 550 | L4 570)",
    ),
    "another runtime": (
        {"environment": with_version("onnxruntime-gpu", "1.26.0")},
        {},
        "onnxruntime",
        "onnxruntime (1.31.1 | 1.26.0)",
    ),
    "another plugin": (
        {"provider": "openvino", "environment": with_version("onnxruntime-ep-openvino", "1.2")},
        {"provider": "openvino", "environment": with_version("onnxruntime-ep-openvino", "1.1")},
        "provider_version",
        "provider_version (1.1 | 1.2)",
    ),
    "another provider": ({"provider": "openvino"}, {}, "provider", "provider (cpu | openvino)"),
    "more threads": ({"threads": 4}, {}, "threads", "threads (1 | 4)"),
    "another batch": ({"batch": 8}, {}, "batch", "batch (1 | 8)"),
    "another session": ({"io_binding": True}, {}, "session", "session (default | io binding)"),
}


@pytest.mark.parametrize("case", APART)
def test_what_does_not_compare_has_no_ratio_and_names_the_key(tmp_path, case):
    now, before, key, values = APART[case]
    change = the_change(tmp_path, records(**before), records(4.0, 5000, 18_000_000, **now))

    for figure in ("latency_ms", "peak_bytes"):
        delta = change.deltas[figure]
        assert (delta.verdict, delta.ratio, delta.difference) == ("not comparable", None, None)
        assert key in delta.keys
        assert values in delta.why
        assert f"not comparable: {key}" in delta_text(delta)
        assert "×" not in delta_text(delta)
    assert change.deltas["file_bytes"].verdict == "same"  # a size is a size everywhere
    markdown = write_report([tmp_path / "now"], tmp_path / "r.md", baseline=[tmp_path / "before"]).read_text("utf-8")
    assert "slower" not in markdown
    assert f"not comparable: {key}".replace("_", "\\_") in markdown


@pytest.mark.parametrize(
    ("scored", "key"),
    [
        ({"dataset_digest": digest("others")}, "dataset_digest"),
        ({"samples": 100}, "samples"),
        ({"dataset": "digits", "dataset_digest": digest("digits")}, "dataset"),
    ],
)
def test_accuracies_over_other_pictures_do_not_compare(tmp_path, scored, key):
    change = the_change(tmp_path, records(), records(top1=0.5, scored=scored))

    assert change.deltas["top1"].verdict == "not comparable"
    assert key in change.deltas["top1"].keys
    assert change.deltas["latency_ms"].verdict == "unclear"


@pytest.mark.parametrize(
    ("now", "verdict", "why"),
    [
        ({"median": 2.15}, "unclear", "within the 10 % by which two runs may differ"),
        ({"median": 2.03}, "unclear", "the intervals overlap"),
        ({"median": 3.0, "stable": False}, "unclear", "unstable timing"),
        ({"median": 2.3}, "worse", ""),
        ({"median": 1.7}, "better", ""),
    ],
)
def test_a_change_of_latency_is_claimed_beyond_doubt_only(tmp_path, now, verdict, why):
    delta = the_change(tmp_path, records(), records(**now)).deltas["latency_ms"]
    assert (delta.verdict, delta.why) == (verdict, why)


@pytest.mark.parametrize(
    ("before", "now", "verdict"),
    [
        (90_000_000, 93_000_000, "same"),
        (90_000_000, 96_000_000, "worse"),
        (90_000_000, 80_000_000, "better"),
        (9_000_000, 9_900_000, "same"),  # 10 %, but less than a megabyte
    ],
)
def test_memory_has_a_noise_of_its_own(tmp_path, before, now, verdict):
    assert the_change(tmp_path, records(peak=before), records(peak=now)).deltas["peak_bytes"].verdict == verdict


def test_each_setting_meets_its_own(tmp_path):
    settings = [(threads, batch) for threads in (1, 2, 4) for batch in (1, 8)]

    def timings(factor):
        shuffled = random.Random(factor).sample(settings, len(settings))
        return [
            timing("lenet5", "fp32", 5000, factor * (t + 10 * b), 9_000_000, threads=t, batch=b) for t, b in shuffled
        ]

    diff = compared(tmp_path, {"a.json": bench(*timings(1))}, {"a.json": bench(*timings(2))})
    assert [(change.base.threads, change.base.batch) for change in diff.changes] == [
        (change.row.threads, change.row.batch) for change in diff.changes
    ]
    assert {change.deltas["latency_ms"].ratio for change in diff.changes} == {2.0}
    assert len(diff.changes) == 6


def test_files_are_matched_by_digest_then_name_then_network(tmp_path):
    def of(name, network, precision, key):
        changes = {"model": name, "model_sha256": digest(key), "network": network}
        return bench(timing(network, precision, 5000, 2.0, 9_000_000, **changes))

    before = {
        "a.json": of("renamed-later.onnx", "lenet5", "fp32", "same bytes"),
        "b.json": of("net.int8.onnx", "lenet5", "int8", "old int8"),
        "c.json": of("old-name.onnx", "lenet5", "fp16", "old fp16"),
        "d.json": of("gone.onnx", "alexnet", "fp32", "gone"),
    }
    now = {
        "a.json": of("new-name.onnx", "lenet5", "fp32", "same bytes"),
        "b.json": of("net.int8.onnx", "lenet5", "int8", "new int8"),
        "c.json": of("other-name.onnx", "lenet5", "fp16", "new fp16"),
        "d.json": of("added.onnx", "vgg11", "fp32", "added"),
    }
    diff = compared(tmp_path, before, now)

    assert {change.row.name: change.base and change.base.name for change in diff.changes} == {
        "new-name.onnx": "renamed-later.onnx",
        "net.int8.onnx": "net.int8.onnx",
        "other-name.onnx": "old-name.onnx",
        "added.onnx": None,
    }
    assert diff.gone == ("gone.onnx",)
    assert "1 files new; 1 files gone." in diff_sentence(diff)
    assert [delta.verdict for delta in next(c for c in diff.changes if c.base is None).deltas.values()] == [
        "missing"
    ] * 4


def test_two_files_that_could_be_it_are_not_guessed(tmp_path):
    def of(name):
        return bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000, model=name, model_sha256=digest(name)))

    diff = compared(tmp_path, {"a.json": of("a.onnx"), "b.json": of("b.onnx")}, {"c.json": of("c.onnx")})
    assert diff.changes[0].base is None
    assert diff.gone == ("a.onnx", "b.onnx")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    now, before = tmp_path_factory.mktemp("now"), tmp_path_factory.mktemp("before")
    return write_records(now, all_records()), write_records(before, earlier_records())


SAID = (
    "1 of 6 latencies slower (1.25×), 5 without a clear change; 1 of 6 files larger (1.17×), 1 smaller (1.04×);"
    " 1 of 6 accuracies lower (0.16 points)."
)


def test_the_sentence_counts_what_changed(folders):
    now, before = folders
    diff = collect_both([now], [before])[1]

    assert diff_sentence(diff) == SAID
    assert [change.row.name for change in in_order(diff.changes)][:3] == [
        "lenet5.int8.onnx",
        "mnist-cnn.int8.onnx",
        "plain-mnist.int8.onnx",
    ]


def test_markdown_is_short_and_folds_the_rest(folders, tmp_path):
    now, before = folders
    text = write_report([now], tmp_path / "r.md", baseline=[before], title="PR 7").read_text("utf-8")
    open_part = text.partition("<details>")[0]

    assert open_part.startswith(f"## PR 7\n\n**Against the baseline:** {SAID}\n\n| Model | Setting |")
    assert (
        "| **0.0418 → 0.0522 ms, 1.25× slower** | **60.0 → 70.1 KB, 1.17× larger** | 1.12 MB | 99.18 % |" in open_part
    )
    assert len([line for line in open_part.splitlines() if line.startswith("| ")]) == 1 + 3
    assert text.count("<details>") == text.count("</details>") == 2
    assert (
        "<summary>3 rows without a clear change</summary>\n\n| Model" in text
    )  # the empty line: GitHub reads Markdown
    assert "<summary>All figures</summary>" in text


def test_csv_and_json_have_the_baseline(folders, tmp_path):
    now, before = folders
    text = write_report([now], tmp_path / "r.csv", baseline=[before]).read_text("utf-8")
    line = next(line for line in csv.DictReader(io.StringIO(text)) if line["name"] == "lenet5.int8.onnx")
    document = json.loads(write_report([now], tmp_path / "r.json", baseline=[before]).read_text("utf-8"))
    change = next(item for item in document["baseline"]["changes"] if item["name"] == "lenet5.int8.onnx")

    assert float(line["baseline_latency_ms"]) == pytest.approx(0.0522 * 0.8)
    assert float(line["ratio_latency_ms"]) == pytest.approx(1.25)
    assert (line["verdict_latency_ms"], line["verdict_file_bytes"], line["not_comparable"]) == ("worse", "worse", "")
    assert change["latency_ms"]["ratio"] == pytest.approx(1.25)
    assert (change["file_bytes"]["baseline"], change["file_bytes"]["difference"]) == (60_000, 10_112)
    assert change["baseline"]["sha256"] == digest("lenet5.int8 before")
    assert document["baseline"]["gone"] == []
    assert "baseline" not in json.loads(write_report([now], tmp_path / "alone.json").read_text("utf-8"))


def test_page_shows_the_changes_above_the_charts(folders, tmp_path):
    now, before = folders
    text = write_report([now], tmp_path / "r.html", baseline=[before]).read_text("utf-8")

    assert 0 < text.index(SAID) < text.index("What it costs")
    assert "Rows without a clear change" in text


def test_a_baseline_that_is_none_is_refused_and_its_warnings_are_named(tmp_path):
    write_records(tmp_path, records())
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no deploykit record in .*empty"):
        write_report([tmp_path], tmp_path / "r.md", baseline=[tmp_path / "empty"])

    (tmp_path / "old").mkdir()
    write_records(tmp_path / "old", records() | {"bad.json": accuracy("lenet5", "fp32", 5000, 0.9)})
    bad = tmp_path / "old" / "bad.json"
    bad.write_text(bad.read_text("utf-8").replace("accuracy/1", "accuracy/9"), "utf-8")
    collection, _ = collect_both([tmp_path / "bench.json"], [tmp_path / "old"])
    (warning,) = collection.warnings
    assert warning.startswith(f"baseline: left out: {bad} has schema 'deploykit.accuracy/9'")


def test_the_numbers_of_machines_are_those_of_both(tmp_path):
    diff = compared(tmp_path, records(environment=EDGE), records())
    assert (diff.changes[0].row.machine, diff.changes[0].base.machine) == (0, 1)
    assert collect([tmp_path / "before"]).rows[0].machine == 0


def test_the_command_takes_baselines_and_answers_0(folders, tmp_path):
    now, before = folders
    first, second = before / "bench.json", before / "1.json"
    command = [sys.executable, "-m", "deploykit", "report", str(now), "-o", str(tmp_path / "r.md"), "--json"]
    done = subprocess.run(
        [*command, "--baseline", str(first), "--baseline", str(second)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    changes = json.loads(done.stdout)["baseline"]["changes"]
    assert sum(change["top1"]["baseline"] is not None for change in changes) == 1
    assert "1.25× slower" in (tmp_path / "r.md").read_text("utf-8")

    refused = subprocess.run(
        [*command, "--overwrite", "--baseline", "nowhere"], capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "no such file or folder: nowhere" in refused.stderr
