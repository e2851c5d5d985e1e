"""Apps: a folder with a model, its labels, the code that shows it pictures, and a golden test that proves it.

``embed_onnx`` writes one for each target of ``TARGETS``, and all of them into one archive, which ``verify_bundle``
checks. What an app answers is compared with what deploykit's own rooms answer, on pictures that lie in the folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deploykit import __version__, environment
from deploykit.artifact import Preprocess
from deploykit.data.dataset import Dataset
from deploykit.embed.app_model import AppModel
from deploykit.embed.bundle import write_bundle
from deploykit.embed.bundle_check import is_bundle, verify_bundle
from deploykit.embed.content import content_of
from deploykit.embed.folder import check_folder, write_folder
from deploykit.embed.golden import Golden, chosen_from, chosen_pictures
from deploykit.embed.lineage import measured_beside
from deploykit.embed.options import EmbedOptions
from deploykit.embed.targets import TARGETS, Target, target_named
from deploykit.embeddings import App, Bundle, Embedding
from deploykit.errors import InputError
from deploykit.files import check_writable

__all__ = ["TARGETS", "EmbedOptions", "embed_onnx", "is_bundle", "verify_bundle"]


def embed_onnx(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str] | None = None,
    targets: str | Sequence[str] = "python",
    *,
    golden: Dataset | Sequence[str | os.PathLike[str]],
    bundle: str | os.PathLike[str] | None = None,
    preprocess: Preprocess | str | None = None,
    options: EmbedOptions | None = None,
    overwrite: bool = False,
) -> Embedding:
    """Writes an app's folder for each target, an archive of them, or both.

    Args:
        model: An ``.onnx`` classifier; its file is copied unchanged.
        folder: To write; with several targets one folder for each is made in it. None for the archive alone.
        targets: A name of ``TARGETS``, or several.
        golden: A dataset, of which three pictures are chosen, or the paths of one to sixteen pictures.
        bundle: The archive to write.
        preprocess: How pictures are prepared, where the file does not say it.
        options: Title, records and further forms of the model.
        overwrite: Whether apps and an archive that are there may be replaced; nothing else ever is.

    Raises:
        UnknownNameError: No such target.
        InputError: The model, its labels or the pictures cannot be used in such an app.
        DataError: A picture cannot be read.
        ParityError: The model's ``.ort`` form answers otherwise.
        OutputError: Something that exists would be replaced, or a place cannot be written.
    """
    asked = options or EmbedOptions()
    chosen = [target_named(name) for name in dict.fromkeys([targets] if isinstance(targets, str) else targets)]
    with _places(chosen, folder, bundle, overwrite=overwrite) as places:
        opened = AppModel.open(model, preprocess)
        for target in chosen:
            target.check(opened)
        tested = _golden(opened, golden)
        measured = measured_beside(opened.artifact, asked.records)
        apps = [
            _written(opened, tested, target, place, asked, overwrite=overwrite)
            for target, place in zip(chosen, places, strict=True)
        ]
        packed = None
        if bundle is not None:
            packed = write_bundle(Path(bundle), dict(zip(apps, places, strict=True)), measured, overwrite=overwrite)
    if folder is None:
        apps = [replace(app, folder=f"{bundle}:{app.target}") for app in apps]
    return _record(opened, tested, apps, packed)


@contextmanager
def _places(
    targets: Sequence[Target],
    folder: str | os.PathLike[str] | None,
    bundle: str | os.PathLike[str] | None,
    *,
    overwrite: bool,
) -> Iterator[list[Path]]:
    """Where each app goes; whether it may be written is found out first."""
    if not targets:
        raise InputError(f"no target; allowed: {', '.join(TARGETS)}")
    if bundle is not None:
        check_writable(bundle, overwrite=overwrite)
    if folder is not None:
        root = Path(folder)
        places = [root if len(targets) == 1 else root / target.name for target in targets]
        for place in places:
            check_folder(place, overwrite=overwrite)
        yield places
    elif bundle is not None:
        with tempfile.TemporaryDirectory(prefix="deploykit-") as temporary:
            yield [Path(temporary) / target.name for target in targets]
    else:
        raise InputError("neither a folder nor a bundle to write; expected one of them")


def _golden(model: AppModel, source: Dataset | Sequence[str | os.PathLike[str]]) -> Golden:
    if isinstance(source, Dataset):
        return chosen_from(model, source)
    if not source:
        raise InputError("no golden pictures; give a dataset or the paths of pictures, so that the app can be tested")
    return chosen_pictures(model, [Path(path) for path in source])


def _written(
    model: AppModel, golden: Golden, target: Target, place: Path, options: EmbedOptions, *, overwrite: bool
) -> App:
    content = content_of(target, model, golden, options)
    files = write_folder(place, content, overwrite=overwrite)
    return App(
        target=target.name,
        folder=str(place),
        runtime=target.runtime,
        runtime_version=content.runtime_version,
        files=files,
        total_bytes=sum(file.file_bytes for file in files),
        ort_max_abs=content.ort_max_abs,
    )


def _record(model: AppModel, golden: Golden, apps: Sequence[App], bundle: Bundle | None) -> Embedding:
    return Embedding(
        environment=environment.describe(),
        deploykit=__version__,
        model=model.artifact.path.name,
        model_sha256=model.artifact.sha256,
        precision=model.precision,
        prepared_by="graph" if model.feeding.takes_pixels else "app",
        classes=len(golden.labels),
        golden=tuple(golden.labels[picture.winner] for picture in golden.pictures),
        tolerance=golden.tolerance,
        apps=tuple(apps),
        bundle=bundle,
    )
