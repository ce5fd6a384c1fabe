"""The interpreter of PTX itself: kernels compiled by nvcc give what numpy gives, and wrong kernels fail."""

import numpy as np
import pytest
from gpu_without_gpu.nvcc import Struct, nvcc_path, probe
from gpu_without_gpu.ptx_schedule import ORDERS, Schedule
from gpu_without_gpu.ptx_types import PtxError, bf2f, f2bf

pytestmark = pytest.mark.skipif(nvcc_path() is None, reason="no nvcc on this machine")

ARCHITECTURES = "sm_80", "sm_90a", "sm_100a"
MASK = 0xFFFFFFFF


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def schedules(order):
    """Late, early and random arrivals, each with its seed."""
    return [Schedule(order, seed, arrival) for seed, arrival in enumerate(("late", "early", "random"))]


# Memory


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_struct_by_value_the_stack_calls_and_switches(rng, arch):
    """And module variables, dynamic shared memory, integer parameters of every size."""
    kernel = probe("memory", arch).kernel("by_value")
    x = rng.standard_normal(64).astype(np.float32)
    i = np.arange(64)
    for count in range(7):
        y = np.zeros(65, np.float32)
        kernel.launch(1, 64, [Struct(x, y, ("i", count), ("B", 1), ("q", 1 << 33), None)], smem=256)
        v = x * (1 + i % 5).astype(np.float32) + i.astype(np.float32)
        v = [v + 1, v * 3, v * v, v - np.float32(1 << 33), -v, v / 2, v][count]
        stack = np.resize(x[:32], 200)
        stack[count + 32] += 1
        fours = v.reshape(-1, 4)[i // 4 ^ 1]
        expected = fours[:, 0] + fours[:, 1] + fours[:, 2] + fours[:, 3] + stack[i + count]
        np.testing.assert_allclose(y[:64], expected, rtol=1e-6)
        assert y.view(np.uint32)[64] == 7 + 64


def test_atomics():
    at, wide, real = np.array([3, 0, 0, 5, 1, 99], np.uint32), np.zeros(1, np.uint64), np.zeros(1, np.float32)
    probe("memory").kernel("atomics").launch(1, 64, [at, wide, real])
    assert at.tolist() == [3 + 63 * 32, 64 % 7, MASK, at[3], 9, 35] and 100 <= at[3] < 164
    assert wide[0] == 64 << 33 and real[0] == 32


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ("bf16", "f16", "tf32"))
def test_matrix_products(rng, arch, kind):
    K = 8 if kind == "tf32" else 16
    a, b = (rng.standard_normal((m, K)).astype(np.float32) for m in (16, 8))
    if kind == "bf16":
        stored = f2bf(a), f2bf(b)
        a, b = map(bf2f, stored)
    elif kind == "f16":
        stored = a.astype(np.float16), b.astype(np.float16)
        a, b = (v.astype(np.float32) for v in stored)
    else:
        a, b = stored = [(v.view(np.uint32) & 0xFFFFE000).view(np.float32) for v in (a, b)]
    d = np.full((16, 8), np.nan, np.float32)
    probe("memory", arch).kernel("product_" + kind).launch(1, 32, [*stored, d])
    start = np.array([[1, 2], [3, 4]])[np.arange(16) // 8][:, np.arange(8) % 2]
    np.testing.assert_allclose(d, a @ b.T + start, rtol=1e-5, atol=1e-5)


def test_a_transposed_matrix(rng):
    a, d = rng.integers(0, 1 << 16, (8, 8), dtype=np.uint16), np.zeros((8, 4), np.uint32)
    probe("memory").kernel("transposed").launch(1, 32, [a, d])
    np.testing.assert_array_equal(d.view(np.uint16), a.T)


def run_staged(kernel, rng, fault, schedule):
    x, y = rng.standard_normal(64 * 5).astype(np.float32), np.zeros((5, 64), np.float32)
    kernel.launch(1, 64, [x, y, 5, 250, fault], schedule=schedule)
    padded = np.where(np.arange(320) < 250, x, 0).reshape(5, 64)
    np.testing.assert_array_equal(y, padded[:, np.arange(64) ^ 63])


@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copies(rng, order):
    for schedule in schedules(order):
        run_staged(probe("memory").kernel("staged"), rng, 0, schedule)


@pytest.mark.parametrize("order", ORDERS)
def test_named_barriers(order):
    y = np.zeros((6, 32), np.float32)
    probe("memory").kernel("named_barriers").launch(1, 64, [y, 6, 0], schedule=order)
    np.testing.assert_array_equal(y, 100 * np.arange(6)[:, None] + 31 - np.arange(32))


def run_grid_barrier(kernel, fault, schedule):
    x, arrived = np.zeros((4, 96), np.float32), np.zeros(1, np.uint32)
    x[0] = np.arange(96)
    kernel.launch(3, 32, [x, arrived, 3, fault], coop=True, schedule=schedule)
    for k in range(3):
        np.testing.assert_array_equal(x[k + 1], np.roll(x[k], -33) + 1)


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_of_the_grid(order):
    run_grid_barrier(probe("memory").kernel("grid_barrier"), 0, order)


# Clusters


def run_recurrence(kernel, rng, blocks, fault, schedule):
    h0, h = rng.standard_normal(64 * blocks).astype(np.float32), np.zeros((7, 64 * blocks), np.float32)
    kernel.launch(blocks, 64, [h0, h, 7, blocks, fault], cluster=blocks, smem=2 * 256 * blocks, schedule=schedule)
    for got in h:
        h0 = 2 * np.roll(h0, -1) + 1
        np.testing.assert_array_equal(got, h0)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_that_send_to_each_other(rng, order):
    for schedule in schedules(order):
        run_recurrence(probe("cluster").kernel("recurrence"), rng, 2, 0, schedule)


def test_a_larger_cluster_on_the_next_generation(rng):
    run_recurrence(probe("cluster", "sm_100a").kernel("recurrence"), rng, 4, 0, Schedule("random", 3))


def run_ring(kernel, rng, fault, schedule):
    x, y = rng.standard_normal((8, 64)).astype(np.float32), np.zeros((8, 64), np.float32)
    kernel.launch(8, 64, [x, y, fault], cluster=4, schedule=schedule)
    got = np.roll(x.reshape(2, 4, 64), 1, axis=1)
    expected = got[..., ::-1] + 1000 * got[:, np.arange(4) ^ 1]
    np.testing.assert_allclose(y.reshape(2, 4, 64), expected, rtol=1e-6)


def run_bulk(kernel, rng, fault, schedule):
    x, y = rng.standard_normal((4, 256)).astype(np.float32), np.zeros((4, 256), np.float32)
    kernel.launch(4, 64, [x, y, fault], cluster=2, schedule=schedule)
    np.testing.assert_array_equal(y, 2 * x[[1, 0, 3, 2], ::-1])


def run_arrivals(kernel, rng, fault, schedule):
    y = np.zeros(192, np.float32)
    kernel.launch(3, 64, [y, 3, fault], cluster=3, smem=768, schedule=schedule)
    np.testing.assert_array_equal(y, [100 * (k // 64) + k % 64 for k in range(191, -1, -1)])


CLUSTERS = {"recurrence": lambda kernel, rng, fault, schedule: run_recurrence(kernel, rng, 2, fault, schedule),
            "ring": run_ring, "bulk": run_bulk, "remote_arrivals": run_arrivals}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ("ring", "bulk", "remote_arrivals"))
def test_clusters(rng, name, order):
    for schedule in schedules(order):
        CLUSTERS[name](probe("cluster").kernel(name), rng, 0, schedule)


# What must fail, whatever the order


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name, fault, why", (
    ("recurrence", 1, "race|more arrivals"), ("recurrence", 2, "race"),
    ("recurrence", 3, "exited|ends the shared"),
    ("recurrence", 4, "no mbarrier|before its init"), ("recurrence", 5, "deadlock(.|\n)*bytes outstanding"),
    ("ring", 1, "race"), ("ring", 2, "race"), ("ring", 3, "exited|ends the shared"),
    ("bulk", 1, "race(.|\n)*fence.proxy"), ("bulk", 2, "race"), ("remote_arrivals", 1, "race")))
def test_a_faulty_cluster_fails(rng, name, fault, why, order):
    for schedule in schedules(order):
        with pytest.raises(PtxError, match=why):
            CLUSTERS[name](probe("cluster").kernel(name), rng, fault, schedule)


@pytest.mark.parametrize("fault", (1, 2, 3))
def test_a_faulty_copy_fails(rng, fault):
    for schedule in schedules("random"):
        with pytest.raises(PtxError, match="race"):
            run_staged(probe("memory").kernel("staged"), rng, fault, schedule)


@pytest.mark.parametrize("fault", (1, 2))
@pytest.mark.parametrize("order", ORDERS)
def test_a_faulty_barrier_of_the_grid_fails(fault, order):
    with pytest.raises(PtxError, match="race"):
        run_grid_barrier(probe("memory").kernel("grid_barrier"), fault, order)


def test_a_producer_that_does_not_wait_fails():
    with pytest.raises(PtxError, match="race|at barrier"):
        probe("memory").kernel("named_barriers").launch(1, 64, [np.zeros((6, 32), np.float32), 6, 1])


def test_stale_memory_without_the_clocks(rng):
    """What arrives late is not there before the wait, even where no race is looked for."""
    kernel = probe("memory").kernel("staged")
    x, y = rng.standard_normal(320).astype(np.float32), np.zeros((5, 64), np.float32)
    kernel.launch(1, 64, [x, y, 5, 250, 1], schedule=Schedule("round robin", 0, "late"), races=False)
    assert np.isnan(y[0]).all()


@pytest.mark.parametrize("fault, why", (
    (1, "out of bounds"), (2, "misaligned"), (3, "out of bounds"), (4, "not converged|deadlock"), (5, "traps"),
    (6, "not here"), (7, "deadlock")))
def test_what_a_gpu_would_refuse_is_named(fault, why):
    with pytest.raises(PtxError, match=why):
        probe("memory").kernel("faulty").launch(1, 32, [np.zeros(32, np.float32), fault])


def test_uninitialised_shared_memory_is_nan():
    x = np.zeros(32, np.float32)
    probe("memory").kernel("faulty").launch(1, 32, [x, 0])
    assert np.isnan(x).all()


def test_resources_are_read():
    found = probe("memory").resources()
    assert set(found) == set(probe("memory").names())
    assert found["staged"].shared == 512 and found["staged"].stack == 0 and 8 <= found["staged"].registers <= 64
    assert found["by_value"].stack == 800


def test_the_order_of_two_runs_with_one_seed_is_the_same(rng):
    kernel = probe("memory").kernel("grid_barrier")
    counts = []
    for _ in range(2):
        x, arrived = np.zeros((4, 96), np.float32), np.zeros(1, np.uint32)
        counts.append(kernel.launch(3, 32, [x, arrived, 3, 0], coop=True, seed=11))
    assert counts[0] == counts[1]
