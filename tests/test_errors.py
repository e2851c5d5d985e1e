from __future__ import annotations

import inspect

import deploykit.errors as errors
from deploykit.errors import DeploykitError, UnknownNameError


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Every class stands in the drawing, below its base."""
    drawn: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        name = next((word for word in line.replace("│", " ").split() if word.endswith("Error")), None)
        if name and hasattr(errors, name):
            drawn.append((line.index(name), name))
    bases: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for indent, name in drawn:
        while stack and stack[-1][0] >= indent:
            stack.pop()
        if stack:
            bases[name] = stack[-1][1]
        stack.append((indent, name))
    classes = {name: item for name, item in vars(errors).items() if inspect.isclass(item) and name.endswith("Error")}
    real = {name: item.__base__.__name__ for name, item in classes.items() if item is not DeploykitError}
    assert bases == real
    assert sorted(errors.__all__) == sorted(classes)


def test_exit_codes() -> None:
    codes = {item.__name__: item.exit_code for item in _tree(DeploykitError)}
    assert {name for name, code in codes.items() if code == 1} == {"AnswerIsNoError", "ParityError"}
    assert {name for name, code in codes.items() if code == 3} == {"NotComparableError"}
    assert set(codes.values()) == {1, 2, 3}


def _tree(cls: type[DeploykitError]) -> list[type[DeploykitError]]:
    return [cls, *(item for child in cls.__subclasses__() for item in _tree(child))]


def test_near_match() -> None:
    assert "did you mean 'lenet5'" in str(UnknownNameError("network", "LeNet-5", ["lenet5", "vgg16"]))
    assert "did you mean" not in str(UnknownNameError("network", "zzz", ["lenet5", "vgg16"]))
