"""One step of a cell as a module: a drop-in for ``torch.nn.LSTMCell``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from . import checks, ops
from .cells import CELLS
from .layout import Layout
from .states import States


class FusedxLSTMCell(nn.RNNCellBase):
    r"""One time step, with the contract of :class:`torch.nn.LSTMCell`; formulas in :mod:`xlstm_fused.cells`.

    For ``cell="lstm"`` and ``num_heads=1`` the parameters (names, order, shapes, initial values for a seed) are those
    of ``nn.LSTMCell``.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`.
        cell: "lstm" or "slstm".
        num_heads: number of blocks on the diagonal of ``weight_hh`` (4*hidden_size, hidden_size / num_heads).

    Raises:
        TypeError, ValueError: an argument has a wrong type or value; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None, *,
                 cell: str = "lstm", num_heads: int = 1) -> None:
        checks.cell_name(cell)
        checks.heads(num_heads, hidden_size)
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.cell = cell
        self.num_heads = num_heads
        if num_heads > 1:
            self.weight_hh = nn.Parameter(self.weight_hh.new_empty(4 * hidden_size, hidden_size // num_heads))
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

    def forward(self, input: Tensor, hx=None) -> tuple[Tensor, ...]:
        """One step: the next state, (h, c) or (h, c, n, m).

        Args:
            input: (B, I), or (I,) for one sequence.
            hx: the state, a tuple of tensors (B, H), or (H,) for one sequence; zeros if None. Dtypes as in
                :meth:`xlstm_fused.FusedxLSTM.forward`.

        Returns:
            A tuple like ``hx``; ``c`` of the LSTM in the input's dtype, the states of sLSTM but ``h`` in float32
            (float64 for float64).

        Raises:
            TypeError, ValueError, RuntimeError: an argument has a wrong type, dtype, shape or device; the message
                names it.
        """
        checks.tensor("input", input, self.weight_ih.device)
        checks.dtype("input", input, (self.weight_ih.dtype,))
        if input.dim() not in (1, 2):
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if input.shape[-1] != self.input_size:
            raise ValueError(f"input: expected {self.input_size} features, got {input.shape[-1]}")
        kind, N, H = CELLS[self.cell], self.num_heads, self.hidden_size
        G, D = len(kind.gates), H // N
        # A step is a sequence of length 1: (1, B, I), or (1, I) for one sequence.
        data = input.unsqueeze(0)
        layout = Layout.of(data, False)
        if hx is not None:
            hx = [value.unsqueeze(0) for value in checks.state("hx", hx, self.cell)]
        state = States.read("hx", hx, data, layout, kind, 1, (H,) * len(kind.states))
        h0, s0 = (None, None) if state is None else state.layer(0, 1, N)
        bias = self.bias_ih + self.bias_hh if self.bias else None
        wx = F.linear(layout.to_rows(data), self.weight_ih, bias).view(layout.rows.P, 1, G, N, D)
        _, h_n, s_n, _, _ = ops.recurrence(wx, self.weight_hh.view(1, G, N, D, D), h0, s0, layout.rows, self.cell)
        h, *others = (layout.state_from_rows(value.flatten(2)).squeeze(0) for value in (h_n, *s_n))
        return h, *(value.to(input.dtype) if self.cell == "lstm" else value for value in others)
