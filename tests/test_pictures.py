"""Pictures as they really come: odd kinds are read right, bad ones are refused in one line that names the file."""

import os
import pickle
import re
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from tiny_onnx import save_graph

from deploykit import data
from deploykit.cli import main
from deploykit.data.picture import decode_picture, look_at, read_picture
from deploykit.errors import DataError

RED = (200, 30, 60)


def write(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (12, 8), RED)).save(path, **options)
    return path


def two_classes(root: Path, ending=".png") -> Path:
    """A folder that is right: ``good/0`` to ``4`` and ``other/0`` to ``4``."""
    for label in ("good", "other"):
        for number in range(5):
            write(root / label / f"{number}{ending}")
    return root


# Kinds that are read


# The eight EXIF orientations of a picture whose upright form has its quarters numbered 0 1 / 2 3: what is stored.
# From the EXIF 2.32 standard, table 6: where row 0 and column 0 of the stored picture lie in the upright one.
STORED = {
    1: ((0, 1), (2, 3)),  # top, left
    2: ((1, 0), (3, 2)),  # top, right
    3: ((3, 2), (1, 0)),  # bottom, right
    4: ((2, 3), (0, 1)),  # bottom, left
    5: ((0, 2), (1, 3)),  # left, top
    6: ((1, 3), (0, 2)),  # right, top
    7: ((3, 1), (2, 0)),  # right, bottom
    8: ((2, 0), (3, 1)),  # left, bottom
}
SHADES = (10, 90, 170, 250)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(tmp_path, orientation, ending):
    stored = np.array([[SHADES[quarter] for quarter in row] for row in STORED[orientation]], np.uint8)
    height, width = (16, 8) if orientation < 5 else (8, 16)  # upright: 16 rows, 8 columns
    pixels = np.kron(stored, np.ones((height // 2, width // 2), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"jpg": {"quality": 95}, "webp": {"lossless": True}}.get(ending, {})
    path = write(tmp_path / f"x.{ending}", Image.fromarray(pixels).convert("RGB"), exif=exif, **options)
    upright = read_picture(path, 1)[..., 0]
    assert upright.shape == (16, 8) and look_at(path, "x")[0] == (16, 8)
    quarters = [upright[row, column] for row in (3, 12) for column in (2, 5)]
    assert np.abs(np.array(quarters, int) - SHADES).max() <= 6


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientation_that_means_nothing_is_left_alone(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "x.jpg", exif=exif)
    assert read_picture(path, 3).shape == (8, 12, 3) and look_at(path, "x")[0] == (8, 12)


def png16(pixels: np.ndarray, color_type: int) -> bytes:
    """A 16-bit PNG written by hand; Pillow writes 16-bit grey only. ``pixels``: ``(H, W, C)``."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">2I5B", width, height, 16, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_keeps_its_range(color_type, channels):
    values = np.array([0, 257, 128, 32768, 51400, 65535])  # in 8 bits: 0, 1, 0.5, 127.5, 200, 255
    pixels = np.repeat(values[None, :, None], channels, axis=2)
    read = decode_picture(png16(pixels, color_type), "x.png", 3)[0, :, 0]
    assert np.abs(read - values / 257).max() < 1 and read[[0, 1, 4, 5]].tolist() == [0, 1, 200, 255]


def test_palette_png_gives_its_colours_and_drops_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 1, 2, 3])
    image.putpixel((1, 0), 1)
    for number, transparency in enumerate((None, 1, bytes([0, 128]))):
        path = write(
            tmp_path / f"{number}.png", image, **({} if transparency is None else {"transparency": transparency})
        )
        assert read_picture(path, 3).tolist() == [[list(RED), [1, 2, 3]]]


def jpeg_without_adobe(content: bytes) -> bytes:
    """``content`` without its APP14 marker, which says that CMYK is stored inverted."""
    start = content.index(b"\xff\xee")
    return content[:start] + content[start + 2 + struct.unpack(">H", content[start + 2 : start + 4])[0] :]


def test_cmyk_jpeg_is_inverted_only_where_adobe_wrote_it():
    buffer = BytesIO()
    Image.new("CMYK", (16, 16), (0, 204, 153, 51)).save(buffer, "jpeg", quality=100)  # Pillow writes as Adobe does
    adobe = decode_picture(buffer.getvalue(), "x.jpg", 3)[8, 8]
    # (1 - C)(1 - K): 255 × 0.8, 255 × 0.2 × 0.8, 255 × 0.4 × 0.8
    assert np.abs(adobe.astype(int) - (204, 41, 82)).max() <= 2
    plain = decode_picture(jpeg_without_adobe(buffer.getvalue()), "x.jpg", 3)[8, 8]
    # Now the stored 255, 51, 102, 204 are ink: no red at all, and little of the rest.
    assert np.abs(plain.astype(int) - (0, 41, 31)).max() <= 2


def test_first_frame_of_an_animation_is_read(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, (0, 0, 0), (9, 9, 9))]
    for ending in ("gif", "webp", "png"):
        path = write(tmp_path / f"x.{ending}", frames[0], save_all=True, append_images=frames[1:], duration=50, loop=0)
        assert np.abs(read_picture(path, 3)[1, 1].astype(int) - RED).max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "LA", "I;16"])
def test_one_pixel_is_a_picture(tmp_path, mode):
    path = write(tmp_path / "x.png", Image.new(mode, (1, 1), 1))
    assert read_picture(path, 3).shape == (1, 1, 3) and read_picture(path, 1).shape == (1, 1, 1)


def test_names_may_be_anything(tmp_path):
    for name in ("mit Leerzeichen.png", "ünïcödé 图片.PNG", "a'b\"c;$(x)&.png", "-rf.png", "x.tar.png", "%s{0}.png"):
        write(tmp_path / "gut & schön" / name)
        write(tmp_path / "другой" / name)
    dataset = data.load(tmp_path, "all")
    assert len(dataset) == 12 and dataset.labels == ("gut & schön", "другой") and dataset.notes == ()
    assert len(dataset.pictures(range(12))) == 12 and dataset.digest


def test_name_that_is_not_utf8_is_read_and_told(tmp_path):
    two_classes(tmp_path)
    try:
        (tmp_path / "good" / "0.png").rename(os.fsdecode(os.fsencode(tmp_path / "good") + b"/b\xefld.png"))
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    dataset = data.load(tmp_path, "all")
    assert len(dataset.pictures(range(10))) == 10 and dataset.digest
    os.truncate(os.fsencode(tmp_path / "good") + b"/b\xefld.png", 30)
    with pytest.raises(DataError, match=r"b\\udcefld\.png is not a readable picture") as caught:
        dataset.pictures(range(10))
    assert str(caught.value).encode()


# Kinds that are refused


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose head claims a size and whose pixels are all there: a few hundred kB of zeros, packed."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row * 1000) for _ in range(height // 1000)) + packer.flush()
    head = struct.pack(">2I5B", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    sides = {30_000: "900,000,000", 13_000: "169,000,000", 10_000: "100,000,000"}
    for side in sides:
        two_classes(tmp_path / str(side))
        (tmp_path / str(side) / "good" / "0.png").write_bytes(png_of_size(side, side))
    code = (
        "import resource, sys\n"
        "from deploykit import data\n"
        "from deploykit.errors import DataError\n"
        "from PIL import Image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for folder in sys.argv[1:]:\n"
        "    try: data.load(folder, 'all').pictures([0])\n"
        "    except DataError as problem: print(problem)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    folders = [str(tmp_path / str(side)) for side in sides]
    done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True, check=True)
    *messages, grown_kb = done.stdout.splitlines()
    for message, pixels in zip(messages, sides.values(), strict=True):
        assert f"0.png is too large a picture: {pixels} pixels; allowed: up to 89,478,485" in message
    assert int(grown_kb) < 60_000 and done.stderr == ""  # and Pillow's own warning stays out of sight


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def scramble(path):
    content = bytearray(path.read_bytes())
    content[2:200] = bytes(198)
    path.write_bytes(content)


BAD = {
    "empty file": (lambda path: path.write_bytes(b""), "the file is empty"),
    "a text": (lambda path: path.write_text("not found\n"), "no picture of a known format"),
    "a web page": (lambda path: path.write_text("<html><svg></svg></html>"), "no picture of a known format"),
    "cut short": (cut, "the file is cut short"),
    "scrambled": (scramble, "no picture of a known format|cut short|broken"),
    "postscript": (
        lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "no picture of",
    ),
    "a link to nothing": (
        lambda path: (path.unlink(), path.symlink_to("nowhere.jpg")),
        "it is a link to a file that is not there",
    ),
    "a link to itself": (lambda path: (path.unlink(), path.symlink_to(path)), "symbolic links|not there"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two outputs from 3×8×8: the means of red and of green."""
    weight = numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "w")
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        onnx.helper.make_node("Flatten", ["p"], ["f"]),
        onnx.helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    ends = [("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])], [("y", onnx.TensorProto.FLOAT, ["N", 2])]
    return save_graph(tmp_path_factory.mktemp("model") / "two.onnx", nodes, *ends, [weight])


@pytest.mark.parametrize("kind", BAD)
def test_bad_picture_is_one_line_through_reader_folder_and_command(tmp_path, capsys, model, kind):
    spoil, said = BAD[kind]
    root = two_classes(tmp_path / "pictures", ".jpg")
    bad = write(root / "other" / "3.jpg", Image.effect_noise((40, 40), 60).convert("RGB"))
    spoil(bad)
    with pytest.raises(DataError, match=said) as caught:
        read_picture(bad, 3)
    assert str(bad) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=said):
        data.load(root, "all").pictures(range(10))
    assert main(["evaluate", str(model), "--preprocess", "unit", "--data", str(root)]) == 2
    printed = capsys.readouterr()
    assert printed.err.strip().splitlines()[-1].startswith("error: ") and "3.jpg" in printed.err
    assert "Traceback" not in printed.err and printed.out == ""


FOLDERS = {
    "one class": (lambda root: write(root / "only" / "0.jpg"), "holds one class, 'only'; at least two"),
    "an empty class": (
        lambda root: (two_classes(root) / "void").mkdir(),
        "class folder 'void' holds no pictures; add some or remove it",
    ),
    "an empty class in both splits": (
        lambda root: [
            two_classes(root / "train"),
            two_classes(root / "test"),
            (root / "train" / "void").mkdir(),
            (root / "test" / "void").mkdir(),
        ],
        "class folder 'train/void' holds no pictures",
    ),
    "no classes": (lambda root: write(root / "0.jpg"), "holds no pictures in class/picture"),
    "nothing": (lambda root: root.mkdir(), "holds no pictures in class/picture"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folder_that_cannot_be_used_is_one_line(tmp_path, capsys, model, kind):
    build, said = FOLDERS[kind]
    build(tmp_path / "p")
    with pytest.raises(DataError, match=said):
        data.load(tmp_path / "p", "train")
    assert main(["evaluate", str(model), "--preprocess", "unit", "--data", str(tmp_path / "p")]) == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ") and len(printed.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs permissions that bind")
@pytest.mark.parametrize(
    ("place", "said"),
    [("good/0.png", "not a readable picture: Permission denied"), ("good", "cannot read .*good: Perm")],
)
def test_file_and_folder_without_permission_are_named(tmp_path, place, said):
    root = two_classes(tmp_path / "p")
    code = (
        "import os, sys; from pathlib import Path\n"
        "from deploykit import data; from deploykit.errors import DataError\n"
        "os.chdir(sys.argv[1])\n"
        # Once through, so that nothing is left to import: the installation may lie where only root reads.
        "data.load('.', 'all').pictures(range(2))\n"
        "Path(sys.argv[2]).chmod(0)\n"
        "os.geteuid() or os.seteuid(65534)\n"  # permissions do not bind root
        "try: print(len(data.load('.', 'all').pictures(range(10))))\n"
        "except DataError as problem: print(problem)\n"
    )
    try:
        if os.geteuid() == 0:
            for folder in (root, *root.iterdir()):
                folder.chmod(0o755)
        done = subprocess.run([sys.executable, "-c", code, root, place], capture_output=True, text=True)
        assert re.search(said, done.stdout), (done.stdout, done.stderr)
        assert len(done.stdout.splitlines()) == 1
    finally:
        (root / place).chmod(0o755)


# Reading again, elsewhere, and reduced


def test_reduced_jpeg_is_never_below_what_is_asked_and_off_by_default(tmp_path):
    noise = Image.fromarray(np.random.RandomState(0).randint(0, 256, (400, 600, 3)).astype(np.uint8))
    for label in "ab":
        write(tmp_path / label / "x.jpg", noise)
        write(tmp_path / label / "x.png", noise)
    dataset = data.load(tmp_path, "all")
    assert dataset.pictures([0, 1]).shape == (2, 400, 600, 3)
    sizes = {
        shortest: [p.shape[:2] for p in dataset.pictures([0, 1], shortest=shortest)] for shortest in (64, 200, 201)
    }
    assert sizes == {
        64: [(100, 150), (400, 600)],
        200: [(200, 300), (400, 600)],
        201: [(400, 600), (400, 600)],
    }


def test_dataset_of_files_goes_to_other_processes_cheaply(tmp_path):
    dataset = data.load(two_classes(tmp_path), "train")
    sent = pickle.dumps(dataset)
    assert len(sent) < 4_000 and not dataset.in_memory
    code = "import pickle, sys; d = pickle.load(sys.stdin.buffer); print(d.pictures([1]).tobytes().hex(), d.digest)"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True)
    assert done.stdout.decode().split() == [dataset.pictures([1]).tobytes().hex(), dataset.digest]


@pytest.mark.parametrize("name", ["shapes-shape"])
def test_generated_pictures_go_to_other_processes(name):
    dataset = data.load(name, "test").take(20)
    again = pickle.loads(pickle.dumps(dataset))
    assert dataset.in_memory and again.digest == dataset.digest and again.source_digest == dataset.source_digest
