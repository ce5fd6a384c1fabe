"""Triton's interpreter made right for bfloat16, which it holds as the 16 bits and computes with as integers."""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _to_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bits(values):
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def _is_bfloat16(handle):
    return handle.dtype.scalar == tl.bfloat16


def _widened(handle):
    return TensorHandle(_to_float(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _narrowed(handle):
    return TensorHandle(_to_bits(handle.data), tl.bfloat16)


def repair_bfloat16():
    """For this process: casts round to nearest even, and products and sums are of the values."""
    cast, dot, binary = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot, InterpreterBuilder.binary_op

    def cast_impl(self, value, to):
        value = _widened(value)
        if to.scalar == tl.bfloat16:
            return _narrowed(value if value.dtype.scalar == tl.float32 else cast(self, value, tl.float32))
        return value if to.scalar == value.dtype.scalar else cast(self, value, to)

    def create_dot(self, a, b, accumulator, *rest):
        return dot(self, _widened(a), _widened(b), accumulator, *rest)

    def binary_op(self, a, b, operation):
        if not _is_bfloat16(a):
            return binary(self, a, b, operation)
        result = binary(self, _widened(a), _widened(b), operation)
        return result if result.data.dtype == np.bool_ else _narrowed(result)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
    InterpreterBuilder.binary_op = binary_op
    InterpreterBuilder.create_fp_to_fp = lambda self, value, to, rounding: cast_impl(self, value, to)
