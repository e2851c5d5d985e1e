"""The room ``ci_outputs``: what other tools read, of records of ``bench`` and ``gate``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from synthetic_records import ENVIRONMENT, bench, timing
from tiny_onnx import relu

from deploykit.ci_outputs import (
    CiFiles,
    bencher,
    check_outputs,
    github_benchmark,
    junit,
    summary,
    workflow_commands,
    write_outputs,
)
from deploykit.errors import OutputError
from deploykit.timings import Bench, Failure
from deploykit.verdicts import Check, Side, Verdict, worst

TIMING = timing("lenet5", "int8", 70_000, 0.05, 1_120_000)
NOISY = timing("lenet5", "fp32", 250_000, 0.07, 1_410_000, stable=False, warnings=("the runs spread by 14%",))
FAILED = Failure("broken", "0" * 64, "cuda", 1, 8, "the provider\ncannot start")

PASSED = Check("size", "bytes", 1e6, 70_000, 70_000, 70_000, "pass", 70_000)
SLOWER = Check("slowdown", "fraction", 0.02, 0.05, 0.04, 0.06, "regression", 0.05, 0.047)
OPEN = Check("memory", "fraction", 0.05, 0.05, -0.01, 0.11, "inconclusive", 2e6, 1.9e6, "100% | of\nthe budget")


def side(model):
    return Side(model, "a" * 64, "int8", 70_000, TIMING.latency_ms, 1_120_000, None)


def verdict(*checks, model="new"):
    return Verdict(
        environment=ENVIRONMENT,
        deploykit="0.1.0",
        verdict=worst(checks),
        checks=checks,
        noise_floor=0.01,
        candidate=side(model),
        baseline=side("old"),
        baseline_kind="model",
        provider="cpu",
        threads=1,
        batch=1,
        pairs=4,
        rounds=60,
        seconds=14.25,
        budget_s=60.0,
        warnings=("others had the processor for 34% of the time",),
    )


RECORDS = {"bench": bench(TIMING, NOISY, failures=(FAILED,)), "gate": verdict(PASSED, SLOWER, OPEN)}


def test_github_benchmark_of_a_bench_and_a_gate():
    entries = github_benchmark(RECORDS["bench"])
    assert [entry["name"] for entry in entries][:3] == [
        f"{TIMING.model}: latency",
        f"{TIMING.model}: peak memory",
        f"{TIMING.model}: file",
    ]
    assert entries[0]["value"] == 0.05 and entries[0]["unit"] == "ms" and entries[0]["range"] == "± 0.0005"
    assert entries[2]["value"] == 70_000 and "unstable" in entries[3]["extra"] and "unstable" not in entries[0]["extra"]
    for entry in entries + github_benchmark(RECORDS["gate"]):
        assert {"name", "unit", "value", "extra"} <= set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert all(isinstance(entry[key], str) for key in entry if key != "value")
        assert isinstance(entry["value"], (int, float))
    gate = github_benchmark(RECORDS["gate"])
    assert [entry["name"] for entry in gate] == ["new: latency", "new: peak memory", "new: file"]  # the candidate's


def test_settings_are_told_apart_by_name_where_there_are_several():
    two = bench(TIMING, replace(TIMING, threads=2))
    names = [entry["name"] for entry in github_benchmark(two) if entry["unit"] == "ms"]
    assert names == [f"{TIMING.model} (cpu ×1, batch 1): latency", f"{TIMING.model} (cpu ×2, batch 1): latency"]
    assert len(bencher(two)) == 2


def test_bencher_has_nanoseconds_and_bounds():
    found = bencher(RECORDS["bench"])[TIMING.model]
    assert found["latency"] == pytest.approx({"value": 50_000, "lower_value": 49_500, "upper_value": 50_500})
    assert found["peak-memory"] == {"value": 1_120_000} and found["file-size"] == {"value": 70_000}
    assert set(bencher(RECORDS["gate"])) == {"new"}


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_missing_is_left_out(kind):
    bare = replace(RECORDS["gate"], candidate=replace(side("new"), latency_ms=None, peak_bytes=None))
    assert [entry["name"] for entry in github_benchmark(bare)] == ["new: file"]
    assert bencher(bare) == {"new": {"file-size": {"value": 70_000}}}
    assert summary(bare) and junit(bare) and summary(RECORDS[kind])


def test_junit_of_a_gate_has_a_case_a_check():
    top = ElementTree.fromstring(junit(RECORDS["gate"]).encode())
    (suite,) = top.findall("testsuite")
    assert top.tag == "testsuites" and suite.get("name") == "deploykit gate new"
    counts = {key: suite.get(key) for key in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "3", "failures": "1", "skipped": "1", "errors": "0"}
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert cases["size"].find("failure") is None and cases["size"].find("skipped") is None
    assert cases["slowdown"].find("failure").get("message") == "slowdown +5.00 % (+4.00 to +6.00 %); allowed: +2.00 %"
    assert "100% | of" in cases["memory"].find("skipped").get("message")
    assert all(case.get("classname") == "deploykit.gate.new" for case in cases.values())


def test_junit_of_a_bench_fails_what_could_not_be_measured():
    (suite,) = ElementTree.fromstring(junit(RECORDS["bench"]).encode()).findall("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    failed = [case for case in suite if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["broken (cuda ×1, batch 8)"]


def test_names_may_hold_anything(tmp_path):
    """Letters that XML, Markdown and workflow commands treat as their own, and some that XML cannot hold."""
    record = verdict(SLOWER, model='ü<&>"|\x00\x1b\ud800net')
    text = junit(record)
    suite = ElementTree.fromstring(text.encode("utf-8")).find("testsuite")
    assert suite.get("name") == 'deploykit gate ü<&>"|\ufffd\ufffd\ufffdnet'
    for line in summary(record).splitlines():
        assert line.count("|") - line.count("\\|") in (0, 7)
    files = {name: tmp_path / name for name in ("github_benchmark", "bencher", "junit", "summary")}
    write_outputs(record, CiFiles(**files))
    assert json.loads(files["bencher"].read_text()) == bencher(record)
    assert "regression: `ü<&>" in files["summary"].read_text(encoding="utf-8")


def test_the_summary_is_a_table():
    text = summary(RECORDS["gate"])
    assert text.startswith("### ❌ regression: `new` against `old`")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and "| slowdown | +2.00 % | +5.00 % (+4.00 to +6.00 %) | 0.0500 ms | 0.0470 ms |" in rows[2]
    assert "❔ inconclusive: 100% \\| of the budget" in rows[3]
    assert "noise floor ±1.00 %" in text and ENVIRONMENT["cpu"] in text and "> others had the processor" in text
    assert "### ✅ pass" in summary(verdict(PASSED))
    text = summary(RECORDS["bench"])
    assert "0.0700 ms !" in text and "broken was not measured: the provider cannot start" in text


def test_workflow_commands_are_escaped():
    found = workflow_commands(RECORDS["gate"])
    assert found[0] == ("::error title=deploykit::new: slowdown +5.00 %25 (+4.00 to +6.00 %25); allowed: +2.00 %25")
    assert found[1].startswith("::warning ") and "100%25 | of%0Athe budget" in found[1]
    assert found[2] == "::warning title=deploykit::new: others had the processor for 34%25 of the time"
    assert workflow_commands(replace(verdict(PASSED), warnings=())) == []
    found = workflow_commands(RECORDS["bench"])
    assert found[0].startswith("::error ") and "%0A" in found[0]
    assert [line for line in found[1:] if "spread by 14%25" in line] == found[1:]
    assert not any("\n" in line for line in found)


@pytest.mark.parametrize("kind", RECORDS)
def test_files_are_written_and_the_summary_is_appended(tmp_path, kind):
    names = {"github_benchmark": "g.json", "bencher": "b.json", "junit": "j.xml"}
    paths = {key: tmp_path / "new folder" / name for key, name in names.items()}
    (tmp_path / "summary.md").write_text("before\n")
    files = CiFiles(summary=tmp_path / "summary.md", **paths)
    check_outputs(files, overwrite=False)
    write_outputs(RECORDS[kind], files)
    assert json.loads(paths["github_benchmark"].read_text()) == github_benchmark(RECORDS[kind])
    assert json.loads(paths["bencher"].read_text()) == bencher(RECORDS[kind])
    assert ElementTree.parse(paths["junit"]).getroot().tag == "testsuites"
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("before\n###") and text.count("###") == 1
    with pytest.raises(OutputError, match=r"g\.json exists already"):
        check_outputs(files, overwrite=False)
    write_outputs(RECORDS[kind], files, overwrite=True)
    assert (tmp_path / "summary.md").read_text().count("###") == 2


def test_a_summary_that_cannot_be_written_is_told_before(tmp_path):
    with pytest.raises(OutputError, match="give another --summary"):
        check_outputs(CiFiles(summary=tmp_path), overwrite=False)
    write_outputs(Bench(results=()), CiFiles())  # nothing asked for, nothing written
    assert list(tmp_path.iterdir()) == []


def test_the_summary_of_the_job_is_the_default(tmp_path):
    assert CiFiles.given({}, None) == CiFiles()
    named = {"GITHUB_STEP_SUMMARY": str(tmp_path / "s.md")}
    assert CiFiles.given(named, None).summary == tmp_path / "s.md"
    assert CiFiles.given(named, tmp_path / "own.md", junit=tmp_path / "j").summary == tmp_path / "own.md"
    assert CiFiles.given({"GITHUB_STEP_SUMMARY": ""}, None).summary is None


@pytest.mark.parametrize("as_json", [False, True])
def test_inside_github_actions(tmp_path, as_json):
    """A real process: annotations on stdout, with --json on stderr, and the job's summary."""
    env = os.environ | {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
    arguments = ["gate", relu(tmp_path / "m.onnx"), "--max-size", "10B", "--junit", tmp_path / "j.xml"]
    arguments += ["--json"] if as_json else []
    command = [sys.executable, "-m", "deploykit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1
    where, other = (done.stderr, done.stdout) if as_json else (done.stdout, done.stderr)
    assert where.count("::error title=deploykit::m: size ") == 1 and "::error" not in other
    if as_json:
        assert json.loads(done.stdout)["verdict"] == "regression"
    assert (tmp_path / "summary.md").read_text().startswith("### ❌ regression: `m`")
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"
