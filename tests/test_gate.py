"""The rooms of ``gate``: verdicts of made-up timings, and real models in real processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_onnx import conv_chain, endless_loop, matmul, relu, save_graph

from deploykit import environment
from deploykit.bench import bench_onnx
from deploykit.bench_options import BenchOptions
from deploykit.cli import main
from deploykit.comparability import mismatches
from deploykit.data.dataset import Dataset
from deploykit.duet import Duet, Part
from deploykit.errors import InputError, ModelFileError, UnknownNameError
from deploykit.evaluate import evaluate_onnx
from deploykit.files import write_json
from deploykit.gate import GateOptions, _unlike_graph, gate_onnx
from deploykit.gate_baseline import Baseline
from deploykit.gate_checks import (
    BETWEEN_RUNS,
    agreement_check,
    drop_check,
    latency_question,
    memory_question,
    size_check,
    slowdown_question,
)
from deploykit.gate_measurement import Measurement
from deploykit.gate_options import changed
from deploykit.limits import Limit, parse_bytes, parse_milliseconds, parse_share
from deploykit.paired_answers import PairedAnswers, answers_of_both
from deploykit.progress import silent
from deploykit.results import Bench, read_record
from deploykit.verdicts import worst

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")


def children():
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def nothing_left_running(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):  # tests are not what the summary is about
        monkeypatch.delenv(name, raising=False)
    yield
    assert children() == []


# Limits


def test_shares_are_percents():
    assert [parse_share(text, "--f") for text in ("5%", "+5 %", " 0.5% ", "-30%", "0%", ".5%")] == [
        0.05,
        0.05,
        0.005,
        -0.3,
        0.0,
        0.005,
    ]


@pytest.mark.parametrize("text", ["5", "0.05", "", "%", "5 percent", "-100%", "1e1%", "5%%", "nan%", "five%", "5,5%"])
def test_other_shares_are_refused_with_their_flag(text):
    with pytest.raises(InputError, match=r"--max-slowdown .*allowed: a share such as 5%"):
        parse_share(text, "--max-slowdown")


def test_sizes_have_a_unit_or_are_relative():
    given = {"10MB": 10**7, "10 MiB": 10 * 2**20, "512kb": 512_000, "1.5GB": 1_500_000_000, "100B": 100}
    assert {text: parse_bytes(text, "--f").value for text in given} == given
    assert parse_bytes("+5%", "--f") == Limit(0.05, relative=True) == parse_bytes("5 %", "--f")
    assert parse_bytes("-20%", "--f") == Limit(-0.2, relative=True)
    for text in ("10", "10 XB", "-1MB", "0MB", "+10MB", "MB", ""):
        with pytest.raises(InputError, match=r"--max-size .*such as 10MB,? or a share|--max-size .*\+5%"):
            parse_bytes(text, "--max-size")


def test_times_have_a_unit():
    given = {"5ms": 5.0, "800 us": 0.8, "0.02s": 20.0, "1500ns": 0.0015, "3µs": 0.003}
    assert {text: parse_milliseconds(text, "--f") for text in given} == pytest.approx(given)
    for text in ("5", "5m", "0ms", "-1ms", "ms"):
        with pytest.raises(InputError, match=r"--max-latency .*such as 5ms"):
            parse_milliseconds(text, "--max-latency")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget_s": 0.0}, "budget_s 0"),
        ({"budget_s": math.inf}, "budget_s inf"),
        ({"budget_s": math.nan}, "budget_s nan"),
        ({"timeout_s": -1.0}, "timeout_s -1"),
        ({"max_slowdown": -1.0}, "limit -1"),
        ({"max_slowdown": math.nan}, "limit nan"),
        ({"max_latency_ms": 0.0}, "limit 0"),
        ({"max_drop": -0.1}, "largest drop"),
        ({"min_agreement": 1.5}, "least agreement"),
        ({"provider": "gpu"}, "unknown provider 'gpu'"),
        ({"threads": 0}, "0"),
        ({"batch": 0}, "batch 0"),
        ({"seed": -1}, "seed -1"),
        ({"confidence": 1.0}, "confidence 1"),
    ],
)
def test_options_check_themselves(wrong, message):
    with pytest.raises(InputError, match=message):
        GateOptions(**wrong)


def test_limits_may_be_texts_in_python_too():
    options = changed(GateOptions(), {"max_slowdown": "5%", "max_size": "10MB", "max_memory": 1000, "threads": 2})
    assert options == GateOptions(max_slowdown=0.05, max_size=Limit(1e7), max_memory=Limit(1000), threads=2)


def test_without_a_limit_a_model_may_be_five_percent_slower():
    assert GateOptions().completed(compared=True) == GateOptions(max_slowdown=0.05)
    size = GateOptions(max_size=Limit(10))
    assert size.completed(compared=True) is size and size.completed(compared=False) is size
    with pytest.raises(InputError, match=r"no limit to keep and no baseline.*--max-slowdown, --max-latency"):
        GateOptions().completed(compared=False)
    with pytest.raises(InputError, match="--max-slowdown, --max-size compare with a baseline"):
        GateOptions(max_slowdown=0.1, max_size=Limit(0.1, True)).completed(compared=False)


# Verdicts of made-up timings


def part(turns_ms, peak_bytes=1000):
    return Part(
        blocks=tuple((value,) for value in turns_ms),
        turns_ms=tuple(turns_ms),
        waited=0.0,
        peak_bytes=peak_bytes,
        provider="cpu",
        threads=1,
    )


def duets(effects, *, spread=0.001, base_ms=5.0, peaks=(1000, 1000), alone=False):
    generator = np.random.default_rng(0)
    found = []
    for effect in effects:
        noise = generator.normal(0.0, spread, (2, 20))
        candidate, baseline = base_ms * (1.0 + effect) * np.exp(noise[0]), base_ms * np.exp(noise[1])
        found.append(Duet(part(candidate, peaks[0]), None if alone else part(baseline, peaks[1]), 1.0))
    return found


@pytest.mark.parametrize(
    ("effects", "limit", "verdict"),
    [
        ((0.0, 0.001, -0.001), 0.02, "pass"),
        ((0.05, 0.051, 0.049), 0.02, "regression"),
        ((0.02, 0.021, 0.019), 0.02, "inconclusive"),
        ((-0.2, -0.201, -0.199), 0.02, "pass"),
        ((-0.2, -0.201, -0.199), -0.3, "regression"),  # a speedup of 30 % was asked for
        ((-0.4, -0.401, -0.399), -0.3, "pass"),
        ((0.0, 0.08, -0.08), 0.02, "inconclusive"),
    ],
)
def test_a_slowdown_is_decided_by_its_interval(effects, limit, verdict):
    check = slowdown_question(limit, None, 0).check(duets(effects), 0.95)
    assert check.verdict == verdict
    assert check.ci_low <= check.measured <= check.ci_high
    assert check.measured == pytest.approx(np.mean(effects), abs=0.003)
    assert check.candidate / check.baseline - 1.0 == pytest.approx(check.measured, abs=1e-3)


def test_a_spell_that_slows_both_leaves_the_ratio():
    steady = duets((0.05, 0.05, 0.05))
    slowed = []
    for duet in steady:
        factor = np.where(np.arange(20) < 10, 1.0, 3.0)  # rounds 6 to 10 of both
        sides = [part(np.array(side.turns_ms) * factor) for side in duet.parts]
        slowed.append(Duet(*sides, 1.0))
    question = slowdown_question(0.02, None, 0)
    assert question.check(slowed, 0.95).measured == pytest.approx(question.check(steady, 0.95).measured, abs=1e-9)


def test_an_absolute_latency_and_memory():
    fine = duets((0.0, 0.01, -0.01), peaks=(2_000_000, 1_000_000))
    assert latency_question(6.0, 0).check(fine, 0.95).verdict == "pass"
    check = latency_question(4.0, 0).check(fine, 0.95)
    assert (check.verdict, check.unit) == ("regression", "ms") and check.measured == pytest.approx(5.0, rel=0.01)
    assert memory_question(Limit(2_500_000), None, 0).check(fine, 0.95).verdict == "pass"
    more = memory_question(Limit(0.05, True), None, 0).check(fine, 0.95)
    assert (more.verdict, more.measured) == ("regression", pytest.approx(1.0))
    assert (more.candidate, more.baseline) == (pytest.approx(2e6), pytest.approx(1e6))
    untold = memory_question(Limit(10), None, 0).check(duets((0, 0), peaks=(0, 0)), 0.95)
    assert untold.verdict == "inconclusive" and "does not tell" in untold.remark


def test_against_a_record_the_noise_between_runs_is_in_the_interval(stored):
    timing = stored.results[0]
    base_ms = timing.latency_ms.median
    same = duets((0.0, 0.0, 0.0), base_ms=base_ms, alone=True)
    question = slowdown_question(0.02, timing, 0)
    check = question.check(same, 0.95)
    assert check.verdict == "inconclusive" and "two runs differ" in check.remark
    assert check.ci_high - check.ci_low >= 2 * 1.96 * BETWEEN_RUNS
    assert check.baseline == base_ms
    assert slowdown_question(0.25, timing, 0).check(same, 0.95).verdict == "pass"
    slow = duets((0.5, 0.5, 0.5), base_ms=base_ms, alone=True)
    assert slowdown_question(0.2, timing, 0).check(slow, 0.95).verdict == "regression"
    tight = replace(timing, latency_ms=replace(timing.latency_ms, ci_low=base_ms, ci_high=base_ms))
    question = slowdown_question(0.02, tight, 0)
    assert question.hopeless(question.check(same, 0.95), 0.95)
    rough = duets((0.0, 0.06, -0.06), base_ms=base_ms, alone=True)
    assert not question.hopeless(question.check(rough, 0.95), 0.95)


def test_sizes_are_exact():
    assert size_check(Limit(1000), 1000, None).verdict == "pass"
    assert size_check(Limit(999), 1000, None).verdict == "regression"
    assert size_check(Limit(0.0, True), 1000, 1000).verdict == "pass"
    grown = size_check(Limit(0.05, True), 1051, 1000)
    assert (grown.verdict, grown.unit, grown.measured) == ("regression", "fraction", pytest.approx(0.051))


def test_a_drop_is_decided_on_the_pictures_at_hand():
    answers = PairedAnswers(samples=1000, both=900, only_candidate=5, only_baseline=8, agreeing=980)
    check = drop_check(0.003, answers)
    assert (check.verdict, check.measured) == ("pass", pytest.approx(0.003))  # not a regression for a rounding
    assert drop_check(0.0029, answers).verdict == "regression"
    assert check.ci_low < 0.0 < check.ci_high and "on 1000 pictures" in check.remark
    assert (check.candidate, check.baseline) == (0.905, 0.908)
    assert check.measured_text.endswith("points)")
    never = PairedAnswers(samples=100, both=100, only_candidate=0, only_baseline=0, agreeing=100)
    assert drop_check(0.0, never).verdict == "pass"
    assert 0.0 < drop_check(0.0, never).ci_high < 0.05  # a hundred pictures do not say that there is no drop
    assert agreement_check(0.98, answers).verdict == "pass"
    assert agreement_check(0.985, answers).verdict == "regression"


def test_the_interval_of_a_drop_covers_it():
    """Pictures drawn from a thousand times as many, of which the candidate loses 0.5 points."""
    generator = np.random.default_rng(0)
    counts = generator.multinomial(500, [0.9, 0.01, 0.015, 0.075], size=400)
    inside = 0
    for both, won, lost, _ in counts:
        found = PairedAnswers(500, int(both), int(won), int(lost), 0).drop()
        inside += found.low <= 0.005 <= found.high
    assert inside >= 0.93 * 400


def test_one_regression_decides_over_what_is_inconclusive():
    good, bad = size_check(Limit(10), 9, None), size_check(Limit(10), 11, None)
    open_check = replace(good, verdict="inconclusive")
    assert worst((good,)) == "pass" == worst(())
    assert worst((good, open_check)) == "inconclusive"
    assert worst((open_check, bad, good)) == "regression"


# Real models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A chain of convolutions, its copy, and one with twice the work."""
    folder = tmp_path_factory.mktemp("gate models")
    return {
        "one": conv_chain(folder / "one.onnx", 4),
        "copy": conv_chain(folder / "copy.onnx", 4),
        "twice": conv_chain(folder / "twice.onnx", 8),
    }


@pytest.fixture(scope="module")
def stored(models):
    """A record of bench of the small model, one thread, as a quiet machine makes it."""
    record = bench_onnx(models["one"], threads=1, samples=30, min_time_s=0.2)
    return replace(record, results=(replace(record.results[0], stable=True, warnings=()),))


QUICK = GateOptions(turns_s=0.3)


def test_twice_the_work_is_a_regression_and_a_copy_is_not(models, tmp_path):
    stages = []
    slower = gate_onnx(
        models["twice"],
        baseline=models["one"],
        options=QUICK,
        max_slowdown=0.25,
        max_size="+10%",
        progress=lambda stage, done, total, note="": stages.append((stage, total)),
    )
    size, slowdown = slower.checks
    assert (slower.verdict, slowdown.verdict, size.verdict) == ("regression", "regression", "regression")
    assert 0.4 < slowdown.measured < 2.0 and slowdown.ci_low > 0.25
    assert slower.noise_floor == pytest.approx((slowdown.ci_high - slowdown.ci_low) / 2)
    assert (slower.candidate.model, slower.baseline.model, slower.baseline_kind) == ("twice", "one", "model")
    assert (slower.provider, slower.threads, slower.batch) == ("cpu", 1, 1)
    assert slower.pairs == len(slower.turns) == slower.looks[-1].pairs and slower.pairs >= 2
    assert all(len(pair.candidate_ms) == len(pair.baseline_ms) >= 2 for pair in slower.turns)
    assert slower.rounds == sum(len(pair.candidate_ms) // 2 for pair in slower.turns)
    assert slower.candidate.latency_ms.median > slower.baseline.latency_ms.median
    assert slower.candidate.peak_bytes > 0
    assert set(stages) == {("gate", 60)}
    path = write_json(tmp_path / "verdict.json", slower.to_document())
    assert read_record(path) == slower
    assert json.loads(path.read_text())["schema"] == "deploykit.verdict/1"
    same = gate_onnx(models["copy"], baseline=models["one"], options=QUICK, max_slowdown=1.0, max_size="+0%")
    assert (same.verdict, [check.name for check in same.checks]) == ("pass", ["size", "slowdown"])


def test_sizes_alone_start_no_process(models):
    began = time.monotonic()
    record = gate_onnx(models["one"], max_size="1MB")
    assert (record.verdict, record.pairs, record.noise_floor, record.baseline) == ("pass", 0, None, None)
    assert gate_onnx(models["one"], max_size="1KB").verdict == "regression"
    assert gate_onnx(models["twice"], baseline=models["one"], max_size="+10%").verdict == "regression"
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_memory_is_that_of_fresh_processes(tmp_path):
    large, small = matmul(tmp_path / "large.onnx", 2500, 4000), matmul(tmp_path / "small.onnx", 25, 40)
    absolute = gate_onnx(large, options=QUICK, max_memory="20MB").checks[0]
    assert (absolute.verdict, absolute.unit) == ("regression", "bytes") and absolute.measured > 39e6
    assert gate_onnx(small, options=QUICK, max_memory="38MB").verdict == "pass"
    wide = save_graph(
        tmp_path / "wide.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 2500])],
        [("y", TensorProto.FLOAT, ["N", 40])],
        [numpy_helper.from_array(np.ones((2500, 40), np.float32), "w")],
    )
    relative = gate_onnx(large, baseline=wide, options=QUICK, max_memory="+50%")
    assert relative.verdict == "regression" and relative.checks[0].measured > 1.0
    assert relative.rounds == 0  # nothing was timed


@pytest.mark.slow
def test_the_self_test_tells_the_noise_floor(models, tmp_path, capsys):
    path, flags = tmp_path / "verdict.json", ["--self-test", "--budget", "15", "--max-slowdown", "100%"]
    assert main(["gate", str(models["one"]), *flags, "-o", str(path)]) == 0
    out, record = capsys.readouterr().out, read_record(path)
    assert f"noise floor ±{100 * record.noise_floor:.2f} %" in out and "after " in out
    assert record.baseline_kind == "itself" and record.candidate.model_sha256 == record.baseline.model_sha256
    assert record.seconds > 15.0 - 2.5 * record.seconds / record.pairs  # it goes on when all is decided
    assert 0.0 < record.noise_floor < 1.0
    with pytest.raises(InputError, match="--self-test compares"):
        gate_onnx(models["one"], baseline=models["copy"], options=replace(QUICK, self_test=True))


@pytest.mark.slow
def test_what_other_processes_take_is_left_out(models):
    """With two busy processes a CPU a call takes about three times as long; what it is compared by does not."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells for how long a thread had a processor")
    count = 2 * environment.available_cpus()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        record = gate_onnx(models["twice"], baseline=models["one"], options=QUICK, max_slowdown=0.3)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert record.verdict == "regression"  # whether the scheduler let the busy ones in amid a call is its own affair


# Against a record


@pytest.fixture
def record_path(stored, tmp_path):
    return write_json(tmp_path / "record.json", stored.to_document())


@pytest.mark.slow
def test_a_stored_timing_is_a_baseline_on_the_same_machine(models, record_path, stored):
    alike = gate_onnx(models["one"], baseline=record_path, options=QUICK, max_slowdown=3.0, max_size="+0%")
    assert (alike.verdict, alike.baseline_kind) == ("pass", "record")
    assert alike.baseline.latency_ms == stored.results[0].latency_ms
    assert alike.checks[1].baseline == stored.results[0].latency_ms.median
    tight = gate_onnx(models["one"], baseline=record_path, options=QUICK, max_slowdown=0.001)
    assert tight.verdict != "pass"  # no record can tell that
    assert tight.checks[0].ci_high - tight.checks[0].ci_low > 4 * BETWEEN_RUNS


def changed_record(tmp_path, stored, name, value, *, version=None):
    record = replace(stored, environment={**stored.environment, name: value})
    if version:
        versions = {key: version if key.startswith("onnxruntime") else text for key, text in value.items()}
        record = replace(stored, environment={**stored.environment, "versions": versions})
    return write_json(tmp_path / "other.json", record.to_document())


@pytest.mark.parametrize(
    ("name", "value", "version", "said"),
    [
        ("cpu", "Other CPU 9000", None, "cpu: Other CPU 9000 in the record, "),
        ("cpu_features", ["avx2"], None, "cpu_features: avx2 in the record"),
        ("available_cpus", 64, None, "available_cpus: 64 in the record"),
        ("versions", environment.describe()["versions"], "1.2.3", "onnxruntime: 1.2.3 in the record"),
    ],
)
def test_another_machine_or_runtime_is_not_compared(models, stored, tmp_path, capsys, name, value, version, said):
    path = changed_record(tmp_path, stored, name, value, version=version)
    code = main(["gate", str(models["one"]), "--baseline", str(path), "--max-slowdown", "50%", "--max-size", "1MB"])
    out, err = capsys.readouterr()
    assert code == 3
    assert said in err and err.splitlines()[-1].startswith("error: one: slowdown –; allowed: +50.00 %: not comparable")
    assert "inconclusive" in out
    record = gate_onnx(models["one"], baseline=path, max_slowdown=0.5, max_size="1MB", max_memory="+100%")
    assert [check.verdict for check in record.checks] == ["pass", "inconclusive", "inconclusive"]
    assert record.pairs == 0  # nothing was measured in vain


def test_another_setting_is_not_compared_and_none_given_takes_the_records(models, record_path, capsys):
    code = main(["gate", str(models["one"]), "--baseline", str(record_path), "--threads", "2", "--batch", "4"])
    assert code == 3
    assert "threads: 1 in the record, 2 here; batch: 1 in the record, 4 here" in capsys.readouterr().err
    assert gate_onnx(models["one"], baseline=record_path, options=QUICK, max_slowdown=9.0).threads == 1


def test_mismatches_name_the_keys(stored):
    timing, here = stored.results[0], environment.describe()
    assert mismatches(timing, stored.environment, here, {"provider": "cpu", "threads": 1}) == ()
    found = mismatches(timing, {}, here, {"provider": "openvino", "memory_mode": "lean"})
    assert {item.key for item in found} >= {"cpu", "machine", "onnxruntime", "provider", "memory_mode"}
    assert "cpu: unknown in the record" in str(next(item for item in found if item.key == "cpu"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cuda_graph": True}, "cuda_graph: True in the record, False here"),
        ({"computed_in": "bf16"}, "computed_in: bf16 in the record, fp32 here"),
    ],
)
def test_what_was_done_otherwise_is_not_compared(models, stored, tmp_path, changes, said):
    otherwise = replace(stored, results=(replace(stored.results[0], **changes),))
    path = write_json(tmp_path / "other.json", otherwise.to_document())
    record = gate_onnx(models["one"], baseline=path, max_slowdown=9.0)
    assert (record.verdict, record.pairs) == ("inconclusive", 0)
    assert said in record.checks[0].remark


def test_a_record_that_does_not_say_what_it_computed_in_is_compared(models, stored, tmp_path):
    earlier = replace(stored, results=(replace(stored.results[0], computed_in=None),))
    path = write_json(tmp_path / "earlier.json", earlier.to_document())
    assert gate_onnx(models["one"], baseline=path, options=QUICK, max_slowdown=9.0).verdict == "pass"


def test_a_cuda_graph_counts_as_it_was_replayed(stored):
    part = Part(((1.0,),), (1.0,), None, 1, "cuda", 1, cuda_graph=True)
    without = Duet(replace(part, cuda_graph=False), None, 1.0)
    for graph, duets, said in (
        (True, [Duet(part, None, 1.0)], ""),
        (True, [Duet(part, None, 1.0), without], "cuda_graph: True in the record, False here"),
        (False, [Duet(part, None, 1.0)], "cuda_graph: False in the record, True here"),
        (False, [without], ""),
        (True, [], ""),
    ):
        against = Baseline("record", None, replace(stored.results[0], cuda_graph=graph), stored, "record.json")
        assert _unlike_graph(duets, against) == (f"not comparable with record.json: {said}" if said else "")


def test_the_machine_is_named_before_the_noise(models, stored, tmp_path):
    noisy = replace(stored.results[0], stable=False, warnings=("the latencies spread by 40%",))
    elsewhere = {**stored.environment, "cpu": "Other CPU 9000"}
    path = write_json(tmp_path / "noisy.json", replace(stored, results=(noisy,), environment=elsewhere).to_document())
    assert "cpu: Other CPU 9000" in gate_onnx(models["one"], baseline=path, max_slowdown=9.0).checks[0].remark


@pytest.mark.parametrize(("figure", "value"), [("median", -1.0), ("ci_low", 0.0), ("peak_bytes", 0)])
def test_impossible_figures_of_a_record_are_refused(models, stored, tmp_path, capsys, figure, value):
    document = stored.to_document()
    (timing,) = document["results"]
    timing["memory" if figure == "peak_bytes" else "latency_ms"][figure] = value
    path = write_json(tmp_path / "impossible.json", document)
    assert main(["gate", str(models["one"]), "--baseline", str(path)]) == 2
    assert f"impossible.json says {figure} {value:g} of 'one'; allowed: above 0" in capsys.readouterr().err


def test_the_model_that_cannot_run_is_named(tmp_path, capsys):
    shape = numpy_helper.from_array(np.array([3, 5], np.int64), "shape")
    ends = [("x", TensorProto.FLOAT, [1, 16])], [("y", TensorProto.FLOAT, None)]
    save_graph(tmp_path / "unfit.onnx", [helper.make_node("Reshape", ["x", "shape"], ["y"])], *ends, [shape])
    assert main(["gate", str(tmp_path / "unfit.onnx"), "--self-test"]) == 2
    assert capsys.readouterr().err.startswith("error: cannot run unfit.onnx: ")


@pytest.mark.slow
def test_calls_that_are_mostly_overhead_are_doubted(tmp_path):
    ends = [("x", TensorProto.FLOAT, [1, 4])], [("y", TensorProto.FLOAT, [1, 4])]
    tiny = save_graph(tmp_path / "tiny.onnx", [helper.make_node("Relu", ["x"], ["y"])], *ends)
    record = gate_onnx(tiny, options=replace(QUICK, self_test=True, budget_s=5))
    # By the timer's steps or by the call itself, whichever this machine has more of.
    assert any(text.startswith("a call takes ") for text in record.warnings)


def test_a_timing_of_a_noisy_machine_is_not_compared(models, stored, tmp_path):
    noisy = replace(stored.results[0], stable=False, warnings=("the latencies spread by 40%",))
    path = write_json(tmp_path / "noisy.json", replace(stored, results=(noisy,)).to_document())
    record = gate_onnx(models["one"], baseline=path, max_slowdown=9.0)
    assert record.verdict == "inconclusive" and record.pairs == 0
    assert "is marked unstable, the latencies spread by 40%" in record.checks[0].remark
    disturbed = [
        replace(duet, candidate=replace(duet.candidate, waited=None), disturbances=("other processes used 50%",))
        for duet in duets((0.0, 0.0), alone=True)
    ]
    check = slowdown_question(9.0, stored.results[0], 0).check(disturbed, 0.95)
    assert check.verdict == "inconclusive" and check.remark.endswith("other processes used 50%")
    undisturbed = [replace(duet, disturbances=()) for duet in disturbed]
    assert slowdown_question(99.0, stored.results[0], 0).check(undisturbed, 0.95).verdict == "pass"


def test_which_timing_of_a_record(models, stored, tmp_path):
    one = stored.results[0]
    several = replace(stored, results=(one, replace(one, model="other"), replace(one, model="other", threads=2)))
    path = write_json(tmp_path / "several.json", several.to_document())
    assert gate_onnx(models["one"], baseline=path, max_size="1MB").baseline.model == "one"
    with pytest.raises(InputError, match="has no timing of 'copy'; choose with --baseline-model among: one, other"):
        gate_onnx(models["copy"], baseline=path, max_slowdown=0.1)
    with pytest.raises(InputError, match=r"2 settings of 'other'.*×1.*×2.*--threads"):
        gate_onnx(models["copy"], baseline=path, baseline_model="other", max_slowdown=0.1)
    chosen = gate_onnx(models["copy"], baseline=path, baseline_model="other", threads=2, max_size="1MB")
    assert (chosen.baseline.model, chosen.threads) == ("other", 2)
    with pytest.raises(InputError, match="chooses from a stored record"):
        gate_onnx(models["copy"], baseline=models["one"], baseline_model="other")


def test_records_that_are_no_timings_are_refused(models, tmp_path):
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(InputError, match="is not JSON"):
        gate_onnx(models["one"], baseline=tmp_path / "text.json")
    later = Bench(results=()).to_document() | {"schema": "deploykit.timing/9"}
    with pytest.raises(InputError, match=r"schema 'deploykit\.timing/9'"):
        gate_onnx(models["one"], baseline=write_json(tmp_path / "later.json", later))
    verdict = gate_onnx(models["one"], max_size="1MB")
    with pytest.raises(InputError, match="of kind 'verdict'; expected one of deploykit bench"):
        gate_onnx(models["one"], baseline=write_json(tmp_path / "verdict.json", verdict.to_document()))
    empty = write_json(tmp_path / "empty.json", Bench(results=()).to_document())
    with pytest.raises(InputError, match=r"no timing of 'one'; it holds none at all"):
        gate_onnx(models["one"], baseline=empty)


# Predictions


def classifier(path, threshold, labels=("dark", "bright")):
    """Tells pictures of 8 × 8 by their mean; the file knows its preprocessing and labels."""
    sign = 1.0 if labels[0] == "dark" else -1.0
    weights = [
        numpy_helper.from_array(np.array([[-sign, sign]], np.float32), "w"),
        numpy_helper.from_array(np.array([sign * threshold, -sign * threshold], np.float32), "b"),
    ]
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"]),
    ]
    metadata = {
        "deploykit.preprocess": json.dumps({"size": [8, 8], "channels": "L", "scale": 1 / 255}),
        "deploykit.labels": json.dumps(list(labels)),
    }
    ends = [("x", TensorProto.FLOAT, ["N", 1, 8, 8])], [("y", TensorProto.FLOAT, ["N", 2])]
    return save_graph(path, nodes, *ends, weights, metadata=metadata)


@pytest.fixture(scope="module")
def greys():
    """Two hundred grey pictures, the bright ones from 128 on."""
    shades = np.arange(200, dtype=np.uint8)
    images = shades[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    return Dataset.from_arrays("greys", images, (shades >= 128).astype(np.int64), ("dark", "bright"))


def test_a_drop_is_paired_and_equals_evaluate(tmp_path, greys):
    exact = classifier(tmp_path / "exact.onnx", 127.5 / 255)
    worse = classifier(
        tmp_path / "worse.onnx", 137.5 / 255, ("bright", "dark")
    )  # ten wrong; the other order of classes
    answers = answers_of_both(worse, exact, greys, batch_size=7)
    assert (answers.samples, answers.only_baseline, answers.only_candidate) == (200, 10, 0)
    counted = [evaluate_onnx(model, greys, reference=exact) for model in (worse, exact)]
    assert [answers.candidate_top1, answers.baseline_top1] == [record.top1 for record in counted]
    assert answers.agreement == counted[0].agreement == 0.95
    record = gate_onnx(worse, baseline=exact, data=greys, max_drop=0.04, min_agreement=0.9)
    assert [(check.name, check.verdict) for check in record.checks] == [("drop", "regression"), ("agreement", "pass")]
    assert record.checks[0].measured == pytest.approx(0.05)
    assert (record.candidate.top1, record.baseline.top1) == (0.95, 1.0)
    assert gate_onnx(worse, baseline=exact, data=greys, max_drop=0.05).verdict == "pass"
    assert gate_onnx(exact, baseline=worse, data=greys, max_drop=0.0).verdict == "pass"  # a gain is no drop


def test_what_is_missing_for_predictions_is_said(tmp_path, greys, record_path, models, capsys):
    exact = classifier(tmp_path / "exact.onnx", 0.5)
    with pytest.raises(InputError, match="give pictures with --data"):
        gate_onnx(exact, baseline=exact, max_drop=0.01)
    with pytest.raises(InputError, match=r"need the baseline's model; .*is a record"):
        gate_onnx(models["one"], baseline=record_path, data=greys, max_drop=0.01)
    assert main(["gate", str(exact), "--baseline", str(exact), "--data", "shapes"]) == 2
    assert "--data shapes is for --max-drop and --min-agreement" in capsys.readouterr().err


# What cannot be gated


def test_models_that_cannot_be_compared(models, tmp_path, capsys):
    other = conv_chain(tmp_path / "other.onnx", 2, channels=8)
    with pytest.raises(InputError, match=r"x 1x8x24x24 and .*x 1x16x24x24; .*same shapes"):
        gate_onnx(other, baseline=models["one"])
    with pytest.raises(ModelFileError, match="no such model file"):
        gate_onnx(tmp_path / "nothing.onnx", baseline=models["one"])
    with pytest.raises(ModelFileError, match=r"nothing\.onnx"):
        gate_onnx(models["one"], baseline=tmp_path / "nothing.onnx")
    with pytest.raises(UnknownNameError, match="unknown provider 'cpus'; did you mean 'cpu'"):
        gate_onnx(models["one"], baseline=models["copy"], provider="cpus")
    for flag, text in (
        ("--max-slowdown", "5"),
        ("--max-size", "10"),
        ("--max-memory", "lots"),
        ("--max-latency", "5"),
        ("--min-agreement", "1"),
        ("--budget", "0"),
        ("--threads", "0"),
    ):
        assert main(["gate", str(models["one"]), "--baseline", str(models["copy"]), flag, text]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert main(["gate", str(models["one"])]) == 2
    assert "no limit to keep and no baseline" in capsys.readouterr().err


@pytest.mark.skipif(bool(environment.describe()["gpus"]), reason="needs a machine without an NVIDIA GPU")
def test_a_provider_that_is_absent(models, capsys):
    assert main(["gate", str(models["one"]), "--baseline", str(models["copy"]), "--provider", "cuda"]) == 2
    err = capsys.readouterr().err
    assert "cuda" in err and err.count("\n") == 1


@POSIX
def test_a_process_that_dies_ends_the_gate(models):
    def kill_one(stage, done, total, note=""):
        children()[0].send_signal(signal.SIGKILL)

    with pytest.raises(InputError, match="was killed by SIGKILL"):
        gate_onnx(models["copy"], baseline=models["one"], max_slowdown=0.05, progress=kill_one)


def test_the_reason_that_a_check_has_is_kept():
    """A system that does not tell the memory is not taken for a noisy one."""
    question, untold = memory_question(Limit(10), None, 0), duets((0.0, 0.0), peaks=(0, 0))
    measurement = Measurement([], BenchOptions(), GateOptions(), silent, duets=untold)
    check = measurement._explained(question, question.check(untold, 0.95))
    assert check.remark == "the system does not tell how much memory a process has held"


def test_a_model_that_hangs_is_ended(tmp_path):
    hangs = endless_loop(tmp_path / "endless.onnx")
    with pytest.raises(InputError, match="no answer to 'start' within 2 s"):
        gate_onnx(hangs, baseline=relu(tmp_path / "relu.onnx", shape=(1,)), timeout_s=2.0)


def test_the_budget_ends_it_and_too_few_pairs_say_so(models):
    began = time.monotonic()
    record = gate_onnx(models["copy"], baseline=models["one"], max_slowdown=0.05, budget_s=0.5)
    assert (record.verdict, record.pairs, record.noise_floor) == ("inconclusive", 1, None)
    assert "raise --budget" in record.checks[0].remark
    assert record.checks[0].measured is None and record.checks[0].remark.startswith("one pair of processes in ")
    assert time.monotonic() - began < 20


@POSIX
def test_interrupted_it_leaves_no_process(models):
    command = [sys.executable, "-m", "deploykit", "gate", models["copy"], "--baseline", models["one"]]
    command += ["--max-slowdown", "0%", "--budget", "200"]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        workers = []
        until = time.monotonic() + 60
        while not workers and time.monotonic() < until:
            workers = psutil.Process(process.pid).children()
        assert workers
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted; what was complete stays\n"
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []


# On the command line


@pytest.mark.slow
def test_json_is_one_document_and_the_exit_code_says_the_verdict(models, tmp_path, capsys):
    record = tmp_path / "verdict.json"
    limits = ["--max-slowdown", "25%", "--max-memory", "+900%"]
    files = ["--json", "-o", str(record)]
    assert main(["gate", str(models["twice"]), "--baseline", str(models["one"]), *limits, *files]) == 1
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document == json.loads(record.read_text())
    assert document["verdict"] == "regression"
    assert {"name", "limit", "measured", "ci_low", "ci_high", "verdict"} <= set(document["checks"][0])
    assert "error: twice: slowdown +" in err and "allowed: +25.00 %" in err
    assert main(["gate", str(models["one"]), "--max-size", "1MB", *files]) == 2  # it exists
    assert "exists already" in capsys.readouterr().err
    assert main(["gate", str(models["one"]), "--max-size", "1MB", *files, "--overwrite"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "pass"
