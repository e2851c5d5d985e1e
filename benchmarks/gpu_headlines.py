"""The short form of the document: the figures that the programme is about, a line each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


def headlines(part: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """The figures that the programme is about, a line each."""
    lines: Callable[[Mapping[str, Any]], Iterator[str]] = {
        "throughput": _throughput_lines,
        "lenet": _training_lines,
        "cifar": _training_lines,
        "inference": _inference_lines,
        "flowers": _flowers_lines,
    }[part]
    return lines(figures)


def _throughput_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        if "synthetic" not in row:
            yield f"{network}: {'; '.join(row.get('errors', ['no figure']))}"
            continue
        ours, plain, real = row["synthetic"], row.get("plain", {}), row.get("real", {})
        mfu = "" if ours["mfu"] is None else f", MFU {100 * ours['mfu']:.1f} %"
        times = f", {ours['times_plain']:.2f}× plain ({plain['images_per_s']:g})" if "times_plain" in ours else ""
        of_real = f", real {real['images_per_s']:g}" if "images_per_s" in real else ""
        of_real += f", compiled {row['compiled']['images_per_s']:g}" if "compiled" in row else ""
        where = f"{ours['precision']}, batch {ours['batch_size']}"
        yield f"{network}: {ours['images_per_s']:g} pictures/s ({where}){mfu}{times}{of_real}"


def _training_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    if "test_top1" not in figures:
        return
    named = f"{figures['network']} on {figures['dataset']}: {100 * figures['test_top1']:.2f} %"
    yield f"{named} in {figures['seconds']:.1f} s, {figures['epochs']} epochs of {figures['epoch_s']:.2f} s"
    if (reached := figures.get("reached")) and reached["seconds"] is not None:
        yield f"{100 * reached['top1']:.1f} % after {reached['seconds']:.1f} s"


def _inference_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        for timed in (*row["torch"], *row["onnxruntime"]):
            if "error" in timed:
                yield f"{network}: {timed['error']}"
                continue
            graph = " with a CUDA graph" if timed.get("cuda_graph") else ""
            computed = timed["computed_in"] or f"{timed['file_precision']} file, computed in an unknown precision"
            way = f"{timed['way']} {computed}{graph}"
            yield f"{network}, batch {timed['batch']}, {way}: {timed['median_ms']:.3f} ms"


def _flowers_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    for network, row in figures.items():
        for file in row.get("files", []):
            took = ""
            if cpu := file.get("cpu"):
                threads = "1 thread" if cpu["threads"] == 1 else f"{cpu['threads']} threads"
                took = f", {cpu['median_ms']:.2f} ms on the CPU, {threads}"
            yield f"{network} {file['recipe']}: {100 * file['top1']:.1f} %, {file['file_bytes'] / 1e6:.2f} MB{took}"
