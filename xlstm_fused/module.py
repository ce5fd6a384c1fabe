"""The layer: a drop-in for ``torch.nn.LSTM``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checkpoint, checks, onnx, ops, products, projection
from .backends import takes_input
from .cells import CELLS
from .dtypes import autocast_dtype, cast, rounded
from .layout import Layout
from .states import Given, States, by_layer
from .trace import LayerTrace, Trace, layer_trace

Output: TypeAlias = "Tensor | PackedSequence"
FinalState: TypeAlias = "Tensor | tuple[Tensor, ...]"
_MODES = {"gru": "GRU"}
"""What :class:`torch.nn.RNNBase` calls the layer that one of a cell stands for, if not "LSTM"."""


class FusedxLSTM(nn.RNNBase):
    r"""Multi-layer recurrent network with the contract of :class:`torch.nn.LSTM`, its time loop in one kernel.

    For ``cell="lstm"`` and ``num_heads=1`` the parameters (names, order, shapes, initial values for a seed), the
    arguments and the results are those of ``nn.LSTM``, whose ``state_dict`` loads here and the other way round; for
    ``cell="gru"`` the same holds of ``nn.GRU``. The formulas of each cell, with sources, are in
    :mod:`xlstm_fused.cells`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype: as
            in :class:`torch.nn.LSTM`. dtype is float32, float64, bfloat16 or float16.
        cell: "lstm", "slstm" (exponential gating; states (h, c, n, m)), or "gru" (the state is the tensor h).
        num_heads: number of blocks N on the diagonal of the recurrent matrix; divides ``hidden_size``.
            ``weight_hh_l[k]`` has shape (4*hidden_size, hidden_size / N), rows ordered [gate][head][unit]; 3 gates in
            place of 4 for "gru". Not together with ``proj_size``.
        residual: add the input of each layer to its output where both have the same width, K * H features (K
            directions): every layer but the first, and the first if ``input_size`` is that. The input is added as it
            was before dropout. Source: He et al., arXiv 1512.03385, section 3.1.
        layer_norm: normalise the output of each layer over its features before ``residual`` adds the input, with
            parameters ``norm_weight_l[k]`` and ``norm_bias_l[k]``, (K*H,). Source: Ba et al., arXiv 1607.06450.
        recurrent_dropout: probability in [0, 1] of dropping a unit of ``h`` where it meets the recurrent matrix, in
            training; one mask for all steps of a sequence. Not together with ``proj_size``. Source: Gal and
            Ghahramani, arXiv 1512.05287, section 4.
        forget_bias: initial sum of the two biases of the forget gate; None for nn.LSTM's random ones. Source:
            Jozefowicz et al., "An Empirical Exploration of Recurrent Network Architectures", 2015, section 2.2.
        checkpoint_every: number of steps between states that are kept for the backward, which computes the others
            again; see :mod:`xlstm_fused.checkpoint`. None keeps everything, and so do ``trace=True``, torch.compile,
            torch.export and torch.func. Not together with ``proj_size``.
        recurrent_dtype: torch.bfloat16 to compute with ``weight_hh`` rounded to that, which makes small batches faster
            on a CPU, since half as many bytes are read at each step; the parameters and all else keep their dtype, and
            gradients pass the rounding unchanged. None to use it as it is.
        backend: "auto", or a name from :func:`xlstm_fused.backends`; a named backend that cannot run raises. Forward
            mode (torch.func.jvp, torch.autograd.forward_ad) is the reference's alone, which "auto" then takes.

    Raises:
        TypeError, ValueError: an argument has a wrong type or value; the message names it.
    """

    weight_ih_l0: Tensor

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False, proj_size: int = 0,
                 device: torch.device | str | int | None = None, dtype: torch.dtype | None = None, *,
                 cell: str = "lstm", num_heads: int = 1, residual: bool = False, layer_norm: bool = False,
                 recurrent_dropout: float = 0.0, forget_bias: float | None = None,
                 checkpoint_every: int | None = None, recurrent_dtype: torch.dtype | None = None,
                 backend: str = "auto") -> None:
        checks.cell_name(cell)
        super().__init__(_MODES.get(cell, "LSTM"), input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, proj_size, device, dtype)
        checks.heads(num_heads, hidden_size)
        checks.backend_name(backend)
        if proj_size and cell == "gru":
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if proj_size and num_heads > 1:
            raise ValueError(f"proj_size: expected 0 with num_heads = {num_heads}, since a projection mixes heads, "
                             f"got {proj_size}")
        self.cell = cell
        self.num_heads = num_heads
        self.residual = checks.flag("residual", residual)
        self.layer_norm = checks.flag("layer_norm", layer_norm)
        self.recurrent_dropout = checks.probability("recurrent_dropout", recurrent_dropout)
        self.forget_bias = checks.forget_bias(forget_bias, bias, cell)
        self.checkpoint_every = checks.checkpoint_every(checkpoint_every)
        self.recurrent_dtype = checks.recurrent_dtype(recurrent_dtype)
        for name in ("recurrent_dropout", "checkpoint_every"):
            if proj_size and getattr(self, name):
                raise ValueError(f"{name}: not supported with proj_size = {proj_size}, got {getattr(self, name)}")
        self.backend = backend
        if num_heads > 1:
            for name in self._flat_weights_names:
                if name.startswith("weight_hh"):
                    full = getattr(self, name)
                    setattr(self, name, nn.Parameter(full.new_empty(full.shape[0], hidden_size // num_heads)))
        if layer_norm:
            for layer in range(num_layers):
                for name in ("norm_weight", "norm_bias"):
                    size = self._directions * (proj_size or hidden_size)
                    setattr(self, f"{name}_l{layer}", nn.Parameter(self.weight_ih_l0.new_empty(size)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # RNNBase.__init__ calls this before the parameters have their final shapes: draw random numbers once, after.
        if "backend" not in self.__dict__:
            return
        super().reset_parameters()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("norm_"):
                    parameter.fill_(1 if name.startswith("norm_weight") else 0)
                elif name.startswith("bias_") and self.forget_bias is not None:
                    units = parameter.unflatten(0, (-1, self.hidden_size))[CELLS[self.cell].gates.index("f")]
                    units.fill_(self.forget_bias if name.startswith("bias_ih") else 0)

    def flatten_parameters(self) -> None:
        """Nothing to do: no backend wants the parameters in one block. Kept for code written for ``nn.LSTM``."""

    def extra_repr(self) -> str:
        text = super().extra_repr()
        for name, default in (("cell", "lstm"), ("num_heads", 1), ("residual", False), ("layer_norm", False),
                              ("recurrent_dropout", 0.0), ("forget_bias", None), ("checkpoint_every", None),
                              ("recurrent_dtype", None), ("backend", "auto")):
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text

    def forward(self, input: Tensor | PackedSequence, hx: Given | list[tuple[Tensor, ...]] = None, *,
                lengths: Tensor | Sequence[int] | None = None, cu_seqlens: Tensor | Sequence[int] | None = None,
                reset: Tensor | None = None, reset_state: Given = None,
                trace: bool = False) -> tuple[Output, FinalState] | tuple[Output, FinalState, Trace]:
        """Run the layer.

        L layers, K directions, N heads; F is proj_size if there is one, else H = hidden_size.

        Args:
            input: (T, B, I), or (B, T, I) if ``batch_first``; (T, I) for one sequence; (rows, I) with ``cu_seqlens``;
                or a PackedSequence.
            hx: initial state, (h, c), (h, c, n, m), or the tensor h for "gru", each (L*K, B, H), ``h`` (L*K, B, F);
                without the B for one sequence; zeros if None. ``h`` in the input's dtype, the others in that, or in
                float32 (float64 for a float64 layer). Or a list with one such tuple per layer, each tensor without the
                L*K, with K first if ``bidirectional``.
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
            :class:`~xlstm_fused.trace.Trace`. Under autocast, what is said to have the input's dtype has autocast's.

        Raises:
            TypeError, ValueError, RuntimeError: an argument has a wrong type, dtype, shape, value or device; the
                message names it. Where ``nn.LSTM`` has words for it, type and message are its own.
        """
        data = self._check_data(input)
        layout = Layout.of(input, self.batch_first, lengths, cu_seqlens)
        if layout.rows.T == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        kind, L, K = CELLS[self.cell], self.num_layers, self._directions
        sizes = (self.proj_size or self.hidden_size, *[self.hidden_size] * (len(kind.states) - 1))
        words = partial(self._words_of_nn_lstm, data, layout, sizes) if self.cell == "lstm" else None
        given = by_layer("hx", hx, data, layout, kind, sizes, L, K)
        state = States.read("hx", given, data, layout, kind, sizes, L * K, other_words=words)
        checks.reset_state(reset_state, reset)
        reset = layout.reset_rows(reset, data.device)
        after_reset = States.read("reset_state", reset_state, data, layout, kind, sizes, L * K, per_row_allowed=True)
        backend = ops.backend_for(self.backend, data.device.type, data.dtype, self.cell)

        x = layout.to_rows(data)
        finals: list[tuple[Tensor, ...]] = []
        traces: list[LayerTrace] = []
        for layer in range(L):
            dropped = layout.dropout(x, self.dropout, self.training) if layer and self.dropout else x
            h, last, layer_trace = self._run_layer(layer, dropped, layout, state, reset, after_reset, backend, trace)
            x = self._join(layer, x, h, layout)
            finals.append(last)
            if layer_trace is not None:
                traces.append(layer_trace)
        final: FinalState = tuple(layout.state_from_rows(torch.cat(parts) if L > 1 else parts[0])
                                  for parts in zip(*finals))
        if self.cell == "lstm":
            final = final[0], cast(final[1], data.dtype)
        elif len(final) == 1:
            final, = final
        output = layout.from_rows(x)
        return (output, final, Trace(traces)) if trace else (output, final)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _join(self, layer: int, x: Tensor, h: Tensor, layout: Layout) -> Tensor:
        """A layer's output (P, K*F) from its input and its ``h``."""
        if self.layer_norm:
            weight, bias = (getattr(self, f"{name}_l{layer}") for name in ("norm_weight", "norm_bias"))
            h = layout.zero_padding(F.layer_norm(h, h.shape[1:], weight, bias).to(h.dtype))
        return x + h if self.residual and x.shape == h.shape else h

    def _run_layer(self, layer: int, x: Tensor, layout: Layout, state: States | None, reset: Tensor | None,
                   reset_state: States | None, backend: str,
                   trace: bool) -> tuple[Tensor, tuple[Tensor, ...], LayerTrace | None]:
        """One layer over rows: ``(output (P, K*F), final states (K, B, ..), LayerTrace or None)``."""
        weight_ih, weight_hh, bias, weight_hr = self._layer_weights(layer, x)
        K, N, G, H = self._directions, self.num_heads, len(CELLS[self.cell].gates), self.hidden_size
        weight_hh = weight_hh.reshape(K, G, N, H // N, -1).contiguous()
        h0, s0 = (None, None) if state is None else state.layer(layer, K, N)
        if onnx.is_exporting():
            onnx.check(self, layout, reset, trace)
            return *onnx.layer(x, layout, weight_ih, weight_hh, bias, h0, s0), None
        reset_h, reset_s = (None, None) if reset_state is None else reset_state.layer(layer, K, N)
        per_row = reset_state is not None and reset_state.per_row
        options: dict[str, Any] = dict(reset=reset, reset_h=reset_h, reset_s=reset_s, reset_per_row=per_row,
                                       backend=backend)
        if self.recurrent_dropout and self.training:
            options["h_mask"] = F.dropout(x.new_ones(K, layout.rows.B, N, H // N), self.recurrent_dropout)
        if self.checkpoint_every and not trace and torch.is_grad_enabled() and ops.is_plain():
            output, h_n, s_n = checkpoint.layer(x, weight_ih, bias, weight_hh, h0, s0, layout.rows, self.cell,
                                                self.checkpoint_every, **options)
            return output.flatten(1), (h_n.flatten(2), *s_n.flatten(3).unbind(0)), None
        options |= dict(h0=h0, s0=s0, rows=layout.rows, cell=self.cell, save=trace)
        inputs = K * H if layer else self.input_size
        if weight_hr is None and takes_input(backend, H // N, inputs, x.dtype, x.device):
            output, h_n, s_n, pre, states = ops.recurrence_from_input(x, weight_ih, bias, weight_hh, **options)
        else:
            wx = products.linear(x, weight_ih, bias).view(layout.rows.P, K, G, N, H // N)
            run = ops.recurrence if weight_hr is None else partial(projection.recurrence, weight_hr=weight_hr)
            output, h_n, s_n, pre, states = run(wx, weight_hh, **options)
        output = output.flatten(1)
        final = (h_n.flatten(2), *s_n.flatten(3).unbind(0))
        if not trace:
            return output, final, None
        return output, final, layer_trace(layout, self.cell, output, pre, states, s0, reset, reset_s, per_row, False)

    def _layer_weights(self, layer: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """``(weight_ih (K*G*H, I), weight_hh (K*G*H, D), bias (K*G*H,) or None, weight_hr (K, F, H) or None)``.

        Each in the dtype of ``like``, which, autocast apart, it must have, like the device. Read by attribute at every
        call, so that whatever replaces a parameter (parametrizations, functional_call, pruning) is seen.
        """
        dtype, device = like.dtype, like.device

        def one(name: str) -> Tensor:
            part: Tensor = getattr(self, name)
            if part.device != device:
                raise _different_devices(like, "parameter", part)
            if part.dtype != dtype:
                checks.castable(name, part, (dtype,))
            return part

        def parameter(name: str) -> Tensor:
            name = f"{name}_l{layer}"
            return torch.cat((one(name), one(f"{name}_reverse"))) if self.bidirectional else one(name)

        kind, K, bias, weight_hr = CELLS[self.cell], self._directions, None, None
        weight_ih = kind.all_gates(parameter("weight_ih"), kind.input_gates, K)
        weight_hh = kind.all_gates(parameter("weight_hh"), kind.recurrent_gates, K)
        if self.bias:
            bias = cast(kind.all_gates(parameter("bias_ih"), kind.input_gates, K)
                        + kind.all_gates(parameter("bias_hh"), kind.recurrent_gates, K), dtype)
        if self.proj_size:
            weight_hr = parameter("weight_hr").view(self._directions, -1, self.hidden_size).to(dtype)
        weight_hh = cast(weight_hh, dtype)
        if self.recurrent_dtype is not None:
            weight_hh = rounded(weight_hh, self.recurrent_dtype)
        return cast(weight_ih, dtype), weight_hh, bias, weight_hr

    def _check_data(self, input: Tensor | PackedSequence) -> Tensor:
        """The tensor that holds the input's values, as autocast casts it. The errors are those of nn.LSTM."""
        packed = isinstance(input, PackedSequence)
        data = input.data if isinstance(input, PackedSequence) else input
        checks.tensor("input", data)
        weight = self.weight_ih_l0
        if packed and data.dim() != 2:
            raise ValueError(f"input.data: expected 2 dimensions (rows, features), got {data.dim()}")
        if not packed and data.dim() not in (2, 3):
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {data.dim()}D instead")
        if data.dtype != weight.dtype and autocast_dtype(data) != autocast_dtype(weight):
            raise ValueError(
                f"RNN input dtype ({data.dtype}) does not match weight dtype ({weight.dtype}). "
                f"Convert input: input.to({weight.dtype}), or convert model: model.to({data.dtype})")
        checks.floating("input", data)
        if data.device != weight.device:
            raise _different_devices(data, "parameter", weight)
        if data.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, "
                               f"got {data.shape[-1]}")
        return cast(data, autocast_dtype(data))

    def _words_of_nn_lstm(self, data: Tensor, layout: Layout, sizes: tuple[int, ...], hx: Any) -> Exception | None:
        """The error of nn.LSTM for an ``hx`` that is wrong; None if it has no words for that."""
        if len(hx) > 2:
            return RuntimeError("lstm expects two hidden states")
        if len(hx) < 2 or not all(isinstance(value, Tensor) for value in hx):
            return None
        form, D = ("unbatched", 2) if layout.is_unbatched else ("batched", 3)
        if (layout.is_unbatched or len(layout.time_shape) == 2) and any(value.dim() != D for value in hx):
            return RuntimeError(f"For {form} {D}-D input, hx and cx should also be {D}-D but got ({hx[0].dim()}-D, "
                                f"{hx[1].dim()}-D) tensors")
        for index, (value, size) in enumerate(zip(hx, sizes)):
            expected = (self.num_layers * self._directions, layout.rows.B, size)
            got = value.unsqueeze(1) if layout.is_unbatched else value
            if tuple(got.shape) != expected:
                return RuntimeError(f"Expected hidden[{index}] size {expected}, got {list(got.shape)}")
        return next((_different_devices(data, "hidden", value) for value in hx if value.device != data.device), None)


def _different_devices(input: Tensor, what: str, value: Tensor) -> Exception:
    """The error of nn.LSTM for a tensor that is not where the input is."""
    return RuntimeError(f"Input and {what} tensors are not at the same device, found input tensor at {input.device} "
                        f"and {what} tensor at {value.device}")
