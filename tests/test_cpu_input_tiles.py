"""The input product of wide layers inside the CPU kernels, which AMX forms in tiles: by the best instruction set here.
Layers of bfloat16 have it there by AMX alone, else torch's."""

import pytest
import torch
from inputs import two_steps, with_input
from problems import LAYOUTS, RESETS, Problem
from test_cpu import ISAS, assert_as_good_as_the_reference, assert_true, numbers_of_bfloat16, same_by_every_plan
from test_cpu_from_input import LONG, no_row_is_few, through_cpu  # noqa: F401 (a fixture)
from test_cpu_tiles import LARGE, as_it_was  # noqa: F401 (a fixture)
from test_hostile_values import assert_same_kinds, kinds
from tolerances import relative_error

from xlstm_fused.backends import cpu
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

pytestmark = pytest.mark.skipif(not ISAS, reason="the cpu backend is not built")
ALL = [*LAYOUTS, *LONG, "very long"]


def problem_of(cell, layout, K, N, D, I, dtype=torch.float32, **options):
    # A thread multiplies 256 rows at a time.
    layout = Rows.dense(90, 7, True) if layout == "very long" else LONG[layout]() if layout in LONG else layout
    return with_input(Problem.random(cell, layout, K, N, D, dtype=dtype, **options), I)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout, reset", [(layout, RESETS[i % len(RESETS)]) for i, layout in enumerate(ALL)])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, D, I, masked", ((1, 1, 48, 24, False), (1, 2, 65, 33, True), (2, 1, 50, 64, False)))
def test_values_and_gradients(cell, layout, reset, K, N, D, I, masked):
    problem = problem_of(cell, layout, K, N, D, I, reset=reset, masked=masked)
    if masked:
        del problem.tensors["bias"]
    assert_true(problem, through_cpu, two_steps)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", [layout for layout in ALL if layout != "no sequence"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("K, N, D, I, masked", ((1, 1, 48, 24, False), (1, 2, 65, 33, True), (2, 1, 50, 64, False)))
def test_bfloat16_is_as_good_as_the_reference(cell, layout, K, N, D, I, masked):
    def draw():
        problem = problem_of(cell, layout, K, N, D, I, torch.bfloat16, masked=masked)
        if masked:
            del problem.tensors["bias"]
        assert_as_good_as_the_reference(problem, through_cpu, two_steps)

    try:
        draw()
    except AssertionError:
        # Where few numbers count the reference may be right by chance: what is wrong is so in another draw as well.
        draw()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layout", ("lengths", "long", "very long"))
def test_beside_a_recurrent_matrix_in_tiles(layout):
    """Both use the processor's tiles, for rows of different numbers."""
    assert_true(numbers_of_bfloat16(problem_of("lstm", layout, 1, 1, 70, 40)), through_cpu, two_steps)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_does_not_see_its_batch(cell, dtype):
    """However the work is split, whoever else is in the batch."""
    T, B, b = 40, 35, 20
    problem = with_input(Problem.random(cell, Rows.dense(T, B, False), D=70, dtype=dtype), 50)
    plans = (1, 1, 1), (1, 1, 2), (2, 2, 1), (3, 3, 4), (3, 1, 35)
    output = same_by_every_plan(problem, plans, through_cpu)["output"]
    cpu.forced_plan = None
    alone = with_input(Problem.random(cell, Rows.dense(T, 1, False), D=70, dtype=dtype), 50)
    alone.tensors = {name: value[b::B].clone() if name == "x" else value[..., b:b + 1, :, :].clone()
                     if name in ("h0", "s0") else value for name, value in problem.tensors.items()}
    assert torch.equal(alone.run(through_cpu)[0]["output"], output[b::B])


@pytest.mark.parametrize("where", ("x", "weight_ih", "bias"))
@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T", (3, 16))  # in one turn, whose weights are packed by and by, and in several
def test_large_numbers_and_none_go_where_they_go_by_portable_code(cell, value, where, T):
    """To the same places of the results and the gradients, and to no other sequence."""
    problem = with_input(Problem.random(cell, Rows.dense(T, 18, True), D=70, dtype=torch.float32), 45)
    tensor = problem.tensors[where]
    tensor.view(-1)[tensor.numel() // 3] = LARGE[value]
    values, gradients = problem.run(through_cpu)
    cpu.forced_isa = "portable"
    expected_values, expected = problem.run(through_cpu)
    for name, want in (expected_values | expected).items():
        assert_same_kinds((values | gradients)[name], want, name)


@pytest.mark.skipif("avx512amx" not in ISAS, reason="no kernel takes an input of bfloat16 here: it is torch's product")
@pytest.mark.parametrize("where", ("x", "weight_ih", "bias"))
@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T", (3, 16))
def test_large_numbers_and_none_of_bfloat16_go_where_they_go_in_the_reference(cell, value, where, T):
    """In float64: torch's own product of bfloat16 takes some infinities for NaN."""
    problem = with_input(Problem.random(cell, Rows.dense(T, 18, True), D=70, dtype=torch.bfloat16), 45)
    tensor = problem.tensors[where]
    tensor.view(-1)[tensor.numel() // 3] = LARGE[value]
    got = problem.run(through_cpu)[0]["output"]
    want = problem.to(torch.float64).run(two_steps)[0]["output"]
    assert torch.equal(kinds(got), kinds(want))
    assert relative_error(got[want.isfinite()], want[want.isfinite()]) < 0.01


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("B, tiles", ((257, None), (257, 2), (258, 4), (67, 5)))
def test_tiles_of_the_batch_of_which_the_last_have_a_sequence_less(B, tiles):
    """And take more steps at a time."""
    cpu.forced_plan = tiles and (1, 1, tiles)
    assert_true(problem_of("lstm", Rows.dense(5, B, True), 1, 1, 50, 30), through_cpu, two_steps)
