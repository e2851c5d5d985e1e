"""Downloads, against a real HTTP server that also breaks off, lies, stalls and serves the wrong file."""

import gzip
import hashlib
import random
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import pytest
from PIL import Image

from deploykit import data
from deploykit.data.download import DOWNLOADS, DownloadSpec, RemoteFile, _said, fetch, is_right
from deploykit.errors import DataError, InputError, OutputError, UnknownNameError

CONTENT = random.Random(0).randbytes(200_000) + bytes(100_000)
PACKED = gzip.compress(CONTENT, 1, mtime=0)
SECOND = gzip.compress(b"labels" * 50, mtime=0)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


SPEC = DownloadSpec(
    "toy",
    (
        RemoteFile("images-idx3-ubyte.gz", md5(PACKED), md5(CONTENT), len(PACKED)),
        RemoteFile("labels-idx1-ubyte.gz", md5(SECOND), md5(b"labels" * 50), len(SECOND)),
    ),
    (),
)
FILES = {"images-idx3-ubyte.gz": PACKED, "labels-idx1-ubyte.gz": SECOND}


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to behave."""

    def do_GET(self):
        behaviour, name = self.path.strip("/").split("/")[-2:]
        self.server.asked.append((behaviour, name))
        content = FILES[name]
        # Only the first request is served badly by the "once-" behaviours.
        if behaviour.startswith("once-") and self.server.asked.count((behaviour, name)) > 1:
            behaviour = "good"
        getattr(self, "answer_" + behaviour.removeprefix("once-").replace("-", "_"))(content)

    def send(self, content, length=None, status=200):
        self.send_response(status)
        if length != -1:
            self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        self.wfile.write(content)

    def answer_good(self, content):
        self.send(content)

    def answer_no_length(self, content):
        self.send(content, -1)

    def answer_recompressed(self, content):
        self.send(gzip.compress(gzip.decompress(content), 9, mtime=7))

    def answer_decompressed(self, content):
        self.send(gzip.decompress(content))

    def answer_missing(self, content):
        self.send(b"<html>not here</html>", status=404)

    def answer_broken(self, content):
        self.send(b"busy", status=503)

    def answer_wrong(self, content):
        self.send(gzip.compress(b"other pictures" * 99))

    def answer_web_page(self, content):
        self.send(b"<html>please log in</html>")

    def answer_cut(self, content):
        self.send(content[: len(content) // 2], len(content))

    def answer_cut_unsaid(self, content):
        self.send(content[: len(content) // 2], -1)

    def answer_says_too_long(self, content):
        self.send(content, len(content) + 500)

    def answer_says_too_short(self, content):
        self.send(content, len(content) - 50)

    def answer_says_nonsense(self, content):
        self.send(content, "many")

    def answer_endless(self, content):
        self.send(b"", -1)
        for _ in range(2000):
            self.wfile.write(b"\0" * 65536)

    def answer_stall(self, content):
        self.send(content[:100], len(content))
        self.wfile.flush()
        self.server.over.wait(20)

    def answer_silence(self, content):
        self.server.over.wait(20)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that hangs up is what some tests are about


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        running.asked, running.over = [], threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.mark.parametrize("behaviour", ["good", "no-length"])
def test_files_arrive_and_are_not_fetched_twice(server, tmp_path, behaviour):
    told = []
    folder = fetch(
        SPEC,
        tmp_path / "new" / "toy",
        mirrors=[f"{server.url}/{behaviour}/"],
        progress=lambda stage, done, total, note="": told.append((stage, done, total)),
    )
    assert content_of(folder) == FILES
    assert told[-1] == ("download labels-idx1-ubyte.gz", len(SECOND), len(SECOND))
    assert all(0 <= done <= total for _, done, total in told)
    assert len(server.asked) == 2
    fetch(SPEC, folder, mirrors=[f"{server.url}/{behaviour}/"])
    assert len(server.asked) == 2


@pytest.mark.parametrize("behaviour", ["recompressed", "decompressed"])
def test_same_content_packed_otherwise_is_right(server, tmp_path, behaviour):
    fetch(SPEC, tmp_path, mirrors=[f"{server.url}/{behaviour}"])
    assert all(is_right(tmp_path / file.name, file) for file in SPEC.files)


BAD = {
    "missing": "HTTP 404",
    "broken": "HTTP 503",
    "wrong": "wrong checksum",
    "web-page": "wrong checksum",
    "cut": "broke off",
    "cut-unsaid": "not a whole .gz file",
    "says-too-long": "broke off",
    "says-too-short": "not a whole .gz file",
    "says-nonsense": "not a usable answer",
    "endless": "sent more than",
    "stall": "stalled|no answer",
    "silence": "no answer within",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_bad_mirror_leaves_nothing_and_is_described(server, tmp_path, behaviour):
    with pytest.raises(DataError, match=BAD[behaviour]) as caught:
        fetch(SPEC, tmp_path / "toy", mirrors=[f"{server.url}/{behaviour}/"], timeout_s=0.3, rounds=1)
    message = str(caught.value)
    assert "images-idx3-ubyte.gz of toy" in message and server.url in message and "\n" not in message
    assert content_of(tmp_path / "toy") == {}


@pytest.mark.parametrize("behaviour", BAD)
def test_next_mirror_is_tried(server, tmp_path, behaviour):
    mirrors = [f"{server.url}/{behaviour}/", f"{server.url}/good/"]
    fetch(SPEC, tmp_path / "toy", mirrors=mirrors, timeout_s=0.3)
    assert content_of(tmp_path / "toy") == FILES


@pytest.mark.parametrize("behaviour", ["once-cut", "once-broken", "once-wrong", "once-stall"])
def test_mirror_that_fails_once_is_asked_again(server, tmp_path, behaviour):
    fetch(SPEC, tmp_path, mirrors=[f"{server.url}/{behaviour}/"], timeout_s=0.3)
    assert content_of(tmp_path) == FILES


def test_missing_file_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(DataError, match="HTTP 404"):
        fetch(SPEC, tmp_path, mirrors=[f"{server.url}/missing/"], rounds=3)
    assert len(server.asked) == 1


def test_wrong_file_in_place_is_replaced_and_stays_when_that_fails(server, tmp_path):
    path = tmp_path / "images-idx3-ubyte.gz"
    path.write_bytes(b"damaged")
    with pytest.raises(DataError):
        fetch(SPEC, tmp_path, mirrors=[f"{server.url}/cut/"], rounds=1)
    assert content_of(tmp_path) == {path.name: b"damaged"}
    fetch(SPEC, tmp_path, mirrors=[f"{server.url}/good/"])
    assert content_of(tmp_path) == FILES


@pytest.mark.parametrize(
    "name", ["images-idx3-ubyte", "images.idx3-ubyte", "images.idx3-ubyte.gz", "images-idx3-ubyte.gz"]
)
def test_file_that_is_there_uncompressed_or_recompressed_is_kept(server, tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(CONTENT, 9) if name.endswith("gz") else CONTENT)
    fetch(SPEC, tmp_path, mirrors=[f"{server.url}/good/"])
    assert [file for _, file in server.asked] == ["labels-idx1-ubyte.gz"]


def test_no_server_at_all_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/: no connection \(Connection refused\)") as caught:
        fetch(SPEC, tmp_path, mirrors=["http://127.0.0.1:9/"], timeout_s=1, rounds=1)
    assert "\n" not in str(caught.value) and "broke off" not in str(caught.value)


@pytest.mark.parametrize("behaviour", ["missing", "cut"])
def test_failed_fetch_leaves_no_folder_that_it_made(server, tmp_path, behaviour):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "mine", tmp_path / "new" / "toy"):
        with pytest.raises(DataError):
            fetch(SPEC, folder, mirrors=[f"{server.url}/{behaviour}/"], rounds=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_what_a_mirror_said_is_not_cut_inside_a_word():
    words = [f"word{number:03}" for number in range(60)]
    said = _said(ValueError("\n".join(words)))
    assert said.endswith(" ...") and 100 < len(said) <= 160 and set(said.split()[:-1]) <= set(words)


def test_place_that_cannot_be_written_is_an_output_error(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        fetch(SPEC, tmp_path / "file" / "toy", mirrors=[f"{server.url}/good/"])


@pytest.mark.parametrize("mirror", ["ftp://127.0.0.1/", "somewhere", ""])
def test_mirror_must_be_http(tmp_path, mirror):
    with pytest.raises(InputError, match="allowed: an address that begins with http"):
        fetch(SPEC, tmp_path, mirrors=[mirror])


def test_prepare_uses_the_environments_mirror(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPLOYKIT_MIRROR", server.url + "/base")
    monkeypatch.setitem(FILES, "train-images-idx3-ubyte.gz", b"")
    monkeypatch.setattr(Handler, "answer_fashion_mnist", Handler.answer_missing, raising=False)
    with pytest.raises(DataError, match=f"{server.url}/base/fashion-mnist/: HTTP 404"):
        data.prepare("fashion-mnist", tmp_path)
    assert server.asked == [("fashion-mnist", "train-images-idx3-ubyte.gz")]


def test_prepare_refuses_what_it_cannot_fetch(tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'fashion-mnist'"):
        data.prepare("fashion_mnist", tmp_path)
    with pytest.raises(UnknownNameError, match=r"did you mean 'cifar10'\? allowed: .*, cifar10, flower-photos$"):
        data.prepare("cifar", tmp_path)
    for name in ("shapes-color", "shapes@7"):
        with pytest.raises(DataError, match="is generated, there is nothing to download"):
            data.prepare(name, tmp_path)
    with pytest.raises(DataError, match=r"cifar10-jpeg has no download; CIFAR-10 \(JPEG\): put cifar10_jpeg/train"):
        data.prepare("cifar10-jpeg", tmp_path)


def test_published_checksums_are_well_formed():
    for spec in DOWNLOADS.values():
        assert len(spec.mirrors) >= 2
        sums = [text for file in spec.files for text in (file.md5, file.content_md5) if text is not None]
        assert len(set(sums)) == len(sums) and all(len(text) == 32 and int(text, 16) for text in sums)
        if len(spec.files) == 1:  # an archive
            assert len(spec.files[0].sha256) == 64 and int(spec.files[0].sha256, 16)
        else:
            assert len(spec.files) == 4 and len(sums) == 8


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files_are_recognised_without_the_network(name):
    folder = data.prepare(name, mirrors=["http://127.0.0.1:9/"])
    assert (folder / "train-images-idx3-ubyte.gz").exists()


# Archives


ARCHIVE = random.Random(1).randbytes(100_000)


def archive_spec(name, file, *, sha256=None, content=ARCHIVE):
    return DownloadSpec(name, (RemoteFile(file, md5(content), None, len(content), sha256),), ())


@pytest.fixture
def offers_archive(monkeypatch):
    monkeypatch.setitem(FILES, "x.tar.gz", ARCHIVE)


@pytest.mark.parametrize("sha256", [None, hashlib.sha256(ARCHIVE).hexdigest()])
def test_archive_has_to_be_the_published_file(server, tmp_path, offers_archive, sha256):
    spec = archive_spec("toy", "x.tar.gz", sha256=sha256)
    fetch(spec, tmp_path / "toy", mirrors=[f"{server.url}/good/"])
    assert content_of(tmp_path / "toy") == {"x.tar.gz": ARCHIVE}
    fetch(spec, tmp_path / "toy", mirrors=[f"{server.url}/good/"])
    assert len(server.asked) == 1
    (tmp_path / "toy" / "x.tar.gz").write_bytes(ARCHIVE[:-1])  # not right any more: fetched again
    fetch(spec, tmp_path / "toy", mirrors=[f"{server.url}/good/"])
    assert len(server.asked) == 2 and content_of(tmp_path / "toy") == {"x.tar.gz": ARCHIVE}


@pytest.mark.parametrize(("sha256", "said"), [(None, "MD5"), ("0" * 64, "SHA-256")])
def test_other_archive_is_refused_by_its_checksum(server, tmp_path, offers_archive, sha256, said):
    wrong = archive_spec("toy", "x.tar.gz", sha256=sha256, content=ARCHIVE if sha256 else ARCHIVE[::-1])
    with pytest.raises(DataError, match=f"wrong checksum .{said} "):
        fetch(wrong, tmp_path / "toy", mirrors=[f"{server.url}/good/"], rounds=1)
    assert not (tmp_path / "toy").exists()


def test_cifar10_is_prepared_from_a_mirror_and_then_read(server, tmp_path, monkeypatch):
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for number, batch in enumerate([*(f"data_batch_{place}" for place in range(1, 6)), "test_batch"]):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{batch}.bin")
            member.size = 2 * 3073
            tar.addfile(member, BytesIO((bytes([number]) + bytes([40 * number]) * 3072) * 2))
    content = packed.getvalue()
    monkeypatch.setitem(FILES, "cifar-10-binary.tar.gz", content)
    spec = archive_spec("cifar10", "cifar-10-binary.tar.gz", content=content)
    monkeypatch.setattr(data, "DOWNLOADS", {"cifar10": spec})
    monkeypatch.setattr(Handler, "answer_cifar10", Handler.answer_good, raising=False)
    monkeypatch.setenv("DEPLOYKIT_MIRROR", server.url)
    folder = data.prepare("cifar10", tmp_path)
    assert folder == tmp_path / "cifar10" and content_of(folder) == {"cifar-10-binary.tar.gz": content}
    dataset = data.load("cifar10", "train", data_dir=tmp_path)
    assert dataset.targets.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and dataset.pictures([8]).mean() == 160
    assert data.prepare("cifar10", tmp_path) == folder and len(server.asked) == 1
    shutil.move(folder / "cifar-10-binary.tar.gz", tmp_path)
    assert data.prepare("cifar10", tmp_path) == tmp_path and len(server.asked) == 1  # where it was found


def test_flower_photos_are_prepared_and_read(server, tmp_path, monkeypatch):
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for kind in ("roses", "tulips", "daisy", "sunflowers", "dandelion"):
            for number in range(5):
                picture = BytesIO()
                Image.new("RGB", (20 + number, 30), (9 * number, 0, 0)).save(picture, "jpeg")
                member = tarfile.TarInfo(f"flower_photos/{kind}/{number}.jpg")
                member.size = picture.tell()
                picture.seek(0)
                tar.addfile(member, picture)
        tar.addfile(tarfile.TarInfo("flower_photos/LICENSE.txt"))
    content = packed.getvalue()
    monkeypatch.setitem(FILES, "flower_photos.tgz", content)
    spec = archive_spec("flower-photos", "flower_photos.tgz", content=content)
    monkeypatch.setattr(data, "DOWNLOADS", {"flower-photos": spec})
    data.prepare("flower-photos", tmp_path, mirrors=[f"{server.url}/good/"])
    train, test = (data.load("flower-photos", split, data_dir=tmp_path) for split in ("train", "test"))
    assert (train.name, len(train), len(test), train.size) == ("flower-photos", 20, 5, None)
    assert train.labels == ("daisy", "dandelion", "roses", "sunflowers", "tulips") and not train.has_splits
    assert train.source_digest == test.source_digest


@pytest.mark.slow  # writes and reads 184 MB
def test_batches_that_were_unpacked_need_no_download(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    record = b"".join(bytes([label]) + bytes(3072) for label in range(10)) * 1000
    for batch in [*(f"data_batch_{place}" for place in range(1, 6)), "test_batch"]:
        (folder / f"{batch}.bin").write_bytes(record)
    assert data.prepare("cifar10", tmp_path, mirrors=["http://127.0.0.1:9/"]) == folder
    (folder / "test_batch.bin").write_bytes(record[:-30_730])  # ten pictures are missing
    with pytest.raises(DataError, match="cannot download cifar-10-binary"):
        data.prepare("cifar10", tmp_path, mirrors=["http://127.0.0.1:9/"])
