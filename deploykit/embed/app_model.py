"""A model as an app uses it: one picture in, the outputs of its classes out, by the steps of the app."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploykit.answers import first_answers
from deploykit.artifact import Artifact, Preprocess, load_model, repeated
from deploykit.classifier import ends_in_softmax
from deploykit.embed.feeding import Feeding, feeding_of
from deploykit.errors import InputError
from deploykit.graph.precision import precision_of
from deploykit.graph.weights import external_files
from deploykit.runtime import Session, create_session

__all__ = ["AppModel"]


@dataclass(frozen=True)
class AppModel:
    """A model that is open, and how it is fed.

    Attributes:
        artifact: The file.
        session: Runs it on the CPU.
        feeding: How pictures become its input.
        precision: As ``precision_of`` names it.
        probabilities: Whether its first output is a distribution already, not logits.
    """

    artifact: Artifact
    session: Session
    feeding: Feeding
    precision: str
    probabilities: bool

    @classmethod
    def open(cls, model: str | os.PathLike[str], preprocess: Preprocess | str | None = None) -> AppModel:
        """Opens a classifier with one picture input.

        Raises:
            ModelFileError: Not a usable model.
            InputError: It cannot be fed with one picture, its preprocessing is unknown, or its weights lie in another
                file.
        """
        path = Path(model)
        proto = load_model(path)
        artifact = Artifact.of_model(proto, path)
        if beside := external_files(path):
            raise InputError(
                f"{path} keeps weights in {beside[0].name}; an app's folder has one model file, below 2 GB:"
                " export or rewrite it into one"
            )
        feeding = feeding_of(artifact, preprocess)
        session = create_session(path, threads=1, spinning=False)
        return cls(artifact, session, feeding, precision_of(proto), ends_in_softmax(proto.graph))

    @property
    def output(self) -> str:
        """Name of the output that holds the classes: the first one."""
        return self.artifact.outputs[0].name

    def outputs(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(classes,) for pixels (H, W, 1 or 3). Raises: DataError, InputError."""
        rows = self.feeding.input(picture)
        return first_answers(self.session, rows, self.artifact.path, what="pictures").reshape(-1).astype(np.float32)

    def labels(self, classes: int, others: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of its ``classes`` outputs: its own, else ``others`` where they are as many, else their numbers.

        Raises: InputError when its own are not as many, or a name cannot stand on a line of ``labels.txt``.
        """
        own = self.artifact.labels
        if own and len(own) != classes:
            raise InputError(f"{self.artifact.path} has {len(own)} labels but {classes} outputs; both must be equal")
        names = own or (tuple(others) if len(others) == classes else tuple(map(str, range(classes))))
        for name in names:
            if not name.strip() or len(name.splitlines()) != 1:
                raise InputError(f"class name {name!r}; allowed in labels.txt: one line of text")
        if twice := repeated(names):
            raise InputError(f"the class {twice!r} stands twice; each class needs its own name")
        return names
