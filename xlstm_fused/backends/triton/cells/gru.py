"""GRU, its reset gate after the recurrent product: xlstm_fused/cells/gru.py."""

import triton
import triton.language as tl  # noqa: F401 (its interpreter wants it in every module of kernels)

from ..activations import sigmoid, tanh

GATES = 4  # r, z, n, q
STATES = 1  # h
READS_H = True


@triton.jit
def forward(pre, s):
    r, z = sigmoid(pre[0]), sigmoid(pre[1])
    n = tanh(pre[2] + r * pre[3])
    return ((1.0 - z) * n + z * s[0],)


@triton.jit
def backward(pre, s, next, dnext):
    r, z = sigmoid(pre[0]), sigmoid(pre[1])
    n = tanh(pre[2] + r * pre[3])
    dh = dnext[0]
    dn = dh * (1.0 - z) * (1.0 - n * n)
    dpre = (dn * pre[3] * r * (1.0 - r), dh * (s[0] - n) * z * (1.0 - z), dn, dn * r)
    return dpre, (dh * z,)
