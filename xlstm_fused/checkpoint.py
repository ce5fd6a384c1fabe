"""A layer that keeps its states every so many steps, and computes the steps in between again in its backward.

Kept for the backward are the layer's input and output, and the states between blocks of ``every`` time positions; not
the gates and the states of each step, which are most of what a layer keeps otherwise. The backward walks the blocks in
reverse: it runs each forward again from the state before it, and then backward. The products over all rows (``W_ih x``
and the weights' gradients) are done as without blocks, so results are the same bit for bit, but for sums that are
formed in another order: gradients of one reset state for many resets; in 16-bit dtypes, gradients of ``h`` between
blocks, which are rounded there; the input product where, without blocks, the kernel forms it (``takes_input`` of a
backend); and a block of one step where the ``cpu`` backend's products of more are in tiles (AMX).

Source: Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import ops, products
from .rows import Rows


def layer(x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None,
          rows: Rows, cell: str, every: int, *, reset: Tensor | None = None, reset_h: Tensor | None = None,
          reset_s: Tensor | None = None, reset_per_row: bool = False, h_mask: Tensor | None = None,
          backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """``(output, h_n, s_n)`` of a layer; ``x`` (P, I), ``weight_ih`` (K*G*H, I), ``bias`` (K*G*H,) or None, the rest
    as in :func:`xlstm_fused.ops.recurrence`. Differentiable to any order; higher ones need the memory of all steps."""
    options = (*rows.arguments(), cell, False, backend)
    apply: Callable[..., tuple[Tensor, ...]] = _Layer.apply
    output, h_n, s_n, _, _ = apply(x, weight_ih, bias, weight_hh, h0, s0, reset, reset_h, reset_s,
                                   reset_per_row, h_mask, every, *options)
    return output, h_n, s_n


class _Blocks:
    """Rows cut into blocks of ``every`` time positions, which begin at ``starts``."""

    def __init__(self, rows: Rows, every: int, device: torch.device) -> None:
        self.rows, self.every, self.device = rows, every, device
        self.is_dense = rows.time_offset is None and rows.batch_offset is None
        # With cu_seqlens T is only a bound: it is worth a look at the lengths not to walk empty blocks.
        T = rows.T if rows.batch_offset is None or rows.length is None else int(rows.length.max())
        self.starts = range(0, T, every)

    def of(self, start: int) -> Rows:
        """The block's own rows."""
        rows, T = self.rows, min(self.every, self.rows.T - start)
        length = None if rows.length is None else (rows.length - start).clamp(0, T)
        return Rows.dense(T, rows.B, self.is_dense and rows.is_batch_first, length)

    def _part(self, values: Tensor, start: int) -> Tensor:
        """A view of the block in (P, ..) values of a dense layout, (T, B, ..) or (B, T, ..)."""
        rows = self.rows
        time = 1 if rows.is_batch_first else 0
        values = values.unflatten(0, (rows.B, rows.T) if time else (rows.T, rows.B))
        return values.narrow(time, start, min(self.every, rows.T - start))

    def _index(self, start: int) -> tuple[Tensor, Tensor]:
        """``(row, valid)``, each (T * B,): where the block's rows lie among all."""
        t = torch.arange(start, min(start + self.every, self.rows.T), device=self.device).unsqueeze(1)
        row = self.rows.row(t, torch.arange(self.rows.B, device=self.device)).clamp(0, self.rows.P - 1)
        return row.flatten(), (t < self.rows.lengths(self.device)).flatten()

    def take(self, values: Tensor, start: int) -> Tensor:
        """The block's rows of (P, ..), contiguous."""
        if self.is_dense:
            return self._part(values, start).flatten(0, 1).contiguous()
        return values.index_select(0, self._index(start)[0])

    def new(self, like: Tensor) -> Tensor:
        """Zeros like (P, ..) values, for :meth:`put`, with one row more, which takes what belongs nowhere."""
        return like.new_zeros(self.rows.P + 1, *like.shape[1:])

    def put(self, target: Tensor, values: Tensor, start: int, add: bool = False) -> None:
        """Write the block's rows into ``target``, (P + 1, ..), or add them to it."""
        if self.is_dense:
            part = self._part(target[:-1], start)
            values = values.view_as(part)
            part.add_(values) if add else part.copy_(values)
        else:
            row, valid = self._index(start)
            row = torch.where(valid, row, self.rows.P)
            target.index_add_(0, row, values) if add else target.index_copy_(0, row, values)


class _Direction:
    """One direction of the layer, block by block; all arguments are its own slices, K = 1."""

    def __init__(self, k: int, blocks: _Blocks, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None,
                 reset: Tensor | None, reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool,
                 h_mask: Tensor | None, cell: str, backend: str) -> None:
        self.blocks, self.cell, self.backend = blocks, cell, backend
        self.backwards = k == 1
        self.weight_hh, self.h_mask = weight_hh[k:k + 1], None if h_mask is None else h_mask[k:k + 1]
        self.initial = None if h0 is None else h0[k:k + 1], None if s0 is None else s0[:, k:k + 1]
        self.reset, self.reset_per_row = reset, reset_per_row
        if reset_h is not None and reset_s is not None:
            dim = 1 if reset_per_row else 0
            reset_h, reset_s = reset_h.narrow(dim, k, 1), reset_s.narrow(dim + 1, k, 1)
        self.reset_h, self.reset_s = reset_h, reset_s
        self.starts = list(reversed(blocks.starts)) if self.backwards else list(blocks.starts)

    def problem(self, h: Tensor | None, s: Tensor | None, start: int) -> tuple[Any, ...]:
        """The op's arguments from ``weight_hh`` to ``h_mask`` for one block."""
        take = self.blocks.take
        reset_h, reset_s = self.reset_h, self.reset_s
        if reset_h is not None and reset_s is not None and self.reset_per_row:
            # The other states of a row side by side, since a cell may have none.
            by_row = take(reset_s.movedim(0, 1), start)
            reset_h, reset_s = take(reset_h, start), by_row.movedim(1, 0)
        reset = None if self.reset is None else take(self.reset, start)
        return (self.weight_hh, h, _contiguous(s), reset, _contiguous(reset_h), _contiguous(reset_s),
                self.reset_per_row, self.h_mask)

    def options(self, start: int) -> tuple[Any, ...]:
        return *self.blocks.of(start).arguments(), self.cell, self.backwards, self.backend

    def cut_after(self, start: int) -> tuple[Tensor, Tensor] | None:
        """``(cut, row)``, each (B,), after a block that is walked backwards: the reset of its first row separates the
        state from the block before. None where there is nothing to cut."""
        if self.reset is None or not self.backwards or start == 0:
            return None
        rows, device = self.blocks.rows, self.reset.device
        row = rows.row(torch.tensor(start, device=device), torch.arange(rows.B, device=device)).clamp(0, rows.P - 1)
        return self.reset.bool()[row] & (rows.lengths(device) > start), row

    def replaced(self, cut: Tensor, row: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """The state, with the reset state where ``cut`` says."""
        cut = cut[:, None, None]
        if self.reset_h is None or self.reset_s is None:
            return torch.where(cut, 0, h), torch.where(cut, 0, s)
        if not self.reset_per_row:
            return torch.where(cut, self.reset_h, h), torch.where(cut, self.reset_s, s)
        return (torch.where(cut, self.reset_h[row].transpose(0, 1), h),
                torch.where(cut, self.reset_s[:, row].transpose(1, 2), s))


def _contiguous(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.contiguous()


def _directions(rows: Rows, every: int, weight_hh: Tensor, *rest: Any) -> tuple[_Blocks, list[_Direction]]:
    blocks = _Blocks(rows, every, weight_hh.device)
    return blocks, [_Direction(k, blocks, weight_hh, *rest) for k in range(weight_hh.shape[0])]


def _gates(x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor) -> Tensor:
    K, G, N, D, _ = weight_hh.shape
    return products.linear(x, weight_ih, bias).view(-1, K, G, N, D)


class _Layer(torch.autograd.Function):

    @staticmethod
    def forward(x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor, h0: Tensor | None,
                s0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None, reset_s: Tensor | None,
                reset_per_row: bool, h_mask: Tensor | None, every: int, *options: Any) -> tuple[Tensor, ...]:
        *row_arguments, cell, _, backend = options
        rows = Rows.from_arguments(*row_arguments)
        wx = _gates(x, weight_ih, bias, weight_hh)
        blocks, directions = _directions(rows, every, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row,
                                         h_mask, cell, backend)
        # States may be None before a direction's first block, and are tensors after it.
        outputs: list[Tensor] = []
        finals: list[tuple[Any, Any]] = []
        kept: list[list[tuple[Any, Any]]] = []
        for k, direction in enumerate(directions):
            states: list[tuple[Any, Any]] = []
            h, s = direction.initial
            output = blocks.new(wx[:, k:k + 1, 0])
            for start in direction.starts:
                states.append((h, s))
                part, h, s = ops.registered.inference.default(
                    blocks.take(wx[:, k:k + 1], start), *direction.problem(h, s, start), *direction.options(start))
                blocks.put(output, part, start)
                cut = direction.cut_after(start)
                if cut is not None and h is not None and s is not None:
                    h, s = direction.replaced(*cut, h, s)
            outputs.append(output[:-1])
            finals.append((h, s))
            kept.append(states[1:])
        h_n, s_n = torch.cat([h for h, _ in finals]), torch.cat([s for _, s in finals], 1)
        # The states between blocks: (blocks - 1, K, B, N, D) and (blocks - 1, S - 1, K, B, N, D).
        between = list(zip(*kept))
        kept_h = [torch.cat([h for h, _ in states]) for states in between]
        kept_s = [torch.cat([s for _, s in states], 1) for states in between]
        return (torch.cat(outputs, 1), h_n, s_n, torch.stack(kept_h) if between else h_n.new_empty(0),
                torch.stack(kept_s) if between else s_n.new_empty(0))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        tensors = [value if isinstance(value, Tensor) else None for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        output, _, _, kept_h, kept_s = outputs
        ctx.save_for_backward(*tensors, output, kept_h, kept_s)
        ctx.mark_non_differentiable(kept_h, kept_s)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_output: Tensor | None, d_h_n: Tensor | None, d_s_n: Tensor | None,
                 *_: None) -> tuple[Tensor | None, ...]:
        *tensors, output, kept_h, kept_s = ctx.saved_tensors
        inputs = [other if value is None else value for value, other in zip(tensors, ctx.others)]
        x, weight_ih, bias, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, every, *options = inputs
        problem = weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask
        wx = _gates(x, weight_ih, bias, weight_hh)
        if torch.is_grad_enabled():
            # The gradients are to be differentiated: by functions that can be.
            output, _, _, pre, states = ops.registered.forward.default(wx, *problem, *options)
            dwx, *rest = ops.registered.backward.default(*problem, pre, states, output, d_output, d_h_n, d_s_n, None,
                                                         None, *options)
            rest.insert(0, ops.weight_gradient(dwx, output, h0, reset, reset_h, reset_per_row, h_mask,
                                               Rows.from_arguments(*options[:-3]), False, options[-1]))
        else:
            dwx, *rest = _backward(wx, problem, output, kept_h, kept_s, d_output, d_h_n, d_s_n, every, options)
        dwx = dwx.flatten(1)
        dx, d_weight_ih = (ops.matmul(*factors, options[-1]) for factors in ((dwx, weight_ih), (dwx.t(), x)))
        gradients = (dx, d_weight_ih, None if bias is None else dwx.sum(0),
                     *(None if value is None else gradient
                       for value, gradient in zip((weight_hh, h0, s0, None, reset_h, reset_s),
                                                  (*rest[:3], None, *rest[3:]))))
        return *gradients, *[None] * (len(inputs) - len(gradients))


def _backward(wx: Tensor, problem: tuple[Any, ...], output: Tensor, kept_h: Tensor, kept_s: Tensor,
              d_output: Tensor | None, d_h_n: Tensor | None, d_s_n: Tensor | None, every: int,
              options: list[Any]) -> tuple[Tensor | None, ...]:
    """``(dwx, d_weight_hh, dh0, ds0, d_reset_h, d_reset_s)``."""
    weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask = problem
    *row_arguments, cell, _, backend = options
    rows = Rows.from_arguments(*row_arguments)
    blocks, directions = _directions(rows, every, *problem, cell, backend)
    dwx = blocks.new(wx)
    d_states: list[tuple[Any, Any]] = []
    d_resets = None if reset_h is None else _ResetGradients(blocks, reset_h, reset_s, reset_per_row)
    for k, direction in enumerate(directions):
        dh = None if d_h_n is None else d_h_n[k:k + 1].contiguous()
        ds = None if d_s_n is None else d_s_n[:, k:k + 1].contiguous()
        for index in reversed(range(len(direction.starts))):
            start = direction.starts[index]
            h, s = direction.initial if index == 0 else (kept_h[index - 1, k:k + 1], kept_s[index - 1][:, k:k + 1])
            cut = direction.cut_after(start)
            if cut is not None and dh is not None and ds is not None:
                if d_resets:
                    d_resets.add_cut(k, *cut, dh, ds)
                dh, ds = (torch.where(cut[0][:, None, None], 0, value) for value in (dh, ds))
            arguments = direction.problem(h, s, start)
            part, _, _, pre, states = ops.registered.forward.default(
                blocks.take(wx[:, k:k + 1], start), *arguments, *direction.options(start))
            d_part = None if d_output is None else blocks.take(d_output[:, k:k + 1], start)
            dpre, dh, ds, *d_reset = ops.registered.backward.default(
                *arguments, pre, states, part, d_part, dh, ds, None, None, *direction.options(start))
            blocks.put(dwx[:, k:k + 1], dpre, start)
            if d_resets:
                d_resets.add_block(k, start, *d_reset)
        d_states.append((dh, ds))
    dwx = dwx[:-1]
    d_weight = ops.weight_gradient(dwx, output, h0, reset, reset_h, reset_per_row, h_mask, rows, False, backend)
    return (dwx, d_weight, torch.cat([dh for dh, _ in d_states]), torch.cat([ds for _, ds in d_states], 1),
            *(d_resets.values() if d_resets else (None, None)))


class _ResetGradients:
    """Gradients of the reset states, collected over directions and blocks."""

    def __init__(self, blocks: _Blocks, reset_h: Tensor, reset_s: Tensor, per_row: bool) -> None:
        self.blocks, self.per_row = blocks, per_row
        if per_row:
            self.h, self.s = blocks.new(reset_h), blocks.new(reset_s.movedim(0, 1)).movedim(1, 0)
        else:
            self.h, self.s = torch.zeros_like(reset_h), torch.zeros_like(reset_s)

    def add_block(self, k: int, start: int, d_h: Tensor, d_s: Tensor) -> None:
        if not self.per_row:
            self.h[k:k + 1] += d_h
            self.s[:, k:k + 1] += d_s
            return
        # Added, not put: the first row of a block may have its gradient from the cut before it.
        for target, values in ((self.h, d_h), *zip(self.s, d_s)):
            self.blocks.put(target[:, k:k + 1], values, start, add=True)

    def add_cut(self, k: int, cut: Tensor, row: Tensor, d_h: Tensor, d_s: Tensor) -> None:
        d_h, d_s = (torch.where(cut[:, None, None], value, 0) for value in (d_h, d_s))
        if self.per_row:
            self.h[:, k].index_add_(0, row, d_h[0])
            self.s[:, :, k].index_add_(1, row, d_s[:, 0])
        else:
            self.h[k:k + 1] += d_h
            self.s[:, k:k + 1] += d_s

    def values(self) -> tuple[Tensor, Tensor]:
        return (self.h[:-1], self.s[:, :-1]) if self.per_row else (self.h, self.s)
