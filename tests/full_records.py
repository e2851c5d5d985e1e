"""Records for every view of a report, those of an earlier state, and a thousand at once."""

from dataclasses import replace

from synthetic_records import (
    EDGE,
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
)

from deploykit.results import (
    Candidate,
    Check,
    Compression,
    CpuRun,
    LayerProfile,
    OperatorTime,
    PrunedLayer,
    Rewriting,
    Tuning,
    Verdict,
    Verification,
)
from deploykit.verdicts import Side


def layers(count=60, precision="fp32"):
    """Layers of a network, every third one a pooling without weights."""
    return tuple(
        LayerProfile(
            f"features.{index}.{'pool' if index % 3 == 2 else 'conv'}",
            "MaxPool" if index % 3 == 2 else "Conv",
            (64, 56 - index % 40, 56 - index % 40),
            0 if index % 3 == 2 else 1000 * (index + 1),
            0 if index % 3 == 2 else 90_000 * (index + 2),
            0 if index % 3 == 2 else 90_000 * (index + 1),
            precision=None if index % 3 == 2 else precision,
        )
        for index in range(count)
    )


def harms(count=40):
    """The ranking of ``quantize --max-drop``, the worst layer first."""
    return tuple(
        {
            "layer": f"features.{3 * index}.conv",
            "op": "Conv",
            "noise": 0.08 / (index + 1) ** 1.3,
            "agreement": 1.0 - 0.05 / (index + 1),
            "cost": 1.0 / count,
        }
        for index in range(count)
    )


def verification(network, precision="int8"):
    return Verification(
        model=f"runs/{network}/{network}.{precision}.onnx",
        model_sha256=digest(f"{network}.{precision}"),
        precision=precision,
        dataset="mnist",
        split="test",
        dataset_digest=digest("mnist"),
        samples=1000,
        seed=0,
        threads=1,
        batch=64,
        onnxruntime="1.31.1",
        largest_logit=14.2,
        max_flips="0",
        allowed_flips=0,
        verdict="same",
        runs=(CpuRun("haswell", True, flips=0, agreement=1.0, seconds=20.0),),
        seconds=30.0,
        network=network,
        environment=ENVIRONMENT,
        deploykit="0.1.0",
    )


def operators(total_ms):
    """Where the time of a run goes, with one that is too small to show."""
    shares = (("Conv", 0.62, 40), ("Gemm", 0.21, 3), ("MaxPool", 0.12, 20), ("Softmax", 0.05, 1))
    return tuple(OperatorTime(name, "cpu", share * total_ms, share, count) for name, share, count in shares)


def full_records():
    """``all_records`` with every view: layers, operators, a ranking of the layers, zeros, another machine."""
    records = all_records()
    for network, precision, size, download, _, median, peak, parameters, macs in FIGURES:
        held = {"layers": layers(12, precision), "operators": {"Conv": 8, "MaxPool": 4, "Gemm": 1}}
        name = f"{network}.{precision}"
        records[f"{name}.profile.json"] = profile(network, precision, size, download, parameters, macs, **held)
        timed = timing(network, precision, size, median * 9, peak + 700_000, threads=4)
        records[f"{name}.edge.json"] = bench(timed, environment=EDGE)
    timings = [
        replace(item, operators=operators(item.latency_ms.median), profiled_ms=1.2 * item.latency_ms.median)
        for item in records["bench.json"].results
    ]
    records["bench.json"] = bench(*timings)
    ranked = replace(
        records["lenet5.int8.quantization.json"],
        recipe="mixed",
        sensitivity=harms(8),
        float_layers=("features.0.conv",),
        held_out_samples=512,
        held_out_drop=0.0039,
    )
    records |= {"lenet5.int8.quantization.json": ranked, "pruned.compression.json": compression("lenet5")}
    records |= {"gate.json": verdict()}
    return records | {"lenet5.tuning.json": tuning("lenet5"), "mnist-cnn.tuning.json": tuning("mnist-cnn")}


def tuning(network):
    """A search of eight candidates; two on the front, one of them unstable, two never measured."""
    measured = (
        ("float", "cpu", 1, 0.0731, 250_871, 1_410_000, 0.9922, {"on_front": True}),
        ("int8", "cpu", 1, 0.0522, 70_112, 1_120_000, 0.9918, {"on_front": True}),
        ("int8", "cpu", 2, 0.0497, 70_112, 1_180_000, 0.9918, {"on_front": True, "stable": False}),
        ("int8-vnni", "openvino", 1, 0.0612, 70_800, 9_120_000, 0.9914, {}),
        ("fp16", "cpu", 1, 0.0911, 126_000, 1_400_000, 0.9921, {}),
        ("int8-arm", "cpu", 1, 0.0701, 70_300, 1_150_000, 0.9702, {"rejected_because": "2.2 points lost; 0.5 allowed"}),
    )
    candidates = [
        Candidate(recipe, provider, threads, {}, None, size, latency, None, None, None, peak, top1, 0.998, None, **more)
        for recipe, provider, threads, latency, size, peak, top1, more in measured
    ]
    refused = ("openvino takes no node of it", "4 threads on 2 CPUs")
    candidates += [
        Candidate("int8", "cuda", 1, rejected_because=refused[0]),
        Candidate("int8", "cpu", 4, rejected_because=refused[1]),
    ]
    return Tuning(
        model=f"runs/{network}/{network}.onnx",
        model_sha256=digest(f"{network}.fp32"),
        objective="latency",
        max_drop=0.005,
        accuracy_by="top1",
        best=candidates[1],
        why="The fastest that is stable and loses at most 0.5 points.",
        candidates=tuple(candidates),
        session={},
        dataset="mnist",
        dataset_digest=digest("mnist"),
        held_out_samples=512,
        calibration="mnist",
        calibration_digest=digest("mnist train"),
        effort="medium",
        speedup=1.4,
        speedup_low=1.38,
        speedup_high=1.42,
        environment=ENVIRONMENT,
        deploykit="0.1.0",
    )


def verdict(answer="regression"):
    """A gate that asked for speed, size and accuracy."""
    checks = (
        Check("size", "bytes", 100_000, 70_112, 70_112, 70_112, "pass", 70_112, 250_871),
        Check("slowdown", "fraction", 0.05, 0.416, 0.307, 0.533, answer, 0.0547, 0.0386),
        Check("drop", "fraction", 0.005, 0.0003, -0.002, 0.002, "pass", 0.9918, 0.9921, "on 900 pictures"),
    )
    return Verdict(
        verdict=answer,
        checks=checks,
        noise_floor=0.113,
        candidate=Side("runs/lenet5/lenet5.int8.onnx", digest("lenet5.int8"), "int8", 70_112),
        baseline=Side("runs/lenet5/lenet5.fp32.onnx", digest("lenet5.fp32"), "fp32", 250_871),
        baseline_kind="model",
        provider="cpu",
        threads=1,
        batch=1,
        pairs=3,
        rounds=30,
        seconds=11.0,
        budget_s=60.0,
        warnings=("others had the processor for 65% of the calls' time",),
        environment=ENVIRONMENT,
        deploykit="0.1.0",
    )


def compression(network):
    return Compression(
        model=f"{network}-pruned",
        model_sha256=digest(f"{network} pruned"),
        parent=network,
        parent_sha256=digest(f"{network} checkpoint"),
        method="prune",
        file_bytes=250_871,
        parent_bytes=250_871,
        download_bytes=61_000,
        parent_download_bytes=228_400,
        seconds=61.0,
        pruned=(
            PrunedLayer("fc1", "Linear", (120, 400), 48_000, 43_200),
            PrunedLayer("fc2", "Linear", (84, 120), 10_080, 9_072),
        ),
        top1_before=0.9921,
        top1=0.9915,
        environment=ENVIRONMENT,
        deploykit="0.1.0",
    )


def rewriting():
    return Rewriting(
        model="net.onnx",
        model_sha256=digest("net rewritten"),
        parent="net.onnx",
        parent_sha256=digest("net"),
        changes={"fold_batch_norm": 3},
        nodes_before=20,
        nodes_after=17,
        opset_before=20,
        opset_after=20,
        file_bytes=1000,
        parent_bytes=1100,
        tolerance=1e-4,
        random_samples=4,
        max_abs=1e-6,
        max_rel=1e-6,
        environment=ENVIRONMENT,
        deploykit="0.1.0",
    )


def earlier_records():
    """What ``all_records`` is held against: one file slower now, one larger, one less right, the rest alike."""
    records = all_records()
    before = {"lenet5.int8": 0.8, "mnist-cnn.fp32": 1.02}
    timings = []
    for item in records["bench.json"].results:
        name = f"{item.network}.{item.precision}"
        median = item.latency_ms.median * before.get(name, 1.0)
        size = {"lenet5.int8": 60_000, "plain-mnist.int8": 420_000}.get(name, item.file_bytes)
        made = timing(item.network, item.precision, size, median, item.memory.peak_bytes)
        timings.append(replace(made, model_sha256=digest(f"{name} before")))
    scored = [
        replace(
            records[f"{network}.{precision}.accuracy.json"],
            model_sha256=digest(f"{network}.{precision} before"),
            file_bytes=None,
            top1=top1 + (0.0016 if (network, precision) == ("mnist-cnn", "int8") else 0.0),
        )
        for network, precision, _, _, top1, *_ in FIGURES
    ]
    return {"bench.json": bench(*timings)} | {f"{index}.json": record for index, record in enumerate(scored)}


def thousand_records():
    """By file name, 1,000 records of seven kinds, as 330 files of 165 networks would leave."""
    records = {}
    for index in range(165):
        network, size = f"network-{index:03d}", 50_000 + index * 997
        for precision, share in (("fp32", 1.0), ("int8", 0.25)):
            name, file_bytes = f"{network}.{precision}", int(size * share)
            shape = (file_bytes, file_bytes - 100, size // 4, size * 7)
            held = {"layers": layers(60, precision), "operators": {"Conv": 40, "MaxPool": 20}}
            records[f"{name}.profile.json"] = profile(network, precision, *shape, **held)
            top1 = 0.9 + index / 4000 - (0.002 if precision == "int8" else 0.0)
            records[f"{name}.accuracy.json"] = accuracy(network, precision, file_bytes, top1)
        timings = (
            timing(network, "fp32", size, 0.02 + index / 1000, size * 3),
            timing(network, "int8", size // 4, 0.015 + index / 2000, size * 2),
        )
        records[f"{network}.bench.json"] = bench(*timings)
        if index < 95:
            made = replace(quantization(network, size // 4, size), sensitivity=harms())
            records[f"{network}.int8.quantization.json"] = made
        if index < 40:
            records[f"{network}.train.json"] = training(network, 90)
            records[f"{network}.int8.verification.json"] = verification(network)
    return records
