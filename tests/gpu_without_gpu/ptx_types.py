"""Types of PTX as numpy has them, and what all parts of the interpreter share."""

import numpy as np

U8, U16, U32, U64 = np.uint8, np.uint16, np.uint32, np.uint64
DT = {
    "b8": U8,
    "u8": U8,
    "s8": np.int8,
    "b16": U16,
    "u16": U16,
    "s16": np.int16,
    "f16": np.float16,
    "bf16": U16,
    "b32": U32,
    "u32": U32,
    "s32": np.int32,
    "f32": np.float32,
    "f16x2": U32,
    "bf16x2": U32,
    "b64": U64,
    "u64": U64,
    "s64": np.int64,
    "f64": np.float64,
    "pred": np.bool_,
    "f32x2": U64,
}
UOF = {1: U8, 2: U16, 4: U32, 8: U64}
GBASE, SHARED_BASE, LOCAL_BASE = 0x7F0000000000, 0x7E0000000000, 0x7D0000000000
"""Generic addresses of the first bytes of global, shared and local memory."""
SHWIN = 1 << 18
"""Bytes of address space of one block's shared memory: addresses below are the block's own, window r + 1 is that of
block r of the cluster."""


class PtxError(Exception):
    """What a GPU would do wrong or not at all: the message names the instruction."""


def bf2f(u):
    return (np.asarray(u).astype(U32) << U32(16)).view(np.float32)


def f2bf(f):
    b = np.ascontiguousarray(f, np.float32).view(U32)
    return np.where(np.isnan(f), U32(0x7FFF), (b + U32(0x7FFF) + ((b >> U32(16)) & U32(1))) >> U32(16)).astype(U16)


def split_ops(s):
    out, depth, cur = [], 0, ""
    for ch in s:
        if ch in "{[(":
            depth += 1
        if ch in "}])":
            depth -= 1
        if ch == "," and depth == 0:
            out.append(cur.strip())
            cur = ""
        else:
            cur += ch
    if cur.strip():
        out.append(cur.strip())
    return out
