"""The Triton kernels against the reference: in Triton's interpreter, and on a GPU where there is one.

The interpreter takes a process of its own, since Triton decides when kernels are defined: one test here runs this file
and the kernels' part of test_from_input.py again in such a process. ``TRITON_INTERPRET=1 pytest tests/test_triton.py``
does it by hand.
"""

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from packaging.version import Version
from problems import LAYOUTS, RESETS, Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_as_good_as, assert_close

from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

triton = pytest.importorskip("triton", reason="triton is not installed")
from xlstm_fused.backends import graphs  # noqa: E402
from xlstm_fused.backends.triton import launch  # noqa: E402
from xlstm_fused.backends.triton.config import Plan  # noqa: E402

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Triton before 3.9 makes numbers of arrays of one element, of which numpy 2.3 warns and 2.4 has no more.
interpreter_warns = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

if INTERPRETED:
    from gpu_without_gpu.interpreter import repair_bfloat16

    importlib.import_module("xlstm_fused.backends.triton").device_type_for_tests = "cpu"
    repair_bfloat16()
    on_device = [interpreter_warns]
else:
    without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: test_in_the_interpreter runs these")
    on_device = [pytest.mark.gpu, without_gpu]


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
@pytest.mark.skipif(Version(triton.__version__) < Version("3.9") and Version(numpy.__version__) >= Version("2.4"),
                    reason="this Triton's interpreter needs numpy before 2.4")
def test_in_the_interpreter():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    files = __file__, f"{Path(__file__).with_name('test_from_input.py')}::TestKernel"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    result = subprocess.run(command, env={**environment, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                            capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def moved(rows, device):
    return replace(rows, **{name: value if value is None else value.to(device) for name, value in (
        ("time_offset", rows.time_offset), ("batch_offset", rows.batch_offset), ("length", rows.length))})


def through_triton(tensors, problem, run=through_ops):
    """Through the ops, on the GPU unless interpreted; results are on the CPU."""
    if INTERPRETED:
        return run(tensors, problem, "triton")
    device = torch.device("cuda")
    there = {name: value.to(device) for name, value in tensors.items()}
    problem = replace(problem, rows=moved(problem.rows, device), **{
        name: None if getattr(problem, name) is None else getattr(problem, name).to(device)
        for name in ("reset", "h_mask")})
    return tuple(value.cpu() for value in run(there, problem, "triton"))


def check(problem, run=through_ops, expected=through_autograd):
    """Values and gradients, by the table of tolerances."""
    truth_values, truth = problem.to(torch.float64).run(expected)
    reference_values, reference = problem.run(expected)
    values, gradients = problem.run(lambda tensors, problem: through_triton(tensors, problem, run))
    exact = problem.tensors["weight_hh"].dtype == torch.float32
    for got, expected, other in ((values, truth_values, reference_values), (gradients, truth, reference)):
        for name, value in got.items():
            if exact:
                assert_close(value, expected[name], name)
            else:
                assert_as_good_as(value, other[name], expected[name], name)


@pytest.fixture
def forced_plan():
    yield lambda plan: setattr(launch, "forced_plan", plan)
    launch.forced_plan = None


SHARED = Plan(16, 16, 16, 3, True, False, 4, 1)
"""Three programs of 16 units for D = 36, one step per launch."""

SHAPES = ((1, 1, 5, False, False), (1, 2, 33, True, True), (2, 3, 8, False, True), (1, 1, 20, True, False))
# Every layout with every cell, and with them in turn every kind of reset, shape, direction and mask.
COMBINATIONS = [(cell, layout, RESETS[(i + j) % len(RESETS)], *SHAPES[(i + 2 * j + i // 4) % len(SHAPES)])
                for i, layout in enumerate(LAYOUTS) for j, cell in enumerate(CELLS)]


@pytest.mark.usefixtures("poisoned_memory")
class TestOneProgram:
    pytestmark = on_device

    @pytest.mark.parametrize("cell, layout, reset, K, N, D, reverse, masked", COMBINATIONS)
    def test_values_and_gradients(self, cell, layout, reset, K, N, D, reverse, masked):
        check(Problem.random(cell, layout, K, N, D, reverse, reset, masked, initial=masked, dtype=torch.float32))

    @pytest.mark.parametrize("reset", RESETS)
    def test_every_reset_in_both_directions(self, reset):
        rows = Rows.dense(4, 4, True, torch.tensor([4, 1, 0, 3]))
        check(Problem.random("slstm", rows, 2, 1, 7, False, reset, dtype=torch.float32))

    @pytest.mark.parametrize("dtype, layout", ((torch.bfloat16, "packed"), (torch.float16, "batch-first lengths")))
    @pytest.mark.parametrize("cell", CELLS)
    def test_16_bit_is_as_good_as_the_reference(self, cell, layout, dtype):
        problem = Problem.random(cell, layout, 2, 1, 13, masked=layout == "packed", dtype=dtype)
        # As in test_cpu.py: raw m' has a kink that rounding moves values across.
        for index in (2, 4):
            problem.cotangents[index].zero_()
        check(problem)

    def test_all_lengths_are_zero(self):
        rows = Rows.dense(3, 2, False, torch.zeros(2, dtype=torch.int64))
        check(Problem.random("slstm", rows, 2, 1, 5, reset="per sequence", dtype=torch.float32))

    def test_more_sequences_than_a_tile(self):
        check(Problem.random("lstm", Rows.dense(2, 18, True), 1, 1, 5, reset="per row", dtype=torch.float32))

    @pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
    @pytest.mark.parametrize("cell", CELLS)
    def test_extreme_gates_are_finite(self, cell):
        problem = Problem.random(cell, "time-major", 1, 1, 9, initial=False, dtype=torch.float32)
        wx = problem.tensors["wx"] = problem.tensors["wx"].clone()
        wx[0::5] = 1e4 * wx[0::5].sign()
        wx[1::5, :, 0] = -120
        for results in problem.run(through_triton):
            assert all(value.isfinite().all() for value in results.values())


@pytest.mark.usefixtures("poisoned_memory")
class TestSeveralPrograms:
    pytestmark = on_device

    @pytest.mark.parametrize("cell, rows, reset, K, reverse, masked, resident", (
        ("slstm", Rows.dense(3, 4, False, torch.tensor([3, 1, 0, 2])), "per row", 2, False, True, True),
        ("gru", Rows.dense(3, 4, False, torch.tensor([2, 3, 0, 1])), "per row", 2, False, True, False),
        ("lstm", Rows.packed(torch.tensor([3, 2, 1]), 6, torch.device("cpu")), "per sequence", 1, True, True, False),
        ("slstm", Rows.cumulative(torch.tensor([0, 3, 3, 5]), 5), "zero", 1, True, False, False),
        ("lstm", Rows.dense(1, 2, True), "none", 1, False, False, True)))
    def test_step_by_step(self, cell, rows, reset, K, reverse, masked, resident, forced_plan):
        """What runs where the grid does not fit the device."""
        forced_plan(SHARED._replace(resident=resident))
        check(Problem.random(cell, rows, K, 1, 36, reverse, reset, masked, initial=masked, dtype=torch.float32))

    @pytest.mark.parametrize("cell", CELLS)
    def test_step_by_step_in_16_bit(self, cell, forced_plan):
        forced_plan(Plan(16, 16, 32, 2, True, False, 4, 1))
        rows = Rows.dense(3, 3, True, torch.tensor([1, 3, 0]))
        problem = Problem.random(cell, rows, 1, 1, 20, reset="per sequence", dtype=torch.bfloat16)
        for index in (2, 4):
            problem.cotangents[index].zero_()
        check(problem)


class Memory:
    """Stands in for torch where the backend allocates: every iteration of a loop gets the same memory, as from torch's
    allocator on a GPU."""

    def __init__(self):
        self.blocks, self.given = [], 0

    def __getattr__(self, name):
        return getattr(torch, name)

    def empty(self, shape, **options):
        if shape == 0:
            # The backend keeps those that stand for None.
            return torch.empty(shape, **options)
        if self.given == len(self.blocks):
            self.blocks.append(torch.empty(shape, **options))
        self.given += 1
        return self.blocks[self.given - 1].fill_(float("nan"))

    def zeros(self, shape, **options):
        return self.empty(shape, **options).zero_()


@interpreter_warns
@pytest.mark.skipif(not INTERPRETED, reason="TestOnTheDevice has graphs: test_in_the_interpreter runs this one")
def test_what_comes_again_is_replayed_and_the_same(monkeypatch, forced_plan):
    forced_plan(SHARED._replace(slices=2))
    memory, captured = Memory(), []

    def capture(launches, device):
        captured.append(launches)
        return SimpleNamespace(replay=launches)

    monkeypatch.setattr(launch, "torch", memory)
    monkeypatch.setattr(launch, "graphs", graphs.Graphs())
    monkeypatch.setattr(graphs, "capture", capture)
    rows, mask = Rows.dense(2, 2, True, torch.tensor([2, 1])), (torch.rand(1, 2, 1, 20) < 0.5).float()
    wx, weight, d_output = torch.empty(4, 1, 4, 1, 20), torch.randn(1, 4, 1, 20, 20) / 4, torch.empty(4, 1, 1, 20)

    def run(replaying, h_mask, reverse):
        monkeypatch.setattr(graphs, "allowed", lambda device: replaying)
        memory.given = 0
        problem = weight, None, None, None, None, None, False, h_mask
        output, *final, pre, states = launch.forward(True, wx, *problem, rows, "lstm", reverse)
        gradients = launch.backward(*problem, pre, states, output, d_output, None, None, None, None, rows, "lstm",
                                    reverse)
        return [value.clone() for value in (output, *final, pre, states, *gradients)]

    # What differs in anything but the values of tensors must not be taken for the same.
    for number, (h_mask, reverse, graphs_so_far) in enumerate(
            ((None, False, 0), (None, False, 2), (None, True, 2), (mask, False, 2), (None, False, 2))):
        wx.normal_()
        d_output.normal_()
        expected = run(False, h_mask, reverse)
        for got, value in zip(run(True, h_mask, reverse), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=0, atol=0, equal_nan=True, msg=f"run {number}")
        assert len(captured) == graphs_so_far


MEETING = (("slstm", Rows.dense(3, 4, False, torch.tensor([3, 1, 0, 2])), "per row", 2, False),
           ("lstm", Rows.packed(torch.tensor([3, 2, 1]), 6, torch.device("cpu")), "per sequence", 1, True),
           ("slstm", Rows.cumulative(torch.tensor([0, 3, 3, 5]), 5), "zero", 1, True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the barrier runs in test_triton_ptx.py")
class TestOnTheDevice:
    """What no interpreter shows."""

    @pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
    @pytest.mark.parametrize("D", (64, 128, 200, 256, 512, 1024, 2048))
    def test_every_size_class(self, D, dtype):
        check(Problem.random("lstm", Rows.dense(5, 9, False), 1, 1, D, dtype=dtype))

    def test_bitwise_repeatable(self):
        problem = Problem.random("slstm", "lengths", 2, 1, 256, reset="per sequence", dtype=torch.bfloat16)
        runs = [problem.run(through_triton) for _ in range(5)]
        first, *others = [{**values, **gradients} for values, gradients in runs]
        assert all(torch.equal(value, first[name]) for other in others for name, value in other.items()
                   if name != "weight_hh")

    @pytest.mark.parametrize("cell, rows, reset, K, reverse", MEETING)
    def test_meeting_at_a_barrier(self, cell, rows, reset, K, reverse, forced_plan):
        forced_plan(SHARED._replace(barrier=True))
        check(Problem.random(cell, rows, K, 1, 36, reverse, reset, masked=True, dtype=torch.float32))

    @staticmethod
    def both_passes(D):
        """``(wx, function)``: a function of no arguments that gives all results of both passes for ``wx``."""
        wx, weight = torch.randn(6 * 4, 1, 4, 1, D, device="cuda"), torch.randn(1, 4, 1, D, D, device="cuda") / D**0.5
        problem, options = (weight, None, None, None, None, None, False, None), (Rows.dense(6, 4, False), "lstm", False)

        def run():
            output, *final, pre, states = launch.forward(True, wx, *problem, *options)
            gradients = launch.backward(*problem, pre, states, output, output, None, None, None, None, *options)
            return output, *final, pre, states, *gradients

        return wx, run

    PLANS = ((64, None), (256, None), (36, SHARED))

    @pytest.mark.parametrize("D, plan", PLANS)
    def test_in_a_graph(self, D, plan, forced_plan):
        forced_plan(plan)
        _, run = self.both_passes(D)
        expected = run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))

    @pytest.mark.parametrize("D, plan", PLANS)
    def test_on_a_second_stream(self, D, plan, forced_plan):
        """The input is still being written on that stream when the launches are made."""
        forced_plan(plan)
        wx, run = self.both_passes(D)
        final = wx.clone()
        expected = [value.clone() for value in run()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                wx.zero_()
                torch.cuda._sleep(20_000_000)
                wx.copy_(final)
                results = run()
        torch.cuda.current_stream().wait_stream(stream)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))

    def test_steps_that_come_again_are_a_graph(self, monkeypatch, forced_plan):
        forced_plan(SHARED)
        captured = []
        capture = graphs.capture
        monkeypatch.setattr(graphs, "capture", lambda *arguments: captured.append(1) or capture(*arguments))
        monkeypatch.setattr(launch, "graphs", graphs.Graphs())
        wx, run = self.both_passes(36)
        for _ in range(5):
            wx.normal_()
            with monkeypatch.context() as direct:
                direct.setattr(graphs, "allowed", lambda device: False)
                expected = [value.clone() for value in run()]
            results = run()
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
            del results, expected
        assert captured
