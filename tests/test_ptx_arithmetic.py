"""Instructions between registers in the interpreter of PTX, against integers of any size and numpy."""

import numpy as np
import pytest
from gpu_without_gpu.nvcc import nvcc_path, probe
from gpu_without_gpu.ptx_types import bf2f, f2bf

pytestmark = pytest.mark.skipif(nvcc_path() is None, reason="no nvcc on this machine")

ARCHITECTURES = "sm_80", "sm_90a", "sm_100a"
MASK = 0xFFFFFFFF


@pytest.fixture
def rng():
    return np.random.default_rng(7)


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


def test_integers(rng):
    n = 100
    a, b, c = rng.integers(0, 1 << 32, (3, n), dtype=np.uint32)
    b[::3] %= 40
    c[::4] %= 40
    a[:4], b[b == 0] = (0, 1, 1 << 31, MASK), 3
    out = np.zeros((len(INTEGERS), n), np.uint32)
    probe("arithmetic").kernel("integers").launch(4, 32, [a, b, c, out, n])
    for row, function in zip(out, INTEGERS):
        assert row.tolist() == [function(*map(int, xyz)) & MASK for xyz in zip(a, b, c)]


WIDE = (
    lambda x, y: x * y >> 64, lambda x, y: signed(x, 64) * signed(y, 64) >> 64, lambda x, y: x * y,
    lambda x, y: x // y, lambda x, y: signed(x, 64) - signed(y, 64) * quotient(signed(x, 64), signed(y, 64)),
    lambda x, y: min(signed(x, 64), signed(y, 64)), lambda x, y: (x & MASK) * (y & MASK),
    lambda x, y: signed(x) * signed(y) + x, lambda x, y: x >> (y & 127), lambda x, y: signed(y))


def test_wide_integers(rng):
    n = 70
    a, b = rng.integers(1, 1 << 64, (2, n), dtype=np.uint64)
    b[::3] >>= np.uint64(40)
    out = np.zeros((len(WIDE), n), np.uint64)
    probe("arithmetic").kernel("wide").launch(3, 32, [a, b, out, n])
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


def test_floats(rng):
    n = 96
    a, b = floats(rng, n)
    with np.errstate(all="ignore"):
        x, y = a.astype(np.float64), b.astype(np.float64)
        expected = [a + b, a * b, a / b, a / b, a / b, np.fmin(a, b), np.maximum(a, b), np.copysign(b, a),
                    towards(a, x + y, 0), towards(a, x * y, -1), towards(a, x + y, 1), (x * y + x).astype(np.float32),
                    np.exp2(x), np.log2(x), 1 / x, 1 / x, np.tanh(x), np.sqrt(x), np.sqrt(x), 1 / np.sqrt(x), np.abs(a),
                    -a, np.rint(a), np.trunc(a), np.floor(a), np.ceil(a), np.clip(np.nan_to_num(a), 0, 1)]
    out = np.zeros((len(expected), n), np.float32)
    probe("arithmetic").kernel("floats").launch(3, 32, [a, b, out, n])
    for row, (got, value) in enumerate(zip(out, expected)):
        rtol = 2e-7 if 12 <= row < 20 else 0
        np.testing.assert_allclose(got, value.astype(np.float32), rtol, err_msg=str(row))


def test_conversions(rng):
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
    probe("arithmetic").kernel("conversions").launch(3, 32, [a, b, out, n])
    for row, (got, value) in enumerate(zip(out, expected)):
        # NaN is NaN whatever its bits.
        same = got == value if row != 5 else (got == value) | nan
        assert same.all(), (row, np.flatnonzero(~same), got[~same], value[~same])


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_lanes(rng, arch):
    a = rng.integers(0, 1 << 32, 32, dtype=np.uint32)
    i, x = np.arange(32), [int(v) for v in a]
    low = i // 8 * 8
    mask = lambda test: sum(1 << k for k in range(32) if test(k))
    same = [mask(lambda k, j=j: x[k] & 3 == x[j] & 3) for j in range(32)]
    third = mask(lambda k: k % 3 == 0)
    expected = [a[i * 7 & 31], a[np.where(i < 3, i, i - 3)], a[np.where(i + 5 < low + 8, i + 5, i)], a[i ^ 6],
                a[low + 3],
                mask(lambda k: x[k] & 1), int(max(x) > 0xF0000000), 1, same, sum(x) & MASK, max(x),
                min(map(signed, x)) & MASK, np.bitwise_xor.reduce(a),
                np.where(i % 3 == 0, third ^ mask(lambda k: k % 3 == 0 and x[k] & 2), 0)]
    if arch != "sm_80":
        expected.append(np.where(i == 0, 1, 0))
    out = np.zeros((len(expected), 32), np.uint32)
    probe("arithmetic", arch).kernel("lanes").launch(1, 32, [a, out, 32])
    for row, (got, value) in enumerate(zip(out, expected)):
        np.testing.assert_array_equal(got, np.broadcast_to(np.asarray(value, np.uint64), 32), err_msg=str(row))
