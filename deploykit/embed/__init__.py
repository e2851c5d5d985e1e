"""Apps: a folder with a model, its labels, the code that shows it pictures, and a golden test that proves it.

``embed_onnx`` writes one for each target of ``TARGETS``. What an app answers is compared with what deploykit's own
rooms answer, on pictures that lie in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from deploykit import __version__, environment
from deploykit.artifact import Preprocess
from deploykit.data.dataset import Dataset
from deploykit.embed.app_model import AppModel
from deploykit.embed.folder import check_folder, write_folder
from deploykit.embed.golden import Golden, chosen_from, chosen_pictures
from deploykit.embed.options import EmbedOptions
from deploykit.embed.targets import TARGETS, content_of, target_named
from deploykit.embeddings import Embedding
from deploykit.errors import InputError

__all__ = ["TARGETS", "EmbedOptions", "embed_onnx"]


def embed_onnx(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    target: str = "python",
    *,
    golden: Dataset | Sequence[str | os.PathLike[str]],
    preprocess: Preprocess | str | None = None,
    options: EmbedOptions | None = None,
    overwrite: bool = False,
) -> Embedding:
    """Writes an app's folder.

    Args:
        model: An ``.onnx`` classifier; its file is copied unchanged.
        folder: To write; what is there is replaced only with ``overwrite``, and only if it is an app.
        target: A name of ``TARGETS``.
        golden: A dataset, of which three pictures are chosen, or the paths of one to sixteen pictures.
        preprocess: How pictures are prepared, where the file does not say it.
        options: Title, runtime and further forms of the model.
        overwrite: Whether an app that is there may be replaced.

    Raises:
        UnknownNameError: No such target.
        InputError: The model, its labels or the pictures cannot be used in such an app.
        DataError: A picture cannot be read.
        OutputError: The folder exists or cannot be written.
    """
    chosen, place, asked = target_named(target), Path(folder), options or EmbedOptions()
    check_folder(place, overwrite=overwrite)
    opened = AppModel.open(model, preprocess)
    chosen.check(opened)
    tested = _golden(opened, golden)
    content = content_of(chosen, opened, tested, asked.title or opened.artifact.name)
    files = write_folder(place, content, overwrite=overwrite)
    return Embedding(
        environment=environment.describe(),
        deploykit=__version__,
        model=opened.artifact.path.name,
        model_sha256=opened.artifact.sha256,
        precision=opened.precision,
        target=target,
        folder=str(place),
        prepared_by="graph" if opened.feeding.preprocess is None else "app",
        classes=len(tested.labels),
        golden=tuple(tested.labels[picture.winner] for picture in tested.pictures),
        tolerance=tested.tolerance,
        runtime=chosen.runtime,
        runtime_version=content.runtime_version,
        files=files,
        total_bytes=sum(file.file_bytes for file in files),
    )


def _golden(model: AppModel, source: Dataset | Sequence[str | os.PathLike[str]]) -> Golden:
    if isinstance(source, Dataset):
        return chosen_from(model, source)
    if not source:
        raise InputError("no golden pictures; give a dataset or the paths of pictures, so that the app can be tested")
    return chosen_pictures(model, [Path(path) for path in source])
