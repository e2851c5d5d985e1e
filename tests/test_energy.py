"""The room ``energy``: real files as Linux lays them out, read by the room itself and by a real worker."""

import threading

import pytest
from tiny_onnx import relu

from deploykit import environment
from deploykit.energy import find_meters, open_rapl
from deploykit.worker import Worker

RANGE_UJ = 262143328850  # of a Xeon's package


def zone(powercap, folder, name, energy_uj, range_uj=RANGE_UJ):
    path = powercap / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path / "energy_uj"


def test_packages_and_memory_are_added_and_their_parts_are_not(tmp_path):
    first, second = (zone(tmp_path, f"intel-rapl:{index}", f"package-{index}", 1000) for index in (0, 1))
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 50)
    parts = [
        zone(tmp_path, "intel-rapl:0:0", "core", 10),
        zone(tmp_path, "intel-rapl:2", "psys", 10),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 10),
    ]
    meter = open_rapl(tmp_path)
    assert meter.sources == ("package-0", "dram", "package-1")
    for counter, value in ((first, 1700), (second, 1020), (memory, 53), *((part, 9999) for part in parts)):
        counter.write_text(f"{value}\n")
    assert meter.spent_uj() == 700 + 20 + 3
    assert meter.spent_uj() == 0  # counts from the last reading


def test_a_counter_that_begins_anew(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 100)
    meter = open_rapl(tmp_path)
    counter.write_text("250\n")
    assert meter.spent_uj() == 350


def test_why_there_is_no_meter(tmp_path):
    assert "no processor counts its energy" in open_rapl(tmp_path)
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5)
    counter.unlink()
    assert open_rapl(tmp_path) == f"{counter} may not be read; it takes root, or chmod a+r by root"


@pytest.mark.skipif(bool(environment.describe()["gpus"]), reason="needs a machine without an NVIDIA GPU")
def test_what_runs_on_a_gpu_needs_the_gpus_counter(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    meters, missing = find_meters("cuda", tmp_path)
    assert meters == [] and "GPU" in missing
    meters, missing = find_meters("cpu", tmp_path)
    assert [meter.sources for meter in meters] == [("package-0",)] and missing == ""


def test_a_worker_counts_during_its_timed_calls(tmp_path):
    counter = zone(tmp_path / "powercap", "intel-rapl:0", "package-0", 0)
    stop = threading.Event()

    def count():
        value = 0
        while not stop.is_set():
            value += 1000
            aside = counter.with_suffix(".new")
            aside.write_text(f"{value}\n")
            aside.replace(counter)

    feed = {"name": "x", "dtype": "float32", "shape": [1, 3]}
    with Worker("m") as worker:
        model = str(relu(tmp_path / "m.onnx"))
        started = worker.ask("start", model=model, feeds=[feed], seed=0, threads=1, powercap=str(tmp_path / "powercap"))
        assert (started["energy_sources"], started["energy_missing"]) == (["package-0"], "")
        assert worker.ask("measure", runs=10, lead=0)["energy_uj"] == 0
        thread = threading.Thread(target=count)
        thread.start()
        spent = worker.ask("measure", runs=20_000, lead=0)["energy_uj"]
        stop.set()
        thread.join()
    assert spent > 0 and spent % 1000 == 0
