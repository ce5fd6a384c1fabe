"""The reference backend: a Python loop over the cell's step. It defines what every other backend must compute.

Any device, any floating dtype, any row layout. :func:`forward` and :func:`backward` are made of differentiable
PyTorch operations only, so autograd through them gives derivatives of any order.

Shapes: ``wx``, ``pre`` (P, K, G, N, D); ``weight_hh`` (K, G, N, D, D); ``output`` (P, K, N, D); ``h0``, ``h_n``,
``h_mask`` (K, B, N, D); ``s0``, ``s_n`` (S - 1, K, B, N, D); ``states`` (S - 1, P, K, N, D); ``reset`` (P,);
``reset_h`` as ``h0`` or, if ``reset_per_row``, as ``output``; ``reset_s`` as ``s0`` or as ``states``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..cells import CELLS, Tensors
from ..dtypes import state_dtype
from ..rows import Rows


def refuses(device_type: str, dtype: torch.dtype, cell: str) -> None:
    return None


class _Walk:
    """One direction's way through the rows, as (T, B) indices; ``T`` is the longest length."""

    def __init__(self, rows: Rows, backwards: bool, reset: Tensor | None, device: torch.device) -> None:
        self.P = rows.P
        self.index, self.valid = rows.walk(backwards, device)
        if rows.length is not None and not torch._C._functorch.is_functorch_wrapped_tensor(rows.length):
            longest = max(1, int(rows.length.max())) if rows.B else 1
            self.index, self.valid = self.index[:longest], self.valid[:longest]
        self.T = len(self.index)
        self.cut: Tensor | None = None
        if reset is not None:
            cut, source = rows.cuts(reset, backwards)
            self.cut, self.source = cut[self.index] & self.valid, source[self.index]

    def gather(self, values: Tensor, index: Tensor | None = None, fill: float = 0) -> Tensors:
        """(P, ..) -> a list of T tensors (B, ..), ``fill`` where the walk has ended."""
        index = self.index if index is None else index
        gathered: Tensor = values.index_select(0, index.flatten()).unflatten(0, index.shape)
        return torch.where(_like(self.valid, gathered), gathered, fill).unbind(0)

    def scatter(self, steps: Sequence[Tensor], index: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """A list of T tensors (B, ..) -> (P, ..), zero in rows that the walk does not visit."""
        if index is None or valid is None:
            index, valid = self.index, self.valid
        values = torch.stack(tuple(steps)).flatten(0, 1)
        target = torch.where(valid, index, self.P).flatten()
        return values.new_zeros(self.P + 1, *values.shape[1:]).index_copy(0, target, values)[:-1]


def _like(mask: Tensor, values: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (values.dim() - mask.dim()))


def _select(mask: Tensor, chosen: Iterable[Tensor], other: Iterable[Tensor]) -> Tensors:
    """Elementwise over two tuples of (B, N, D) tensors, ``mask`` (B,)."""
    return tuple(torch.where(_like(mask, a), a, b) for a, b in zip(chosen, other))


def _initial_state(like: Tensor, h0: Tensor | None, s0: Tensor | None, k: int, rows: Rows, cell: str) -> Tensors:
    shape = (rows.B, *like.shape[-2:])
    others = len(CELLS[cell].states) - 1
    zeros = like.new_zeros(shape, dtype=state_dtype(like.dtype))
    h = like.new_zeros(shape) if h0 is None else h0[k]
    return (h, *([zeros] * others if s0 is None else s0[:, k].unbind(0)))


def _reset_states(walk: _Walk, like: Tensor, reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool,
                  k: int, rows: Rows, cell: str) -> list[Tensors]:
    """The state that replaces the walk's at each step, a list of T state tuples."""
    if not reset_per_row or reset_h is None or reset_s is None:
        return [_initial_state(like, reset_h, reset_s, k, rows, cell)] * walk.T
    values = [reset_h[:, k], *reset_s[:, :, k].unbind(0)]
    return list(zip(*(walk.gather(value, walk.source) for value in values)))


def _matrix(weight: Tensor) -> Tensor:
    """(G, N, D_out, D_in) -> (N, G * D_out, D_in): one matrix per head."""
    return weight.transpose(0, 1).flatten(1, 2)


def _times_weight(h: Tensor, weight: Tensor, mask: Tensor | None, G: int) -> Tensor:
    """R h of (B, N, D), as (B, G, N, D)."""
    h = h if mask is None else h * mask
    product: Tensor = torch.bmm(h.transpose(0, 1), weight.transpose(1, 2)).unflatten(2, (G, -1))
    return product.permute(1, 2, 0, 3)


def _times_weight_transposed(d_pre: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """R^T d_pre of (B, G, N, D), as (B, N, D)."""
    product = torch.bmm(d_pre.permute(2, 0, 1, 3).flatten(2), weight).transpose(0, 1)
    return product if mask is None else product * mask


def _stack(states: list[Tensor], h: Tensor) -> Tensor:
    """The states but ``h``, stacked; of a cell that has no others, none of the shape of ``h``."""
    return torch.stack(states) if states else h.new_empty(0, *h.shape, dtype=state_dtype(h.dtype))


def _promote(values: Iterable[Tensor]) -> Tensors:
    return tuple(value.to(state_dtype(value.dtype)) for value in values)


def inference(wx: Tensor, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
              reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, rows: Rows,
              cell: str, reverse: bool) -> tuple[Tensor, Tensor, Tensor]:
    return forward(wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)[:3]


def forward(wx: Tensor, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
            reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, rows: Rows,
            cell: str, reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(output, h_n, s_n, pre, states)``; padding rows are zero in all of them."""
    K, G = weight_hh.shape[:2]
    finals, records = [], []
    for k in range(K):
        walk = _Walk(rows, (k == 1) != reverse, reset, wx.device)
        weight, mask = _matrix(weight_hh[k]), None if h_mask is None else h_mask[k]
        state = _initial_state(wx, h0, s0, k, rows, cell)
        resets = _reset_states(walk, wx, reset_h, reset_s, reset_per_row, k, rows, cell)
        record = []
        for s, x in enumerate(walk.gather(wx[:, k])):
            if walk.cut is not None:
                state = _select(walk.cut[s], resets[s], state)
            pre = x + _times_weight(state[0], weight, mask, G)
            after = CELLS[cell].step(_promote(pre.unbind(1)), _promote(state))
            state = _select(walk.valid[s], (after[0].to(wx.dtype), *after[1:]), state)
            record.append((pre, *state))
        finals.append(state)
        records.append([walk.scatter(steps) for steps in zip(*record)])

    pre, output, *states = (torch.stack(values, 1) for values in zip(*records))
    h_n, *s_n = (torch.stack(values) for values in zip(*finals))
    return output, h_n, _stack(s_n, h_n), pre, _stack(states, output)


def backward(weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None,
             reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, pre: Tensor, states: Tensor,
             output: Tensor, d_output: Tensor | None, d_h_n: Tensor | None, d_s_n: Tensor | None,
             d_pre: Tensor | None, d_states: Tensor | None, rows: Rows, cell: str,
             reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dpre, dh0, ds0, dreset_h, dreset_s)``; the last two have no elements where there is no reset state.

    Each ``d_`` argument is the gradient of the loss in that result of :func:`forward`, or None for zero.
    """
    wide = state_dtype(pre.dtype)
    d_output = torch.zeros_like(output) if d_output is None else d_output
    d_states = torch.zeros_like(states) if d_states is None else d_states
    results = []
    for k in range(weight_hh.shape[0]):
        walk = _Walk(rows, (k == 1) != reverse, reset, pre.device)
        weight, mask = _matrix(weight_hh[k]), None if h_mask is None else h_mask[k]
        initial = _initial_state(pre, h0, s0, k, rows, cell)
        resets = _reset_states(walk, pre, reset_h, reset_s, reset_per_row, k, rows, cell)
        # 1 where the walk has ended: a state that every cell can divide by, so that nothing masked out is NaN.
        after = list(zip(*(walk.gather(value, fill=1) for value in (output[:, k], *states[:, :, k].unbind(0)))))
        d_after = list(zip(*(walk.gather(value) for value in (d_output[:, k], *d_states[:, :, k].unbind(0)))))
        pre_steps = walk.gather(pre[:, k])
        d_pre_steps = [0] * walk.T if d_pre is None else walk.gather(d_pre[:, k].to(wide))
        carry = tuple(value.to(wide) for value in _initial_state(pre, d_h_n, d_s_n, k, rows, cell))
        nothing = tuple(torch.zeros_like(value) for value in carry)
        dpre, d_resets = list(pre_steps), [nothing] * walk.T
        for s in reversed(range(walk.T)):
            before = after[s - 1] if s else initial
            if walk.cut is not None:
                before = _select(walk.cut[s], resets[s], before)
            d_total = tuple(a + b for a, b in zip(carry, d_after[s]))
            d_gates, d_before = CELLS[cell].step_backward(
                _promote(pre_steps[s].unbind(1)), _promote(before), _promote(after[s]), d_total)
            dpre[s] = (torch.stack(d_gates, 1) + d_pre_steps[s]).to(pre.dtype)
            dh = d_before[0] + _times_weight_transposed(dpre[s], weight, mask)
            carry = _select(walk.valid[s], (dh, *d_before[1:]), carry)
            if walk.cut is not None:
                d_resets[s] = _select(walk.cut[s], carry, nothing)
                carry = _select(walk.cut[s], nothing, carry)
        d_reset = () if reset_h is None else [
            walk.scatter(steps, walk.source, walk.cut) if reset_per_row else sum(steps) for steps in zip(*d_resets)]
        results.append((walk.scatter(dpre), carry, d_reset))

    dpre, carries, d_resets = zip(*results)
    dh0, *ds0 = (torch.stack(values) for values in zip(*carries))
    dreset_h, dreset_s = pre.new_zeros(0), pre.new_zeros(0, dtype=wide)
    if reset_h is not None:
        dreset_h, *rest = (torch.stack(values, 1 if reset_per_row else 0) for values in zip(*d_resets))
        dreset_s = _stack(rest, dreset_h)
    return torch.stack(dpre, 1), dh0.to(pre.dtype), _stack(ds0, dh0), dreset_h.to(pre.dtype), dreset_s
