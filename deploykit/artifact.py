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

if TYPE_CHECKING:
    import onnx

__all__ = ["Artifact", "ModelCard", "Preprocess", "TensorSpec", "load_model", "repeated"]

_PREFIX = "deploykit."
_LAYOUTS = ("NCHW", "NHWC")
_CHANNELS = {"L": 1, "RGB": 3, "BGR": 3}
_DTYPES = ("float32", "float16", "uint8")
_IMAGE_KEYS = ("Image.BitmapPixelFormat", "Image.ColorSpaceGamma", "Image.NominalPixelRange")
_PIXEL_RANGES = {(0.0, 255.0): "NominalRange_0_255", (0.0, 1.0): "Normalized_0_1", (-1.0, 1.0): "Normalized_1_1"}


@dataclass(frozen=True)
class Preprocess:
    """How pictures become a network's input; the order of the fields is the order of the steps.

    ``x = (pixel * scale - mean) / std``, channel by channel, with pixels from 0 to 255.

    Attributes:
        resize: None; an int: the shorter side gets this many pixels, the aspect ratio stays; ``(H, W)``: both sides.
        crop: None, or ``"center"``: cut the middle out at ``size``; where the picture is smaller, pad with zeros.
        size: ``(H, W)`` of the network's input.
        channels: ``"L"`` (grey), ``"RGB"`` or ``"BGR"``.
        scale: Factor applied to pixels first.
        mean: One number a channel, in units of the scaled pixel.
        std: One positive number a channel.
        layout: Order of the axes of the network's input.
        dtype: Element type of the network's input.
    """

    size: tuple[int, int]
    channels: str = "RGB"
    resize: int | tuple[int, int] | None = None
    crop: str | None = None
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = "NCHW"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.channels not in _CHANNELS:
            raise InputError(f"preprocess channels {self.channels!r}; allowed: {', '.join(_CHANNELS)}")
        depth = _CHANNELS[self.channels]
        object.__setattr__(self, "mean", tuple(self.mean) or (0.0,) * depth)
        object.__setattr__(self, "std", tuple(self.std) or (1.0,) * depth)
        object.__setattr__(self, "size", _pair("size", self.size))
        if isinstance(self.resize, (tuple, list)):
            object.__setattr__(self, "resize", _pair("resize", self.resize))
        elif self.resize is not None and self.resize < 1:
            raise InputError(f"preprocess resize {self.resize}; allowed: a positive number of pixels")
        if self.crop not in (None, "center"):
            raise InputError(f"preprocess crop {self.crop!r}; allowed: null or 'center'")
        if self.layout not in _LAYOUTS:
            raise InputError(f"preprocess layout {self.layout!r}; allowed: {', '.join(_LAYOUTS)}")
        if self.dtype not in _DTYPES:
            raise InputError(f"preprocess dtype {self.dtype!r}; allowed: {', '.join(_DTYPES)}")
        if len(self.mean) != depth or len(self.std) != depth or min(self.std) <= 0:
            raise InputError(
                f"preprocess mean {self.mean} and std {self.std}; allowed: {depth} numbers each for {self.channels},"
                " std positive"
            )

    @property
    def depth(self) -> int:
        """Number of channels of the network's input."""
        return _CHANNELS[self.channels]

    def to_json(self) -> dict[str, Any]:
        """The value of ``deploykit.preprocess``."""
        return {
            "layout": self.layout,
            "size": list(self.size),
            "resize": list(self.resize) if isinstance(self.resize, tuple) else self.resize,
            "crop": self.crop,
            "channels": self.channels,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "dtype": self.dtype,
        }

    @classmethod
    def from_json(cls, value: Any) -> Preprocess:
        """Reads ``deploykit.preprocess``. Raises: InputError naming what is missing or unknown."""
        if not isinstance(value, dict):
            raise InputError(f"preprocess is a {type(value).__name__}; expected a JSON object")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(value) - known):
            raise InputError(f"preprocess has unknown keys {unknown}; allowed: {', '.join(sorted(known))}")
        if "size" not in value:
            raise InputError("preprocess lacks 'size': [height, width] of the network's input")
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
        try:
            return cls(**values)
        except TypeError as problem:
            raise InputError(f"preprocess {value}: {problem}") from problem


def _pair(name: str, value: Any) -> tuple[int, int]:
    pair = tuple(value)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise InputError(f"preprocess {name} {value}; expected [height, width] in pixels")
    return pair


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
    """What an ONNX file says of itself. See the module's docstring; unknown things are None or empty."""

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
    for key in ("preprocess", "labels", "parity", "training"):
        if (text := metadata.get(_PREFIX + key)) is not None:
            found[key] = _structured(key, text, path)
    return found


def _structured(key: str, text: str, path: Path) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise ModelFileError(f"{path}: metadata {_PREFIX}{key} is not JSON: {problem}") from problem
    if key == "preprocess":
        return Preprocess.from_json(value)
    expected = list if key == "labels" else dict
    if not isinstance(value, expected):
        raise ModelFileError(f"{path}: metadata {_PREFIX}{key} is not a JSON {expected.__name__}")
    return _labels(value, path) if key == "labels" else value


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


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Parses and checks an ONNX file, external data included.

    Raises:
        ModelFileError: The file is missing, is not ONNX, is cut short, or has no nodes or outputs.
    """
    import onnx
    from google.protobuf.message import DecodeError

    source = Path(path)
    if source.is_dir():
        raise ModelFileError(f"{source} is a folder; expected an .onnx file")
    try:
        model = onnx.load(str(source))
    except FileNotFoundError as problem:
        raise ModelFileError(f"no such model file: {problem.filename or source}") from problem
    except (DecodeError, ValueError, onnx.checker.ValidationError) as problem:
        reason = str(problem).splitlines()[0]
        raise ModelFileError(
            f"{source} is not a readable ONNX model ({reason}); the file is damaged, cut short or of another format"
        ) from problem
    except OSError as problem:
        raise ModelFileError(f"cannot read {source}: {problem.strerror}") from problem
    _check_model(model, source)
    return model


def _check_model(model: onnx.ModelProto, source: Path) -> None:
    import onnx

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
