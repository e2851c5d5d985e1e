"""What can be downloaded: each dataset's files, their checksums and the addresses that offer them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["DOWNLOADS", "DownloadSpec", "RemoteFile"]


@dataclass(frozen=True)
class RemoteFile:
    """A file and how to know it.

    Attributes:
        name: Its name at the mirrors and on the disk.
        md5: Of the published file. MD5 is what most publishers give; it guards against accidents, not against attacks.
        content_md5: Of the decompressed content of a ``.gz``, so that copies compressed anew are right too; None where
            only the published file itself is right.
        size_bytes: Of the published file.
        sha256: Of the published file, where it is known; it is then checked instead.
    """

    name: str
    md5: str
    content_md5: str | None
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class DownloadSpec:
    """What belongs to a dataset, and the addresses (URLs of folders) that offer it."""

    name: str
    files: tuple[RemoteFile, ...]
    mirrors: tuple[str, ...]


DOWNLOADS: Mapping[str, DownloadSpec] = MappingProxyType(
    {
        "mnist": DownloadSpec(
            "mnist",
            (
                RemoteFile(
                    "train-images-idx3-ubyte.gz",
                    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                    "6bbc9ace898e44ae57da46a324031adb",
                    9_912_422,
                ),
                RemoteFile(
                    "train-labels-idx1-ubyte.gz",
                    "d53e105ee54ea40749a09fcbcd1e9432",
                    "a25bea736e30d166cdddb491f175f624",
                    28_881,
                ),
                RemoteFile(
                    "t10k-images-idx3-ubyte.gz",
                    "9fb629c4189551a2d022fa330f9573f3",
                    "2646ac647ad5339dbf082846283269ea",
                    1_648_877,
                ),
                RemoteFile(
                    "t10k-labels-idx1-ubyte.gz",
                    "ec29112dd5afa0611ce80d1b7f02629c",
                    "27ae3e4e09519cfbb04c329615203637",
                    4_542,
                ),
            ),
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist/",
                "https://storage.googleapis.com/cvdf-datasets/mnist/",
            ),
        ),
        "fashion-mnist": DownloadSpec(
            "fashion-mnist",
            (
                RemoteFile(
                    "train-images-idx3-ubyte.gz",
                    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                    "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                    26_421_880,
                ),
                RemoteFile(
                    "train-labels-idx1-ubyte.gz",
                    "25c81989df183df01b3e8a0aad5dffbe",
                    "9018921c3c673c538a1fc5bad174d6f9",
                    29_515,
                ),
                RemoteFile(
                    "t10k-images-idx3-ubyte.gz",
                    "bef4ecab320f06d8554ea6380940ec79",
                    "8181f5470baa50b63fa0f6fddb340f0a",
                    4_422_102,
                ),
                RemoteFile(
                    "t10k-labels-idx1-ubyte.gz",
                    "bb300cfdad3c16e7a12a480ee83cd310",
                    "15d484375f8d13e6eb1aabb0c3f46965",
                    5_148,
                ),
            ),
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            ),
        ),
        # https://www.cs.toronto.edu/~kriz/cifar.html; SHA-256 and length as TensorFlow Datasets keeps them
        "cifar10": DownloadSpec(
            "cifar10",
            (
                RemoteFile(
                    "cifar-10-binary.tar.gz",
                    "c32a1d4ab5d03f1284b67883e8d87530",
                    None,
                    170_052_171,
                    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                ),
            ),
            ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"),
        ),
        # https://www.tensorflow.org/datasets/catalog/tf_flowers
        "flower-photos": DownloadSpec(
            "flower-photos",
            (
                RemoteFile(
                    "flower_photos.tgz",
                    "6f87fb78e9cc9ab41eff2015b380011d",
                    None,
                    228_813_984,
                    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
                ),
            ),
            (
                "https://storage.googleapis.com/download.tensorflow.org/example_images/",
                "http://download.tensorflow.org/example_images/",
            ),
        ),
    }
)
