"""A module that can be exported or inspected, with what is known of it; ``sources`` finds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.artifact import ModelCard, Preprocess
from deploykit.errors import InputError
from deploykit.models import spec
from deploykit.preprocess import preset

if TYPE_CHECKING:
    import torch

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """A module in evaluation mode, with what is known of it.

    Attributes:
        kind: ``"checkpoint"``, ``"network"`` or ``"callable"``.
        name: What to call it: the network's name, or the callable's.
        input_shape: ``(C, H, W)``, None where a callable does not say.
        path: The checkpoint's file, None for the others.
        notes: What a file of weights did not say or give, a sentence each.
    """

    kind: str
    name: str
    module: torch.nn.Module
    card: ModelCard
    input_shape: tuple[int, int, int] | None
    path: Path | None = None
    notes: tuple[str, ...] = ()

    def described(
        self,
        *,
        input_shape: tuple[int, int, int] | None = None,
        preprocess: Preprocess | str | None = None,
        labels: tuple[str, ...] = (),
    ) -> Source:
        """A copy with what the user says of it.

        Args:
            input_shape: ``(C, H, W)`` of a callable, or another size for a network that takes any.
            preprocess: How pictures are fed to it, or the name of a preset.
            labels: Names of the classes.

        Raises: InputError when it contradicts what a checkpoint or network knows of itself.
        """
        if self.kind == "checkpoint" and (input_shape or preprocess):
            raise InputError(f"{self.path} knows its shape and preprocessing; leave out --shape and --preprocess")
        if self.kind == "checkpoint" and self.card.labels and labels:
            raise InputError(f"{self.path} knows its {len(self.card.labels)} labels; leave out --labels")
        source = replace(self, card=replace(self.card, labels=labels or self.card.labels))
        if self.kind == "network" and input_shape not in (None, self.input_shape):
            source = source._resized(input_shape)
        return source._fed(input_shape or self.input_shape, preprocess)

    def _resized(self, shape: tuple[int, int, int]) -> Source:
        """A copy of a network for pictures of another size."""
        before, entry = self.input_shape or shape, spec(self.name)
        if shape[0] not in (1, 3):
            raise InputError(f"{self.name} received --shape {_times(shape)}; allowed: 1 (grey) or 3 (colour) channels")
        if shape[0] != before[0]:
            raise InputError(
                f"{self.name} was built for {before[0]} channels, received --shape {_times(shape)}; give"
                f" --channels {shape[0]} with it"
            )
        if not entry.any_size:
            raise InputError(f"{self.name} takes {_times(before)}, received --shape {_times(shape)}")
        smallest = int(getattr(self.module, "smallest", 1))
        if min(shape[1:]) < smallest:
            raise InputError(
                f"{self.name} received --shape {_times(shape)}; allowed: pictures of {smallest}x{smallest} or more"
            )
        pre = self.card.preprocess
        if pre is None or not isinstance(pre.resize, int):
            return replace(self, input_shape=shape)
        resize = round(pre.resize * max(shape[1:]) / max(pre.size))
        card = replace(self.card, preprocess=replace(pre, size=shape[1:], resize=resize))
        return replace(self, input_shape=shape, card=card)

    def _fed(self, shape: tuple[int, int, int] | None, preprocess: Preprocess | str | None) -> Source:
        """A copy with this preprocessing; None leaves what is known."""
        if preprocess is None:
            return replace(self, input_shape=shape)
        if isinstance(preprocess, str):
            if shape is None:
                raise InputError(f"preprocess {preprocess!r} needs the input shape; give --shape, such as 3x224x224")
            preprocess = preset(preprocess, size=shape[1:], depth=shape[0], layout="NCHW", dtype="float32")
        shape = shape or (preprocess.depth, *preprocess.size)
        return replace(self, input_shape=shape, card=replace(self.card, preprocess=preprocess))


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
