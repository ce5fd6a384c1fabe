"""The CUDA kernels as compiled: the PTX that nvcc makes of them, run by an interpreter of PTX that orders what programs
do at random, lets stores to peers land late, and reports accesses that nothing orders."""

import importlib
import shutil

import pytest
import torch
from gpu_without_gpu.nvcc import nvcc_path
from inputs import from_input, two_steps, with_input
from problems import Problem
from test_reference import through_autograd, through_ops
from tolerances import assert_as_good_as, assert_close

from xlstm_fused import FusedxLSTM
from xlstm_fused.rows import Rows

if nvcc_path() is None:
    pytest.skip("there is no nvcc", allow_module_level=True)

from gpu_without_gpu.emulated_cuda import CSRC, emulated
from gpu_without_gpu.ptx_types import PtxError

from xlstm_fused.backends.cuda import plan as planning

cuda = importlib.import_module("xlstm_fused.backends.cuda")
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def on_the_cpu(poisoned_memory):
    cuda.device_type_for_tests = "cpu"
    yield
    cuda.device_type_for_tests = "cuda"


def small(cell, D, dtype, reset="none", K=1, masked=False, B=4):
    rows = Rows.dense(3, B, False, torch.tensor([3, 1, 0, 2] * B)[:B])
    problem = Problem.random(cell, rows, K, 1, D, False, reset, masked, dtype=dtype)
    # As in test_cpu.py: raw m' has a kink that rounding moves values across.
    for index in (2, 4) if dtype != FP32 else ():
        problem.cotangents[index].zero_()
    return problem


def run(problem, *arguments, **options):
    """``(values, gradients, emulator)`` of one pass each way."""
    way = through_ops if "wx" in problem.tensors else from_input
    with emulated(*arguments, **options) as emulator:
        return *problem.run(lambda tensors, problem: way(tensors, problem, "cuda")), emulator


def check(problem, *arguments, takes_input=True, **options):
    """Runs and compares; returns the plans of both launches. ``takes_input``: whether the kernel, of a problem that
    begins with an input, is to multiply it."""
    expected = through_autograd if "wx" in problem.tensors else two_steps
    truth, reference = problem.to(torch.float64).run(expected), problem.run(expected)
    *results, emulator = run(problem, *arguments, **options)
    x = problem.tensors.get("x")
    assert emulator.inputs == [0 if x is None or not takes_input else x.shape[1]]
    for got, expected, other in zip(results, truth, reference):
        for name, value in got.items():
            if problem.tensors["weight_hh"].dtype == FP32:
                assert_close(value, expected[name], name)
            else:
                assert_as_good_as(value, other[name], expected[name], name)
    assert [backward for backward, _, _ in emulator.launches] == [False, True]
    return [plan for _, _, plan in emulator.launches]


@pytest.mark.parametrize("cell, D, dtype, reset, masked", (
    ("slstm", 33, FP32, "per row", True), ("lstm", 20, BF16, "none", False), ("gru", 24, FP16, "per sequence", True)))
def test_one_program(cell, D, dtype, reset, masked):
    check(small(cell, D, dtype, reset, masked=masked))


@pytest.mark.parametrize("cell, D, dtype, programs, tiles, reset, K, masked, B", (
    ("slstm", 37, BF16, 4, 1, "per row", 2, True, 11),
    ("lstm", 40, FP32, 2, 2, "per sequence", 1, True, 5),
    ("lstm", 34, FP16, 2, 2, "zero", 1, False, 3),
    ("gru", 20, FP32, 2, 1, "per row", 1, True, 5),
    ("gru", 34, BF16, 2, 2, "per sequence", 2, False, 3),
    ("lstm", 60, FP32, 8, 1, "per row", 1, False, 3),
    ("slstm", 122, BF16, 16, 1, "none", 1, True, 2)))
def test_clusters(cell, D, dtype, programs, tiles, reset, K, masked, B):
    """Odd sizes, programs without a unit, tiles that are not full, both directions, every kind of reset."""
    check(small(cell, D, dtype, reset, K, masked, B), "cluster", programs, tiles, schedule="random", seed=3)


@pytest.mark.parametrize("cell, D, dtype, programs, groups, reset, K, masked, B", (
    ("slstm", 37, BF16, 3, 2, "per row", 2, True, 11),
    ("lstm", 21, FP32, 2, 1, "per sequence", 1, True, 9),
    ("gru", 20, FP16, 3, 3, "zero", 2, False, 17),
    ("slstm", 18, FP32, 2, 2, "none", 1, False, 1)))
def test_grids(cell, D, dtype, programs, groups, reset, K, masked, B):
    """As above; groups with one task or several, of which the last has one less."""
    check(small(cell, D, dtype, reset, K, masked, B), "grid", programs, groups=groups, schedule="random", seed=3)


def test_helpers_of_a_grid():
    """Warps that have no unit: they fetch forward and multiply backward."""
    for plan in check(small("slstm", 37, FP32, "per row", 1, True, 9), "grid", 5, schedule="random", seed=3):
        assert plan.warps > plan.units // 8 == 1


def test_a_grid_that_reads_at_every_step():
    """R in registers, in shared memory and in neither, with helpers."""
    for plan in check(small("lstm", 132, FP32, B=1), "grid", 5, shared_limit=20_000):
        assert plan.warps > plan.units // 8 and plan.shared_chunks == 1 and not plan.resident


@pytest.mark.parametrize("rows, N, K, reverse", (
    (Rows.dense(2, 3, True), 1, 1, True),
    (Rows.packed(torch.tensor([3, 2, 1]), 6, torch.device("cpu")), 2, 1, True),
    (Rows.cumulative(torch.tensor([0, 2, 2, 5]), 5), 2, 2, False)), ids=("batch-first", "packed", "cu_seqlens"))
@pytest.mark.parametrize("exchange", ("cluster", "grid", "steps"))
def test_layouts_and_heads(exchange, rows, N, K, reverse):
    check(Problem.random("lstm", rows, K, N, 20, reverse, "per row", True, dtype=BF16), exchange, 2)


@pytest.mark.parametrize("cell, D, dtype, reset, K, masked, B", (
    ("slstm", 37, BF16, "per row", 2, True, 11),
    ("lstm", 21, FP32, "per sequence", 1, True, 9),
    ("gru", 20, FP16, "zero", 2, False, 3),
    ("gru", 33, FP32, "per row", 1, True, 5),
    ("slstm", 18, FP32, "per sequence", 2, False, 4),
    ("lstm", 16, BF16, "none", 1, False, 1)))
def test_launches_for_every_step(cell, D, dtype, reset, K, masked, B):
    check(small(cell, D, dtype, reset, K, masked, B), "steps")


@pytest.mark.parametrize("cell, D, dtype, I, reset, K, masked, B", (
    ("slstm", 33, FP32, 5, "per row", 2, True, 11),
    ("lstm", 20, FP32, 20, "none", 1, False, 3),
    ("lstm", 34, BF16, 5, "none", 1, False, 4),
    ("lstm", 34, BF16, 32, "per sequence", 1, True, 9),
    ("gru", 20, FP16, 1, "zero", 2, False, 4)))
def test_an_input_to_one_program(cell, D, dtype, I, reset, K, masked, B):
    """Rows of x that can be loaded 16 bytes at a time, and others; R and W_ih in one slot or several."""
    check(with_input(small(cell, D, dtype, reset, K, masked, B), I))


@pytest.mark.parametrize("cell, D, dtype, I, tiles, reset, K, masked, B", (
    ("slstm", 37, BF16, 13, 1, "per row", 2, True, 11),
    ("slstm", 37, FP32, 31, 2, "per row", 1, False, 11),
    ("lstm", 34, FP16, 24, 2, "zero", 1, True, 3),
    ("gru", 20, FP32, 3, 1, "per sequence", 1, False, 5)))
def test_an_input_to_a_cluster(cell, D, dtype, I, tiles, reset, K, masked, B):
    check(with_input(small(cell, D, dtype, reset, K, masked, B), I), "cluster", 2, tiles, schedule="random", seed=3)


@pytest.mark.parametrize("exchange, rows, N, K", (
    ("alone", Rows.packed(torch.tensor([3, 2, 1]), 6, torch.device("cpu")), 2, 1),
    ("cluster", Rows.cumulative(torch.tensor([0, 2, 2, 5]), 5), 2, 2),
    ("alone", Rows.dense(2, 3, True), 1, 2)), ids=("packed", "cu_seqlens", "batch-first"))
def test_layouts_and_heads_of_an_input_without_bias(exchange, rows, N, K):
    problem = with_input(Problem.random("lstm", rows, K, N, 20, reset="per row", dtype=BF16), 6)
    problem.tensors.pop("bias")
    check(problem, exchange, 2 if exchange == "cluster" else 1)


def test_an_input_that_the_device_has_no_room_for():
    """Of the product, the op makes two steps."""
    check(with_input(small("lstm", 20, BF16), 5), shared_limit=5000, takes_input=False)
    check(with_input(small("lstm", 20, BF16), 33), takes_input=False)


def test_a_layer_with_and_without_a_graph():
    """Both layers' inputs are narrow; inference and training are the same kernel."""
    layer = FusedxLSTM(5, 16, 2, bidirectional=True, backend="cuda", dtype=BF16)
    x = torch.randn(3, 2, 5, dtype=BF16)
    with emulated() as emulator:
        recorded, state = layer(x, lengths=[3, 1])
        with torch.no_grad():
            unseen, same = layer(x, lengths=[3, 1])
    assert emulator.inputs == [5, 32] * 2
    assert all(torch.equal(a, b) for a, b in zip((recorded, *state), (unseen, *same), strict=True))
    layer.backend = "reference"
    reference, _ = layer(x, lengths=[3, 1])
    assert_as_good_as(recorded, reference, layer.double()(x.double(), lengths=[3, 1])[0])


@pytest.mark.parametrize("exchange", ("cluster", "grid"))
def test_tf32_is_as_good_as_its_digits(exchange):
    """Where the user allows it: ten bits of the factors, so errors of 1e-3 and not of 1e-6."""
    problem = small("lstm", 20, FP32)
    expected = problem.to(torch.float64).run(through_autograd)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        *results, emulator = run(problem, exchange, 2)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert {kind for _, kind, _ in emulator.launches} == {"tf32"}
    worst = 0
    for got, truth in zip(results, expected):
        for name, value in got.items():
            error = ((value.double() - truth[name]).norm() / truth[name].norm()).item()
            assert error < 2**-9, name
            worst = max(worst, error)
    assert worst > 2**-16


def test_what_does_not_fit_on_chip_is_read_at_every_step():
    """Forward a third of R is in registers, a third in shared memory, the rest in neither; backward all of it."""
    forward, backward = check(small("lstm", 72, BF16), shared_limit=25_000)
    assert (forward.chunks, forward.shared_chunks, backward.shared_chunks) == (3, 1, 0)
    assert not forward.resident and not backward.resident


@pytest.mark.parametrize("exchange", ("cluster", "grid"))
def test_bitwise_the_same_in_every_order_of_programs(exchange):
    problem = small("lstm", 20, BF16)
    first, second = (run(problem, exchange, 2, schedule="random", seed=seed) for seed in (1, 2))
    for a, b in zip(first[:2], second[:2]):
        assert all(torch.equal(value, b[name]) for name, value in a.items())


def test_tags_of_an_earlier_launch_never_match(monkeypatch):
    """They would, in memory that is as another launch left it; each launch gets zeros."""
    launch = importlib.import_module("xlstm_fused.backends.cuda.launch")
    new, kept = launch.new_words, {}
    check(small("lstm", 20, BF16), "grid", 2)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "new_words", lambda plan, device: kept.setdefault(plan, new(plan, device)))
        check(small("lstm", 20, BF16), "grid", 2)
        with pytest.raises((AssertionError, PtxError)):
            check(small("lstm", 20, BF16), "grid", 2)
    check(small("lstm", 20, BF16), "grid", 2)


MUTANTS = {
    "no wait for h": ("forward.cuh", "    exchange.wait(step);\n", ""),
    "one buffer of h": (
        "hidden_exchange.cuh", "buffers_ + (int(step & 1) * kTiles * kTile + column)", "buffers_ + (column)"),
    "a warp's bytes not waited for": (
        "hidden_exchange.cuh", "(plan_.programs - 1) * warps * kTiles", "(plan_.programs - 1) * (warps - 1) * kTiles"),
    "no wait for the sums": ("backward.cuh", "    exchange.wait(turn);\n", ""),
    "one buffer of sums": ("partial_exchange.cuh", "kExchange == Exchange::alone ? 0 : (turn & 1)", "0 * (turn & 1)"),
    "no barrier between cell and product": (
        "backward.cuh", "    __syncthreads();\n\n    for (int job", "    for (int job"),
    "a shifted unit": ("place.cuh", "return unit < p.D; }", "return unit <= p.D; }"),
}


def mutated(tmp_path, file, right, wrong):
    """A copy of the sources in which one place is changed."""
    shutil.copytree(CSRC, tmp_path / "csrc")
    path = tmp_path / "csrc/cuda" / file
    assert path.read_text().count(right) == 1
    path.write_text(path.read_text().replace(right, wrong))
    return tmp_path / "csrc"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_shows(name, tmp_path):
    csrc = mutated(tmp_path, *MUTANTS[name])
    # Three warps in each program, the last of which has padding.
    with pytest.raises((AssertionError, PtxError)):
        for seed in range(1, 4):
            check(small("lstm", 34, BF16), "cluster", 2, csrc=csrc, schedule="random", seed=seed)


INPUT_MUTANTS = {
    "x of the same step again": ("forward.cuh", "load_ahead(step + 1, next_row);", "load_ahead(step + 1, row);"),
    "x of the sequence beside": ("input_product.cuh", "place.group % 2 ? odd : even", "even"),
    "x as if its rows were aligned": (
        "input_product.cuh", "input_.I % kLane == 0 && reinterpret_cast<uintptr_t>(input_.x) % 16 == 0", "true"),
    "W_ih in the slots of R": ("forward.cuh", "product(input, slots, plan.shared_chunks)", "product(input, slots, 0)"),
    "x taken for wx": ("forward.cuh", "      product.form(ahead);\n    }\n  }\n", "    }\n  }\n"),
}


@pytest.mark.parametrize("name", INPUT_MUTANTS)
def test_a_mutant_of_the_input_product_shows(name, tmp_path):
    csrc = mutated(tmp_path, *INPUT_MUTANTS[name])
    # One chunk of R in registers, one in a slot.
    with pytest.raises((AssertionError, PtxError)):
        check(with_input(small("lstm", 34, BF16), 5), csrc=csrc)


GRID_MUTANTS = {
    "tags not looked at": ("exchange.cuh", "return first.tag == tag && second.tag == tag;", "return true;"),
    "one buffer of words of h": (
        "hidden_exchange.cuh", "(int(tag & 1) * kTiles * kTile + column) * row_words()", "column * row_words()"),
    "one buffer of words of sums": ("partial_exchange.cuh", "int(tag & 1) * plan_.programs", "0 * plan_.programs"),
    "tags of another task again": ("kernels.cuh", "tag += uint32_t(work(task));", "work(task);"),
    "no barrier between tasks": (
        "exchange.cuh", "if constexpr (kExchange == Exchange::grid) __syncthreads();", ""),
    "no barrier of the own warps": ("backward.cuh", "    exchange.wait(turn);\n", ""),
}


@pytest.mark.parametrize("name", GRID_MUTANTS)
def test_a_mutant_of_the_grid_shows(name, tmp_path):
    csrc = mutated(tmp_path, *GRID_MUTANTS[name])
    with pytest.raises((AssertionError, PtxError)):
        for seed in range(1, 4):
            check(small("lstm", 34, BF16, B=17), "grid", 2, csrc=csrc, schedule="random", seed=seed)


@pytest.mark.parametrize("exchange, file, right, wrong", (
    ("cluster", "hidden_exchange.cuh", "kTiles * kTile * kSlice;\n", "kTiles * kTile * kSlice + 16;\n"),
    ("cluster", "partial_exchange.cuh", "kTile * int(sizeof(float));\n", "kTile * int(sizeof(float)) + 16;\n"),
    ("grid", "hidden_exchange.cuh", "if (column < columns_) store_word", "if (column + 1 < columns_) store_word"),
    ("grid", "partial_exchange.cuh", "if (tile * kTile + 2 * q < columns_) {",
     "if (tile * kTile + 2 * q + 2 < columns_) {")))
def test_a_message_that_never_comes_ends_the_kernel(exchange, file, right, wrong, tmp_path, monkeypatch):
    """A barrier is told of more bytes than are sent, or a word is not: the wait gives up, soon here."""
    csrc = mutated(tmp_path, file, right, wrong)
    monkeypatch.setattr(planning, "WATCHDOG", 1000)
    with pytest.raises(PtxError, match="traps"):
        check(small("lstm", 20, BF16), exchange, 2, csrc=csrc)
