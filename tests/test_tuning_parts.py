"""The parts of a search: the grid, the cache, halving, the front, the choice, the settings for an app."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Trained
from hypothesis import given
from hypothesis import strategies as st

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.candidates import Here, candidates_of
from deploykit.errors import InputError, OutputError
from deploykit.halving import Figures, better_half
from deploykit.pareto import beats, on_front, step_of
from deploykit.predictions import Judge
from deploykit.race import Measured, heats_of, joined, ratio_of
from deploykit.result_cache import ResultCache
from deploykit.runtime import create_session
from deploykit.runtime_plugins import plugin_of
from deploykit.session_settings import CONFIG_KEYS, SessionSettings
from deploykit.tune_options import TuneOptions
from deploykit.tunings import Candidate
from deploykit.winner import choose, explain, settled

VNNI = Here("x86_64", ("avx2", "avx512_vnni"), 4)
HASWELL = Here("amd64", ("avx2",), 4)
ARM = Here("aarch64", ("asimd", "asimddp"), 4)


def _tried(options: TuneOptions, here: Here) -> set[tuple[str, str]]:
    return {(item.recipe, item.provider) for item in candidates_of(options, here) if not item.rejected_because}


def test_each_processor_gets_its_recipes() -> None:
    cpu = TuneOptions(providers=("cpu",))
    always = {("float", "cpu"), ("rewritten", "cpu"), ("int8", "cpu"), ("int8-int4fc", "cpu"), ("mixed", "cpu")}
    assert _tried(cpu, VNNI) == always | {("int8-vnni", "cpu")}
    assert _tried(cpu, HASWELL) == always
    assert _tried(cpu, ARM) == always | {("int8-arm", "cpu"), ("fp16", "cpu")}
    no_matrices = Here("x86_64", ("avx512_vnni",), 4, matrices=False)
    assert ("int8-int4fc", "cpu") not in _tried(cpu, no_matrices)


def test_what_a_provider_does_not_run_well_has_a_reason() -> None:
    options = TuneOptions(providers=("cpu", "openvino", "cuda"))
    found = candidates_of(options, Here("x86_64", ("avx512_vnni",), 4, problems={"cuda": "no GPU"}))
    reasons = {(item.recipe, item.provider): item.rejected_because for item in found}
    assert reasons["int8-openvino", "openvino"] is None
    assert reasons["fp16", "openvino"] is None
    assert "slower than float in ONNX Runtime" in str(reasons["int8-openvino", "cpu"])
    assert "no half-precision kernels" in str(reasons["fp16", "cpu"])
    assert "does not have" in str(reasons["int8-int4fc", "openvino"])
    assert {reason for (_, provider), reason in reasons.items() if provider == "cuda"} == {"no GPU"}
    gpu = _tried(TuneOptions(providers=("cuda",)), VNNI)
    assert gpu == {("float", "cuda"), ("rewritten", "cuda"), ("fp16", "cuda")}


def test_threads_and_sessions_of_the_grid() -> None:
    def settings(options: TuneOptions) -> list[tuple[int, dict[str, object]]]:
        return [(item.threads, dict(item.session)) for item in candidates_of(options, VNNI) if item.recipe == "float"]

    assert settings(TuneOptions(providers=("cpu",))) == [(1, {}), (4, {})]
    assert settings(TuneOptions(providers=("cuda",))) == [(4, {})]
    openvino = TuneOptions(providers=("openvino",), threads=(2,))
    assert settings(openvino) == [(2, {}), (2, {"optimize": False})]
    lean = TuneOptions(providers=("cpu",), threads=(2, 2), objective="memory")
    assert settings(lean) == [(2, {}), (2, {"memory": "lean"})]


def test_asked_recipes_and_quantized_models() -> None:
    asked = TuneOptions(providers=("cpu",), recipes=("int8-vnni",))
    assert _tried(asked, VNNI) == {("float", "cpu"), ("int8-vnni", "cpu")}
    refused = next(item for item in candidates_of(asked, HASWELL) if item.recipe == "int8-vnni")
    assert "saturate where VNNI is missing" in str(refused.rejected_because)
    assert _tried(TuneOptions(providers=("cpu",)), Here("x86_64", (), 2, quantized=True)) == {("float", "cpu")}


def test_results_are_made_once_and_again_when_they_are_damaged(tmp_path: Path) -> None:
    def made(number: int, cache: ResultCache) -> tuple[object, Path]:
        def make(folder: Path) -> dict[str, object]:
            (folder / "file.bin").write_bytes(b"content")
            return {"number": number}

        found = cache.get("step", {"model": "abc"}, make)
        return found.values["number"], found.folder / "file.bin"

    first = ResultCache(tmp_path / "cache")
    assert made(1, first)[0] == 1 and made(2, first)[0] == 1
    assert (len(first.made), len(first.reused)) == (1, 0)
    second = ResultCache(tmp_path / "cache")
    value, path = made(3, second)
    assert (value, len(second.reused)) == (1, 1)
    path.write_bytes(b"contenu")
    assert made(4, second)[0] == 4
    path.with_name("entry.json").write_text("{", encoding="utf-8")
    assert made(5, ResultCache(tmp_path / "cache"))[0] == 5
    assert ResultCache(tmp_path / "cache").get("step", {"model": "other"}, lambda _: {"number": 6}).values == {
        "number": 6
    }


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, object]:
        (folder / "half").write_bytes(b"half")
        raise InputError("no")

    cache = ResultCache(tmp_path / "cache")
    with pytest.raises(InputError, match="no"):
        cache.get("step", {}, fail)
    assert list((tmp_path / "cache").iterdir()) == [] and cache.made == []
    cache.get("step", {}, lambda _: {"problem": "memory"}, keep=lambda values: values["problem"] is None)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "cache" / ".making-left").mkdir()
    ResultCache(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    if os.name == "posix" and os.geteuid() != 0:
        (tmp_path / "cache").chmod(0o500)
        with pytest.raises(OutputError, match="cannot write"):
            cache.get("step", {}, lambda _: {})


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, ...]]) -> None:
    front = [point for point, stays in zip(points, on_front(points), strict=True) if stays]
    assert len(set(front)) == len(front)  # of equal ones the first
    for point in points:
        assert any(beats(other, point) for other in front)
    for one in front:
        assert not any(beats(other, one) for other in front if other != one)


def test_steps_count_what_is_within_the_tolerance_as_equal() -> None:
    assert step_of(1.0, 0.02) == step_of(1.005, 0.02) == step_of(0.995, 0.02)
    assert step_of(1.05, 0.02) > step_of(1.0, 0.02)


def test_the_better_half_stays_at_least_so_many() -> None:
    ranks = {7: 1.0, 3: 0.2, 5: 0.9, 1: 0.5, 9: 0.7}
    assert better_half(ranks, least=2) == [1, 3, 9]
    assert better_half(ranks, least=4) == [1, 3, 5, 9]
    assert better_half({1: 1.0}, least=3) == [1]


def test_heats_keep_all_entries_and_split_what_does_not_fit() -> None:
    assert heats_of([10_000] * 4, 10_000) == [[0, 1, 2, 3]]
    tera = 10**12
    assert heats_of([tera, 1000, tera], 1000) == [[0], [1], [2]]
    assert heats_of([], 5) == [[]]


def _measured(*turns: list[float], peak: int = 10_000_000) -> Measured:
    middle = float(np.median([turn for process in turns for turn in process]))
    return Measured(middle, middle, middle, peak, True, tuple(map(tuple, turns)))


def test_ratios_are_those_of_the_turns_side_by_side() -> None:
    """A spell in which all took three times as long leaves the ratio alone."""
    spell = [1.0, 1.0, 3.0, 3.0, 1.0, 1.0]
    twice = ratio_of(_measured([2.0 * factor for factor in spell]), _measured(list(spell)))
    assert (twice.low, twice.middle, twice.high) == pytest.approx((2.0, 2.0, 2.0))
    few = ratio_of(_measured([1.0, 3.0]), _measured([1.0, 1.0]))
    assert (few.low, few.high) == pytest.approx((1.0, 3.0))
    several = ratio_of(_measured([1.0], [1.2], [1.1]), _measured([1.0], [1.0], [1.0]))
    assert several.low < 1.0 < several.middle < 1.2 < several.high  # three processes say little


@given(st.lists(st.lists(st.floats(0.1, 10.0), min_size=3, max_size=8), min_size=1, max_size=4))
def test_a_ratio_the_other_way_round_is_the_inverse(turns: list[list[float]]) -> None:
    """So "clearly faster" and "clearly slower" cannot contradict each other."""
    one, other = _measured(*turns), _measured(*([1.0] * len(process) for process in turns))
    there, back = ratio_of(one, other), ratio_of(other, one)
    assert (1 / back.high, 1 / back.middle, 1 / back.low) == pytest.approx((there.low, there.middle, there.high))


def test_measured_figures_come_back_from_json() -> None:
    found = _measured([1.0, 2.0], [1.5, 2.5])
    assert Measured.from_json(found.to_json()) == found


def _figures(*latencies: float, spread: float = 0.001, peaks: tuple[int, ...] = ()) -> dict[int, Figures]:
    """One run of three processes of eight turns; each entry's latency has a small spread of its own."""
    generator = np.random.default_rng(1)
    found = [
        _measured(*(list(latency * (1 + spread * generator.standard_normal(8))) for _ in range(3)), peak=peak)
        for latency, peak in zip(latencies, peaks or (10**7,) * len(latencies), strict=True)
    ]
    return {place: Figures(item, ratio_of(item, found[0])) for place, item in enumerate(found)}


def _candidates(*recipes: str, drops: tuple[float, ...] = (), sizes: tuple[int, ...] = ()) -> list[Candidate]:
    return [
        Candidate(recipe, "cpu", 1, drop=drop, top1=0.9 - drop, file_bytes=size)
        for recipe, drop, size in zip(
            recipes, drops or (0.0,) * len(recipes), sizes or (1000,) * len(recipes), strict=True
        )
    ]


def test_the_fastest_is_named_only_when_it_is_clear() -> None:
    candidates = _candidates("float", "int8")
    assert choose("latency", candidates, _figures(1.0, 0.5)).place == 1
    assert choose("latency", candidates, _figures(1.0, 1.2)).place == 0
    unclear = choose("latency", candidates, _figures(1.0, 0.97, spread=0.1))
    assert unclear.place == 0 and unclear.nearest == 1
    assert explain(unclear, candidates, 1000, 0.005, "latency").startswith(
        "the float model on cpu with 1 thread: no other file is clearly faster: int8 on cpu with 1 thread is "
    )


def test_more_runs_are_made_only_where_they_may_change_the_answer() -> None:
    candidates = _candidates("float", "int8")

    def clear(objective: str, latency: float, spread: float) -> bool:
        return settled(objective, candidates, _figures(1.0, latency, spread=spread), confidence=0.95)

    assert clear("latency", 0.5, 0.001) and clear("latency", 1.2, 0.1)
    assert not clear("latency", 0.9, 0.2)
    assert clear("size", 0.9, 0.2)
    unclear, sure = (
        choose("latency", candidates, _figures(1.0, 0.9, spread=0.05), confidence=confidence).place
        for confidence in (0.999, 0.5)
    )
    assert (unclear, sure) == (0, 1)


def test_runs_are_joined_process_by_process() -> None:
    one, other = _measured([1.0, 1.0], peak=5), _measured([2.0, 2.0], [3.0], peak=7)
    both = joined([one, other])
    assert both.turns_ms == ((1.0, 1.0), (2.0, 2.0), (3.0,))
    assert both.peak_bytes == 7 and both.stable and both.ci_low_ms <= both.latency_ms == 2.0 <= both.ci_high_ms
    assert not joined([one, replace(other, stable=False)]).stable
    assert joined([one, Measured(problem="gone")]).problem == "gone"
    assert joined([one]) == one


def test_a_rewritten_float_model_counts_as_float() -> None:
    candidates = _candidates("float", "rewritten", "int8")
    assert choose("latency", candidates, _figures(1.0, 0.7, 0.8)).place == 1
    assert choose("latency", candidates, _figures(1.0, 0.7, 0.5)).place == 2
    assert choose("latency", candidates, _figures(1.0, 1.0, 1.1)).place == 0


def test_of_equally_fast_ones_the_more_accurate_is_named() -> None:
    candidates = _candidates("float", "int8", "int8-vnni", drops=(0.0, 0.004, 0.001))
    assert choose("latency", candidates, _figures(1.0, 0.5, 0.502)).place == 2
    assert choose("latency", candidates, _figures(1.0, 0.5, 0.6)).place == 1
    alike = _candidates("float", "int8", "int8-vnni")
    assert choose("latency", alike, _figures(1.0, 0.502, 0.5)).place == 1  # the portable one stands first


def test_size_and_memory_have_their_own_order() -> None:
    candidates = _candidates("float", "int8", "int8-int4fc", sizes=(1000, 300, 200))
    winner = choose("size", candidates, _figures(1.0, 0.5, 1.5))
    assert winner.place == 2
    assert "slower than the float model" in explain(winner, candidates, 1000, 0.005, "size")
    figures = _figures(1.0, 0.9, 0.5, peaks=(100_000, 50_000, 51_000))
    assert choose("memory", candidates, figures).place == 2  # as little memory as the other, and faster


def test_accuracy_by_labels_and_by_agreement(trained: Trained) -> None:
    pictures, source = data.load("shapes", "test").take(4), Artifact.read(trained.onnx)
    place = {name: index for index, name in enumerate(source.labels)}
    right = [place[pictures.labels[target]] for target in pictures.targets]
    wrong = [(answer + 1) % len(place) for answer in right]
    judge = Judge.of([*right[:3], wrong[3]], len(place), source, pictures)
    assert (judge.by, judge.right) == ("top1", 0.75)
    assert not judge.guesses(len(place)) and judge.guesses(2)  # three of four
    loss = judge.loss([*right[:2], wrong[2], right[3]])
    assert (loss.top1, loss.agreement, loss.drop) == (0.75, 0.5, 0.0)
    assert judge.loss(right).drop == -0.25
    stranger = Judge.of(right, 1000, replace(source, labels=()), pictures)
    assert (stranger.by, stranger.right) == ("agreement", 0.0)
    loss = stranger.loss([*right[:3], wrong[3]])
    assert (loss.top1, loss.agreement, loss.drop) == (None, 0.75, 0.25)


def test_every_setting_that_deploykit_makes_is_read_back(trained: Trained) -> None:
    """An entry that the room of sessions sets, and the settings do not ask for, would be missing in the app."""
    folder = Path(__file__).parent.parent / "deploykit"
    text = (folder / "session_options.py").read_text()
    keys = set(re.findall(r'add_session_config_entry\(\s*"([^"]+)"', text))
    not_for_apps = {"session.record_ep_graph_assignment_info", "session.model_external_initializers_file_folder_path"}
    assert keys - not_for_apps <= set(CONFIG_KEYS)
    attributes = set(re.findall(r"\boptions\.(\w+)(?:, options\.\w+)* =", text)) - {"log_severity_level"}
    session = create_session(trained.onnx, threads=2, optimize=False, spinning=False)
    settings = SessionSettings.of(session)
    assert attributes <= {*settings.options, "enable_profiling", "profile_file_prefix"}
    assert settings.options["graph_optimization_level"] == "ORT_DISABLE_ALL"
    assert settings.options["intra_op_num_threads"] == 2
    assert settings.config_entries == {"session.intra_op.allow_spinning": "0"}


def test_the_snippet_for_a_plugin_says_where_it_has_no_device(tmp_path: Path) -> None:
    """With the plugin the snippet opens a session or ends with its own words, without it with Python's."""
    options = {"intra_op_num_threads": 3, "graph_optimization_level": "ORT_ENABLE_ALL"}
    settings = SessionSettings("openvino", (), options, {}, plugin_of("openvino", 3))
    (tmp_path / "snippet.py").write_text(settings.to_python("best.onnx", "OpenVINO, 3 threads."), encoding="utf-8")
    text = (tmp_path / "snippet.py").read_text(encoding="utf-8")
    assert '"INFERENCE_NUM_THREADS": "3"' in text.replace("\\", "")
    program = (
        "import snippet\ntry: snippet.create_session()\nexcept Exception as problem: print(type(problem), problem)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    known = ("offers no device on this machine", "No module named 'onnxruntime_ep_openvino'", "best.onnx")
    assert any(words in done.stdout + done.stderr for words in known), done.stderr
