"""One step of a cell as a module: a drop-in for ``torch.nn.LSTMCell``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import checks, ops, products
from .cells import CELLS
from .dtypes import autocast_dtype
from .layout import Layout
from .states import Given, States


class FusedxLSTMCell(nn.RNNCellBase):
    r"""One time step, with the contract of :class:`torch.nn.LSTMCell`; formulas in :mod:`xlstm_fused.cells`.

    For ``cell="lstm"`` and ``num_heads=1`` the parameters (names, order, shapes, initial values for a seed) are those
    of ``nn.LSTMCell``; for ``cell="gru"`` they, and the state, are those of ``nn.GRUCell``.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`.
        cell: "lstm", "slstm" or "gru".
        num_heads: number of blocks on the diagonal of ``weight_hh`` (4*hidden_size, hidden_size / num_heads), or
            (3*hidden_size, ..) for "gru".

    Raises:
        TypeError, ValueError: an argument has a wrong type or value; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True,
                 device: torch.device | str | int | None = None, dtype: torch.dtype | None = None, *,
                 cell: str = "lstm", num_heads: int = 1) -> None:
        checks.cell_name(cell)
        super().__init__(input_size, hidden_size, bias, len(CELLS[cell].input_gates), device, dtype)
        checks.heads(num_heads, hidden_size)
        self.cell = cell
        self.num_heads = num_heads
        if num_heads > 1:
            self.weight_hh = nn.Parameter(self.weight_hh.new_empty(len(self.weight_hh), hidden_size // num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # RNNCellBase.__init__ calls this before the parameters have their final shapes: draw random numbers once.
        if "num_heads" in self.__dict__:
            super().reset_parameters()

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.cell != "lstm":
            text += f", cell={self.cell}"
        return text if self.num_heads == 1 else f"{text}, num_heads={self.num_heads}"

    def forward(self, input: Tensor, hx: Given = None) -> Tensor | tuple[Tensor, ...]:
        """One step: the next state, (h, c), (h, c, n, m), or ``h`` for "gru".

        Args:
            input: (B, I), or (I,) for one sequence.
            hx: the state, a tuple of tensors (B, H), or (H,) for one sequence, or the tensor ``h`` for "gru"; zeros
                if None. Dtypes as in
                :meth:`xlstm_fused.FusedxLSTM.forward`.

        Returns:
            A tuple like ``hx``; ``c`` of the LSTM in the input's dtype, the states of sLSTM but ``h`` in float32
            (float64 for float64). Under autocast, in place of the input's dtype, in autocast's.

        Raises:
            TypeError, ValueError, RuntimeError: an argument has a wrong type, dtype, shape or device; the message
                names it. Where ``nn.LSTMCell`` has words for it, type and message are its own.
        """
        input = self._check_input(input)
        kind, N, H = CELLS[self.cell], self.num_heads, self.hidden_size
        G, D = len(kind.gates), H // N
        # A step is a sequence of length 1: (1, B, I), or (1, I) for one sequence.
        data = input.unsqueeze(0)
        layout = Layout.of(data, False)
        state = States.read("hx", hx, data, layout, kind, (H,) * len(kind.states),
                            other_words=partial(self._words_of_nn_lstmcell, input) if self.cell == "lstm" else None)
        h0, s0 = (None, None) if state is None else state.layer(0, 1, N)
        inputs, recurrent = kind.input_gates, kind.recurrent_gates
        bias = None
        if self.bias:
            bias = kind.all_gates(self.bias_ih, inputs) + kind.all_gates(self.bias_hh, recurrent)
        wx = products.linear(layout.to_rows(data), kind.all_gates(self.weight_ih, inputs), bias)
        wx = wx.view(layout.rows.P, 1, G, N, D)
        weight_hh = kind.all_gates(self.weight_hh, recurrent).to(wx.dtype).reshape(1, G, N, D, D).contiguous()
        backend = ops.backend_for("auto", wx.device.type, wx.dtype, self.cell)
        _, h_n, s_n, _, _ = ops.recurrence(wx, weight_hh, h0, s0, layout.rows, self.cell, backend=backend)
        h, *others = (layout.state_from_rows(value.flatten(2)).squeeze(0) for value in (h_n, *s_n))
        if not others:
            return h
        return h, *(value.to(input.dtype) if self.cell == "lstm" else value for value in others)

    def _check_input(self, input: Tensor) -> Tensor:
        """The input as autocast casts it."""
        checks.tensor("input", input, self.weight_ih.device)
        if autocast_dtype(input) != autocast_dtype(self.weight_ih):
            checks.dtype("input", input, (self.weight_ih.dtype,))
        checks.floating("input", input)
        if input.dim() not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {input.shape[-1]} expected {self.input_size}")
        input = input.to(autocast_dtype(input))
        for name in ("weight_hh", "bias_ih", "bias_hh")[:3 if self.bias else 1]:
            checks.tensor(name, getattr(self, name), input.device)
            checks.castable(name, getattr(self, name), (input.dtype,))
        return input

    def _words_of_nn_lstmcell(self, input: Tensor, hx: Any) -> Exception | None:
        """The error of nn.LSTMCell for an ``hx`` that is wrong; None if it has no words for that."""
        if len(hx) != 2:
            return RuntimeError("lstm_cell expects two hidden states")
        if not all(isinstance(value, Tensor) for value in hx):
            return None
        for index, value in enumerate(hx):
            if value.dim() not in (1, 2):
                return ValueError(f"{type(self).__name__}: Expected hx[{index}] to be 1D or 2D, got {value.dim()}D "
                                  "instead")
        for index, value in enumerate(hx):
            if value.dim() == input.dim():
                if value.shape[:-1] != input.shape[:-1]:
                    return RuntimeError(f"Input batch size {len(input)} doesn't match hidden{index} batch size "
                                        f"{len(value)}")
                if value.shape[-1] != self.hidden_size:
                    return RuntimeError(f"hidden{index} has inconsistent hidden_size: got {value.shape[-1]}, expected "
                                        f"{self.hidden_size}")
        return None
