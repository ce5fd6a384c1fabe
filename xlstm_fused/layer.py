"""A layer's input product and recurrence as one node of autograd: what training runs, outside of torch's transforms.

The gradients are those of ``F.linear`` and :func:`xlstm_fused.ops.recurrence`. One node instead of two can let the
kernel write what the backward needs over the input product, which nobody else reads, and leaves out what autograd and
the dispatcher do in between. Shapes are those of :mod:`xlstm_fused.backends.reference`.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .backends import load
from .rows import Rows


def can_run(backend: str, *tensors: Tensor | None) -> bool:
    """Whether :func:`layer` is for this call: one that autograd records and nobody else follows."""
    return backend == "cpu" and torch.is_grad_enabled() and ops.is_plain() and ops.are_common(*tensors) and any(
        value is not None and value.requires_grad for value in tensors)


def layer(x, weight_ih, bias, weight_hh, h0, s0, rows, cell, *, reset=None, reset_h=None, reset_s=None,
          reset_per_row=False, h_mask=None, backend):
    """``(output, h_n, s_n)`` of a layer; ``x`` (P, I), ``weight_ih`` (K*G*H, I), ``bias`` (K*G*H,) or None, the rest
    as in :func:`xlstm_fused.ops.recurrence`. Differentiable to any order."""
    return _Layer.apply(x, weight_ih, bias, weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, reset_per_row, rows,
                        cell, backend)


def gates(x, weight_ih, bias, weight_hh):
    """``wx`` (P, K, G, N, D)."""
    K, G, N, D, _ = weight_hh.shape
    return F.linear(x, weight_ih, bias).view(-1, K, G, N, D)


def differentiable_gradients(x, weight_ih, bias, problem, gradients, rows, options):
    """``(dwx, d_weight_hh, dh0, ds0, dreset_h, dreset_s)`` by functions that can be differentiated in turn.

    ``problem`` are the op's arguments from ``weight_hh`` to ``h_mask``, ``gradients`` those of its three results, and
    ``options`` the arguments that follow."""
    weight_hh, h0, _, reset, reset_h, _, reset_per_row, h_mask = problem
    wx = gates(x, weight_ih, bias, weight_hh)
    output, _, _, pre, states = ops.registered.forward.default(wx, *problem, *options)
    dwx, *rest = ops.registered.backward.default(*problem, pre, states, output, *gradients, None, None, *options)
    d_weight = ops.weight_gradient(dwx, output, h0, reset, reset_h, reset_per_row, h_mask, rows, False)
    return dwx, d_weight, *rest


def input_gradients(dwx, x, weight_ih, bias, wanted=(True, True, True)):
    """Gradients of ``x``, ``weight_ih`` and ``bias``, those that are wanted, from that of their product."""
    dwx = dwx.flatten(1)
    return (dwx @ weight_ih if wanted[0] else None,
            ops.transposed_product(dwx, x) if wanted[1] else None,
            dwx.sum(0) if bias is not None and wanted[2] else None)


def _seen(name: str):
    """What makes a kernel show in torch's profiler under the name of its op."""
    return torch.profiler.record_function(f"{ops.NAMESPACE}::{name}") if torch.autograd._profiler_enabled() else (
        nullcontext())


class _Layer(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight_ih, bias, weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, reset_per_row, rows: Rows,
                cell, backend):
        pre = gates(x, weight_ih, bias, weight_hh)
        with _seen("forward"):
            output, h_n, s_n, states = load(backend).forward_in_place(
                pre, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, False)
        ctx.save_for_backward(x, weight_ih, bias, weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, output, pre,
                              states)
        ctx.others = reset_per_row, rows, cell, backend
        ctx.set_materialize_grads(False)
        return output, h_n, s_n

    @staticmethod
    def backward(ctx, *gradients):
        x, weight_ih, bias, weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, output, pre, states = ctx.saved_tensors
        reset_per_row, rows, cell, backend = ctx.others
        problem = weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():
            # The gradients are to be differentiated.
            dwx, d_weight, *rest = differentiable_gradients(x, weight_ih, bias, problem, gradients, rows,
                                                            (*rows.arguments(), cell, False, backend))
        else:
            with _seen("backward"):
                dwx, *rest = load(backend).backward(*problem, pre, states, output, *gradients, None, None, rows, cell,
                                                    False)
            d_weight = ops.weight_gradient(dwx, output, h0, reset, reset_h, reset_per_row, h_mask, rows,
                                           False) if wanted[3] else None
        dh0, ds0, d_reset_h, d_reset_s = (
            value if wanted[index] else None for value, index in zip(rest, (4, 5, 7, 8)))
        return (*input_gradients(dwx, x, weight_ih, bias, wanted), d_weight, dh0, ds0, None, d_reset_h, d_reset_s,
                *[None] * 5)
