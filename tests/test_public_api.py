from __future__ import annotations

import importlib
import pkgutil
import types

import pytest

import deploykit


def test_all_is_true() -> None:
    """Every name of ``__all__`` is there, and nothing public is missing from it."""
    for name in deploykit.__all__:
        assert getattr(deploykit, name) is not None
    assert sorted(deploykit.__all__) == dir(deploykit)
    with pytest.raises(AttributeError, match="no attribute 'exprot_onnx'"):
        _ = deploykit.exprot_onnx  # type: ignore[attr-defined]


def test_no_function_shares_its_modules_name() -> None:
    modules = {info.name for info in pkgutil.iter_modules(deploykit.__path__)}
    functions = {name for name in deploykit.__all__ if not isinstance(getattr(deploykit, name), types.ModuleType)}
    assert not modules & functions


@pytest.mark.parametrize(
    "info", list(pkgutil.walk_packages(deploykit.__path__, "deploykit.")), ids=lambda info: info.name
)
def test_every_module_imports_and_keeps_its_all(info: pkgutil.ModuleInfo) -> None:
    if info.name.endswith("__main__"):
        pytest.skip("runs the command line")
    module = importlib.import_module(info.name)
    assert module.__doc__
    for name in getattr(module, "__all__", ()):
        item = getattr(module, name)
        if isinstance(item, (type, types.FunctionType)):
            assert item.__doc__, f"{info.name}.{name} has no docstring"
