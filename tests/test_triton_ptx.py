"""The Triton kernels as compiled: their PTX for three generations of GPUs, run by an interpreter of PTX.

This is where the barrier between programs runs, with all programs at once and in turns of random length.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
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


def run(problem, *arguments, **options):
    """``(values, gradients, kernels)`` of one pass each way."""
    with emulated(*arguments, **options) as kernels:
        return *problem.run(lambda tensors, problem: through_ops(tensors, problem, "triton")), kernels


def check(problem, *arguments, **options):
    """Runs and compares; returns how often each kernel was launched."""
    truth, reference = problem.to(torch.float64).run(through_autograd), problem.run(through_autograd)
    *results, kernels = run(problem, *arguments, **options)
    for got, expected, other in zip(results, truth, reference):
        for name, value in got.items():
            if problem.tensors["wx"].dtype == torch.float32:
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


def kernels_with(tmp_path, name, right, wrong):
    """The two kernels, in the first of which one line of source is changed."""
    from xlstm_fused.backends.triton import launch

    source = Path(importlib.util.find_spec(f"xlstm_fused.backends.triton.{name}").origin).read_text()
    assert source.count(right) == 1
    path = tmp_path / "mutant.py"
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("xlstm_fused.backends.triton.mutant", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    del sys.modules[spec.name]
    return module.recurrence_fwd_kernel, launch.recurrence_bwd_kernel


def test_a_removed_barrier_shows(tmp_path):
    mutant = kernels_with(tmp_path, "recurrence_fwd", "        if BARRIER:\n", "        if BARRIER and D < 0:\n")
    problem = small("lstm", 20, torch.bfloat16)
    with pytest.raises((AssertionError, PtxError)):
        for seed in range(1, 6):
            check(problem, "sm_80", SHARED, seed=seed, kernels=mutant)


@pytest.mark.parametrize("right, wrong", (
    ("active = step < steps\n", "active = step <= steps\n"),
    ("columns = u[None, :] < D\n", "columns = u[None, :] < D + 1\n")))
def test_a_shifted_mask_shows(tmp_path, right, wrong):
    mutant = kernels_with(tmp_path, "recurrence_fwd", right, wrong)
    with pytest.raises((AssertionError, PtxError)):
        check(small("lstm", 20, torch.bfloat16), "sm_80", SHARED, kernels=mutant)
