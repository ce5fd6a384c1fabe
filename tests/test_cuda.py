"""The CUDA kernels on a GPU, against the reference; what can be known without one is in test_cuda_ptx.py."""

import importlib
import random

import pytest
import torch
from inputs import from_input, two_steps, with_input
from problems import LAYOUTS, RESETS, Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_as_good_as, assert_close

from xlstm_fused import FusedxLSTM
from xlstm_fused.backends import refuses
from xlstm_fused.backends.cuda import plan as planning
from xlstm_fused.cells import CELLS
from xlstm_fused.rows import Rows

REASON = refuses("cuda", "cuda", torch.float32, "lstm")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned_memory"),
              pytest.mark.skipif(REASON is not None, reason=f"no CUDA backend: {REASON}")]
SHAPES = ((1, 1, 5, False, False), (1, 2, 33, True, True), (2, 1, 160, False, True), (1, 1, 300, True, False))
# Every layout with every cell, and in turn every kind of reset, shape, direction and mask.
COMBINATIONS = [(cell, layout, RESETS[(i + j) % len(RESETS)], *SHAPES[(i + 2 * j + i // 4) % len(SHAPES)])
                for i, layout in enumerate(LAYOUTS) for j, cell in enumerate(CELLS)]


def through_cuda(tensors, problem):
    """Through the ops, on the GPU; results are on the CPU."""
    there = {name: value.to("cuda") for name, value in tensors.items()}
    way = through_ops if "wx" in tensors else from_input
    return tuple(value.cpu() for value in way(there, problem.on("cuda"), "cuda"))


def check(problem):
    """Values and gradients, by the table of tolerances."""
    expected = through_autograd if "wx" in problem.tensors else two_steps
    truth, reference = problem.to(torch.float64).run(expected), problem.run(expected)
    for got, expected, other in zip(problem.run(through_cuda), truth, reference):
        for name, value in got.items():
            if problem.tensors["weight_hh"].dtype == torch.float32:
                assert_close(value, expected[name], name)
            else:
                assert_as_good_as(value, other[name], expected[name], name)


@pytest.mark.parametrize("cell, layout, reset, K, N, D, reverse, masked", COMBINATIONS)
def test_values_and_gradients(cell, layout, reset, K, N, D, reverse, masked):
    check(Problem.random(cell, layout, K, N, D, reverse, reset, masked, initial=masked, dtype=torch.float32))


@pytest.mark.parametrize("D", (20, 250, 512, 700, 1024, 2048))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_16_bit_is_as_good_as_the_reference(cell, dtype, D):
    problem = Problem.random(cell, "lengths", 2, 1, D, dtype=dtype)
    # As in test_cpu.py: raw m' has a kink that rounding moves values across.
    for index in (2, 4):
        problem.cotangents[index].zero_()
    check(problem)


@pytest.mark.parametrize("cell, layout, K, N, D, I, reset, masked, dtype", (
    ("lstm", "time-major", 1, 1, 13, 3, "none", False, torch.bfloat16),
    ("slstm", "batch-first lengths", 2, 1, 128, 16, "per sequence", True, torch.float16),
    ("gru", "packed", 2, 2, 250, 17, "per row", False, torch.float32),
    ("slstm", "cu_seqlens", 1, 2, 320, 32, "zero", True, torch.float32),
    ("lstm", "one step", 2, 1, 512, 1, "per row", False, torch.bfloat16)))
def test_values_and_gradients_from_an_input(cell, layout, K, N, D, I, reset, masked, dtype):
    """Multiplied by its weights in the kernel, where one program or a cluster has a head."""
    problem = with_input(Problem.random(cell, layout, K, N, D, False, reset, masked, dtype=dtype), I)
    for index in (2, 4) if dtype != torch.float32 else ():
        problem.cotangents[index].zero_()
    check(problem)


@pytest.mark.parametrize("D", (256, 1024))
def test_many_sequences_take_two_tiles_or_turns(D):
    check(Problem.random("lstm", Rows.dense(3, 300, True), 2, 1, D, reset="per row", dtype=torch.float32))


@pytest.fixture
def in_steps(monkeypatch):
    """A launch for every step, whatever the sizes."""
    launch = importlib.import_module("xlstm_fused.backends.cuda.launch")
    monkeypatch.setattr(launch, "forced_plan", lambda D, itemsize, backward, inputs: None if inputs else planning.STEPS)


@pytest.mark.parametrize("cell, layout, reset, K, N, D, reverse, masked", COMBINATIONS[::5])
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_launches_for_every_step(in_steps, cell, layout, reset, K, N, D, reverse, masked, dtype):
    problem = Problem.random(cell, layout, K, N, D, reverse, reset, masked, initial=masked, dtype=dtype)
    for index in (2, 4) if dtype != torch.float32 else ():
        problem.cotangents[index].zero_()
    check(problem)


def test_a_head_of_more_units_than_any_grid_holds():
    assert planning.plans(2100, 1, 3, 2, planning.Device((9, 0), 132, 227 << 10), False) == (planning.STEPS,)
    problem = Problem.random("lstm", Rows.dense(3, 3, True), 1, 1, 2100, dtype=torch.bfloat16)
    problem.cotangents[2].zero_()
    check(problem)


def test_replayed_steps_on_two_streams(in_steps):
    """Two layers' graphs, launched over and over without a wait between them: the bits of the first calls."""
    layers = [FusedxLSTM(64, 256, device="cuda", dtype=torch.bfloat16, backend="cuda") for _ in range(2)]
    xs, streams = [torch.randn(30, 9, 64, device="cuda", dtype=torch.bfloat16) for _ in layers], [
        torch.cuda.Stream() for _ in layers]
    with torch.no_grad():
        expected = [layer(x)[0].clone() for layer, x in zip(layers, xs)]
        torch.cuda.synchronize()
        for _ in range(20):
            for layer, x, stream, want in zip(layers, xs, streams, expected):
                with torch.cuda.stream(stream):
                    assert layer(x)[0].shape == want.shape
        results = []
        for layer, x, stream in zip(layers, xs, streams):
            with torch.cuda.stream(stream):
                results.append(layer(x)[0])
        torch.cuda.synchronize()
    assert all(map(torch.equal, results, expected))


def test_ten_thousand_launches_of_random_shapes():
    """Both passes of each problem twice, with the same bits; some of them against the reference."""
    draw = random.Random(int(torch.randint(1 << 31, ())))
    for index in range(2500):
        lengths = torch.tensor([draw.randint(0, 9) for _ in range(draw.choice((1, 2, 9, 17, 40)))])
        problem = Problem.random(
            draw.choice(list(CELLS)), Rows.dense(9, len(lengths), draw.random() < 0.5, lengths), draw.choice((1, 2)),
            draw.choice((1, 3)), draw.choice((1, 20, 64, 100, 200, 256, 513, 800, 1100)), draw.random() < 0.5,
            draw.choice(RESETS), draw.random() < 0.5, dtype=torch.float32)
        first, second = problem.run(through_cuda), problem.run(through_cuda)
        for a, b in zip(first, second):
            assert all(torch.equal(value, b[name]) for name, value in a.items()), problem
        if index % 50 == 0:
            check(problem)


@pytest.mark.parametrize("D", (256, 1024, 2100))
def test_a_graph_captured_on_another_stream(D):
    layer = FusedxLSTM(16, D, device="cuda", dtype=torch.bfloat16, backend="cuda")
    x = torch.randn(20, 3, 16, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = layer(x)
        for _ in range(3):
            x.copy_(torch.randn_like(x))
            graph.replay()
            assert torch.equal(output, layer(x)[0])
