from __future__ import annotations

import pytest

from deploykit.errors import InputError, UnknownNameError
from deploykit.recipes import RECIPES, TARGETS, recipe_for, timed_here


def test_the_default_and_the_targets_own() -> None:
    assert recipe_for(None, None).name == "int8"
    chosen = {target: recipe_for(None, target).name for target in TARGETS}
    assert chosen == {
        "x86": "int8",
        "x86-vnni": "int8-vnni",
        "arm64": "int8-arm",
        "web": "int8",
        "cuda": "fp16",
        "tensorrt": "int8-tensorrt",
        "openvino": "int8-openvino",
    }


@pytest.mark.parametrize("target", TARGETS)
def test_every_refusal_names_the_reason_and_an_alternative_that_is_not_refused(target: str) -> None:
    there = TARGETS[target]
    assert set(there.refused) <= set(RECIPES) and there.recipe not in there.refused
    for recipe, reason in there.refused.items():
        with pytest.raises(InputError) as caught:
            recipe_for(recipe, target)
        assert str(caught.value) == f"recipe {recipe} for target {target}: {reason}; use {there.recipe}"
    for recipe in set(RECIPES) - set(there.refused):
        assert recipe_for(recipe, target).name == recipe


def test_near_names_are_suggested() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'arm64'"):
        recipe_for(None, "arm46")
    with pytest.raises(UnknownNameError, match="recipe 'int8-openvin'"):
        recipe_for("int8-openvin", None)


@pytest.mark.parametrize(
    ("recipe", "target", "machine", "timed"),
    [
        ("int8", None, "x86_64", True),
        ("int8", "x86", "AMD64", True),
        ("int8", "web", "x86_64", False),
        ("int8-arm", None, "x86_64", False),
        ("int8-arm", "arm64", "aarch64", True),
        ("int8-openvino", "openvino", "x86_64", False),
        ("fp16", None, "x86_64", False),
        ("int8", None, "riscv64", False),
    ],
)
def test_only_a_machine_of_the_kind_can_tell_whether_it_pays(
    recipe: str, target: str | None, machine: str, timed: bool
) -> None:
    assert timed_here(RECIPES[recipe], target, machine) is timed
