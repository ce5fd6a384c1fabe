"""The recurrence as a function: everything of a layer but its input product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from . import checks, ops
from .cells import CELLS
from .layout import Layout
from .states import Given, States
from .trace import LayerTrace, layer_trace


@overload
def recurrence(wx: Tensor, weight_hh: Tensor, state: Given = None, *, cell: str = "lstm", num_heads: int = 1,
               batch_first: bool = False, lengths: Tensor | Sequence[int] | None = None,
               cu_seqlens: Tensor | Sequence[int] | None = None, reset: Tensor | None = None,
               reset_state: Given = None, reverse: bool = False, trace: Literal[False] = False,
               backend: str = "auto") -> tuple[Tensor, tuple[Tensor, ...]]: ...


@overload
def recurrence(wx: Tensor, weight_hh: Tensor, state: Given = None, *, cell: str = "lstm", num_heads: int = 1,
               batch_first: bool = False, lengths: Tensor | Sequence[int] | None = None,
               cu_seqlens: Tensor | Sequence[int] | None = None, reset: Tensor | None = None,
               reset_state: Given = None, reverse: bool = False, trace: Literal[True],
               backend: str = "auto") -> tuple[Tensor, tuple[Tensor, ...], LayerTrace]: ...


def recurrence(wx: Tensor, weight_hh: Tensor, state: Given = None, *, cell: str = "lstm", num_heads: int = 1,
               batch_first: bool = False, lengths: Tensor | Sequence[int] | None = None,
               cu_seqlens: Tensor | Sequence[int] | None = None, reset: Tensor | None = None,
               reset_state: Given = None, reverse: bool = False, trace: bool = False, backend: str = "auto",
               ) -> tuple[Tensor, tuple[Tensor, ...]] | tuple[Tensor, tuple[Tensor, ...], LayerTrace]:
    r"""Run a cell over time: ``pre[t] = wx[t] + R h[t-1]``, ``state[t] = step(pre[t], state[t-1])``.

    The cells' formulas and sources are in :mod:`xlstm_fused.cells`.

    Args:
        wx: ``W_ih x + b`` for every step, (T, B, G*H), or (B, T, G*H) if ``batch_first``, (T, G*H) for one sequence,
            (rows, G*H) with ``cu_seqlens``; features ordered [gate][head][unit], gates as in ``CELLS[cell].gates``.
            float32, float64, bfloat16 or float16.
        weight_hh: the recurrent matrix R, (G*H, D) with ``D = H / num_heads``, in the dtype of ``wx``; rows ordered as
            the features of ``wx``. Head n of every gate reads head n of ``h``.
        state: initial state, a tuple (h, c), (h, c, n, m) or (h,) of tensors (B, H), (H,) for one sequence;
            zeros if None.
            ``h`` in the dtype of ``wx``, the others in that or in the kernels' state dtype (float32, or float64 for
            float64).
        lengths: number of steps of each sequence, B integers in [0, T]; rows past a length are never read.
        cu_seqlens: (B + 1,) integers, where each of B sequences laid end to end begins, then the number of rows.
        reset: flags (T, B) or (B, T), like the first dimensions of ``wx``: bool, or numbers 0 and 1. Where set, the
            state is replaced before the row is consumed.
        reset_state: what replaces it: a tuple like ``state``, each (B, H), or per step, (T, B, H) or (B, T, H), with
            ``cu_seqlens`` (rows, H). Zeros if None.
        reverse: walk from the last valid step to the first. A reset at step t still separates t from t - 1.
        trace: also return the activated gates and the states of every step.
        backend: "auto", or a name from :func:`xlstm_fused.backends`.

    Returns:
        ``(output, state)``, or ``(output, state, trace)``: output like ``wx`` with H features, zero past a length;
        the state after each sequence's last step, ``h`` in the dtype of ``wx``, the others in the state dtype; a
        :class:`~xlstm_fused.trace.LayerTrace`.

    Raises:
        TypeError, ValueError: an argument has a wrong type, dtype, shape or value; the message names it.
        RuntimeError: tensors on different devices, or a named backend that cannot run this.
    """
    checks.cell_name(cell)
    checks.backend_name(backend)
    checks.flag("batch_first", batch_first)
    checks.flag("reverse", reverse)
    kind = CELLS[cell]
    checks.tensor("wx", wx)
    checks.floating("wx", wx)
    checks.tensor("weight_hh", weight_hh, wx.device)
    checks.dtype("weight_hh", weight_hh, (wx.dtype,))
    if wx.dim() not in (2, 3):
        raise ValueError(f"wx: expected 2 or 3 dimensions, got {wx.dim()}")
    G = len(kind.gates)
    # Not divmod, which torch.compile cannot trace with a size that varies.
    H, remainder = wx.shape[-1] // G, wx.shape[-1] % G
    if remainder or H == 0:
        raise ValueError(f"wx: expected a last dimension of {G} * H for cell={cell!r}, got {wx.shape[-1]}")
    checks.heads(num_heads, H)
    N, D = num_heads, H // num_heads
    checks.shape("weight_hh", weight_hh, {f"{G}*H": G * H, "H/num_heads": D})
    layout = Layout.of(wx, batch_first, lengths, cu_seqlens)
    if wx.shape[0] == 0 or layout.rows.T == 0:
        raise ValueError(f"wx: expected at least one step, got shape {tuple(wx.shape)}")

    sizes = (H,) * len(kind.states)
    initial = States.read("state", state, wx, layout, kind, sizes)
    checks.reset_state(reset_state, reset)
    reset = layout.reset_rows(reset, wx.device)
    after_reset = States.read("reset_state", reset_state, wx, layout, kind, sizes, per_row_allowed=True)
    h0, s0 = (None, None) if initial is None else initial.layer(0, 1, N)
    reset_h, reset_s = (None, None) if after_reset is None else after_reset.layer(0, 1, N)
    per_row = after_reset is not None and after_reset.per_row

    wx = layout.select(wx.flatten(0, -2)).reshape(layout.rows.P, 1, G, N, D).contiguous()
    backend = ops.backend_for(backend, wx.device.type, wx.dtype, cell)
    output, h_n, s_n, pre, states = ops.recurrence(
        wx, weight_hh.reshape(1, G, N, D, D).contiguous(), h0, s0, layout.rows, cell, reset=reset, reset_h=reset_h,
        reset_s=reset_s, reset_per_row=per_row, reverse=reverse, backend=backend, save=trace)
    output = output.flatten(1)
    final = tuple(layout.state_from_rows(value.flatten(2)).squeeze(0) for value in (h_n, *s_n))
    if not trace:
        return layout.tensor_from_rows(output), final
    return layout.tensor_from_rows(output), final, layer_trace(
        layout, cell, output, pre, states, s0, reset, reset_s, per_row, reverse)
