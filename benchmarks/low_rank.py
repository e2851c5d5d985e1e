"""What low rank saves in stock ONNX Runtime: large layers with a given rank, and a trained network's accuracy.

    python benchmarks/low_rank.py [--network alexnet-owt --rank 256] [--trained MODEL.onnx --data mnist --ranks 64 128]

The large network has fresh weights, which have no low rank to find: it shows latency and memory alone, measured
interleaved with the whole network. Accuracies are of the trained model on the test split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from deploykit import data, environment
from deploykit.bench import BenchOptions, bench_onnx
from deploykit.export import export_onnx
from deploykit.factorize import FactorizeOptions, factorize_onnx
from deploykit.results import Compression
from deploykit.sources import example_inputs, open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="alexnet-owt")
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--ranks", type=int, nargs="*", default=[32, 64, 128])
    given = parser.parse_args()
    print(
        "| model | layer: matrix → rank | MACs of these layers | file | download | top-1 | agreement |"
        " latency, 1 thread |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / f"{given.network}.onnx"
        source = open_source(given.network)
        example, shown = example_inputs(source, None)
        export_onnx(source.module, whole, example=example, card=source.card, pictures=shown)
        _measure(whole, [given.rank], None, Path(folder))
        if given.trained:
            pictures = data.load(given.data, "test", data_dir=given.data_dir)
            _measure(given.trained, given.ranks, pictures, Path(folder))
    print(json.dumps(environment.describe()))


def _measure(model: Path, ranks: list[int], pictures: data.Dataset | None, folder: Path) -> None:
    made: list[Compression] = []
    paths = [model]
    for rank in ranks:
        paths.append(folder / f"{model.stem}.rank{rank}.onnx")
        made.append(factorize_onnx(model, paths[-1], options=FactorizeOptions(rank, threads=1), data=pictures))
    timings = bench_onnx(paths, BenchOptions(threads=1)).results
    first = made[0]
    before = sum(layer.macs_before for layer in first.factored)
    accuracy = "" if first.top1_before is None else f"{100 * first.top1_before:.2f} %"
    _row(model.stem, "–", before, first.parent_bytes, first.parent_download_bytes, accuracy, "", timings[0])
    for record, timing in zip(made, timings[1:], strict=True):
        layers = ", ".join(
            f"`{layer.name}` {layer.inputs}×{layer.outputs} → {layer.rank} ({100 * layer.energy:.1f} % of the energy)"
            for layer in record.factored
        )
        after = sum(layer.macs_after for layer in record.factored)
        told = ["" if value is None else f"{100 * value:.2f} %" for value in (record.top1, record.agreement)]
        name = Path(record.model).stem
        _row(name, layers, after, record.file_bytes, record.download_bytes, *told, timing)


def _row(name, layers, macs, file_bytes, download_bytes, top1, agreement, timing) -> None:  # type: ignore[no-untyped-def]
    latency = timing.latency_ms
    doubt = "" if timing.stable else " (unstable)"
    print(
        f"| `{name}` | {layers} | {macs:,} | {file_bytes:,} | {download_bytes:,} | {top1} | {agreement} |"
        f" {latency.median:.3g} ms, {latency.ci_low:.3g}–{latency.ci_high:.3g}{doubt} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
