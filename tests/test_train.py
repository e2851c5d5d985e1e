from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Trained
from PIL import Image

from deploykit import data
from deploykit.artifact import Preprocess
from deploykit.augment import AUGMENTATIONS, augmentation, mix
from deploykit.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from deploykit.cli import main
from deploykit.commands.training import parse_bytes
from deploykit.data.dataset import Dataset
from deploykit.errors import CheckpointError, InputError, OutputError, UnknownNameError
from deploykit.files import sha256_file
from deploykit.models import build, names, spec
from deploykit.preprocess import for_network
from deploykit.results import read_record
from deploykit.train import train_network
from deploykit.training_loop import _batches, _rate
from deploykit.training_recipes import AUGMENTATION_NAMES, TrainOptions, recipe_for
from deploykit.training_run import start_run
from deploykit.training_setup import common_size, plan_network
from deploykit.training_step import train_step

QUICK = TrainOptions(epochs=2, batch_size=64, augment="shapes", threads=1, device="cpu")


@pytest.fixture(scope="module")
def small() -> tuple[Dataset, Dataset]:
    return data.load("shapes", "train").take(450), data.load("shapes", "test").take(90)


def test_torchvisions_weights_keep_the_network_that_they_were_made_for(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    source = build("mobilenet-v2")
    torch.save(source.state_dict(), tmp_path / "mobilenet_v2.pth")
    options = replace(QUICK, epochs=1, freeze="features", batch_size=16)
    few = tuple(split.take(24) for split in small)
    # At 32 pixels a fresh network would become the variant for small pictures, whose strides these weights never saw.
    record = train_network(
        "mobilenet-v2", *few, tmp_path / "run", options, weights=tmp_path / "mobilenet_v2.pth", size=32
    )
    assert record.options["network_options"]["pictures"] == "large"
    kept = read_checkpoint(tmp_path / "run" / record.checkpoint).tensors
    frozen = [name for name in kept if name.startswith("features.")]
    assert frozen
    assert all(torch.equal(kept[name], source.state_dict()[name]) for name in frozen)


def test_learns_and_writes_what_it_promises(trained: Trained) -> None:
    record = trained.training
    assert record.test_top1 > 0.85  # nine classes; four epochs
    assert read_record(trained.folder / "train.json") == record
    assert record.parameters == sum(
        t.numel()
        for n, t in read_checkpoint(trained.folder / "checkpoint.safetensors").tensors.items()
        if "running" not in n and "num_batches" not in n
    )
    assert record.checkpoint_sha256 == sha256_file(trained.folder / "checkpoint.safetensors")
    rows = list(csv.DictReader((trained.folder / "history.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["test_top1"]) == record.test_top1
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert (trained.folder / "curves.svg").read_text().startswith("<svg")
    assert not (trained.folder / "state.safetensors").exists()


def test_same_seed_same_bits_other_seed_other_bits(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    digests = [
        train_network("lenet1", *small, tmp_path / str(index), replace(QUICK, seed=seed)).checkpoint_sha256
        for index, seed in enumerate((3, 3, 4))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_diverging_loss_is_said(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    options = replace(QUICK, optimizer="sgd", learning_rate=1e30, warmup_epochs=0.0)
    with pytest.raises(InputError, match=r"loss became .* --learning-rate"):
        train_network("lenet5", *small, tmp_path, options)
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_bad_input(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train, test = small
    with pytest.raises(UnknownNameError, match="did you mean 'lenet5'"):
        train_network("lenet-5", train, test, tmp_path / "a", QUICK)
    with pytest.raises(UnknownNameError, match="augmentation 'digit'; did you mean 'digits'"):
        replace(QUICK, augment="digit")
    with pytest.raises(InputError, match="differ"):
        train_network("lenet5", train, data.load("shapes-color", "test"), tmp_path / "b", QUICK)
    with pytest.raises(OutputError, match="cannot write"):
        train_network("lenet5", train, test, "/proc/nowhere", QUICK)
    assert not any(tmp_path.iterdir())


def test_a_refused_training_leaves_no_folder_of_its_own(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    weights = tmp_path / "other.safetensors"
    module = build("lenet1", num_classes=2, in_channels=3)
    write_checkpoint(
        Checkpoint("lenet1", 2, 3, Preprocess(size=(28, 28)), ("a", "b"), module.state_dict(), {}, "mine"), weights
    )
    (tmp_path / "mine").mkdir()
    for name in ("mine", "new"):
        with pytest.raises(CheckpointError, match="holds the weights of lenet1"):
            train_network("lenet5", *small, tmp_path / name, QUICK, weights=weights)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other.safetensors"}  # the user's own folder stays


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"weight_decay": -1.0}]
    + [{"label_smoothing": 1.0}, {"optimizer": "adam"}, {"device": "tpu"}, {"threads": 0}, {"warmup_epochs": -1.0}]
    + [{"ema": 1.0}, {"ema": -0.1}, {"mixup": -1.0}, {"cutmix": float("inf")}, {"clip_norm": -1.0}, {"freeze": "head"}]
    + [{"seed": -1}, {"seed": 2**32}, {"threads": 10**6}, {"augment": "photo"}],
)
def test_options_validate_themselves(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        TrainOptions(**bad)  # type: ignore[arg-type]


def test_the_largest_seed_trains(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    options = replace(QUICK, epochs=1, seed=2**32 - 1)
    assert train_network("lenet1", small[0].take(60), small[1], tmp_path, options).seed == 2**32 - 1


def test_one_picture_at_a_time(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """BatchNorm has no variance there and says so; a network without it learns."""
    train, test = small
    options = replace(QUICK, epochs=1)
    cases = (("batch size 1 ", train, replace(options, batch_size=1)), (" 1 training pictures", train.take(1), options))
    for says, split, chosen in cases:
        with pytest.raises(InputError, match=f"color-shape-cnn has BatchNorm.*{says}.*allowed: 2 or more"):
            train_network("color-shape-cnn", split, test, tmp_path / "norm", chosen)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    train_network("lenet1", train.take(5), test, tmp_path / "five", replace(options, batch_size=1))
    train_network("lenet1", train.take(1), test, tmp_path / "one", options)


def test_a_test_loss_that_is_not_finite_is_said(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """The only step of the first epoch spoils the weights; the training loss was taken before it."""
    options = replace(QUICK, epochs=1, batch_size=1000, optimizer="sgd", learning_rate=1e38, warmup_epochs=1e-9)
    with pytest.raises(InputError, match=r"test loss became .* --learning-rate"):
        train_network("lenet5", *small, tmp_path, replace(options, epochs=2))


def test_the_speed_is_that_of_the_training_pass(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    record = train_network("lenet1", small[1], small[0], tmp_path, QUICK)
    training = sum(row["train_seconds"] for row in record.history)
    assert record.images_per_s == pytest.approx(90 * 2 / training, abs=0.1)
    assert record.seconds == pytest.approx(sum(row["seconds"] for row in record.history), abs=1e-3)
    assert all(0.0 < row["train_seconds"] < row["seconds"] for row in record.history)


def test_statistics_are_those_of_the_inputs(tmp_path: Path) -> None:
    """Colour to grey in whole steps, as Pillow; larger pictures resized first: a fine checkerboard is even grey."""
    targets, options = np.arange(20) % 2, replace(QUICK, epochs=1, augment="none")
    colours = np.random.default_rng(0).integers(0, 4, (20, 1, 1, 3), dtype=np.uint8).repeat(28, 1).repeat(28, 2)
    board = np.zeros((20, 56, 56, 1), np.uint8)
    board[:, ::2, ::2] = board[:, 1::2, 1::2] = 200
    greys = [np.asarray(Image.fromarray(picture).convert("L")) for picture in colours]
    for name, images, mean in (("dark", colours, np.mean(greys) / 255.0), ("board", board, 100 / 255.0)):
        pictures = Dataset.from_arrays(name, images, targets)
        train_network("color-mlp", pictures, pictures, tmp_path / name, options)
        preprocess = read_checkpoint(tmp_path / name / "checkpoint.safetensors").preprocess
        assert preprocess.mean == pytest.approx([mean], abs=1e-3 if name == "board" else 6e-5)
        assert preprocess.std[0] < 0.02


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    options = TrainOptions(epochs=10, learning_rate=0.2, warmup_epochs=2.0)
    rates = [_rate(options, epoch) for epoch in np.linspace(0, 10, 101)]
    assert rates[0] == 0.0
    assert rates[20] == pytest.approx(0.2) == max(rates)
    assert rates[60] == pytest.approx(0.1)  # half way down the cosine
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_batches_hold_every_picture_once_and_never_one_alone() -> None:
    for total, size in ((129, 64), (128, 64), (5, 64), (1, 64), (65, 64)):
        slices = _batches(torch.randperm(total), size)
        assert sorted(torch.cat(slices).tolist()) == list(range(total))
        assert total == 1 or min(len(chosen) for chosen in slices) > 1


def test_augmentations_are_those_that_options_allow() -> None:
    assert tuple(AUGMENTATIONS) == AUGMENTATION_NAMES


def test_shift_and_flip_only_move_pixels() -> None:
    """A single bright pixel in the middle stays one pixel, somewhere near."""
    pictures = torch.zeros(64, 1, 28, 28, dtype=torch.uint8)
    pictures[:, :, 14, 14] = 200
    moved = augmentation("photos")(pictures, (28, 28))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.full((64,), 200.0))
    places = {tuple(place[2:].tolist()) for place in moved.nonzero()}
    assert len(places) > 20
    assert all(abs(y - 14) <= 4 and abs(x - 14) <= 4 for y, x in places)


def test_every_network_has_a_recipe_and_those_of_published_results_stay() -> None:
    for name in names():
        for size in (32, 128, 224):
            assert isinstance(recipe_for("photos", name, size), TrainOptions)
    assert recipe_for("mnist", "lenet5", 32) == recipe_for("mnist") == TrainOptions(epochs=30, augment="digits")
    assert recipe_for("fashion-mnist", "fashion-cnn") == TrainOptions(epochs=20)
    large = recipe_for("mnist", "vgg16", 32)  # its rate, on digits, which are not to be mirrored
    assert large.augment == "digits" and large.learning_rate == recipe_for("cifar10", "vgg16", 32).learning_rate
    assert recipe_for("cifar10", "vgg16", 32).learning_rate < recipe_for("cifar10", "vgg16-bn", 32).learning_rate


@pytest.mark.parametrize(
    ("network", "pictures", "size", "side", "options"),
    [
        ("resnet18", (32, 32), None, 32, {"pictures": "small"}),
        ("resnet18", (128, 128), None, 128, {}),
        ("resnet18", (300, 400), None, 224, {}),
        ("resnet18", None, None, 224, {}),
        ("resnet18", None, 64, 64, {"pictures": "small"}),
        ("resnet18", (32, 32), 65, 65, {}),
        ("vgg11", (28, 28), None, 32, {"pictures": "small"}),  # the smallest that it takes
        ("alexnet", (300, 300), None, 227, {}),
        ("lenet5", (300, 300), None, 32, {}),
        ("lenet5", None, 32, 32, {}),
    ],
)
def test_size_and_variant_are_chosen(
    network: str, pictures: tuple[int, int] | None, size: int | None, side: int, options: dict[str, str]
) -> None:
    plan = plan_network(network, pictures, size)
    assert (plan.side, dict(plan.options)) == (side, options)
    told = " ".join(plan.notes)
    assert ("pictures=small" in told) == bool(options)
    assert (f"size {side}" in told) == (size is None and side != spec(network).input[1])
    if options:
        asked = plan_network(network, pictures, size, {"pictures": "large"})
        assert dict(asked.options) == {"pictures": "large"} and "pictures=" not in " ".join(asked.notes)


def test_sizes_that_cannot_be_are_refused_before_anything_is_written(
    small: tuple[Dataset, Dataset], tmp_path: Path
) -> None:
    cases = (("vgg16", 31, "--size 31; allowed: 32 or more"), ("resnet18", 0, "allowed: 1 to 4096"))
    cases += (("lenet5", 40, "allowed: 32,"), ("vgg16", 5000, "allowed: 1 to 4096"))
    for network, size, says in cases:
        with pytest.raises(InputError, match=says):
            train_network(network, *small, tmp_path / "run", QUICK, size=size)
    with pytest.raises(InputError, match=r"freeze features without weights .* --weights FILE"):
        train_network("resnet18", *small, tmp_path / "run", replace(QUICK, freeze="features"))
    assert not (tmp_path / "run").exists()


def test_any_size_trains_and_the_checkpoint_says_how_to_feed_it(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Shapes are 28×28: the input becomes as large, and pictures go in as they are."""
    options = replace(QUICK, epochs=1, batch_size=8, ema=0.9, clip_norm=1.0)
    splits = small[0].take(17), small[1].take(9)  # 17: a last batch of one
    record = train_network("resnet18", *splits, tmp_path, options, network_options={"width": "16"})
    preprocess = read_checkpoint(tmp_path / "checkpoint.safetensors").preprocess
    assert record.options["size"] == 28 and preprocess.size == (28, 28) and preprocess.resize == (28, 28)
    assert record.options["network_options"] == {"width": "16", "pictures": "small"}
    assert len(record.warnings) == 2
    same = build("resnet18", 9, 3, width="16", pictures="small")
    assert record.parameters == sum(parameter.numel() for parameter in same.parameters())


def _run(module: torch.nn.Module, **options: object) -> object:
    pre = for_network((3, 32, 32), None, (0.0,) * 3, (1 / 255,) * 3)
    return start_run(module, replace(QUICK, optimizer="sgd", **options), pre, ("fc2",))  # type: ignore[arg-type]


def test_the_moving_average_follows_its_formula() -> None:
    run = _run(build("color-shape-cnn"), ema=0.5)
    weight, mean = run.module.fc2.weight, run.average.fc2.weight
    statistic, count = run.module.norm1.running_var, run.module.norm1.num_batches_tracked
    expected, smooth = weight.detach().clone(), statistic.clone()
    for step in range(12):
        with torch.no_grad():
            weight.copy_(torch.randn_like(weight)), statistic.mul_(1.5), count.add_(1)
        run.follow(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
        smooth = decay * smooth + (1 - decay) * statistic
        assert torch.allclose(mean, expected, atol=1e-6)
        assert torch.allclose(run.average.norm1.running_var, smooth, rtol=1e-5)
        assert run.average.norm1.num_batches_tracked == count
    assert run.result is run.average


def test_gradients_are_cut_and_heads_that_only_train_are_counted_with_their_weight() -> None:
    """Against the loss and the gradients by hand."""
    torch.manual_seed(0)
    module = build("googlenet", 4, 3, pictures="small")
    run = _run(module, clip_norm=0.01, label_smoothing=0.0, weight_decay=0.0)
    for group in run.optimizer.param_groups:
        group["lr"] = 1.0
    pictures, targets = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    torch.manual_seed(1)
    logits, auxiliary = module.train()(pictures)
    entropy = torch.nn.functional.cross_entropy
    total = entropy(logits, targets) + 0.3 * sum(entropy(head, targets) for head in auxiliary)
    gradients = torch.autograd.grad(total, list(module.parameters()))
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    before = [parameter.detach().clone() for parameter in module.parameters()]
    torch.manual_seed(1)
    loss, _ = train_step(run, mix(pictures, targets, mixup=0.0, cutmix=0.0)).tolist()
    assert len(auxiliary) == 2 and loss == pytest.approx(entropy(logits, targets).item(), rel=1e-4)
    moved = [old - new.detach() for old, new in zip(before, module.parameters(), strict=True)]
    # Nesterov's first step is 1 + momentum times the gradient.
    for change, gradient in zip(moved, gradients, strict=True):
        assert torch.allclose(change, 1.9 * gradient * 0.01 / norm, rtol=0.05, atol=1e-5)
    assert float(torch.sqrt(sum((change**2).sum() for change in moved))) == pytest.approx(1.9 * 0.01, rel=0.01)


def test_frozen_features_keep_every_bit(small: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Weights and statistics of all but the classifier; the rest learns, on the statistics that the weights expect."""
    options, thin = replace(QUICK, epochs=1, batch_size=8), {"width": "16"}
    splits = small[0].take(16), small[1].take(9)
    train_network("resnet18", *splits, tmp_path / "first", options, network_options=thin, size=12)
    begun = tmp_path / "first" / "checkpoint.safetensors"
    options = replace(options, freeze="features", seed=5, ema=0.9)
    shapes = data.load("shapes-color", "train").take(16), data.load("shapes-color", "test").take(6)
    record = train_network("resnet18", *shapes, tmp_path / "second", options, weights=begun, size=12)
    before, after = (read_checkpoint(path) for path in (begun, tmp_path / "second" / "checkpoint.safetensors"))
    assert after.num_classes == 6 and after.options == before.options
    assert (after.preprocess.mean, after.preprocess.std) == (before.preprocess.mean, before.preprocess.std)
    for name, tensor in after.tensors.items():
        assert name.startswith("fc.") or torch.equal(tensor, before.tensors[name]), name
    assert after.training["weights_sha256"] == sha256_file(begun)
    assert any("replaced" in warning for warning in record.warnings)
    with pytest.raises(InputError, match="weights"):
        train_network("resnet34", *shapes, tmp_path / "third", options, weights=begun)


def test_the_command_says_what_was_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One fixed picture a class is enough; the cap is so small that pictures are streamed."""
    for name, value in (("dark", 20), ("light", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(5):
            picture = np.full((40, 40, 3), value + index, np.uint8)
            Image.fromarray(picture).save(tmp_path / "photos" / name / f"{index}.png")
    command = ["train", "resnet18", "--data", str(tmp_path / "photos"), "-o", str(tmp_path / "run"), "--size", "24"]
    command += ["--option", "width=16", "--epochs", "1", "--threads", "1", "--memory-cap", "1kB", "--workers", "0"]
    assert main([*command, "--ema", "0.9", "--clip-norm", "1", "--mixup", "0.1", "--cutmix", "1"]) == 0
    said = capsys.readouterr()
    assert "resnet18 (width=16, pictures=small) on photos at 24×24" in said.out
    assert "note: pictures=small" in said.err
    options = read_record(tmp_path / "run" / "train.json").options  # type: ignore[attr-defined]
    assert (options["ema"], options["clip_norm"], options["mixup"], options["cutmix"]) == (0.9, 1.0, 0.1, 1.0)
    assert (options["optimizer"], options["size"], options["augment"]) == ("sgd", 24, "photos")
    assert main([*command, "--memory-cap", "much"]) == 2
    assert "--memory-cap 'much'; expected a number of bytes" in capsys.readouterr().err


def test_bytes_are_read_as_people_write_them() -> None:
    cases = (("4GB", 4 * 10**9), ("500M", 5 * 10**8), ("1.5 kB", 1500), ("1000", 1000), ("0", 0), (None, None))
    for text, count in cases:
        assert parse_bytes(text) == count
    for text in ("", "GB", "-1", "nan", "inf", "4 of them"):
        with pytest.raises(InputError, match="--memory-cap"):
            parse_bytes(text)


def test_the_common_size_of_many_pictures_is_that_of_some() -> None:
    images = np.zeros((3000, 30, 40, 3), np.uint8)
    many = Dataset.from_arrays("many", images, np.arange(3000) % 2)
    assert common_size(many) == (30, 40) == common_size(replace(many, size=None))
    mixed = replace(many, size=None, reader=_Mixed(many.reader))
    assert common_size(mixed) is None


class _Mixed:
    def __init__(self, reader: object) -> None:
        self.reader = reader

    def read(self, rows: np.ndarray, shortest: int | None = None) -> list[np.ndarray]:
        return [np.zeros((30, 40 + (row > 1500), 3), np.uint8) for row in rows]

    def fingerprint(self, rows: np.ndarray) -> str:
        return ""
