"""The reference networks: a table that needs no torch, and the function that builds one of them.

A family is one file; its networks are rows of ``table``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

from deploykit.errors import InputError, MissingDependencyError, UnknownNameError
from deploykit.models.network_spec import NetworkSpec
from deploykit.models.table import TABLE

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NetworkSpec", "build", "names", "spec"]


_SPECS = {entry.name: entry for entry in sorted(TABLE, key=lambda entry: (entry.family, entry.year))}


def names() -> list[str]:
    """The networks' names, by family, then year."""
    return list(_SPECS)


def spec(name: str) -> NetworkSpec:
    """The row of one network. Raises: UnknownNameError, with the near match."""
    if name not in _SPECS:
        raise UnknownNameError("network", name, _SPECS)
    return _SPECS[name]


def build(name: str, num_classes: int | None = None, in_channels: int | None = None, **options: str) -> nn.Module:
    """Builds a network with fresh weights, drawn from torch's default generator, in training mode.

    Args:
        name: One of ``names()``.
        num_classes: Number of logits, 2 or more; the table's when None.
        in_channels: 1 (grey) or 3 (colour); the table's when None.
        options: See ``NetworkSpec.options``.

    Returns:
        A module from N×in_channels×H×W to logits of N×num_classes, H and W being the table's, or others where the
        row has ``any_size``.

    Raises:
        UnknownNameError: No such network.
        InputError: An option, a value, a number of classes or of channels that is not allowed.
        MissingDependencyError: torch is not installed.
    """
    entry = spec(name)
    classes = entry.classes if num_classes is None else num_classes
    channels = entry.input[0] if in_channels is None else in_channels
    if classes < 2:
        raise InputError(f"{name} with {classes} classes; allowed: 2 or more")
    if channels not in (1, 3):
        raise InputError(f"{name} with {channels} input channels; allowed: 1 (grey) or 3 (colour)")
    _check_options(entry, options)
    module, function = entry.builder.split(":")
    try:
        builder = getattr(import_module(module), function)
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.split(".")[0] != "torch":
            raise
        raise MissingDependencyError("torch", "torch", f"building {name}") from problem
    network: nn.Module = builder(num_classes=classes, in_channels=channels, **entry.arguments, **options)
    return network


def _check_options(entry: NetworkSpec, options: Mapping[str, str]) -> None:
    for key, value in options.items():
        if key not in entry.options:
            allowed = ", ".join(entry.options) or "none"
            raise InputError(f"{entry.name} has no option {key!r}; allowed: {allowed}")
        if value not in entry.options[key]:
            raise InputError(f"{entry.name} option {key}={value!r}; allowed: {', '.join(entry.options[key])}")
