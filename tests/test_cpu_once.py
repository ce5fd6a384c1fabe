"""What a CPU kernel uses once it packs vector by vector, or not at all: the matrix of a single step, and the weights of
an input that is multiplied in one turn."""

import pytest
import torch
from inputs import two_steps, with_input
from problems import Problem
from test_cpu import (  # noqa: F401 (fixtures)
    assert_as_good_as_the_reference,
    assert_true,
    forced_plan,
    isa,
    isa_of_16_bit,
    same_by_every_plan,
)
from test_cpu_from_input import no_row_is_few, through_cpu  # noqa: F401 (a fixture)

from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

# Rows that meet a matrix by itself, and rows that are worth a panel, up to what a tile of the batch holds; then more.
BATCHES = (1, 3, 4, 5, 19, 64, 65)
# One tile uses things once; with two, they are packed before.
PLANS = (1, 1, 1), (2, 2, 1), (3, 3, 1), (1, 1, 2), (2, 1, 2)
SHAPES = ((1, 1, 37), (1, 1, 130), (2, 3, 20))


@pytest.mark.usefixtures("isa", "poisoned_memory")
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32))
@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, D", SHAPES)
def test_a_single_step(cell, K, N, D, B, dtype):
    layout = Rows.dense(1, B, False)
    assert_true(Problem.random(cell, layout, K, N, D, reset="per sequence" if N > 1 else "none", dtype=dtype))


@pytest.mark.usefixtures("isa_of_16_bit", "poisoned_memory")
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
@pytest.mark.parametrize("B", (1, 4, 19))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("masked", (False, True))
def test_a_single_step_in_16_bits(cell, B, dtype, masked):
    assert_as_good_as_the_reference(Problem.random(cell, Rows.dense(1, B, True), 2, 2, 33, masked=masked, dtype=dtype))


@pytest.mark.usefixtures("isa", "poisoned_memory")
@pytest.mark.parametrize("T, B", [(1, B) for B in BATCHES] + [(2, 1), (3, 19), (7, 40)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, D, I, biased", ((1, 1, 37, 5, True), (2, 3, 20, 7, False), (1, 2, 70, 41, True)))
def test_with_an_input(cell, T, B, K, N, D, I, biased):
    problem = with_input(Problem.random(cell, Rows.dense(T, B, True), K, N, D, dtype=torch.float32), I)
    if not biased:
        del problem.tensors["bias"]
    assert_true(problem, through_cpu, two_steps)


@pytest.mark.usefixtures("isa_of_16_bit", "forced_plan")
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("B", (2, 9, 40))
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_bits_as_of_what_is_packed_before(cell, B, dtype):
    same_by_every_plan(Problem.random(cell, Rows.dense(1, B, False), 1, 2, 70, dtype=dtype), PLANS)


@pytest.mark.usefixtures("isa", "forced_plan")
@pytest.mark.parametrize("T", (1, 2, 6))
@pytest.mark.parametrize("B", (2, 9, 40))
@pytest.mark.parametrize("I", (5, 41))
def test_the_same_bits_with_an_input(T, B, I):
    problem = with_input(Problem.random("lstm", Rows.dense(T, B, False), 1, 2, 70, dtype=torch.float32), I)
    same_by_every_plan(problem, PLANS, through_cpu)
