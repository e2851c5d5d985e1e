"""Bundles: the same bytes for the same files, and every change in one is found."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from embed_models import pixel_classifier
from PIL import Image
from tiny_onnx import classifier

from deploykit import data
from deploykit.cli import main
from deploykit.embed import EmbedOptions, embed_onnx, verify_bundle
from deploykit.errors import InputError
from deploykit.files import sha256_file, write_json
from deploykit.results import read_record


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """An archive of one app, with a record of the model and one of its parent beside it, and a stranger's."""
    folder = tmp_path_factory.mktemp("bundle")
    model = pixel_classifier(folder / "net.onnx", parent="ab" * 32)
    sha256 = sha256_file(model)
    head = {"deploykit": "0.1.0", "environment": {}}
    records = {
        "net.accuracy.json": {"schema": "deploykit.accuracy/1", **head, "model_sha256": sha256, "top1": 0.97},
        "made.json": {
            "schema": "deploykit.quantization/1",
            **head,
            "model": "net",
            "model_sha256": "ab" * 32,
            "parent": "float",
            "parent_sha256": "cd" * 32,
            "recipe": "int8",
        },
        "grandparent.json": {"schema": "deploykit.accuracy/1", **head, "model_sha256": "cd" * 32, "top1": 0.98},
        "other.json": {"schema": "deploykit.accuracy/1", **head, "model_sha256": "ef" * 32},
        "package.json": {"name": "somebody else's"},
    }
    for name, document in records.items():
        (folder / name).write_text(json.dumps(document))
    embed_onnx(model, None, "python", golden=data.load("shapes-color"), bundle=folder / "app.zip")
    return folder / "app.zip"


def test_manifest_has_digests_lineage_and_records(bundle):
    with zipfile.ZipFile(bundle) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        names = archive.namelist()
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        accuracy = json.loads(archive.read("records/net.accuracy.json"))

    assert names[0] == "manifest.json" and names[1:] == sorted(names[1:])
    assert [item["file"] for item in manifest["files"]] == names[1:]
    assert all(item["file_bytes"] == sizes[item["file"]] for item in manifest["files"])
    assert manifest["records"] == ["records/grandparent.json", "records/made.json", "records/net.accuracy.json"]
    model, parent = manifest["lineage"]
    assert model["parent_sha256"] == parent["sha256"] == "ab" * 32
    assert (parent["made_by"], parent["recipe"], parent["parent_sha256"]) == ("quantization", "int8", "cd" * 32)
    assert model["sha256"] == accuracy["model_sha256"] == sha256_file(bundle.parent / "net.onnx")


def test_same_files_give_the_same_bytes(bundle, tmp_path):
    """Made again: by another process, elsewhere, later, with other permissions, time zone and hash seed."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(bundle.parent, folder)
    (folder / "app.zip").unlink()
    for path in folder.iterdir():
        path.chmod(0o600)
    program = "import os, sys; os.umask(0o077); from deploykit.cli import main; sys.exit(main(sys.argv[1:]))"
    asked = ["embed", "net.onnx", "--target", "python", "--data", "shapes-color", "--bundle", "app.zip", "-o", "kept"]
    env = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    subprocess.run([sys.executable, "-c", program, *asked], cwd=folder, env=env, check=True, capture_output=True)

    assert (folder / "app.zip").read_bytes() == bundle.read_bytes()
    assert (folder / "kept" / "classify.py").is_file()


def test_unpacked_app_runs(bundle, tmp_path):
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path)
    done = subprocess.run([sys.executable, "-I", str(tmp_path / "python" / "classify.py"), "--self-test"])
    assert done.returncode == 0


def test_untouched_bundle_is_the_same(bundle, capsys):
    found = verify_bundle(bundle)
    assert found.verdict == "same" and found.problems == ()
    assert [check.passed for check in found.golden] == [True] * 3
    assert main(["verify", str(bundle)]) == 0
    assert "3 of 3 golden pictures" in capsys.readouterr().out


def test_model_that_the_app_prepares_pictures_for_is_verified(tmp_path):
    model = classifier(tmp_path / "net.onnx")
    embed_onnx(model, tmp_path / "app", "python", golden=data.load("shapes"), bundle=tmp_path / "app.zip")
    found = verify_bundle(tmp_path / "app.zip")
    assert (found.verdict, len(found.golden)) == ("same", 3)


def repacked(bundle, target, change):
    """The archive with ``change`` made to its members, a dict of contents by name."""
    with zipfile.ZipFile(bundle) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target


def _flip_a_bit(members):
    content = bytearray(members["python/model.onnx"])
    content[len(content) // 2] ^= 1
    members["python/model.onnx"] = bytes(content)


def _shorten(members):
    members["python/labels.txt"] = members["python/labels.txt"][:-3]


CHANGES = {
    "a bit of the model": (_flip_a_bit, "python/model.onnx: SHA-256"),
    "labels cut short": (_shorten, "python/labels.txt: "),
    "a file missing": (lambda members: members.pop("python/LICENSE"), "python/LICENSE: is missing"),
    "a file more": (lambda members: members.update({"python/evil.py": b""}), "python/evil.py: is not in the manifest"),
    "a record changed": (
        lambda members: members.update({"records/made.json": b"{}"}),
        "records/made.json: 2 bytes instead of",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_change_is_found(bundle, tmp_path, capsys, kind):
    change, said = CHANGES[kind]
    changed = repacked(bundle, tmp_path / "changed.zip", change)

    assert main(["verify", str(changed), "--json"]) == 1
    out, error = capsys.readouterr()
    found = json.loads(out)
    assert found["schema"] == "deploykit.bundle-verification/1"
    assert found["verdict"] == "differs" and len(found["problems"]) == 1
    assert found["problems"][0].startswith(said)
    assert error.startswith("error: ") and error.count("\n") == 1


def test_file_that_stands_twice_is_found(bundle, tmp_path):
    shutil.copy(bundle, tmp_path / "twice.zip")
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice.zip", "a") as archive:
        archive.writestr("python/labels.txt", b"other\n")
    assert any("more than once" in problem for problem in verify_bundle(tmp_path / "twice.zip").problems)


def _relisted(members, change):
    """A consistent manifest for changed members: what somebody does who wants the change to pass."""
    import hashlib

    change(members)
    manifest = json.loads(members["manifest.json"])
    for item in manifest["files"]:
        content = members[item["file"]]
        item["file_bytes"], item["sha256"] = len(content), hashlib.sha256(content).hexdigest()
    members["manifest.json"] = json.dumps(manifest).encode()


def _golden_of_another(members):
    golden = json.loads(members["python/golden/golden.json"])
    golden["pictures"][0]["label"] = "purple"
    members["python/golden/golden.json"] = json.dumps(golden).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_golden_of_another, "instead of purple"),
        (lambda members: members.update({"python/model.onnx": b"x"}), "names another model"),
        (lambda members: members.update({"python/model.json": b"{}"}), "cannot run"),
    ],
)
def test_golden_test_finds_what_digests_do_not(bundle, tmp_path, change, said):
    changed = repacked(bundle, tmp_path / "changed.zip", lambda members: _relisted(members, change))
    found = verify_bundle(changed)
    assert found.verdict == "differs" and said in found.problems[0]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-200])


def _picture(path):
    Image.new("RGB", (9, 9)).save(path, format="PNG")


def _other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def _newer(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", json.dumps({"schema": "deploykit.bundle/9", "files": [], "apps": []}))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_cut, "is not a bundle"),
        (_picture, "is not a bundle"),
        (_other_zip, "no usable manifest.json"),
        (_newer, "deploykit.bundle/9"),
        (lambda path: path.unlink(), "no such file"),
    ],
)
def test_what_is_no_bundle_is_one_line(bundle, tmp_path, capsys, make, said):
    path = Path(shutil.copy(bundle, tmp_path / "app.zip"))
    make(path)
    assert main(["verify", str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_records_that_are_named_must_be_of_the_model(bundle, tmp_path):
    model = bundle.parent / "net.onnx"
    golden = data.load("shapes-color")
    for name, said in (("other.json", "no record of net.onnx"), ("package.json", "schema"), ("gone.json", "no such")):
        options = EmbedOptions(records=(bundle.parent / name,))
        with pytest.raises(InputError, match=said):
            embed_onnx(model, None, "python", golden=golden, bundle=tmp_path / "app.zip", options=options)
    options = EmbedOptions(records=(bundle.parent / "net.accuracy.json",))
    made = embed_onnx(model, None, "python", golden=golden, bundle=tmp_path / "app.zip", options=options)
    assert made.bundle.records == ("net.accuracy.json",)


def test_records_are_read_back(bundle, tmp_path):
    golden = data.load("shapes-color")
    made = embed_onnx(bundle.parent / "net.onnx", None, "python", golden=golden, bundle=tmp_path / "app.zip")
    for record in (made, verify_bundle(tmp_path / "app.zip")):
        path = write_json(tmp_path / "record.json", record.to_document())
        assert read_record(path) == record
    assert made.bundle.sha256 == sha256_file(tmp_path / "app.zip")
    assert made.apps[0].folder == f"{tmp_path / 'app.zip'}:python"


def test_existing_bundle_is_kept(bundle, capsys):
    before = bundle.read_bytes()
    model = str(bundle.parent / "net.onnx")
    asked = ["embed", model, "--target", "python", "--data", "shapes-color", "--bundle", str(bundle)]
    assert main(asked) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*asked, "--overwrite"]) == 0
    assert bundle.read_bytes() == before
    assert main(asked[:-2]) == 2
    assert "neither a folder nor a bundle" in capsys.readouterr().err
