"""Pruning: which weights go, that they stay away whatever trains, and what that does to a download."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import Trained
from onnx import helper, numpy_helper
from tiny_onnx import save_graph

from deploykit import data, models
from deploykit.augment import mix
from deploykit.checkpoint import read_checkpoint
from deploykit.cli import main
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, OutputError, UnknownNameError
from deploykit.files import sha256_file
from deploykit.graph.profile import profile_onnx
from deploykit.preprocess import for_network
from deploykit.prune import PRUNED, PruneOptions, prune_checkpoint, tuning_options
from deploykit.pruning import count_zeros, prune_module, shares_of
from deploykit.quantize import quantize_onnx
from deploykit.results import Compression, Training, read_record
from deploykit.training_recipes import TrainOptions
from deploykit.training_run import start_run
from deploykit.training_step import train_step

HALF = PruneOptions(0.9, {"conv2": 0.5})


@pytest.fixture(scope="module")
def few() -> tuple[Dataset, Dataset]:
    return data.load("shapes", "train").take(360), data.load("shapes", "test").take(90)


def tuning(trained: Trained, epochs: int = 2) -> TrainOptions:
    return tuning_options(trained.folder, "shapes-color-shape", epochs, threads=1, device="cpu", batch_size=40)


@pytest.mark.parametrize("share", [0.0, 0.123, 0.5, 0.9, 0.999])
def test_the_smallest_go_and_exactly_so_many(share):
    torch.manual_seed(0)
    module = models.build("color-shape-mlp")
    before = module.fc1.weight.detach().numpy().copy()
    prune_module(module, {"fc1": share})
    after, count = module.fc1.weight.detach().numpy(), round(share * before.size)
    assert (after == 0).sum() == count
    assert np.array_equal(after[after != 0], before[after != 0])
    order = np.sort(np.abs(before), axis=None)
    assert count == 0 or np.abs(before[after == 0]).max() <= order[count - 1]


def test_equal_magnitudes_go_in_order_and_zeros_of_before_count():
    module = models.build("lenet1")
    with torch.no_grad():
        module.output.weight.fill_(0.5).view(-1)[3::2] = -0.5
        module.output.weight[9] = 0.0
    prune_module(module, {"output": 0.25})
    flat = module.output.weight.detach().flatten()
    assert (flat == 0).sum() == 480  # of 1,920; 192 were zero
    assert (flat[: 480 - 192] == 0).all() and (flat[480 - 192 : -192] != 0).all()
    prune_module(module, {"output": 0.05})  # less than is gone already: nothing comes back, nothing more goes
    assert (module.output.weight == 0).sum() == 480


def test_fully_connected_layers_by_default_and_others_by_name():
    module = models.build("lenet-caffe")
    assert shares_of(module, "lenet-caffe", PruneOptions(0.9)) == {"ip1": 0.9, "ip2": 0.9}
    named = PruneOptions(0.9, {"ip2": 0.5, "conv1": 0.25})
    assert shares_of(module, "lenet-caffe", named) == {"conv1": 0.25, "ip1": 0.9, "ip2": 0.5}
    assert shares_of(module, "lenet-caffe", PruneOptions(layers={"conv2": 0.5})) == {"conv2": 0.5}
    old = models.build("lenet5-1998")  # its output is fixed codes, its c3 parts of a table
    assert set(shares_of(old, "lenet5-1998", PruneOptions(0.9))) == {"f6"}
    assert "c3.parts.0" in {layer.name for layer in count_zeros(old, "lenet5-1998")}
    with torch.device("meta"):
        heads = models.build("googlenet")
    assert set(shares_of(heads, "googlenet", PruneOptions(0.9))) == {"linear"}  # the others never leave


def test_what_cannot_be_pruned_is_refused():
    with pytest.raises(UnknownNameError, match="unknown layer 'ip22'; did you mean 'ip2'"):
        shares_of(models.build("lenet-caffe"), "lenet-caffe", PruneOptions(layers={"ip22": 0.5}))
    with torch.device("meta"):
        module = models.build("squeezenet1.1")
    with pytest.raises(
        InputError, match=r"no fully connected layers; name convolutions, such as --prune-layer \S+=0.9"
    ):
        shares_of(module, "squeezenet1.1", PruneOptions(0.9))


@pytest.mark.parametrize("share", [1.5, 1.0, 0.0, -0.1, float("nan")])
def test_shares_that_are_none(share):
    with pytest.raises(InputError, match=f"prune {share}; allowed: a share above 0 and below 1"):
        PruneOptions(share)
    if share != 0.0:
        with pytest.raises(InputError, match="allowed: a share from 0 to below 1"):
            PruneOptions(layers={"fc1": share})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_zeros_stay_zero_at_every_step(optimizer, clip):
    """Momentum, decay, mixup and an average of the weights included; and without ``freeze`` they would move."""
    torch.manual_seed(0)
    pictures, targets = torch.rand(16, 1, 28, 28) * 255.0, torch.randint(0, 10, (16,))
    for freeze in ("zeros", "none"):
        module = models.build("mnist-cnn")
        prune_module(module, {"conv2": 0.5, "fc1": 0.95, "fc2": 0.5})
        masks = {name: weight.detach() == 0.0 for name, weight in module.named_parameters() if weight.ndim >= 2}
        options = TrainOptions(
            optimizer=optimizer, learning_rate=0.05, weight_decay=0.1, clip_norm=clip, freeze=freeze, ema=0.9
        )
        preprocess = for_network((1, 28, 28), None, mean=(0.1,), std=(0.3,))
        run = start_run(module, options, preprocess)
        begun = {name: weight.detach().clone() for name, weight in module.named_parameters()}
        for step in range(6):
            train_step(run, mix(pictures, targets, mixup=0.2, cutmix=0.0))
            run.follow(step)
            held = all(
                (weight[masks[name]] == 0.0).all() for name, weight in module.named_parameters() if name in masks
            )
            averaged = dict(run.average.named_parameters())
            held = held and all((averaged[name][mask] == 0.0).all() for name, mask in masks.items())
            assert held is (freeze == "zeros")
        assert all(not torch.equal(weight, begun[name]) for name, weight in module.named_parameters())


def test_keeping_zeros_takes_some():
    options = TrainOptions(freeze="zeros")
    with pytest.raises(InputError, match="no weight is zero; prune them first"):
        start_run(models.build("lenet1"), options, for_network((1, 28, 28), None, mean=(0.5,), std=(0.5,)))


def test_without_fine_tuning(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sha256_file(trained.folder / "checkpoint.safetensors")
    arguments = ["compress", str(trained.folder), "-o", str(tmp_path / "out"), "--prune", "0.9"]
    assert main([*arguments, "--prune-layer", "conv2=0.5"]) == 0
    printed = capsys.readouterr().out
    assert "90.00 %" in printed and "download" in printed
    assert sha256_file(trained.folder / "checkpoint.safetensors") == before
    record = read_record(tmp_path / "out" / "compression.json")
    assert isinstance(record, Compression)
    assert record.parent_sha256 == before
    zeros = {layer.name: layer.zeros / layer.weights for layer in record.pruned}
    assert zeros == pytest.approx({"conv1": 0.0, "conv2": 0.5, "fc1": 0.9, "fc2": 0.9}, abs=0.005)
    assert record.download_bytes < 0.6 * record.parent_download_bytes
    assert record.file_bytes == (tmp_path / "out" / "checkpoint.safetensors").stat().st_size
    made = read_checkpoint(tmp_path / "out" / "checkpoint.safetensors")
    assert made.training["pruned"]["parent_sha256"] == before
    assert "test_top1" not in made.training  # that was of the weights of before
    assert main(["compress", str(trained.folder), "-o", str(tmp_path / "out"), "--prune", "0.5"]) == 2


def test_zeros_shrink_the_download_of_the_int8_file(
    trained: Trained, few: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    record = prune_checkpoint(trained.folder, tmp_path / "out", HALF, tuning=tuning(trained), train=few[0], test=few[1])
    assert main(["export", str(tmp_path / "out"), "-o", str(tmp_path / "net.onnx"), "--data", "shapes"]) == 0
    quantize_onnx(tmp_path / "net.onnx", tmp_path / "net.int8.onnx", calibration=few[0])
    pruned, whole = profile_onnx(tmp_path / "net.int8.onnx"), profile_onnx(trained.int8)
    assert pruned.parameters == whole.parameters
    assert pruned.download_bytes < 0.8 * whole.download_bytes
    held = {layer.name: layer for layer in record.pruned}
    stored = onnx.load(tmp_path / "net.int8.onnx").graph.initializer
    small = {tensor.name: numpy_helper.to_array(tensor) for tensor in stored if tensor.data_type == 3}
    for name in ("fc1", "conv2"):
        (values,) = (values for key, values in small.items() if key.startswith(name) and values.ndim >= 2)
        assert (values == 0).sum() >= held[name].zeros  # symmetric weights: zero is a zero in int8 too
    for path in ("net.onnx", "net.int8.onnx"):
        told = {layer.name: layer.zeros for layer in profile_onnx(tmp_path / path).layers if layer.zeros is not None}
        shares = {name: layer.zeros / layer.weights for name, layer in held.items()}
        assert told == pytest.approx(shares, abs=0.0 if path == "net.onnx" else 0.1)  # int8 rounds some more to zero
    training = read_record(tmp_path / "out" / "train.json")
    assert isinstance(training, Training)
    assert (record.top1, record.epochs) == (training.test_top1, 2)
    assert record.top1_before == trained.training.test_top1
    assert training.options["freeze"] == "zeros"


class _Stop(Exception):
    pass


def test_interrupted_and_resumed_it_ends_in_the_same_bits(
    trained: Trained, few: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    given = {"tuning": tuning(trained), "train": few[0], "test": few[1]}
    straight = prune_checkpoint(trained.folder, tmp_path / "straight", HALF, **given)

    def interrupt(stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "epoch 2/2":
            raise _Stop

    folder = tmp_path / "run"
    with pytest.raises(_Stop):
        prune_checkpoint(trained.folder, folder, HALF, **given, progress=interrupt)
    begun = sha256_file(folder / PRUNED)
    with pytest.raises(OutputError, match="--resume or --overwrite"):
        prune_checkpoint(trained.folder, folder, HALF, **given)
    with pytest.raises(CheckpointError, match="by other shares"):
        prune_checkpoint(trained.folder, folder, PruneOptions(0.5), **given, resume=True)
    assert sha256_file(folder / PRUNED) == begun
    resumed = prune_checkpoint(trained.folder, folder, HALF, **given, resume=True)
    assert resumed.model_sha256 == straight.model_sha256
    assert resumed.pruned == straight.pruned
    first, last = (read_checkpoint(folder / name).tensors for name in (PRUNED, "checkpoint.safetensors"))
    for name in ("fc1.weight", "fc2.weight", "conv2.weight"):
        assert torch.equal(first[name] == 0.0, last[name] == 0.0)
        assert not torch.equal(first[name], last[name])


def test_pruned_twice_goes_further(trained: Trained, tmp_path: Path) -> None:
    prune_checkpoint(trained.folder, tmp_path / "one", PruneOptions(0.5))
    record = prune_checkpoint(tmp_path / "one", tmp_path / "two", PruneOptions(0.9))
    layers = {layer.name: layer for layer in record.pruned}
    assert layers["fc1"].zeros == round(0.9 * layers["fc1"].weights)
    assert record.parent_sha256 == sha256_file(tmp_path / "one" / "checkpoint.safetensors")


def test_pictures_and_folders_that_do_not_fit(trained: Trained, few: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fine-tuning takes training and test pictures, received none"):
        prune_checkpoint(trained.folder, tmp_path / "out", HALF, tuning=tuning(trained))
    other = [replace(split, labels=tuple(reversed(split.labels))) for split in few]
    with pytest.raises(InputError, match="fine-tuning takes the same classes"):
        prune_checkpoint(trained.folder, tmp_path / "out", HALF, tuning=tuning(trained), train=other[0], test=other[1])
    with pytest.raises(InputError, match="is the run itself"):
        prune_checkpoint(trained.folder, trained.folder, HALF, overwrite=True)
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "--prune", "1.5"), "prune 1.5; allowed: a share above 0 and below 1"),
        (("run", "--prune-layer", "fc11=0.5"), "did you mean 'fc1'"),
        (("run", "--prune-layer", "fc1"), "expected NAME=SHARE"),
        (("run", "--prune", "0.5", "--finetune", "2"), "--finetune without --data"),
        (("run", "--prune", "0.5", "--finetune", "0", "--data", "shapes"), "allowed: 1 epoch or more"),
        (("run", "--prune", "0.5", "--data", "shapes"), "--data without --finetune"),
        (("run", "--prune", "0.5", "--finetune", "1", "--data", "shapes-color"), "the same classes"),
        (("run",), "nothing to do; give --prune 0.9"),
        (("run", "--rank", "8"), "allowed: an .onnx; export it first"),
        (("net.onnx", "--prune", "0.5"), "--prune with net.onnx; allowed: a run's folder or a checkpoint"),
        (("net.onnx", "--prune", "0.5", "--rank", "8"), "--prune and --rank together"),
        (("net.onnx", "--rank", "many"), "--rank 'many'; allowed: a whole number"),
        (("net.onnx", "--rank", "1.5"), "rank 1.5; allowed"),
        (("net.onnx", "--rank", "8"), "no Gemm or MatMul with a constant matrix"),
        (("net.onnx", "--rank", "8", "--finetune", "2"), "--finetune with --rank"),
        (("net.int8.onnx", "--rank", "8"), "net.int8.onnx: the model is quantized"),
        (("absent.onnx", "--rank", "8"), "no such model file"),
        (("lenet5", "--prune", "0.5"), "expected a run's folder or a .safetensors checkpoint"),
        (("lenet5", "--prune", "0.5", "--finetune", "1", "--data", "shapes"), "expected a run's folder"),
        (("absent.safetensors", "--prune", "0.5"), "no such checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line(arguments, says, trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained.folder, tmp_path / "run")
    for path in (trained.onnx, trained.int8):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert main(["compress", *arguments, "-o", "out.onnx" if "--rank" in arguments else "out"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says in error
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def integers(path, values, zero, axis):
    """One Gemm whose weights are integers behind DequantizeLinear."""
    scale = np.full(np.shape(zero), 0.5, np.float32)
    weights = [numpy_helper.from_array(np.asarray(part), name) for part, name in ((values, "w"), (scale, "s"))]
    weights.append(numpy_helper.from_array(np.asarray(zero, values.dtype), "z"))
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=axis),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    ends = [("x", 1, ["N", values.shape[0]])], [("y", 1, ["N", values.shape[1]])]
    return save_graph(path, nodes, *ends, weights)


def test_integers_are_zero_at_their_zero_point(tmp_path):
    values = np.array([[3, 0, 7], [3, 7, 0], [5, 3, 7], [3, 0, 7]], np.uint8)
    for name, zero, share in (("one", 3, 4 / 12), ("each", [3, 0, 7], (3 + 2 + 3) / 12)):
        (layer,) = profile_onnx(integers(tmp_path / f"{name}.onnx", values, zero, 1)).layers
        assert layer.zeros == pytest.approx(share)


def test_module_layers_are_those_with_weights():
    layers = count_zeros(models.build("lenet-caffe"), "lenet-caffe")
    assert [(layer.name, layer.op, layer.weights, layer.zeros) for layer in layers] == [
        ("conv1", "Conv2d", 500, 0),
        ("conv2", "Conv2d", 25_000, 0),
        ("ip1", "Linear", 400_000, 0),
        ("ip2", "Linear", 5_000, 0),
    ]
