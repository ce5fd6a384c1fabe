"""The interpreter of PTX itself: kernels compiled by nvcc give what numpy gives, and wrong kernels fail."""

from pathlib import Path

import numpy as np
import pytest
from gpu_without_gpu.nvcc import Sources, Struct, nvcc_path
from gpu_without_gpu.ptx_schedule import ORDERS, Schedule
from gpu_without_gpu.ptx_types import PtxError, bf2f, f2bf

pytestmark = pytest.mark.skipif(nvcc_path() is None, reason="no nvcc on this machine")

PROBES = Path(__file__).parent / "gpu_without_gpu/probes"
ARCHITECTURES = "sm_80", "sm_90a", "sm_100a"
MASK = 0xFFFFFFFF


@pytest.fixture(scope="session")
def compiled(pytestconfig):
    """``compiled(name, arch)``: a probe's Sources, kept in pytest's cache by content."""
    cache, found = pytestconfig.cache.mkdir("nvcc"), {}

    def get(name, arch="sm_90a"):
        if (name, arch) not in found:
            found[name, arch] = Sources(PROBES / f"{name}.cu", arch, cache=cache)
        return found[name, arch]

    return get


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def schedules(order):
    """Late, early and random arrivals, each with its seed."""
    return [Schedule(order, seed, arrival) for seed, arrival in enumerate(("late", "early", "random"))]


# Between registers


def signed(v, bits=32):
    v &= (1 << bits) - 1
    return v - (1 << bits) if v >> (bits - 1) else v


def quotient(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def prmt(x, y, s):
    source = [(y << 32 | x) >> 8 * k & 255 for k in range(8)]
    picked = [(source[s >> 4 * k & 7], s >> 4 * k & 8) for k in range(4)]
    return sum((255 * (byte >> 7) if sign else byte) << 8 * k for k, (byte, sign) in enumerate(picked))


def lop3(x, y, z, table):
    return sum((table >> (4 * (x >> k & 1) + 2 * (y >> k & 1) + (z >> k & 1)) & 1) << k for k in range(32))


def field(x, at, length, sign):
    # Above the value are zeros, or its sign; with the sign, the field's own upper bit is extended.
    value = (signed(x) if sign else x) >> at & (1 << length) - 1
    if not sign or not length:
        return value
    top = signed(x) >> min(at + length - 1, 31) & 1
    return value & (1 << length) - 1 | (-1 << length if top else 0)


def inserted(f, into, at, length):
    ones = (1 << length) - 1 << at & MASK
    return into & ~ones | f << at & ones


INTEGERS = (
    lambda x, y, z: x * y + z, lambda x, y, z: (x * y >> 32) + z,
    lambda x, y, z: ((y << 32 | x) << (z & 31)) >> 32, lambda x, y, z: (y << 32 | x) >> min(z, 32), prmt,
    lambda x, y, z: x if signed(z) >= 0 else y, lambda x, y, z: x * y >> 32,
    lambda x, y, z: signed(x) * signed(y) >> 32, lambda x, y, z: x // y, lambda x, y, z: x % y,
    lambda x, y, z: quotient(signed(x), signed(y)),
    lambda x, y, z: signed(x) - signed(y) * quotient(signed(x), signed(y)),
    lambda x, y, z: min(signed(x), signed(y)), lambda x, y, z: max(x, y),
    lambda x, y, z: max(-(1 << 31), min((1 << 31) - 1, signed(x) + signed(y))),
    lambda x, y, z: x << min(y, 32), lambda x, y, z: x >> min(y, 32), lambda x, y, z: signed(x) >> min(y, 32),
    lambda x, y, z: x.bit_count(), lambda x, y, z: 32 - x.bit_length(), lambda x, y, z: int(f"{x:032b}"[::-1], 2),
    lambda x, y, z: x.bit_length() - 1, lambda x, y, z: abs(signed(x)), lambda x, y, z: -x, lambda x, y, z: ~x,
    lambda x, y, z: lop3(x, y, z, 0x96), lambda x, y, z: lop3(x, y, z, 0x1B), lambda x, y, z: lop3(x, y, z, 0xE8),
    lambda x, y, z: field(x, y & 31, z & 31, False), lambda x, y, z: field(x, y & 31, z & 31, True),
    lambda x, y, z: inserted(x, y, z & 31, 7))


def test_integers(compiled, rng):
    n = 100
    a, b, c = rng.integers(0, 1 << 32, (3, n), dtype=np.uint32)
    b[::3] %= 40
    c[::4] %= 40
    a[:4], b[b == 0] = (0, 1, 1 << 31, MASK), 3
    out = np.zeros((len(INTEGERS), n), np.uint32)
    compiled("arithmetic").kernel("integers").launch(4, 32, [a, b, c, out, n])
    for row, function in zip(out, INTEGERS):
        assert row.tolist() == [function(*map(int, xyz)) & MASK for xyz in zip(a, b, c)]


WIDE = (
    lambda x, y: x * y >> 64, lambda x, y: signed(x, 64) * signed(y, 64) >> 64, lambda x, y: x * y,
    lambda x, y: x // y, lambda x, y: signed(x, 64) - signed(y, 64) * quotient(signed(x, 64), signed(y, 64)),
    lambda x, y: min(signed(x, 64), signed(y, 64)), lambda x, y: (x & MASK) * (y & MASK),
    lambda x, y: signed(x) * signed(y) + x, lambda x, y: x >> (y & 127), lambda x, y: signed(y))


def test_wide_integers(compiled, rng):
    n = 70
    a, b = rng.integers(1, 1 << 64, (2, n), dtype=np.uint64)
    b[::3] >>= np.uint64(40)
    out = np.zeros((len(WIDE), n), np.uint64)
    compiled("arithmetic").kernel("wide").launch(3, 32, [a, b, out, n])
    for row, function in zip(out, WIDE):
        assert row.tolist() == [function(int(x), int(y)) & (1 << 64) - 1 for x, y in zip(a, b)]


def floats(rng, n):
    a, b = (rng.standard_normal((2, n)) * np.exp2(rng.integers(-3, 6, (2, n)))).astype(np.float32)
    a[:8] = (0.5, 1.5, 2.5, -0.5, 0, np.nan, 3, np.nan)
    b[:8] = (1, 1, np.nan, 2, -1, np.nan, 3, 1)
    return a, b


def towards(value, exact, direction):
    """float32 of the float64 ``exact`` rounded in a direction (-1, 1, or 0: towards zero)."""
    value = exact.astype(np.float32)
    over = (value > exact) if direction < 0 else (value < exact) if direction > 0 else np.abs(value) > np.abs(exact)
    to = np.float32(direction * np.inf) if direction else np.float32(0)
    return np.where(over, np.nextafter(value, to), value)


def test_floats(compiled, rng):
    n = 96
    a, b = floats(rng, n)
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        expected = [a + b, a * b, a / b, a / b, a / b, np.fmin(a, b), np.maximum(a, b), np.copysign(b, a),
                    towards(a, x + y, 0), towards(a, x * y, -1), towards(a, x + y, 1), (x * y + x).astype(np.float32),
                    np.exp2(x), np.log2(x), 1 / x, 1 / x, np.tanh(x), np.sqrt(x), np.sqrt(x), 1 / np.sqrt(x), np.abs(a),
                    -a, np.rint(a), np.trunc(a), np.floor(a), np.ceil(a), np.clip(np.nan_to_num(a), 0, 1)]
    out = np.zeros((len(expected), n), np.float32)
    compiled("arithmetic").kernel("floats").launch(3, 32, [a, b, out, n])
    for row, (got, value) in enumerate(zip(out, expected)):
        np.testing.assert_allclose(got, value.astype(np.float32), rtol=0 if row < 12 or row > 19 else 2e-7, err_msg=str(row))


def test_conversions(compiled, rng):
    n = 96
    a, b = floats(rng, n)
    bits = a.view(np.uint32)
    with np.errstate(all="ignore"):
        whole = np.nan_to_num(a).astype(np.float64)
        pack = lambda high, low: high.astype(np.uint32) << 16 | low
        half = lambda v: v.astype(np.float16).view(np.uint16)
        f16z = np.where(np.abs(a.astype(np.float16).astype(np.float32)) > np.abs(a),
                        np.nextafter(a.astype(np.float16), np.float16(0)), a.astype(np.float16)).view(np.uint16)
        s, t = bf2f(f2bf(a)), bf2f(f2bf(b))
        relu = lambda v: f2bf(np.fmax(v, np.float32(0)))
        test = lambda v: v.astype(np.uint32)
        nan = np.isnan(a) | np.isnan(b)
        expected = [np.rint(whole).astype(np.int32).view(np.uint32), np.maximum(np.trunc(whole), 0).astype(np.uint32),
                    np.floor(whole).astype(np.int32).view(np.uint32), np.ceil(whole).astype(np.int32).view(np.uint32),
                    np.where(np.isnan(a), bits, bits + 0x1000 & 0xFFFFE000), pack(half(a), half(b)),
                    pack(f2bf(a), f2bf(b)), pack(relu(a), relu(b)), pack(f2bf(a), f2bf(a)), pack(f16z, f16z),
                    pack(f2bf(s * t + t), f2bf(s * t + s)),
                    pack(*2 * [half(a.astype(np.float16).astype(np.float32) + b.astype(np.float16))]),
                    test(a == b), test((a != b) & ~nan), test(a < b), test(a >= b), test((a == b) | nan), test(a != b),
                    test((a < b) | nan), test((a >= b) | nan), test(~nan), test(nan), test((a > b) | ~(a < 0))]
    out = np.zeros((len(expected), n), np.uint32)
    compiled("arithmetic").kernel("conversions").launch(3, 32, [a, b, out, n])
    for row, (got, value) in enumerate(zip(out, expected)):
        # NaN is NaN whatever its bits.
        same = got == value if row != 5 else (got == value) | nan
        assert same.all(), (row, np.flatnonzero(~same), got[~same], value[~same])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lanes(compiled, rng, arch):
    a = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
    i, x = np.arange(32), [int(v) for v in a]
    low = i // 8 * 8
    mask = lambda test: sum(1 << k for k in range(32) if test(k))
    same = [mask(lambda k, j=j: x[k] & 3 == x[j] & 3) for j in range(32)]
    third = mask(lambda k: k % 3 == 0)
    expected = [a[i * 7 & 31], a[np.where(i < 3, i, i - 3)], a[np.where(i + 5 < low + 8, i + 5, i)], a[i ^ 6], a[low + 3],
                mask(lambda k: x[k] & 1), int(max(x) > 0xF0000000), 1, same, sum(x) & MASK, max(x),
                min(map(signed, x)) & MASK, np.bitwise_xor.reduce(a),
                np.where(i % 3 == 0, third ^ mask(lambda k: k % 3 == 0 and x[k] & 2), 0)]
    if arch != "sm_80":
        expected.append(np.where(i == 0, 1, 0))
    out = np.zeros((len(expected), 32), np.uint32)
    compiled("arithmetic", arch).kernel("lanes").launch(1, 32, [a, out, 32])
    for row, (got, value) in enumerate(zip(out, expected)):
        np.testing.assert_array_equal(got, np.broadcast_to(np.asarray(value, np.uint64), 32), err_msg=str(row))


# Memory


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_struct_by_value_the_stack_calls_and_switches(compiled, rng, arch):
    """And module variables, dynamic shared memory, integer parameters of every size."""
    kernel = compiled("memory", arch).kernel("by_value")
    x = rng.standard_normal(64).astype(np.float32)
    i = np.arange(64)
    for count in range(7):
        y = np.zeros(65, np.float32)
        kernel.launch(1, 64, [Struct(x, y, ("i", count), ("B", 1), ("q", 1 << 33), None)], smem=256)
        v = x * (1 + i % 5).astype(np.float32) + i.astype(np.float32)
        v = [v + 1, v * 3, v * v, v - np.float32(1 << 33), -v, v / 2, v][count]
        stack = x[:8].copy()
        stack[count & 7] += 1
        fours = v.reshape(-1, 4)[i // 4 ^ 1]
        expected = fours[:, 0] + fours[:, 1] + fours[:, 2] + fours[:, 3] + stack[i + count & 7]
        np.testing.assert_allclose(y[:64], expected, rtol=1e-6)
        assert y.view(np.uint32)[64] == 7 + 64


def test_atomics(compiled):
    at, wide, real = np.array([3, 0, 0, 5, 1, 99], np.uint32), np.zeros(1, np.uint64), np.zeros(1, np.float32)
    compiled("memory").kernel("atomics").launch(1, 64, [at, wide, real])
    assert at.tolist() == [3 + 63 * 32, 64 % 7, MASK, at[3], 9, 35] and 100 <= at[3] < 164
    assert wide[0] == 64 << 33 and real[0] == 32


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("kind", ("bf16", "f16", "tf32"))
def test_matrix_products(compiled, rng, arch, kind):
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
    compiled("memory", arch).kernel("product_" + kind).launch(1, 32, [*stored, d])
    start = np.array([[1, 2], [3, 4]])[np.arange(16) // 8][:, np.arange(8) % 2]
    np.testing.assert_allclose(d, a @ b.T + start, rtol=1e-5, atol=1e-5)


def test_a_transposed_matrix(compiled, rng):
    a, d = rng.integers(0, 1 << 16, (8, 8), dtype=np.uint16), np.zeros((8, 4), np.uint32)
    compiled("memory").kernel("transposed").launch(1, 32, [a, d])
    np.testing.assert_array_equal(d.view(np.uint16), a.T)


def run_staged(kernel, rng, fault, schedule):
    x, y = rng.standard_normal(64 * 5).astype(np.float32), np.zeros((5, 64), np.float32)
    kernel.launch(1, 64, [x, y, 5, 250, fault], schedule=schedule)
    padded = np.where(np.arange(320) < 250, x, 0).reshape(5, 64)
    np.testing.assert_array_equal(y, padded[:, np.arange(64) ^ 63])


@pytest.mark.parametrize("order", ORDERS)
def test_asynchronous_copies(compiled, rng, order):
    for schedule in schedules(order):
        run_staged(compiled("memory").kernel("staged"), rng, 0, schedule)


@pytest.mark.parametrize("order", ORDERS)
def test_named_barriers(compiled, order):
    y = np.zeros((6, 32), np.float32)
    compiled("memory").kernel("named_barriers").launch(1, 64, [y, 6, 0], schedule=order)
    np.testing.assert_array_equal(y, 100 * np.arange(6)[:, None] + 31 - np.arange(32))


def run_grid_barrier(kernel, fault, schedule):
    x, arrived = np.zeros((4, 96), np.float32), np.zeros(1, np.uint32)
    x[0] = np.arange(96)
    kernel.launch(3, 32, [x, arrived, 3, fault], coop=True, schedule=schedule)
    for k in range(3):
        np.testing.assert_array_equal(x[k + 1], np.roll(x[k], -33) + 1)


@pytest.mark.parametrize("order", ORDERS)
def test_a_barrier_of_the_grid(compiled, order):
    run_grid_barrier(compiled("memory").kernel("grid_barrier"), 0, order)


# Clusters


def run_recurrence(kernel, rng, blocks, fault, schedule):
    h0, h = rng.standard_normal(64 * blocks).astype(np.float32), np.zeros((7, 64 * blocks), np.float32)
    kernel.launch(blocks, 64, [h0, h, 7, blocks, fault], cluster=blocks, smem=2 * 256 * blocks, schedule=schedule)
    for got in h:
        h0 = 2 * np.roll(h0, -1) + 1
        np.testing.assert_array_equal(got, h0)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_that_send_to_each_other(compiled, rng, order):
    for schedule in schedules(order):
        run_recurrence(compiled("cluster").kernel("recurrence"), rng, 2, 0, schedule)


def test_a_larger_cluster_on_the_next_generation(compiled, rng):
    run_recurrence(compiled("cluster", "sm_100a").kernel("recurrence"), rng, 4, 0, Schedule("random", 3))


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
def test_clusters(compiled, rng, name, order):
    for schedule in schedules(order):
        CLUSTERS[name](compiled("cluster").kernel(name), rng, 0, schedule)


# What must fail, whatever the order


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name, fault, why", (
    ("recurrence", 1, "race|more arrivals"), ("recurrence", 2, "race"), ("recurrence", 3, "exited|ends the shared"),
    ("recurrence", 4, "no mbarrier|before its init"), ("recurrence", 5, "deadlock(.|\n)*bytes outstanding"),
    ("ring", 1, "race"), ("ring", 2, "race"), ("ring", 3, "exited|ends the shared"), ("bulk", 1, "race(.|\n)*fence.proxy"), ("bulk", 2, "race"), ("remote_arrivals", 1, "race")))
def test_a_faulty_cluster_fails(compiled, rng, name, fault, why, order):
    for schedule in schedules(order):
        with pytest.raises(PtxError, match=why):
            CLUSTERS[name](compiled("cluster").kernel(name), rng, fault, schedule)


@pytest.mark.parametrize("fault", (1, 2, 3))
def test_a_faulty_copy_fails(compiled, rng, fault):
    for schedule in schedules("random"):
        with pytest.raises(PtxError, match="race"):
            run_staged(compiled("memory").kernel("staged"), rng, fault, schedule)


@pytest.mark.parametrize("fault", (1, 2))
@pytest.mark.parametrize("order", ORDERS)
def test_a_faulty_barrier_of_the_grid_fails(compiled, fault, order):
    with pytest.raises(PtxError, match="race"):
        run_grid_barrier(compiled("memory").kernel("grid_barrier"), fault, order)


def test_a_producer_that_does_not_wait_fails(compiled):
    with pytest.raises(PtxError, match="race|at barrier"):
        compiled("memory").kernel("named_barriers").launch(1, 64, [np.zeros((6, 32), np.float32), 6, 1])


def test_stale_memory_without_the_clocks(compiled, rng):
    """What arrives late is not there before the wait, even where no race is looked for."""
    kernel = compiled("memory").kernel("staged")
    x, y = rng.standard_normal(320).astype(np.float32), np.zeros((5, 64), np.float32)
    kernel.launch(1, 64, [x, y, 5, 250, 1], schedule=Schedule("round robin", 0, "late"), races=False)
    assert np.isnan(y[0]).all()


@pytest.mark.parametrize("fault, why", (
    (1, "out of bounds"), (2, "misaligned"), (3, "out of bounds"), (4, "not converged|deadlock"), (5, "traps"),
    (6, "not here"), (7, "deadlock")))
def test_what_a_gpu_would_refuse_is_named(compiled, fault, why):
    with pytest.raises(PtxError, match=why):
        compiled("memory").kernel("faulty").launch(1, 32, [np.zeros(32, np.float32), fault])


def test_uninitialised_shared_memory_is_nan(compiled):
    x = np.zeros(32, np.float32)
    compiled("memory").kernel("faulty").launch(1, 32, [x, 0])
    assert np.isnan(x).all()


def test_resources_are_read(compiled):
    found = compiled("memory").resources()
    assert set(found) == set(compiled("memory").names())
    assert found["staged"].shared == 512 and found["staged"].stack == 0 and 8 <= found["staged"].registers <= 64
    assert found["by_value"].stack >= 32


def test_the_order_of_two_runs_with_one_seed_is_the_same(compiled, rng):
    kernel = compiled("memory").kernel("grid_barrier")
    counts = []
    for _ in range(2):
        x, arrived = np.zeros((4, 96), np.float32), np.zeros(1, np.uint32)
        counts.append(kernel.launch(3, 32, [x, arrived, 3, 0], coop=True, seed=11))
    assert counts[0] == counts[1]
