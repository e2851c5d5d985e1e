"""The records of what a network weighs, and of two side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from deploykit.record import Record

__all__ = ["Comparison", "Difference", "LayerProfile", "Profile", "StageProfile"]


@dataclass(frozen=True)
class LayerProfile:
    """One layer of a profile. Shapes leave out the batch axis; counts are for one picture.

    Attributes:
        kernel: Sides of a convolution's or pooling's kernel, None for other layers.
        stride: Its steps.
        groups: Of a convolution.
        precision: As its weights are stored, such as ``"int8"``; None without weights.
        passes_on: Shape of what the next layer gets, after activation, addition or concatenation; None when unknown.
        zeros: Share of the weights that are exactly zero; None without weights, and where it is not counted.
    """

    name: str
    op: str
    output_shape: tuple[int, ...] | None
    parameters: int
    connections: int
    macs: int
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    groups: int = 1
    precision: str | None = None
    passes_on: tuple[int, ...] | None = None
    zeros: float | None = None


@dataclass(frozen=True)
class StageProfile:
    """A row of the table in a network's paper: one or more layers.

    Attributes:
        name: As the paper calls it, such as ``"conv2_x"`` or ``"inception (3a)"``.
        op: What it is made of, such as ``"[3×3, 64 | 3×3, 64] ×2"``.
        output_shape: Of what leaves it; None when unknown.
        layers: Names of its layers.
        precision: Of its weights, ``"mixed"`` when they differ; None without weights.
        published: Parameters and operations that the paper prints for this row; None when it prints none.
    """

    name: str
    op: str
    output_shape: tuple[int, ...] | None
    parameters: int
    connections: int
    macs: int
    layers: tuple[str, ...] = ()
    precision: str | None = None
    published: str | None = None


@dataclass(frozen=True, kw_only=True)
class Profile(Record):
    """What a network weighs (``inspect``).

    Attributes:
        connections: Multiply-accumulates with the bias counted as one, as LeCun et al. 1998 counts them.
        macs: Multiply-accumulates of convolutions and fully connected layers, without biases, for one picture.
        weight_bytes: Bytes of the weights as stored.
        file_bytes: Bytes on disk; None for a network that is only a name.
        download_bytes: The file after deflate; None for a network that is only a name.
        peak_activation_bytes: Largest sum of live activations, by liveness, batch 1; None when shapes are unknown.
        stages: The layers as the rows of the paper's table; empty for a network without one.
        float_islands: Of a quantized model, the groups of operators that are computed in float between two that are
            not, each as its operators; None for models without integers.
        published: What the paper says of the whole network, and why it differs where it does.
    """

    kind: ClassVar[str] = "profile"

    name: str
    parameters: int
    connections: int | None
    macs: int | None
    weight_bytes: int
    file_bytes: int | None
    download_bytes: int | None
    peak_activation_bytes: int | None
    precision: str
    layers: tuple[LayerProfile, ...]
    operators: Mapping[str, int] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None
    opset: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    parent_sha256: str | None = None
    warnings: tuple[str, ...] = ()
    stages: tuple[StageProfile, ...] = ()
    published: str | None = None
    float_islands: tuple[tuple[str, ...], ...] | None = None


@dataclass(frozen=True)
class Difference:
    """A row that two networks have in common by its name, and that differs."""

    name: str
    a: StageProfile
    b: StageProfile


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """Two profiles side by side (``inspect A B``).

    Attributes:
        ratios: A's figure over B's by its name in the profile; None where either is unknown or B's is zero.
        differences: Rows that differ, where both have the same rows by name and order; otherwise empty.
        same_rows: Whether they do.
    """

    kind: ClassVar[str] = "comparison"

    a: Profile
    b: Profile
    ratios: Mapping[str, float | None]
    differences: tuple[Difference, ...] = ()
    same_rows: bool = False

    def to_document(self) -> dict[str, Any]:
        """The JSON document; ``a`` and ``b`` are the documents of the profiles."""
        return super().to_document() | {"a": self.a.to_document(), "b": self.b.to_document()}
