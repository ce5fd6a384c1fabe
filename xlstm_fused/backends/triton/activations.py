"""What the cells are written in: the functions of csrc/cells/cell.h for a tile of float32 registers.

``tl.exp`` is the hardware's power of two, good to a few units in the last place for the arguments that matter here;
the functions below add the digits that forms such as ``1 - exp(x)`` would lose.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    # exp overflows only where the result is below the smallest normal number.
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Beyond the fit the difference has lost no more than two bits.
    far = 1.0 - 2.0 / (1.0 + tl.exp(2.0 * x))
    # A minimax fit (Remez) of (tanh(x) / x - 1) / x^2 on |x| <= 0.55.
    z = x * x
    q = 0.01643753 * z - 0.05267178
    q = q * z + 0.13320725
    q = q * z - 0.33332947
    return tl.where(z < 0.3025, x + x * z * q, far)


@triton.jit
def log_sigmoid(x):
    t = tl.exp(-tl.abs(x))
    # log(1 + t) = t + t^2 q, q a minimax fit (Remez) on [0, 1], the one of csrc/cpu/vector_math.h.
    q = 0.002207358 * t - 0.014310161
    q = q * t + 0.04343988
    q = q * t - 0.084812395
    q = q * t + 0.12592576
    q = q * t - 0.161855
    q = q * t + 0.19913273
    q = q * t - 0.24990986
    q = q * t + 0.3333288
    q = q * t - 0.49999994
    return tl.where(x < 0, x, 0.0) - (t + t * t * q)


@triton.jit
def maximum(a, b):
    # NaN if either is.
    return tl.where((a > b) | (a != a), a, b)
