r"""GRU, the cell of ``torch.nn.GRU``, whose reset gate acts on the recurrent product.

.. math::
    h' = (1 - \sigma(z)) \tanh(n + \sigma(r)\, q) + \sigma(z)\, h, \qquad
    n = W_n x + b_n, \quad q = R_n h + b'_n

The candidate has two pre-activations, ``n`` from the input and ``q`` from ``h``, since what ``r`` scales is one of
them.

Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
arXiv 1406.1078, appendix A.1.1, with the reset gate after the product, as ``nn.GRU`` documents it.
"""

import torch
from torch import Tensor

NAME = "gru"
GATES = ("r", "z", "n", "q")
INPUT_GATES = ("r", "z", "n")
RECURRENT_GATES = ("r", "z", "q")
STATES = ("h",)


def activate(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    r, z, n, q = pre
    r = torch.sigmoid(r)
    return r, torch.sigmoid(z), torch.tanh(n + r * q), q


def step(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    h, = state
    _, z, n, _ = activate(pre, state)
    return ((1 - z) * n + z * h,)


def step_backward(pre: tuple[Tensor, ...], state: tuple[Tensor, ...], next_state: tuple[Tensor, ...],
                  d_next_state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    h, = state
    dh1, = d_next_state
    r, z, n, q = activate(pre, state)
    d_n = dh1 * (1 - z) * (1 - n * n)
    d_pre = (d_n * q * r * (1 - r), dh1 * (h - n) * z * (1 - z), d_n, d_n * r)
    return d_pre, (dh1 * z,)
