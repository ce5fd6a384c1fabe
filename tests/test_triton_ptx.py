"""The Triton kernels as compiled: their PTX for three generations of GPUs, run by an interpreter of PTX.

This is where the barrier between programs runs, with all programs at once and in turns of random length.
"""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from inputs import from_input, two_steps, with_input
from problems import Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_as_good_as, assert_close

from xlstm_fused.rows import Rows

pytest.importorskip("triton", reason="triton is not installed")
from gpu_without_gpu.emulated import emulated
from gpu_without_gpu.ptx_types import PtxError

from xlstm_fused.backends.triton.config import Plan

triton = importlib.import_module("xlstm_fused.backends.triton")

SHARED = Plan(16, 16, 16, 2, True, True, 4, 1)


@pytest.fixture(autouse=True)
def on_the_cpu(poisoned_memory):
    triton.device_type_for_tests = "cpu"
    yield
    triton.device_type_for_tests = "cuda"


def small(cell, D, dtype, reset="none", K=1, masked=False, rows=None):
    rows = Rows.dense(3, 4, False, torch.tensor([3, 1, 0, 2])) if rows is None else rows
    problem = Problem.random(cell, rows, K, 1, D, False, reset, masked, dtype=dtype)
    # As in test_cpu.py: raw m' has a kink that rounding moves values across.
    for index in (2, 4) if dtype != torch.float32 else ():
        problem.cotangents[index].zero_()
    return problem


def run(problem, *arguments, function=through_ops, **options):
    """``(values, gradients, kernels)`` of one pass each way."""
    with emulated(*arguments, **options) as kernels:
        return *problem.run(lambda tensors, problem: function(tensors, problem, "triton")), kernels


def check(problem, *arguments, expected=through_autograd, **options):
    """Runs and compares; returns how often each kernel was launched."""
    truth, reference = problem.to(torch.float64).run(expected), problem.run(expected)
    *results, kernels = run(problem, *arguments, **options)
    for got, expected, other in zip(results, truth, reference):
        for name, value in got.items():
            if problem.tensors["weight_hh"].dtype == torch.float32:
                assert_close(value, expected[name], name)
            else:
                assert_as_good_as(value, other[name], expected[name], name)
    return [kernel.launches for kernel in kernels]


@pytest.mark.parametrize("target, cell, D, dtype, reset, masked", (
    ("sm_80", "slstm", 16, torch.bfloat16, "per row", True),
    ("sm_90", "lstm", 24, torch.float16, "none", True),
    ("sm_90", "slstm", 10, torch.float32, "per sequence", False),
    ("sm_100", "lstm", 16, torch.bfloat16, "zero", False)))
def test_one_program(target, cell, D, dtype, reset, masked):
    assert check(small(cell, D, dtype, reset, masked=masked), target) == [1, 1]


@pytest.mark.parametrize("target, cell, D, I, dtype, reset", (
    ("sm_80", "slstm", 16, 16, torch.bfloat16, "per row"),
    ("sm_90", "gru", 24, 5, torch.float16, "none"),
    ("sm_100", "lstm", 16, 17, torch.bfloat16, "zero")))
def test_the_input_product_inside(target, cell, D, I, dtype, reset):
    problem = with_input(small(cell, D, dtype, reset, 2), I)
    assert check(problem, target, function=from_input, expected=two_steps) == [1, 1]


@pytest.mark.parametrize("right, wrong", (
    ("mask=columns & (inputs[:, None] < I)", "mask=columns & (inputs[:, None] < I - 1)"),
    ("x_in, after, inputs, steps > step + 1, I)", "x_in, after, inputs, steps > step + 2, I)")))
def test_an_input_with_a_shifted_mask_shows(mutant, right, wrong):
    kernels = mutant("recurrence_fwd", right, wrong)
    with pytest.raises((AssertionError, PtxError)):
        check(with_input(small("lstm", 16, torch.bfloat16), 5), "sm_80", function=from_input, expected=two_steps,
              kernels=kernels)


@pytest.mark.parametrize("target, cell, D, dtype, reset, masked, resident", (
    ("sm_80", "lstm", 20, torch.bfloat16, "none", False, True),
    ("sm_90", "slstm", 20, torch.bfloat16, "per row", True, True),
    ("sm_100", "slstm", 20, torch.float16, "none", False, False),
    ("sm_90", "lstm", 32, torch.float32, "none", False, True)))
def test_programs_that_meet_at_a_barrier(target, cell, D, dtype, reset, masked, resident):
    """Two programs of 16 units share each head; both directions in one launch."""
    plan = SHARED._replace(resident=resident, num_stages=1 if resident else 3)
    assert check(small(cell, D, dtype, reset, 2, masked), target, plan) == [1, 1]


def test_step_by_step():
    problem = small("lstm", 20, torch.bfloat16, "per sequence", masked=True)
    assert check(problem, "sm_90", SHARED._replace(barrier=False)) == [3, 4]


def test_bitwise_the_same_in_every_order_of_programs():
    problem = small("lstm", 20, torch.bfloat16)
    first, second = (run(problem, "sm_80", SHARED, seed) for seed in (1, 2))
    for a, b in zip(first[:2], second[:2]):
        assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def mutant(tmp_path, monkeypatch):
    """A function that gives the two kernels with one piece of source changed in file ``name``."""
    package = Path(triton.__file__).parent
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mutant").mkdir()

    def make(name, right, wrong):
        for each in ("tiles", "recurrence_fwd", "recurrence_bwd"):
            source = (package / f"{each}.py").read_text()
            assert each != name or source.count(right) == 1
            (tmp_path / "mutant" / f"{each}.py").write_text(source.replace(right, wrong) if each == name else source)
        return tuple(getattr(importlib.import_module(f"mutant.recurrence_{each}"), f"recurrence_{each}_kernel")
                     for each in ("fwd", "bwd"))

    yield make
    for module in [each for each in sys.modules if each.partition(".")[0] == "mutant"]:
        del sys.modules[module]


@pytest.mark.parametrize("name", ("recurrence_fwd", "recurrence_bwd"))
def test_a_removed_barrier_shows(mutant, name):
    kernels = mutant(name, "        if BARRIER:\n", "        if BARRIER and D < 0:\n")
    problem = small("lstm", 20, torch.bfloat16)
    with pytest.raises((AssertionError, PtxError)):
        for seed in range(1, 6):
            check(problem, "sm_80", SHARED, seed=seed, kernels=kernels)


@pytest.mark.parametrize("right, wrong", (
    ("active = step < steps\n", "active = step <= steps\n"),
    ("columns = u[None, :] < D\n", "columns = u[None, :] < D + 1\n")))
def test_a_shifted_mask_shows(mutant, right, wrong):
    kernels = mutant("recurrence_fwd", right, wrong)
    with pytest.raises((AssertionError, PtxError)):
        check(small("lstm", 20, torch.bfloat16), "sm_80", SHARED, kernels=kernels)


FAR_ROW = 1 << 28
"""From here on no offset of a row, in any array but the flags, fits into 32 bits."""


@pytest.mark.parametrize("cell, D, reset, plan", (("slstm", 16, "per row", None), ("lstm", 20, "none", SHARED)))
def test_offsets_past_32_bits(cell, D, reset, plan):
    """Only the rows at hand are in memory: an offset that has lost its upper bits is a wild address."""
    assert FAR_ROW * D > 1 << 31
    assert check(small(cell, D, torch.bfloat16, reset), "sm_90", plan, first_row=FAR_ROW) == [1, 1]


@pytest.mark.parametrize("right, wrong, D, plan", (
    ("wide(number)[:, None] * wide(array[1])", "number[:, None] * array[1]", 16, None),
    ("wide(number) * wide(array[1])", "number * array[1]", 20, SHARED),
    ("P.to(tl.int64) * K * N * D", "P * K * N * D", 16, None)))
def test_an_offset_in_32_bits_shows(mutant, right, wrong, D, plan):
    kernels = mutant("tiles", right, wrong)
    problem = small("slstm", D, torch.bfloat16)
    assert check(problem, "sm_90", plan, kernels=kernels) == [1, 1]
    with pytest.raises(PtxError, match="out of bounds"):
        check(problem, "sm_90", plan, kernels=kernels, first_row=FAR_ROW)
