"""The layer: a drop-in for ``torch.nn.LSTM``."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, ops, projection
from .backends import choose
from .cells import CELLS
from .layout import Layout
from .states import States
from .trace import Trace, layer_trace


class FusedxLSTM(nn.RNNBase):
    r"""Multi-layer recurrent network with the contract of :class:`torch.nn.LSTM`, its time loop in one kernel.

    For ``cell="lstm"`` and ``num_heads=1`` the parameters (names, order, shapes, initial values for a seed), the
    arguments and the results are those of ``nn.LSTM``, whose ``state_dict`` loads here and the other way round. The
    formulas of each cell, with sources, are in :mod:`xlstm_fused.cells`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            in :class:`torch.nn.LSTM`. dtype is float32, float64, bfloat16 or float16.
        cell: "lstm", or "slstm" (exponential gating; states (h, c, n, m)).
        num_heads: number of blocks N on the diagonal of the recurrent matrix; divides ``hidden_size``.
            ``weight_hh_l[k]`` has shape (4*hidden_size, hidden_size / N), rows ordered [gate][head][unit].
            Not together with ``proj_size``.
        backend: "auto", or a name from :func:`xlstm_fused.backends`; a named backend that cannot run raises.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value; the message names it.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device=None, dtype=None, *, cell: str = "lstm", num_heads: int = 1, backend: str = "auto") -> None:
        super().__init__("LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
                         proj_size, device, dtype)
        checks.cell_name(cell)
        checks.heads(num_heads, hidden_size)
        checks.backend_name(backend)
        if proj_size and num_heads > 1:
            raise ValueError(f"proj_size: expected 0 with num_heads = {num_heads}, since a projection mixes heads, "
                             f"got {proj_size}")
        self.cell = cell
        self.num_heads = num_heads
        self.backend = backend
        if num_heads > 1:
            for name in self._flat_weights_names:
                if name.startswith("weight_hh"):
                    full = getattr(self, name)
                    setattr(self, name, nn.Parameter(full.new_empty(full.shape[0], hidden_size // num_heads)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # RNNBase.__init__ calls this before the parameters have their final shapes: draw random numbers once, after.
        if "backend" in self.__dict__:
            super().reset_parameters()

    def flatten_parameters(self) -> None:
        """Nothing to do: no backend wants the parameters in one block. Kept for code written for ``nn.LSTM``."""

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self.cell != "lstm":
            text += f", cell={self.cell}"
        if self.num_heads != 1:
            text += f", num_heads={self.num_heads}"
        if self.backend != "auto":
            text += f", backend={self.backend}"
        return text

    def forward(self, input: Tensor | PackedSequence, hx=None, *, lengths=None, cu_seqlens=None,
                reset: Tensor | None = None, reset_state=None, trace: bool = False):
        """Run the layer.

        L layers, K directions, N heads; F is proj_size if there is one, else H = hidden_size.

        Args:
            input: (T, B, I), or (B, T, I) if ``batch_first``; (T, I) for one sequence; (rows, I) with ``cu_seqlens``;
                or a PackedSequence.
            hx: initial state, (h, c) or (h, c, n, m), each (L*K, B, H), ``h`` (L*K, B, F); without the B for one
                sequence; zeros if None. ``h`` in the input's dtype, the others in that, or in float32 (float64 for a
                float64 layer).
            lengths: number of steps of each sequence, B integers in [0, T]. Output past a length is zero, and the
                final state is that of the last valid step.
            cu_seqlens: (B + 1,) integers, where each of B sequences laid end to end begins, then the number of rows.
            reset: flags shaped like the input without its features, bool or numbers 0 and 1. Where set, the states of
                every layer are replaced before the row is consumed; in a backward direction the same boundary holds.
            reset_state: what replaces them: a tuple like ``hx``, or one per step, each shaped like ``reset`` followed
                by (L*K, H). Zeros if None.
            trace: also return what happened inside.

        Returns:
            ``(output, state)`` or ``(output, state, trace)``. output is shaped like the input with K*F features, a
            PackedSequence for a PackedSequence. state is a tuple like ``hx``; ``c`` of the LSTM in the input's dtype,
            the states of sLSTM but ``h`` in float32 (float64 for a float64 layer). trace is a
            :class:`~xlstm_fused.trace.Trace`.

        Raises:
            TypeError, ValueError, RuntimeError: an argument has a wrong type, dtype, shape, value or device; the
                message names it. Where ``nn.LSTM`` would raise, type and message are its own.
        """
        data = self._check_data(input)
        layout = Layout.of(input, self.batch_first, lengths, cu_seqlens)
        if layout.rows.T == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        kind, L, K = CELLS[self.cell], self.num_layers, self._directions
        sizes = (self.proj_size or self.hidden_size, *[self.hidden_size] * (len(kind.states) - 1))
        self._check_hx(hx, layout, sizes)
        state = States.read("hx", hx, data, layout, kind, L * K, sizes)
        reset = layout.reset_rows(reset, data.device)
        if reset is None and reset_state is not None:
            raise ValueError("reset_state: expected None without reset, got a state")
        reset_state = States.read("reset_state", reset_state, data, layout, kind, L * K, sizes, per_row_allowed=True)
        backend = choose(self.backend, data.device.type, data.dtype, self.cell)

        x, finals, traces = layout.to_rows(input), [], []
        for layer in range(L):
            if layer and self.dropout:
                x = F.dropout(x, self.dropout, self.training)
            x, final, layer_trace = self._run_layer(layer, x, layout, state, reset, reset_state, backend, trace)
            finals.append(final)
            traces.append(layer_trace)
        final = tuple(layout.state_from_rows(torch.cat(parts) if L > 1 else parts[0]) for parts in zip(*finals))
        if self.cell == "lstm":
            final = final[0], final[1].to(data.dtype)
        output = layout.from_rows(x)
        return (output, final, Trace(traces)) if trace else (output, final)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _run_layer(self, layer, x, layout, state, reset, reset_state, backend, trace):
        """One layer over rows: ``(output (P, K*F), final states (K, B, ..), LayerTrace or None)``."""
        weight_ih, weight_hh, bias, weight_hr = self._layer_weights(layer)
        K, N, G, H = self._directions, self.num_heads, len(CELLS[self.cell].gates), self.hidden_size
        wx = F.linear(x, weight_ih, bias).view(layout.rows.P, K, G, N, H // N)
        weight_hh = weight_hh.view(K, G, N, H // N, -1)
        h0, s0 = (None, None) if state is None else state.layer(layer, K, N)
        reset_h, reset_s = (None, None) if reset_state is None else reset_state.layer(layer, K, N)
        per_row = reset_state is not None and reset_state.per_row
        run = ops.recurrence if weight_hr is None else partial(projection.recurrence, weight_hr=weight_hr)
        output, h_n, s_n, pre, states = run(
            wx, weight_hh, h0=h0, s0=s0, rows=layout.rows, cell=self.cell, reset=reset, reset_h=reset_h,
            reset_s=reset_s, reset_per_row=per_row, backend=backend, save=trace)
        output = output.flatten(1)
        final = (h_n.flatten(2), *s_n.flatten(3))
        if not trace:
            return output, final, None
        return output, final, layer_trace(layout, self.cell, output, pre, states, s0, reset, reset_s, per_row, False)

    def _layer_weights(self, layer):
        """``(weight_ih (K*G*H, I), weight_hh (K*G*H, D), bias (K*G*H,) or None, weight_hr (K, F, H) or None)``.

        Read by attribute at every call, so that whatever replaces a parameter (parametrizations, functional_call,
        pruning) is seen.
        """
        suffixes = ("", "_reverse")[:self._directions]

        def parameter(name):
            parts = [getattr(self, f"{name}_l{layer}{suffix}") for suffix in suffixes]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        bias = parameter("bias_ih") + parameter("bias_hh") if self.bias else None
        weight_hr = parameter("weight_hr").view(self._directions, -1, self.hidden_size) if self.proj_size else None
        return parameter("weight_ih"), parameter("weight_hh"), bias, weight_hr

    def _check_data(self, input) -> Tensor:
        """The tensor that holds the input's values. Types and messages of the errors are nn.LSTM's."""
        packed = isinstance(input, PackedSequence)
        data = input.data if packed else input
        checks.tensor("input", data)
        weight = self.weight_ih_l0
        if not packed and data.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {data.dim()}D instead")
        if data.dtype != weight.dtype:
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})")
        checks.floating("input", data)
        if data.device != weight.device:
            raise RuntimeError("Input and parameter tensors are not at the same device, found input tensor at "
                               f"{data.device} and parameter tensor at {weight.device}")
        if data.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                               f"got {data.shape[-1]}")
        return data

    def _check_hx(self, hx, layout, sizes) -> None:
        """The shapes of ``hx`` where nn.LSTM has its own words for them."""
        if hx is None or self.cell != "lstm":
            return
        hx = checks.state("hx", hx, self.cell)
        wanted = 2 if layout.is_unbatched else 3
        if layout.packed is None and any(value.dim() != wanted for value in hx):
            raise RuntimeError(f"For {'unbatched 2' if layout.is_unbatched else 'batched 3'}-D input, hx and cx should "
                               f"also be {wanted}-D but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors")
        for index, (value, size) in enumerate(zip(hx, sizes)):
            expected = (self.num_layers * self._directions, layout.rows.B, size)
            got = value.unsqueeze(1) if layout.is_unbatched else value
            if tuple(got.shape) != expected:
                raise RuntimeError(f"Expected hidden[{index}] size {expected}, got {list(got.shape)}")
