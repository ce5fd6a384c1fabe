"""sLSTM, with exponential input gate, normaliser n and stabiliser m: xlstm_fused/cells/slstm.py."""

import triton
import triton.language as tl

from ..activations import log_sigmoid, maximum, sigmoid, tanh

GATES = 4  # i, f, z, o
STATES = 4  # h, c, n, m
READS_H = False


@triton.jit
def exponential_gates(pre_i, pre_f, n, m):
    log_f = log_sigmoid(pre_f) + m
    m1 = tl.where(n == 0, pre_i, maximum(log_f, pre_i))
    # min(exp(x), 1), which only n == 0 needs, written inside the exponential: exp(x) may overflow.
    x = log_f - m1
    return log_f, m1, tl.exp(pre_i - m1), tl.exp(tl.where(x > 0, 0.0, x))


@triton.jit
def forward(pre, s):
    log_f, m, i, f = exponential_gates(pre[0], pre[1], s[2], s[3])
    c = f * s[1] + i * tanh(pre[2])
    n = f * s[2] + i
    return sigmoid(pre[3]) * c / n, c, n, m


@triton.jit
def backward(pre, s, next, dnext):
    # m' is computed again, not read from next: pre is the rounded one of a 16-bit layer, and the comparisons below
    # must be exact.
    log_f, m, i, f = exponential_gates(pre[0], pre[1], s[2], s[3])
    z, o = tanh(pre[2]), sigmoid(pre[3])
    ratio = next[1] / next[2]
    d_ratio = dnext[0] * o / next[2]
    dc = dnext[1] + d_ratio
    dn = dnext[2] - d_ratio * ratio
    # Gradients of the exponents i - m' and log_f - m'; the second is cut where it is held at 0.
    d_i = (dc * z + dn) * i
    d_log_f = tl.where(log_f - m > 0, 0.0, (dc * s[1] + dn * s[2]) * f)
    dm = dnext[3] - d_i - d_log_f
    # m' is i or log_f; at an exact tie each takes half.
    to_i = tl.where((s[2] == 0) | (pre[0] > log_f), 1.0, tl.where(pre[0] == log_f, 0.5, 0.0))
    d_log_f_total = d_log_f + (1.0 - to_i) * dm
    dpre = (d_i + to_i * dm, d_log_f_total * sigmoid(-pre[1]), dc * i * (1.0 - z * z),
            dnext[0] * ratio * o * (1.0 - o))
    return dpre, (tl.zeros_like(dc), dc * f, dn * f, d_log_f_total)
