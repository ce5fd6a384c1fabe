"""Operations on whole warps that numpy has no function for; the generated code of the PTX interpreter calls them."""

import numpy as np

from .ptx_types import U8, U16, U32, U64, bf2f, f2bf

f2, f4, f8 = np.float16, np.float32, np.float64
_LANES = np.arange(32)


def up_bf16(bits):
    return bf2f(bits).astype(f8)


def up_bf16x2(bits):
    return bf2f(np.ascontiguousarray(bits).view(U16)).astype(f8)


def up_f16x2(bits):
    return np.ascontiguousarray(bits).view(f2).astype(f8)


def up_f32x2(bits):
    return np.ascontiguousarray(bits).view(f4).astype(f8)


def pk_bf16(values):
    return f2bf(values.astype(f4))


def pk_bf16x2(values):
    return f2bf(values.astype(f4)).view(U32)


def pk_f16x2(values):
    return values.astype(f2).view(U32)


def pk_f32x2(values):
    return values.astype(f4).view(U64)


def directed(values, dtype, mode):
    """float64 ``values`` in ``dtype``, rounded towards zero, down or up as ``mode`` (rz, rm, rp) says."""
    r = values.astype(dtype)
    inf = dtype(np.inf)
    if mode == "rm":
        return np.where(r > values, np.nextafter(r, -inf), r)
    if mode == "rp":
        return np.where(r < values, np.nextafter(r, inf), r)
    return np.where(np.abs(r) > np.abs(values), np.nextafter(r, dtype(0)), r)


def truncated_bf16(values):
    return (np.ascontiguousarray(values, f4).view(U32) >> U32(16)).astype(U16)


def tf32(values, away):
    """float32 rounded to ten bits of fraction: ties away from zero, or to even."""
    bits = np.ascontiguousarray(values, f4).view(U32)
    half = U32(0x1000) if away else U32(0xFFF) + ((bits >> U32(13)) & U32(1))
    return np.where(np.isfinite(values), (bits + half) & U32(0xFFFFE000), bits)


def pack(high, low):
    return high.astype(U32) << U32(16) | low.astype(U32)


def to_integer(values, dtype, rounding):
    """Floats to integers: out of range saturates, NaN gives zero."""
    limits = np.iinfo(dtype)
    whole = np.nan_to_num(rounding(values.astype(f8)), nan=0.0, posinf=np.inf, neginf=-np.inf)
    result = np.clip(whole, limits.min, limits.max)
    exact = (result > float(limits.min)) & (result < float(limits.max))
    edge = np.where(result > 0, dtype(limits.max), dtype(limits.min))
    return np.where(exact | (result == 0), np.where(exact, result, 0).astype(dtype), edge)


def saturated(values, dtype):
    limits = np.iinfo(dtype)
    return np.clip(values, max(limits.min, np.iinfo(values.dtype).min),
                   min(limits.max, np.iinfo(values.dtype).max)).astype(dtype)


def unit(values):
    return np.clip(np.where(np.isnan(values), values.dtype.type(0), values), 0, 1).astype(values.dtype)


def divide(a, b):
    quotient = (a - np.fmod(a, b)) // b
    return np.where(b == 0, a.dtype.type(-1) if a.dtype.kind == "i" else ~a.dtype.type(0), quotient).astype(a.dtype)


def high_product(a, b):
    """Upper half of the product of integers."""
    if a.dtype.itemsize < 8:
        wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return (a.astype(wide) * b.astype(wide) >> wide.type(8 * a.dtype.itemsize)).astype(a.dtype)
    x, y, low, half = a.view(U64), b.view(U64), U64(0xFFFFFFFF), U64(32)
    first, second = (x & low) * (y & low), (x >> half) * (y & low)
    third, fourth = (x & low) * (y >> half), (x >> half) * (y >> half)
    middle = (first >> half) + (second & low) + (third & low)
    high = fourth + (second >> half) + (third >> half) + (middle >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, U64(0)) - np.where(b < 0, x, U64(0))
    return high.view(a.dtype)


def extract(value, position, length):
    """bfe: ``length`` bits from ``position`` on, with the sign of the uppermost if the type has one."""
    bits, kind = 8 * value.dtype.itemsize, value.dtype
    unsigned = np.dtype(f"u{kind.itemsize}").type
    position, length = (position & U32(255)).astype(int), (length & U32(255)).astype(int)
    short = np.clip(np.minimum(length, bits - position), 0, bits)
    up = (bits - position - short).clip(0).astype(unsigned)
    down = (bits - short).astype(unsigned)
    field = (value.view(unsigned) << up).view(kind)
    result = field >> down.view(kind)
    sign = (value >> kind.type(bits - 1)) if kind.kind == "i" else kind.type(0)
    return np.where(length == 0, kind.type(0), np.where(position >= bits, sign, result)).astype(kind)


def insert(field, into, position, length):
    """bfi."""
    bits, kind = 8 * into.dtype.itemsize, into.dtype.type
    position, length = (position & U32(255)).astype(kind), (length & U32(255)).astype(kind)
    ones = np.where(length >= bits, ~kind(0), (kind(1) << np.minimum(length, kind(bits - 1))) - kind(1))
    mask = (ones << position).astype(into.dtype)
    return (into & ~mask) | ((field << position) & mask)


def leading_zeros(value):
    bits = 8 * value.dtype.itemsize
    count = np.zeros(value.shape, U32)
    rest = value.copy()
    step = bits // 2
    while step:
        small = rest >> value.dtype.type(bits - step) == 0
        count += np.where(small, U32(step), U32(0))
        rest = np.where(small, rest << value.dtype.type(step), rest)
        step //= 2
    return np.where(value == 0, U32(bits), count)


def last_one(value):
    """bfind of an unsigned value: the place of its highest set bit, all ones if there is none."""
    return np.where(value == 0, U32(0xFFFFFFFF), U32(8 * value.dtype.itemsize - 1) - leading_zeros(value))


def reversed_bits(value):
    """brev: reversed in each byte, and the bytes reversed."""
    size = value.dtype.itemsize
    bits = np.unpackbits(np.ascontiguousarray(value).view(U8).reshape(-1, size), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(value.dtype)[:, 0]


def funnel(low, high, shift, left, wrap):
    shift = (shift & U32(31)) if wrap else np.minimum(shift, U32(32))
    pair, shift = high.astype(U64) << U64(32) | low, shift.astype(U64)
    return (((pair << shift) >> U64(32)) if left else (pair >> shift)).astype(U32)


def permuted(a, b, selector, mode):
    """prmt, by default or in one of its modes."""
    source = (b.astype(U64) << U64(32) | a).view(U8).reshape(-1, 8)
    low = (selector & U32(3)).astype(int)[:, None]
    n = np.arange(4)
    if mode is None:
        nibble = (selector[:, None] >> (U32(4) * n.astype(U32))) & U32(15)
        take = (nibble & U32(7)).astype(int)
        result = np.take_along_axis(source, take, 1)
        result = np.where(nibble & U32(8), np.where(result & 0x80, 255, 0), result).astype(U8)
    else:
        take = {"f4e": low + n, "b4e": (low - n) % 8, "rc8": low + 0 * n, "ecl": np.maximum(low, n),
                "ecr": np.minimum(low, n), "rc16": 2 * (low & 1) + n % 2}[mode]
        result = np.take_along_axis(source, take, 1)
    return np.ascontiguousarray(result).view(U32)[:, 0]


def unpacked(value, parts):
    """The ``parts`` pieces of each lane's value, lowest first."""
    pieces = np.ascontiguousarray(value).view(np.dtype(f"u{value.dtype.itemsize // parts}")).reshape(32, parts)
    return np.ascontiguousarray(pieces.T)


def packed(pieces, dtype):
    return np.stack(pieces, 1).view(dtype)[:, 0]
