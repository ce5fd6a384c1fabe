"""The input product inside the CPU kernels: every instruction set, layout and direction, and when it is taken."""

import pytest
import torch
from inputs import from_input, two_steps, with_input
from problems import LAYOUTS, Problem
from test_cpu import ISAS, assert_true, forced_plan, isa  # noqa: F401 (fixtures)
from tolerances import assert_close

from xlstm_fused import FusedxLSTM
from xlstm_fused.backends import cpu, takes_input
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

# A thread multiplies 128 rows at a time: these take several turns, the last of them not whole.
LONG = {
    "long": lambda: Rows.dense(61, 5, False),
    "one long sequence": lambda: Rows.dense(301, 1, True),
    "long lengths": lambda: Rows.dense(150, 4, True, torch.tensor([150, 31, 0, 97])),
    "many": lambda: Rows.dense(3, 140, False),
}


def through_cpu(tensors, problem):
    return from_input(tensors, problem, "cpu")


@pytest.fixture(autouse=True)
def no_row_is_few(monkeypatch):
    monkeypatch.setattr(cpu, "_FEW_ROWS", 0)


@pytest.mark.usefixtures("isa", "poisoned_memory")
@pytest.mark.parametrize("layout", (*LAYOUTS, *LONG))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, D, I, reset", ((1, 1, 5, 3, "none"), (1, 2, 33, 17, "per row"), (2, 3, 8, 1, "none"),
                                               (2, 1, 20, 40, "per row")))
def test_values_and_gradients(cell, layout, K, N, D, I, reset):
    problem = with_input(Problem.random(cell, LONG[layout]() if layout in LONG else layout, K, N, D, reset=reset,
                                        masked=reset == "none", dtype=torch.float32), I)
    if reset == "none":
        del problem.tensors["bias"]
    assert_true(problem, through_cpu, two_steps)


@pytest.mark.usefixtures("isa", "forced_plan")
@pytest.mark.parametrize("layout", ("lengths", "long lengths"))
def test_bitwise_the_same_however_the_work_is_split(layout):
    problem = with_input(Problem.random("slstm", LONG[layout]() if layout in LONG else layout, 2, 1, 37,
                                        dtype=torch.float32), 19)
    results = []
    for plan in ((1, 1, 1), (2, 2, 1), (3, 3, 1), (4, 2, 2), (4, 2, 4), (2, 1, 3)):
        cpu.forced_plan = plan
        results.append(problem.run(through_cpu)[0])
    assert all(torch.equal(value, results[0][name]) for other in results[1:] for name, value in other.items())


@pytest.mark.usefixtures("isa", "forced_plan")
@pytest.mark.parametrize("B, tiles", ((127, None), (127, 2), (129, 3), (5, 3), (7, 2), (65, None), (191, None)))
def test_tiles_of_which_the_last_have_a_sequence_less(B, tiles):
    """And take more steps at a time: found by a demo that corrupted the heap, which the C library's check then sees."""
    cpu.forced_plan = tiles and (1, 1, tiles)
    problem = with_input(Problem.random("lstm", Rows.dense(5, B, True), D=40, dtype=torch.float32), 9)
    assert_true(problem, through_cpu, two_steps)


@pytest.mark.usefixtures("isa")
def test_a_sequence_does_not_depend_on_the_others():
    problem, alone = (with_input(Problem.random("lstm", Rows.dense(150, B, False), D=37, initial=False,
                                                dtype=torch.float32), 19) for B in (4, 1))
    output = problem.run(through_cpu)[0]["output"]
    alone.tensors = problem.tensors | {"x": problem.tensors["x"][2::4].clone()}
    assert torch.equal(alone.run(through_cpu)[0]["output"], output[2::4])


@pytest.mark.usefixtures("isa")
def test_rows_that_are_padding_are_not_read():
    problem = with_input(Problem.random("lstm", LONG["long lengths"](), dtype=torch.float32), 6)
    expected = problem.run(through_cpu)[0]
    padding = ~problem.rows.coordinates(torch.device("cpu"))[2]
    assert padding.any()
    problem.tensors["x"] = torch.where(padding[:, None], torch.nan, problem.tensors["x"])
    got = problem.run(through_cpu)[0]
    assert all(torch.equal(value, got[name]) for name, value in expected.items())


def test_few_rows_are_given_to_torch(monkeypatch):
    """With the same results."""
    problem = with_input(Problem.random("slstm", "one sequence", dtype=torch.float32), 3)
    expected = problem.run(through_cpu)[0]
    monkeypatch.setattr(cpu, "_FEW_ROWS", 8)
    monkeypatch.setattr(cpu._Sizes, "input", lambda *arguments: pytest.fail("the kernel got an input"))
    for name, value in problem.run(through_cpu)[0].items():
        assert_close(value, expected[name].double(), name)


@pytest.mark.parametrize("options, taken", (
    ({}, True), ({"dtype": torch.float64}, False), ({"dtype": torch.bfloat16}, False), ({"proj_size": 3}, False)))
def test_layers_that_take_it(options, taken, monkeypatch):
    calls = []
    whole = cpu._Sizes.input
    monkeypatch.setattr(cpu._Sizes, "input", lambda *arguments: calls.append(1) or whole(*arguments))
    layer = FusedxLSTM(5, 8, 2, bidirectional=True, backend="cpu", **options)
    x = torch.randn(9, 3, 5, dtype=layer.weight_ih_l0.dtype)
    layer(x)
    with torch.no_grad():
        layer(x)
    assert len(calls) == (4 if taken else 0)


@pytest.mark.parametrize("name", ISAS)
def test_the_rule_for_bfloat16(name, monkeypatch):
    """By tiles alone, of what is wide enough for these and not too large for the cache, in more than one step."""
    monkeypatch.setattr(cpu, "forced_isa", name)
    for D, inputs, T, expected in ((48, 24, 2, True), (47, 24, 2, False), (48, 23, 2, False), (48, 24, 1, False),
                                   (512, 512, 9, True), (512, 513, 9, False), (48, 0, 2, False)):
        assert cpu._cpu.takes_input("bfloat16", name, T, D, inputs) == (expected and name == "avx512amx")
        if T == 2:
            assert takes_input("cpu", D, inputs, torch.bfloat16, torch.device("cpu")) == (
                expected and name == "avx512amx")


def test_the_rule():
    for dtype, inputs, expected in ((torch.float32, 1, True), (torch.float32, 4096, True), (torch.float32, 0, False),
                                    (torch.float64, 8, False), (torch.bfloat16, 8, False), (torch.float16, 8, False)):
        assert takes_input("cpu", 64, inputs, dtype, torch.device("cpu")) == expected


@pytest.mark.parametrize("name, wrong, message", (
    ("x", lambda value: value[1:], r"x: expected shape \(35, 3\), got \(34, 3\)"),
    ("x", lambda value: value.double(), "x: expected torch.float32, got torch.float64"),
    ("weight_ih", lambda value: value.t().contiguous().t(), "weight_ih: expected a contiguous tensor"),
    ("bias", lambda value: value[1:], r"bias: expected shape \(20,\), got \(19,\)")))
def test_what_is_no_such_input_is_refused(name, wrong, message):
    problem = with_input(Problem.random("lstm", dtype=torch.float32), 3)
    tensors = problem.tensors | {name: wrong(problem.tensors[name])}
    given = [tensors[each] for each in ("x", "weight_ih", "bias", "weight_hh", "h0", "s0")]
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        cpu.inference_from_input(*given, None, None, None, False, None, problem.rows, "lstm", False)
