"""Small folders of pictures in the layouts that collections have, for tests."""

from pathlib import Path

from PIL import Image


def write_picture(path: Path, color=(200, 30, 60), size=(9, 7)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def write_flat(folder: Path, counts: dict[str, int]) -> None:
    for label, count in counts.items():
        for number in range(count):
            write_picture(folder / f"{label}.{number}.jpg", (number, 10, 20))


def write_imagenet(root: Path) -> Path:
    for part in ("train", "val"):
        for wnid in ("n02012849", "n03126707", "n01440764"):
            write_picture(root / part / wnid / f"{wnid}_1.JPEG")
    return root


SYNSETS = """n01440764 tench, Tinca tinca
n02012849 crane
n03126707 crane
n09999999 something else
"""
