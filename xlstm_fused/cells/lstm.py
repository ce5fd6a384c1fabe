r"""LSTM with a forget gate, the cell of ``torch.nn.LSTM``.

.. math::
    c' = \sigma(f)\, c + \sigma(i) \tanh(g), \qquad h' = \sigma(o) \tanh(c')

Source: Gers, Schmidhuber and Cummins, "Learning to Forget", Neural Computation 12(10), 2000, section 3, without
peepholes.
"""

import torch
from torch import Tensor

NAME = "lstm"
GATES = ("i", "f", "g", "o")
STATES = ("h", "c")


def activate(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    i, f, g, o = pre
    return torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)


def step(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    _, c = state
    i, f, g, o = activate(pre, state)
    c = f * c + i * g
    return o * torch.tanh(c), c


def step_backward(pre: tuple[Tensor, ...], state: tuple[Tensor, ...], next_state: tuple[Tensor, ...],
                  d_next_state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    _, c = state
    _, c1 = next_state
    dh1, dc1 = d_next_state
    i, f, g, o = activate(pre, state)
    tanh_c1 = torch.tanh(c1)
    dc1 = dc1 + dh1 * o * (1 - tanh_c1 * tanh_c1)
    d_pre = (
        dc1 * g * i * (1 - i),
        dc1 * c * f * (1 - f),
        dc1 * i * (1 - g * g),
        dh1 * tanh_c1 * o * (1 - o),
    )
    return d_pre, (torch.zeros_like(dh1), dc1 * f)
