"""An ONNX file that knows itself: what it takes, what it answers, and where it came from.

Everything that a later stage or an app needs stands in the file's own ``metadata_props`` under keys that start with
``deploykit.`` (``docs/interface.md``). A foreign file without them is read too; what is unknown is None.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.errors import InputError, ModelFileError
from deploykit.files import sha256_file
from deploykit.preprocessing_spec import Preprocess

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Artifact",
    "ModelCard",
    "Preprocess",
    "TensorSpec",
    "check_is_file",
    "check_model",
    "load_model",
    "repeated",
]

_PREFIX = "deploykit."
_PATH_CHARACTERS = 160  # of a path in a message; the longest are over 4,000
_IMAGE_KEYS = ("Image.BitmapPixelFormat", "Image.ColorSpaceGamma", "Image.NominalPixelRange")
_PIXEL_RANGES = {(0.0, 255.0): "NominalRange_0_255", (0.0, 1.0): "Normalized_0_1", (-1.0, 1.0): "Normalized_1_1"}


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type (numpy's name) and shape of a model's input or output; a dynamic axis is its name or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None

    @property
    def rank(self) -> int | None:
        """Number of axes, None when the file does not say."""
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True)
class ModelCard:
    """What a source knows of a network before it is an ONNX file; export writes it into the file's metadata."""

    network: str | None = None
    task: str | None = "image-classification"
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    dataset: str | None = None
    parent_sha256: str | None = None
    training: Mapping[str, Any] | None = None

    def artifact(self, **made: Any) -> Artifact:
        """The artifact of a model that is not a file yet; ``made`` are fields of ``Artifact``."""
        known = {item.name: getattr(self, item.name) for item in fields(self)}
        nowhere = {"path": Path(), "sha256": "", "file_bytes": 0, "inputs": (), "outputs": ()}
        return Artifact(**{**nowhere, "opset": 0, "ir_version": 0, **known, **made})


@dataclass(frozen=True)
class Artifact:
    """What an ONNX file says of itself. See the module's docstring; unknown things are None or empty.

    ``preprocess`` is what the input has to be fed with; ``graph_preprocess`` what the graph does to pixels itself, in a
    file whose input takes them as they are (``wrap``), and ``graph_parity`` how near that comes to Python's.
    """

    path: Path
    sha256: str
    file_bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    ir_version: int
    version: str | None = None
    network: str | None = None
    task: str | None = None
    preprocess: Preprocess | None = None
    labels: tuple[str, ...] = ()
    dataset: str | None = None
    precision: str | None = None
    recipe: str | None = None
    parent_sha256: str | None = None
    parity: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    graph_preprocess: Preprocess | None = None
    graph_parity: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Artifact:
        """Reads and checks an ONNX file. Raises: ModelFileError."""
        return cls.of_model(load_model(path), Path(path))

    @classmethod
    def of_model(cls, model: onnx.ModelProto, path: Path) -> Artifact:
        """The artifact of a model that ``load_model`` has read from ``path``."""
        metadata = {prop.key: prop.value for prop in model.metadata_props}
        initializers = {tensor.name for tensor in model.graph.initializer}
        opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
        bare = cls(
            path=path,
            sha256=sha256_file(path),
            file_bytes=path.stat().st_size,
            inputs=tuple(_tensor(value) for value in model.graph.input if value.name not in initializers),
            outputs=tuple(_tensor(value) for value in model.graph.output),
            opset=opsets.get("ai.onnx", 0),
            ir_version=model.ir_version,
        )
        return replace(bare, **_from_metadata(metadata, path))

    @property
    def name(self) -> str:
        """What to call the model in tables: the file's name without ``.onnx``."""
        return self.path.name.removesuffix(".onnx")

    def metadata(self) -> dict[str, str]:
        """The ``deploykit.*`` properties, and the ONNX standard's ``Image.*`` ones where they apply."""
        values: dict[str, Any] = {
            "version": self.version,
            "network": self.network,
            "task": self.task,
            "preprocess": self.preprocess and self.preprocess.to_json(),
            "labels": list(self.labels) or None,
            "dataset": self.dataset,
            "precision": self.precision,
            "recipe": self.recipe,
            "parent_sha256": self.parent_sha256,
            "parity": self.parity and dict(self.parity),
            "training": self.training and dict(self.training),
            "graph_preprocess": self.graph_preprocess and self.graph_preprocess.to_json(),
            "graph_parity": self.graph_parity and dict(self.graph_parity),
        }
        texts = {
            _PREFIX + key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in values.items()
            if value is not None
        }
        return texts | _image_metadata(self.preprocess)

    def stamp(self, model: onnx.ModelProto) -> None:
        """Puts ``metadata()`` into ``model``, keeping the keys of other tools.

        Stale values go: every ``deploykit.*`` key of the model is replaced, and so are the ``Image.*`` ones that
        follow from the preprocessing.
        """
        before = {prop.key: prop.value for prop in model.metadata_props}
        # Image.* keys are another tool's unless a preprocessing of ours goes with them, now or before.
        ours = _IMAGE_KEYS if self.preprocess or f"{_PREFIX}preprocess" in before else ()
        kept = {key: text for key, text in before.items() if not key.startswith(_PREFIX) and key not in ours}
        del model.metadata_props[:]
        for key, value in (kept | self.metadata()).items():
            model.metadata_props.add(key=key, value=value)


def _image_metadata(preprocess: Preprocess | None) -> dict[str, str]:
    """Image type properties of the ONNX standard (onnx/docs/MetadataProps.md)."""
    if preprocess is None:
        return {}
    pixel_format = {"L": "Gray8", "RGB": "Rgb8", "BGR": "Bgr8"}[preprocess.channels]
    ends = {
        (round(-mean / std, 6), round((255.0 * preprocess.scale - mean) / std, 6))
        for mean, std in zip(preprocess.mean, preprocess.std, strict=True)
    }
    pixel_range = _PIXEL_RANGES.get(ends.pop()) if len(ends) == 1 else None
    values = {"Image.BitmapPixelFormat": pixel_format, "Image.ColorSpaceGamma": "SRGB"}
    return values | ({"Image.NominalPixelRange": pixel_range} if pixel_range else {})


def _from_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in ("version", "network", "task", "dataset", "precision", "recipe", "parent_sha256"):
        found[key] = metadata.get(_PREFIX + key)
    for key in ("preprocess", "labels", "parity", "training", "graph_preprocess", "graph_parity"):
        if (text := metadata.get(_PREFIX + key)) is not None:
            found[key] = _structured(key, text, path)
    return found


def _structured(key: str, text: str, path: Path) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ModelFileError(f"{path}: metadata {_PREFIX}{key} is not JSON: {problem}") from problem
    if key in ("preprocess", "graph_preprocess"):
        return _preprocess(key, value, path)
    expected = list if key == "labels" else dict
    if not isinstance(value, expected):
        raise ModelFileError(f"{path}: metadata {_PREFIX}{key} is not a JSON {expected.__name__}")
    return _labels(value, path) if key == "labels" else value


def _preprocess(key: str, value: Any, path: Path) -> Preprocess:
    try:
        return Preprocess.from_json(value)
    except InputError as problem:
        raise ModelFileError(f"{path}: metadata {_PREFIX}{key}: {problem}") from problem


def _labels(value: Iterable[Any], path: Path) -> tuple[str, ...]:
    labels = tuple(str(item) for item in value)
    if twice := repeated(labels):
        raise ModelFileError(
            f"{path}: metadata {_PREFIX}labels has {twice!r} more than once; each class needs its name"
        )
    return labels


def repeated(names: Sequence[str]) -> str | None:
    """The first name that stands more than once among ``names``, None when all differ."""
    return next((name for index, name in enumerate(names) if name in names[:index]), None) if names else None


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    kind = value.type.tensor_type
    known = onnx.TensorProto.DataType.values()
    dtype = "unknown"
    if kind.elem_type and kind.elem_type in known:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    if not kind.HasField("shape"):
        return TensorSpec(value.name, dtype, None)
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)  # 0 is a legal size
        for dim in kind.shape.dim
    )
    return TensorSpec(value.name, dtype, shape)


def check_is_file(path: Path) -> None:
    """Raises: ModelFileError for a folder, for nothing, and for a path that the system does not take."""
    try:
        found, folder = path.exists(), path.is_dir()
    except OSError as problem:  # a path that is too long, or one that may not be read
        raise ModelFileError(f"cannot read {_short(path)}: {problem.strerror}; give the path of a file") from problem
    if folder:
        raise ModelFileError(f"{path} is a folder; expected an .onnx file")
    if not found:
        raise ModelFileError(f"no such model file: {_short(path)}")


def _short(path: Path) -> str:
    text = str(path)
    return (
        text if len(text) <= _PATH_CHARACTERS else f"{text[: _PATH_CHARACTERS // 2]}…{text[-_PATH_CHARACTERS // 2 :]}"
    )


def load_model(path: str | os.PathLike[str], *, external_data: bool = True) -> onnx.ModelProto:
    """Parses and checks an ONNX file, with its external data or with what it says of them.

    Raises:
        ModelFileError: The file is missing, is not ONNX, is cut short, or has no nodes or outputs.
    """
    import onnx
    from google.protobuf.message import DecodeError

    source = Path(path)
    check_is_file(source)
    try:
        model = onnx.load(
            str(source),
            format="protobuf",  # otherwise the file's ending chooses the parser
            load_external_data=external_data,
        )
    except FileNotFoundError as problem:
        raise ModelFileError(f"no such model file: {problem.filename or source}") from problem
    except (DecodeError, ValueError, onnx.checker.ValidationError) as problem:
        reason = str(problem).splitlines()[0]
        raise ModelFileError(
            f"{source} is not a readable ONNX model ({reason}); the file is damaged, cut short or of another format"
        ) from problem
    except OSError as problem:
        raise ModelFileError(f"cannot read {source}: {problem.strerror}") from problem
    check_model(model, source)
    return model


def check_model(model: onnx.ModelProto, source: Path) -> None:
    """Raises: ModelFileError when ``model`` is empty, or the file that it was read from breaks the ONNX standard."""
    import onnx

    if not source.stat().st_size:
        raise ModelFileError(f"{source} is empty; expected an ONNX model")
    if not model.graph.node or not model.graph.output or not model.ir_version:
        raise ModelFileError(f"{source} is not a usable ONNX model: it has no nodes or no outputs")
    try:
        onnx.checker.check_model(str(source))  # by path, so that models above 2 GB pass too
    except onnx.checker.ValidationError as problem:
        reason = str(problem).splitlines()[0]
        tolerated = ("No Op registered", "No opset import", "Field 'shape' of 'type' is required")
        if any(known in reason for known in tolerated):
            return  # operators of another domain, or an output without a shape: the runtime decides
        raise ModelFileError(f"{source} is not a valid ONNX model: {reason}") from problem
