"""Records of several machines, versions, runs and sessions: told apart, and compared only where that is honest."""

from parsed_page import Page
from synthetic_records import EDGE, ENVIRONMENT, accuracy, bench, digest, timing, write_records

from deploykit.report import collect, write_report
from deploykit.report.summary import headlines, sentences
from deploykit.results import Failure


def test_timings_of_two_machines_are_kept_apart(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": accuracy("lenet5", "fp32", 5000, 0.99),
            "b.json": bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000)),
            "c.json": bench(timing("lenet5", "fp32", 5000, 31.0, 9_000_000), environment=EDGE),
        },
    )
    collection = collect([tmp_path])
    (warning,) = collection.warnings

    assert [(row.machine, row.machine_name, row.latency_ms) for row in collection.rows] == [
        (0, "Intel Xeon Platinum 8488C", 2.0),
        (1, "Cortex-A76", 31.0),
    ]
    assert warning.startswith("timings come from 2 machines, which differ in machine (x86_64 | aarch64), cpu (Intel(R)")
    assert "cpu_features (avx2 avx512f avx512_vnni amx_int8 | asimd asimddp) and available_cpus (2 | 4): com" in warning
    assert collection.rows[1].caveats("accuracy") == ["measured on Intel Xeon Platinum 8488C, not on Cortex-A76"]
    assert collection.rows[0].warnings == ()
    assert "Fastest" not in [headline.title for headline in headlines(collection.rows)]
    text = Page(write_report([tmp_path], tmp_path / "r.html").read_text("utf-8")).text
    for said in ("mnist test, machine 2: Cortex-A76", "threads 1, batch 1", warning, "2: Cortex-A76"):
        assert said in text, said


def test_accuracies_of_two_machines_stand_beside_their_own_timings(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": accuracy("lenet5", "int8", 5000, 0.99),
            "b.json": accuracy("lenet5", "int8", 5000, 0.91, environment=EDGE),
            "c.json": bench(timing("lenet5", "int8", 5000, 2.0, 9_000_000)),
            "d.json": bench(timing("lenet5", "int8", 5000, 31.0, 9_000_000), environment=EDGE),
        },
    )
    rows = collect([tmp_path]).rows

    assert [(row.machine_name, row.top1, row.latency_ms) for row in rows] == [
        ("Intel Xeon Platinum 8488C", 0.99, 2.0),
        ("Cortex-A76", 0.91, 31.0),
    ]
    assert [row.warnings for row in rows] == [(), ()]
    (tmp_path / "d.json").unlink()
    assert [(row.top1, row.latency_ms) for row in collect([tmp_path]).rows] == [(0.99, 2.0), (0.91, None)]
    text = Page(write_report([tmp_path], tmp_path / "r.html").read_text("utf-8")).text
    assert "lenet5 int8, Intel Xeon Platinum 8488C" in text  # two rows of classes, none over the other
    assert "lenet5 int8, Cortex-A76" in text


def test_machines_of_one_processor_are_told_apart(tmp_path):
    smaller = ENVIRONMENT | {"available_cpus": 1}
    timings = [
        bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000), environment=item) for item in (ENVIRONMENT, smaller)
    ]
    write_records(tmp_path, {"a.json": timings[0], "b.json": timings[1]})
    collection = collect([tmp_path])

    assert collection.machine_names == ("Intel Xeon Platinum 8488C (1)", "Intel Xeon Platinum 8488C (2)")
    assert "which differ in available_cpus (2 | 1):" in collection.warnings[0]
    markdown = write_report([tmp_path], tmp_path / "r.md").read_text("utf-8")
    assert "| Intel Xeon Platinum 8488C (2) |" in markdown


def with_version(version):
    return ENVIRONMENT | {"versions": ENVIRONMENT["versions"] | {"onnxruntime-gpu": version}}


def test_other_versions_alone_are_no_other_machine(tmp_path):
    newer = ENVIRONMENT | {"os": "Linux 6.2", "versions": ENVIRONMENT["versions"] | {"numpy": "2.5.0"}}
    timings = [bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000), environment=item) for item in (ENVIRONMENT, newer)]
    write_records(tmp_path, {"a.json": timings[0], "b.json": timings[1]})
    collection = collect([tmp_path])

    assert (len(collection.environments), collection.machines, collection.warnings) == (2, 1, ())


def test_times_of_two_versions_of_the_runtime_are_not_compared(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000)),
            "b.json": bench(timing("lenet5", "int8", 2500, 1.0, 8_000_000), environment=with_version("1.26.0")),
        },
    )
    collection = collect([tmp_path])

    assert [row.onnxruntime for row in collection.rows] == ["1.31.1", "1.26.0"]
    assert collection.warnings == (
        "timings were made with 2 versions of onnxruntime (1.26.0 | 1.31.1): compare them within one version only",
    )
    assert sentences(collection.rows) == ["lenet5 int8 on cpu, 1 thread is 2.0× smaller than fp32."]
    assert "Fastest" not in [headline.title for headline in headlines(collection.rows)]
    text = Page(write_report([tmp_path], tmp_path / "r.html").read_text("utf-8")).text
    assert "without accuracy, ONNX Runtime 1.26.0" in text


def test_of_several_bases_that_of_the_same_version_is_compared_with(tmp_path):
    write_records(
        tmp_path,
        {
            "a.json": bench(timing("lenet5", "fp32", 5000, 3.0, 9_000_000)),
            "b.json": bench(
                timing("lenet5", "fp32", 5000, 2.0, 9_000_000),
                timing("lenet5", "int8", 2500, 1.0, 9_000_000),
                environment=with_version("1.26.0"),
            ),
        },
    )
    (said,) = sentences(collect([tmp_path]).rows)
    assert "2.0× faster" in said


def test_times_of_one_run_are_compared_before_those_of_two(tmp_path):
    """The second bench has both; only against the first one's float the ratio would be 1.05, within two runs' noise."""
    first = bench(timing("lenet5", "fp32", 5000, 1.05, 9_000_000))
    second = bench(timing("lenet5", "fp32", 5000, 1.03, 9_000_000), timing("lenet5", "int8", 2500, 1.0, 9_000_000))
    write_records(tmp_path, {"a.json": first, "b.json": second})
    (said,) = sentences(collect([tmp_path]).rows)
    assert "1.03× faster" in said

    write_records(tmp_path, {"b.json": bench(timing("lenet5", "int8", 2500, 1.0, 9_000_000))})
    (said,) = sentences(collect([tmp_path]).rows)
    assert "not measurably faster or slower" in said


def test_another_session_is_another_row_and_no_base(tmp_path):
    lean = timing("lenet5", "int8", 2500, 1.0, 8_000_000, memory_mode="lean", provider_options={"arena": "off"})
    write_records(tmp_path, {"a.json": bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000), lean)})
    rows = collect([tmp_path]).rows

    assert [row.session for row in rows] == [None, "memory lean, arena off"]
    assert sentences(rows) == []
    assert "memory lean, arena off" in write_report([tmp_path], tmp_path / "r.md").read_text("utf-8")


def test_what_could_not_be_measured_is_said(tmp_path):
    failure = Failure("net.onnx", digest("net"), "openvino", 2, 8, "no kernel for LRN")
    write_records(tmp_path, {"a.json": bench(timing("lenet5", "fp32", 5000, 2.0, 9_000_000), failures=(failure,))})
    assert collect([tmp_path]).warnings == (
        "net.onnx was not measured on openvino, 2 threads, batch 8: no kernel for LRN",
    )
