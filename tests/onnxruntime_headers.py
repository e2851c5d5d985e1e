"""ONNX Runtime's C API for tests: the wheel's shared library, and a header from wherever this machine has one.

Python's wheels have no headers. Looked for are ``ORT_ROOT``, the system's folders, and the cache, which ``fetch`` fills
from an npm package that carries ONNX Runtime 1.29's headers; the digests of the three files are fixed here. A header
serves every later library.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pooch
import pytest

PACKAGE = "com.github.asus4.onnxruntime@0.4.9"  # 150 MB: a plugin for Unity, with the official headers
FOLDER = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers"
HEADERS = {
    "onnxruntime_c_api.h": "acc0cf4b3f28d39339c76770d76164bb7a0637dc89f5fde764b4017b632f6743",
    "onnxruntime_ep_c_api.h": "e6c986c9e98583f8113b2c6bc3864814883b806d501cf24da4d239c45753e235",
    "onnxruntime_error_code.h": "5ce3b054e798eced8d14f5b86e98692fd33470463f96194ce0700a2d53dd8721",
}


def cached():
    return Path(os.environ.get("DEPLOYKIT_CACHE") or pooch.os_cache("deploykit")) / "onnxruntime-headers-1.29"


def header_folder():
    """The folder with the header, None where there is none."""
    given = os.environ.get("ORT_ROOT")
    places = [Path(given) / "include", Path(given) / "include" / "onnxruntime"] if given else []
    places += [cached(), *(Path(root) / "include" / "onnxruntime" for root in ("/usr", "/usr/local", "/opt/homebrew"))]
    return next((place for place in places if (place / "onnxruntime_c_api.h").is_file()), None)


def fetch():
    """Brings the header into the cache by npm. Skips the test where it cannot be had."""
    if shutil.which("npm") is None:
        pytest.skip("no header onnxruntime_c_api.h and no npm to get it with")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, capture_output=True, text=True)
        packed = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            pytest.skip(f"npm cannot get {PACKAGE}: {done.stderr[-200:]}")
        aside = Path(folder) / "headers"
        aside.mkdir()
        with tarfile.open(packed[0]) as archive:
            for name, digest in HEADERS.items():
                content = archive.extractfile(f"{FOLDER}/{name}").read()
                assert hashlib.sha256(content).hexdigest() == digest, name
                (aside / name).write_bytes(content)
        cached().parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(aside, cached(), dirs_exist_ok=True)
    return cached()


def ort_root(folder, headers):
    """A folder as ONNX Runtime's releases have it: include/ with the header, lib/ with the wheel's library."""
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    (folder / "lib").mkdir(parents=True)
    shutil.copytree(headers, folder / "include")
    (folder / "lib" / "libonnxruntime.so.1").symlink_to(library)
    (folder / "lib" / "libonnxruntime.so").symlink_to("libonnxruntime.so.1")
    return folder
