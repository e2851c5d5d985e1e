"""From pixels to a label: an int8 file that takes pixels, beside one that Python feeds with floats. One thread.

    python benchmarks/pixels_to_label.py --data-dir DATA [--lenet lenet5.onnx] [--network googlenet-bn] [--rounds 60]

Each network is quantized twice, as it is and with its preprocessing in the graph. LeNet-5 (`deploykit train lenet5
--data mnist`, exported) is shown MNIST's pictures as they are; the other network, with fresh weights, real photos of
128 pixels: brought to its own size beforehand, and as they are. Three ways to a label take turns in random order,
picture by picture. "NumPy" is what apps do, ((pixels / 255 - mean) / std) in Python's own precision after Pillow's
resize; "Python" is `deploykit.preprocess`; "graph" gives pixels to the runtime. Times are the processor time of the one
thread, so that other work on the machine does not count; a ratio is the median over the rounds, with the middle half.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from deploykit import data
from deploykit.artifact import Artifact
from deploykit.evaluate import evaluate_onnx
from deploykit.export import export_onnx
from deploykit.preprocess import apply, scaled_size
from deploykit.quantize import QuantizeOptions, quantize_onnx
from deploykit.raw_pictures import inputs_of
from deploykit.runtime import create_session
from deploykit.sources import example_inputs, open_source
from deploykit.wrap import WrapOptions, wrap_onnx


def int8_files(float_path, pictures, folder, *, fixed_size, samples):
    """The int8 file that takes floats, and the one that takes pixels."""
    paths = {kind: folder / f"{float_path.stem}.{kind}.onnx" for kind in ("pixels", "int8", "pixels.int8")}
    options = QuantizeOptions(samples=samples, effort="low", never_slower=False)
    wrap_onnx(float_path, paths["pixels"], options=WrapOptions(fixed_size=fixed_size), samples=pictures, overwrite=True)
    quantize_onnx(float_path, paths["int8"], calibration=pictures, options=options, overwrite=True)
    quantize_onnx(paths["pixels"], paths["pixels.int8"], calibration=pictures, options=options, overwrite=True)
    return paths["int8"], paths["pixels.int8"]


def usual_numpy(pre, picture):
    """(1, C, H, W) as apps write it: mean and std are Python lists, and the arithmetic is in float64 until the end."""
    size = scaled_size(pre, picture.shape[:2])
    if size != picture.shape[:2]:
        flat = picture[..., 0] if pre.depth == 1 else picture
        picture = np.asarray(Image.fromarray(flat).resize(size[::-1], Image.Resampling.BILINEAR))
    pixels = picture.reshape(*size, pre.depth)
    missing = [want - have for want, have in zip(pre.size, size, strict=True)]
    if any(pixel > 0 for pixel in missing):
        pixels = np.pad(pixels, [(pixel // 2, pixel - pixel // 2) for pixel in missing] + [(0, 0)])
    top, left = (max(0, -pixel) // 2 for pixel in missing)
    pixels = pixels[top : top + pre.size[0], left : left + pre.size[1]]
    normalized = (pixels / 255.0 - list(pre.mean)) / list(pre.std)
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None].astype(np.float32))


def ways(int8, pixels):
    """Functions from a picture (H, W, C) to its label."""
    pre, raw = Artifact.read(int8).preprocess, Artifact.read(pixels).preprocess
    floats, bytes_in = (create_session(path, threads=1).raw for path in (int8, pixels))

    def label(session, inputs):
        return int(session.run(None, {session.get_inputs()[0].name: inputs})[0].argmax())

    def as_it_is(picture):
        ready = raw.any_size or picture.shape[:2] == raw.size
        return picture[None] if ready else next(inputs_of(raw, picture[None]))

    return {
        "NumPy": lambda picture: label(floats, usual_numpy(pre, picture)),
        "Python": lambda picture: label(floats, apply(pre, picture[None])),
        "graph": lambda picture: label(bytes_in, as_it_is(picture)),
    }


def measured(ways, pictures, rounds):
    """Microseconds of each way in each round, and how often the labels of the last two are the same."""
    random, times = np.random.default_rng(0), {name: [] for name in ways}
    same = 0
    for number in range(rounds + 5):
        picture, labels = pictures[number % len(pictures)], {}
        for name in random.permutation(list(ways)):
            ways[name](pictures[(number + 1) % len(pictures)])  # what the way before left in the caches is gone
            start = time.thread_time_ns()
            labels[name] = ways[name](picture)
            if number >= 5:
                times[name].append((time.thread_time_ns() - start) / 1e3)
        same += number >= 5 and labels["Python"] == labels["graph"]
    return {name: np.asarray(values) for name, values in times.items()}, same / rounds


def row(title, int8, pixels, pictures, rounds):
    times, same = measured(ways(int8, pixels), pictures, rounds)
    cells = [f"{np.median(values) / 1e3:.3f} ms" for values in times.values()]
    for base in ("NumPy", "Python"):
        low, middle, high = np.percentile(times["graph"] / times[base], [25, 50, 75])
        cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
    print(f"| {title} | {' | '.join(cells)} | {same:.1%} | {pixels.stat().st_size / 1e3:.1f} KB |", flush=True)


def exported(network, folder):
    path = folder / f"{network}.onnx"
    if not path.exists():
        source = open_source(network)
        example, pictures = example_inputs(source, "shapes")
        export_onnx(source.module, path, example=example, card=source.card, pictures=pictures)
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--lenet", type=Path, help="LeNet-5's float .onnx, trained on MNIST")
    parser.add_argument("--network", action="append", help="with photos of 128 pixels; by default googlenet-bn")
    parser.add_argument("--photos", default="flowers5_128px.tar", help="in the data folder")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--keep", help="folder for the files")
    arguments = parser.parse_args()
    head = ("pictures", "NumPy", "Python", "graph", "graph / NumPy", "graph / Python", "same label", "file")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.keep or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.lenet:
            lenet(arguments, folder)
        photos = data.load(Path(arguments.data_dir) / arguments.photos, "train")
        for network in arguments.network or ["googlenet-bn"]:
            path = exported(network, folder)
            int8, pixels = int8_files(path, photos, folder, fixed_size=False, samples=32)
            shown = list(photos.take(32).pictures(range(32)))
            size = Artifact.read(path).preprocess.size
            fitted = [np.asarray(Image.fromarray(picture).resize(size[::-1])) for picture in shown]
            row(f"{network}, {size[0]} × {size[1]} as they are", int8, pixels, fitted, arguments.rounds)
            row(f"{network}, photos of 128 × 128, resized", int8, pixels, shown, arguments.rounds)


def lenet(arguments, folder):
    train, test = (data.load("mnist", split, data_dir=arguments.data_dir) for split in ("train", "test"))
    shown = list(test.take(200).pictures(range(200)))
    accuracies = [f"float {evaluate_onnx(arguments.lenet, test).top1:.2%}"]
    for fixed_size in (False, True):
        int8, pixels = int8_files(arguments.lenet, train, folder, fixed_size=fixed_size, samples=256)
        title = "28 × 28 only" if fixed_size else "any size, shown 28 × 28"
        row(f"LeNet-5, {title}", int8, pixels, shown, 10 * arguments.rounds)
        found = evaluate_onnx(pixels, test, reference=int8)
        accuracies.append(f"{title} {found.top1:.2%} (same as with floats on {found.agreement:.2%})")
    accuracies.append(f"int8 with floats {evaluate_onnx(int8, test).top1:.2%}")
    print(f"\nLeNet-5's top-1 on {len(test):,} test pictures: {', '.join(accuracies)}\n", flush=True)


if __name__ == "__main__":
    main()
