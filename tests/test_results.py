from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.errors import InputError
from deploykit.files import write_json
from deploykit.results import Accuracy, Bench, Example, Latency, Memory, Timing, read_record


def _accuracy() -> Accuracy:
    return Accuracy(
        environment={"cpu": "test"},
        deploykit="0.1.0",
        model="ü.onnx",
        model_sha256="0" * 64,
        dataset="mnist",
        split="test",
        dataset_digest="1" * 64,
        samples=10,
        top1=0.9,
        top5=None,
        per_class={"zero": 0.5, "one": None},
        agreement=1.0,
        reference="a.onnx",
        provider="cpu",
        precision="int8",
        examples=(Example("QUJD", "zero", "one", 0.25),),
    )


def _bench() -> Bench:
    latency = Latency(median=1.0, mean=1.1, p50=1.0, p90=1.2, p99=1.5, min=0.9, ci_low=0.95, ci_high=1.05, samples=100)
    timing = Timing(
        model="a.onnx",
        model_sha256="0" * 64,
        precision="fp32",
        provider="cpu",
        nodes_by_provider={"cpu": 7},
        threads=1,
        batch=1,
        latency_ms=latency,
        throughput_per_s=1000.0,
        load_ms=3.0,
        first_run_ms=2.0,
        memory=Memory(weights_bytes=1, after_load_bytes=2, peak_bytes=3),
        stable=True,
        warnings=("a", "b"),
    )
    return Bench(results=(timing,), deploykit="0.1.0", environment={})


@pytest.mark.parametrize("record", [_accuracy(), _bench()], ids=["accuracy", "timing"])
def test_round_trip_through_a_file(record: Accuracy | Bench, tmp_path: Path) -> None:
    path = write_json(tmp_path / "record.json", record.to_document())
    assert read_record(path) == record


def test_documents_have_the_promised_keys() -> None:
    document = _bench().to_document()
    assert document["schema"] == "deploykit.timing/1"
    assert list(document)[:3] == ["schema", "deploykit", "environment"]
    promised = (
        "model model_sha256 precision provider nodes_by_provider threads batch latency_ms throughput_per_s load_ms"
    )
    assert set(promised.split()) <= set(document["results"][0])
    assert set(_accuracy().to_document()) >= {
        "model",
        "dataset",
        "dataset_digest",
        "samples",
        "top1",
        "top5",
        "agreement",
        "provider",
    }


def test_not_a_number_becomes_null() -> None:
    text = json.dumps(Latency(*[float("nan")] * 8, 1).__dict__)
    assert "NaN" in text
    latency = _bench().results[0].latency_ms
    bad = Bench(
        results=(
            Timing(
                **{**_bench().results[0].__dict__, "latency_ms": Latency(**{**latency.__dict__, "p99": float("inf")})}
            ),
        )
    )
    assert bad.to_document()["results"][0]["latency_ms"]["p99"] is None


def test_other_versions_are_refused_by_name(tmp_path: Path) -> None:
    document = _accuracy().to_document()
    for schema in ("deploykit.accuracy/2", "deploykit.nonsense/1", "", "other/1"):
        path = write_json(tmp_path / "record.json", document | {"schema": schema})
        with pytest.raises(InputError, match=r"deploykit\.accuracy/1") as caught:
            read_record(path)
        assert repr(schema) in str(caught.value)


def test_missing_keys_are_named_and_later_ones_passed_over(tmp_path: Path) -> None:
    document = _accuracy().to_document()
    del document["top1"], document["samples"]
    with pytest.raises(InputError, match="samples, top1"):
        read_record(write_json(tmp_path / "a.json", document))
    later = _accuracy().to_document() | {"added_in_a_later_version": 1}
    assert read_record(write_json(tmp_path / "b.json", later)) == _accuracy()
