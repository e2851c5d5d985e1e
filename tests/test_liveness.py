"""Liveness against sums by hand and against a brute-force reading of the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.liveness import Step, peak_live_bytes


def test_a_chain_needs_two_neighbours():
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",)), Step(("b",), ("y",))]
    assert peak_live_bytes(steps, {"x": 10, "a": 100, "b": 40, "y": 1}, ["x"], ["y"]) == 140


def test_a_skip_connection_keeps_its_source():
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",)), Step(("a", "b"), ("y",))]
    assert peak_live_bytes(steps, {"x": 5, "a": 8, "b": 8, "y": 8}, ["x"], ["y"]) == 24


@pytest.mark.parametrize(("flag", "expected"), [(True, 108), (False, 200)])
def test_elementwise_takes_over_a_dying_buffer(flag, expected):
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",), in_place=flag), Step(("b",), ("y",))]
    assert peak_live_bytes(steps, {"x": 8, "a": 100, "b": 100, "y": 1}, ["x"], ["y"]) == expected


@pytest.mark.parametrize("outputs", [["y", "a"], ["y"]])
def test_elementwise_does_not_take_over_what_is_read_later(outputs):
    steps = [Step(("x",), ("a",)), Step(("a",), ("b",), in_place=True), Step(("a", "b"), ("y",))]
    assert peak_live_bytes(steps, {"x": 1, "a": 100, "b": 100, "y": 1}, ["x"], outputs) == 201


def test_an_input_nobody_reads_and_an_output_nobody_reads():
    steps = [Step(("x",), ("dead", "a")), Step(("a",), ("y",))]
    sizes = {"x": 10, "idle": 50, "dead": 20, "a": 30, "y": 60}
    assert peak_live_bytes(steps, sizes, ["x", "idle"], ["y"]) == 10 + 50 + 20 + 30


def test_no_steps_is_the_inputs():
    assert peak_live_bytes([], {"x": 3}, ["x"], ["x"]) == 3


@pytest.mark.parametrize(
    ("steps", "sizes", "outputs", "message"),
    [
        ([Step(("ghost",), ("y",))], {"x": 1, "y": 1}, ["y"], "reads 'ghost'"),
        ([Step(("x",), ("y",)), Step(("x",), ("y",))], {"x": 1, "y": 1}, ["y"], "'y' a second time"),
        ([Step(("x",), ("y",))], {"x": 1}, ["y"], "'y' has no size"),
        ([Step(("x",), ("y",))], {"x": 1, "y": 1}, ["z"], "'z' is never written"),
    ],
)
def test_what_makes_no_sense_is_refused(steps, sizes, outputs, message):
    with pytest.raises(ValueError, match=message):
        peak_live_bytes(steps, sizes, ["x"], outputs)


@st.composite
def programs(draw):
    names = [f"x{i}" for i in range(draw(st.integers(1, 3)))]
    inputs, steps = list(names), []
    for index in range(draw(st.integers(0, 7))):
        read = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
        written = [f"t{index}_{j}" for j in range(draw(st.integers(0, 2)))]
        steps.append(Step(tuple(read), tuple(written), in_place=draw(st.booleans())))
        names += written
    sizes = {name: draw(st.sampled_from([0, 1, 2, 3, 8])) for name in names}
    return steps, sizes, inputs, draw(st.lists(st.sampled_from(names), max_size=3, unique=True))


def brute_force(steps, sizes, inputs, outputs):
    born = dict.fromkeys(inputs, -1) | {name: i for i, step in enumerate(steps) for name in step.outputs}

    def readers(name):
        return [i for i, step in enumerate(steps) if name in step.inputs]

    def dies(name):
        return len(steps) if name in outputs else max([*readers(name), born[name], 0])

    totals = [sum(sizes[name] for name in inputs)]
    for i, step in enumerate(steps):
        live = [name for name in born if born[name] <= i <= dies(name)]
        total = sum(sizes[name] for name in live)
        if step.in_place and step.outputs:
            first = step.outputs[0]
            total -= sizes[first] * any(dies(name) == i and sizes[name] == sizes[first] for name in step.inputs)
        totals.append(total)
    return max(totals)


@given(programs())
def test_equals_brute_force(program):
    assert peak_live_bytes(*program) == brute_force(*program)


@given(programs())
def test_lies_between_the_largest_step_and_the_sum_of_all(program):
    steps, sizes, inputs, outputs = program
    peak = peak_live_bytes(steps, sizes, inputs, outputs)
    assert max([sizes[name] for name in sizes], default=0) <= peak <= sum(sizes.values())
