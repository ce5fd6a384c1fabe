"""Recurrent matrices of bfloat16 numbers that are wide enough for tiles, by the best instruction set here."""

import pytest
import torch
from problems import LAYOUTS, RESETS, Problem
from test_cpu import (
    ISAS,
    assert_as_good_as_the_reference,
    assert_true,
    numbers_of_bfloat16,
    same_by_every_plan,
    through_cpu,
)
from test_hostile_values import assert_same_kinds, kinds

from xlstm_fused.backends import cpu
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

DTYPES = (torch.float32, torch.bfloat16)
LARGE = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf"), "1e20": 1e20}
pytestmark = pytest.mark.skipif(not ISAS, reason="the cpu backend is not built")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    cpu.forced_isa, cpu.forced_plan = "", None


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout, reset", [(layout, RESETS[i % len(RESETS)]) for i, layout in enumerate(LAYOUTS)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, D, masked", ((1, 1, 48, False), (1, 2, 65, True), (2, 1, 100, False)))
def test_values_and_gradients(cell, layout, reset, K, N, D, masked):
    problem = Problem.random(cell, layout, K, N, D, reset=reset, masked=masked, initial=masked, dtype=torch.float32)
    assert_true(numbers_of_bfloat16(problem))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ("batch-first lengths", "packed", "one step"))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", (False, True))
def test_16_bit_is_as_good_as_the_reference(cell, layout, masked):
    assert_as_good_as_the_reference(Problem.random(cell, layout, 1, 2, 75, masked=masked, dtype=torch.bfloat16))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("B", (16, 17, 33))
def test_more_rows_than_a_tile_has(B):
    assert_true(numbers_of_bfloat16(Problem.random("lstm", Rows.dense(5, B, True), D=80, dtype=torch.float32)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", (50, 130))
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_does_not_see_its_batch(cell, D, dtype):
    """However the work is split, whoever else is in the batch, and in a call for the first steps alone."""
    T, B, b = 4, 35, 20
    problem = numbers_of_bfloat16(Problem.random(cell, Rows.dense(T, B, False), D=D, dtype=dtype))
    output = same_by_every_plan(problem, ((1, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 4), (3, 1, 35)))["output"]
    cpu.forced_plan = None
    for steps in (T, 2):
        alone = Problem.random(cell, Rows.dense(steps, 1, False), D=D, dtype=dtype)
        alone.tensors = {name: value[b:steps * B:B].clone() if name == "wx" else value if name == "weight_hh" else
                         value[..., b:b + 1, :, :].clone() for name, value in problem.tensors.items()}
        assert torch.equal(alone.run(through_cpu)[0]["output"], output[b:steps * B:B])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ("wx", "h0", "weight_hh", "d_output"))
@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize("cell", CELLS)
def test_large_numbers_and_none_go_where_they_go_by_portable_code(cell, value, where, dtype):
    """To the same places of the results and the gradients, and to no other sequence."""
    problem = numbers_of_bfloat16(Problem.random(cell, Rows.dense(3, 18, True), D=70, dtype=dtype))
    tensor = problem.cotangents[0] if where == "d_output" else problem.tensors[where]
    tensor.view(-1)[tensor.numel() // 3] = LARGE[value]
    values, gradients = problem.run(through_cpu)
    cpu.forced_isa = "portable"
    expected_values, expected = problem.run(through_cpu)
    for name, want in (expected_values | expected).items():
        got = (values | gradients)[name]
        if dtype == torch.float32:
            assert_same_kinds(got, want, name)
        else:
            assert torch.equal(kinds(got), kinds(want)), name
