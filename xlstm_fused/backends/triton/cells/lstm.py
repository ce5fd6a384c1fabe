"""LSTM with a forget gate: xlstm_fused/cells/lstm.py."""

import triton
import triton.language as tl

from ..activations import sigmoid, tanh

GATES = 4  # i, f, g, o
STATES = 2  # h, c
READS_H = False


@triton.jit
def forward(pre, s):
    i, f, g, o = sigmoid(pre[0]), sigmoid(pre[1]), tanh(pre[2]), sigmoid(pre[3])
    c = f * s[1] + i * g
    return o * tanh(c), c


@triton.jit
def backward(pre, s, next, dnext):
    i, f, g, o = sigmoid(pre[0]), sigmoid(pre[1]), tanh(pre[2]), sigmoid(pre[3])
    tanh_c = tanh(next[1])
    dh = dnext[0]
    dc = dnext[1] + dh * o * (1.0 - tanh_c * tanh_c)
    dpre = (dc * g * i * (1.0 - i), dc * s[1] * f * (1.0 - f), dc * i * (1.0 - g * g), dh * tanh_c * o * (1.0 - o))
    return dpre, (tl.zeros_like(dc), dc * f)
