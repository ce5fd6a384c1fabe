r"""sLSTM: exponential input gate, normaliser state and stabiliser state.

.. math::
    \tilde f = \log\sigma(f) + m, \qquad
    m' = \begin{cases} i & n = 0 \\ \max(\tilde f, i) & \text{elsewhere} \end{cases}

.. math::
    i' = e^{i - m'}, \quad f' = \min(e^{\tilde f - m'}, 1), \quad
    c' = f' c + i' \tanh(z), \quad n' = f' n + i', \quad h' = \sigma(o)\, c' / n'

The case ``n = 0`` (the zero state) is decided per element. From the zero state ``n' >= 1`` always holds, so the
division is safe; there is no floor on ``n``.

Source: Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv 2405.04517, section 2.2, with the sigmoid as
forget gate activation.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

NAME = "slstm"
GATES = ("i", "f", "z", "o")
STATES = ("h", "c", "n", "m")


def _exponential_gates(i: Tensor, f: Tensor, n: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_f = F.logsigmoid(f) + m
    m1 = torch.where(n == 0, i, torch.maximum(log_f, i))
    # clamp inside the exponential: min(exp(x), 1) has the same value, and a NaN gradient where exp(x) overflows.
    return torch.exp(i - m1), torch.exp(torch.clamp(log_f - m1, max=0)), m1


def activate(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, z, o = pre
    _, _, n, m = state
    i, f, _ = _exponential_gates(i, f, n, m)
    return i, f, torch.tanh(z), torch.sigmoid(o)


def step(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, z, o = pre
    _, c, n, m = state
    i, f, m = _exponential_gates(i, f, n, m)
    c = f * c + i * torch.tanh(z)
    n = f * n + i
    return torch.sigmoid(o) * c / n, c, n, m


def step_backward(pre: tuple[Tensor, ...], state: tuple[Tensor, ...], next_state: tuple[Tensor, ...],
                  d_next_state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    i, f, z, o = pre
    _, c, n, m = state
    _, c1, n1, m1 = next_state
    dh1, dc1, dn1, dm1 = d_next_state
    log_f = F.logsigmoid(f) + m
    i_gate, f_gate, z_gate, o_gate = activate(pre, state)

    d_ratio = dh1 * o_gate
    dc1 = dc1 + d_ratio / n1
    dn1 = dn1 - d_ratio * c1 / (n1 * n1)
    # Gradients of the exponents i - m' and log_f - m'; the second is cut where the clamp holds it at 0.
    d_i = (dc1 * z_gate + dn1) * i_gate
    d_log_f = torch.where(log_f - m1 > 0, 0, (dc1 * c + dn1 * n) * f_gate)
    dm1 = dm1 - d_i - d_log_f
    # m' is i or log_f; at an exact tie each takes half, as torch.maximum does.
    to_i = torch.where((n == 0) | (i > log_f), 1.0, torch.where(i == log_f, 0.5, 0.0)).to(dm1.dtype)
    d_i = d_i + to_i * dm1
    d_log_f = d_log_f + (1 - to_i) * dm1
    d_pre = (
        d_i,
        d_log_f * torch.sigmoid(-f),
        dc1 * i_gate * (1 - z_gate * z_gate),
        dh1 * (c1 / n1) * o_gate * (1 - o_gate),
    )
    return d_pre, (torch.zeros_like(dh1), dc1 * f_gate, dn1 * f_gate, d_log_f)
