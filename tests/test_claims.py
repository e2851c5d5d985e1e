"""What is said of the reference networks beside what is measured, and half precision."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import data
from deploykit.claims import ClaimsOptions, measure_claims
from deploykit.cli import main
from deploykit.errors import InputError, ModelFileError, UnknownNameError
from deploykit.export import export_onnx
from deploykit.graph.half import half_precision
from deploykit.models.profile import profile_network
from deploykit.preprocess import apply
from deploykit.published import NETWORKS_NEEDED, published_statements
from deploykit.report.claims import claims_tables
from deploykit.results import Claims, FileCost, NetworkCost, read_record
from deploykit.runtime import create_session
from deploykit.sources import example_inputs, open_source


@pytest.fixture(scope="module")
def statements():
    profiles = {name: profile_network(name) for name in NETWORKS_NEEDED}
    return {item.says: item for item in published_statements(profiles)}


@pytest.mark.parametrize(
    ("says", "measured"),
    [
        ("LeNet-5 has 60,850 parameters", 60_850),
        ("LeNet-5 has 340,918 connections", 340_918),
        ("AlexNet has 60,965,128 parameters", 60_965_224),
        ("AlexNet has 1,000 times LeNet-5's parameters", 60_965_224 / 60_850),
        # 55²·96 + 27²·256 + 13²·(384 + 384 + 256) + 4096 + 4096 + 1000
        ("AlexNet has 650,000 neurons", 659_272),
        ("GoogLeNet has 12 times fewer parameters than AlexNet", 60_965_224 / 6_998_552),
        ("GoogLeNet has 5 M parameters", 6_998_552),
        ("GoogLeNet takes 1.5 billion multiply-adds", 1.582671872),
        ("VGG D has 138 M parameters", 138_357_544),
        ("three 3×3 have 55 % of one 7×7's weights", 27 / 49),
        ("most of VGG-16's parameters are in its first fully connected layer", 102_764_544 / 138_357_544),
        ("a bottleneck has 16.86 times fewer parameters than two 3×3 of 256 channels", 1_180_160 / 70_016),
        ("ResNet-50 takes 3.8·10⁹ FLOPs", 4.089184256),
        ("DenseNet has a third of ResNet-152's parameters at like accuracy", 20_013_928 / 60_192_808),
    ],
)
def test_a_statement_is_measured_on_the_networks(statements, says, measured):
    assert statements[says].measured == pytest.approx(measured, rel=1e-9)


def test_remarks_say_why_a_figure_differs(statements):
    assert (
        "10.2 without GoogLeNet's classifier"
        in statements["GoogLeNet has 12 times fewer parameters than AlexNet"].remark
    )
    assert "leave out 96 numbers" in statements["AlexNet has 60,965,128 parameters"].remark
    assert "553 MB (528 MiB)" in statements["VGG takes much memory (140M)"].remark


def test_what_takes_imagenet_is_said_to_be_unmeasured(statements):
    errors = [item for item in statements.values() if item.unit == "top-5 error"]
    assert len(errors) == 4
    assert all(item.measured is None and "ImageNet" in item.remark for item in errors)


@pytest.mark.slow
def test_the_command_measures_real_files_and_reports_them(tmp_path, capsys):
    page, work = tmp_path / "said.md", tmp_path / "work"
    arguments = ["report", "--claims", "--network", "color-cnn", "-o", str(page), "--work", str(work)]
    assert main(arguments) == 0
    record = read_record(tmp_path / "said.claims.json")
    assert isinstance(record, Claims)
    [cost] = record.networks
    sizes = {item.precision: item.file_bytes for item in cost.files}
    assert set(sizes) == {"fp32", "fp16", "int8"}
    assert sizes["fp16"] < 0.75 * sizes["fp32"]  # 15 KB of weights, and a graph of some kilobytes
    assert all(item.latency_ms > 0 and item.peak_bytes > 0 for item in cost.files)
    text = page.read_text()
    assert re.search(r"a bottleneck has 16.86 times .*\| 16.86× \| 16.86×", text)
    assert re.search(r"\| color-cnn \|.*\| 3,815 \|", text)
    today = datetime.now(UTC).date()
    assert date.fromisoformat(record.measured_on) in (today, today - timedelta(days=1))
    assert f"by deploykit report --claims --network color-cnn -o said.md on {record.measured_on}; " in text
    # What was measured is kept: the second call takes it from there, and gives the same figures.
    assert main([*arguments, "--overwrite"]) == 0
    assert read_record(tmp_path / "said.claims.json").networks == record.networks
    # The record is one of those that any report shows.
    capsys.readouterr()
    assert main(["report", str(tmp_path / "said.claims.json"), "-o", str(tmp_path / "other.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["networks"][0]["network"] == "color-cnn"


def test_the_page_says_by_which_command_when_and_on_what_machine():
    files = tuple(FileCost(kind, 4, latency_ms=1.0, stable=kind != "int8") for kind in ("fp32", "int8"))
    record = Claims(
        deploykit="9", environment={"cpu": "A CPU", "cpu_features": ["avx2"], "available_cpus": 2, "gpus": [],
                                    "memory_bytes": 8_000_000_000, "os": "Linux 6", "python": "3.11.7",
                                    "versions": {"onnxruntime": "1.2", "altair": "3"}},
        statements=(), networks=(NetworkCost("lenet5", "", 1, 1, 1, 1, files),),
        measured_on="2026-01-31 to 2026-02-01", command="deploykit report --claims -o claims.md",
    )  # fmt: skip
    [table] = claims_tables([record])
    assert "unstable timing, 1 of 2 here" in " ".join(table.notes)
    assert table.notes[-1] == (
        "Measured by deploykit report --claims -o claims.md on 2026-01-31 to 2026-02-01; A CPU (avx2), 2 CPUs, 8.00 GB"
        " of memory, no GPU, Linux 6, Python 3.11.7, onnxruntime 1.2."
    )
    earlier = replace(record, measured_on="", command="")  # as records of before were
    assert not any("Measured" in note for note in claims_tables([earlier])[0].notes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--claims", "-o", "x.pdf"], "a report ends in"),
        (["--claims", "--network", "googlenett", "-o", "x.md"], "googlenet"),
        (["--network", "lenet5", "-o", "x.md", "folder"], "--claims"),
        (["-o", "x.md"], "nothing to report"),
        (["--claims"], "no file to write"),
        (["--claims", "--threads", "0", "-o", "x.md"], "threads 0"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_measured(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_options_are_checked():
    with pytest.raises(UnknownNameError):
        ClaimsOptions(networks=("lenet6",))
    with pytest.raises(InputError, match="no network"):
        measure_claims(ClaimsOptions(networks=()))


def test_half_precision_computes_the_same_within_its_digits(tmp_path):
    source = open_source("cifar-cnn")
    example, pictures = example_inputs(source, "shapes")
    export_onnx(source.module, tmp_path / "full.onnx", example=example, card=source.card, pictures=pictures)
    model = onnx.load(tmp_path / "full.onnx")
    half = half_precision(model)
    onnx.checker.check_model(half, full_check=True)
    onnx.save(half, tmp_path / "half.onnx")
    inputs = apply(source.card.preprocess, data.load("shapes", "test").take(20).pictures(slice(0, 20)))
    wanted, got = (create_session(tmp_path / name).run_rows(inputs) for name in ("full.onnx", "half.onnx"))
    assert got.dtype == np.float32
    # Ten binary digits a rounding, a sum of some hundred products.
    np.testing.assert_allclose(got, wanted, atol=0.02 * np.abs(wanted).max())
    assert not np.array_equal(got, wanted)
    assert {item.data_type for item in half.graph.initializer} <= {TensorProto.FLOAT16, TensorProto.INT64}
    assert onnx.load(tmp_path / "full.onnx") == model  # the input is not changed


def _scaling(weight: float) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([weight], np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_half_precision_refuses_what_it_cannot_hold():
    with pytest.raises(ModelFileError, match="65504"):
        half_precision(_scaling(1e5))
    quantized = _scaling(1.0)
    quantized.graph.node[0].op_type = "QLinearMul"
    with pytest.raises(InputError, match="quantized"):
        half_precision(quantized)
