"""The registered ops and their derivatives: one recurrence over rows, on a chosen backend.

Three ops are registered under :data:`NAMESPACE`: ``inference``, ``forward`` (which also returns what the backward
needs) and ``backward``. :func:`recurrence` puts them behind a ``torch.autograd.Function``, whose backward is itself a
Function, so that derivatives of any order are exact. Shapes are those of :mod:`xlstm_fused.backends.reference`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import choose, load, reference
from .cells import CELLS
from .dtypes import state_dtype
from .rows import Rows

NAMESPACE = "xlstm_fused"

_ROWS = ("Tensor? time_offset, Tensor? batch_offset, Tensor? length, SymInt T, SymInt B, SymInt P, "
         "SymInt time_stride, SymInt batch_stride, bool has_padding")
_PROBLEM = ("Tensor weight_hh, Tensor? h0, Tensor? s0, Tensor? reset, Tensor? reset_h, Tensor? reset_s, "
            "bool reset_per_row, Tensor? h_mask")
_OPTIONS = f"{_ROWS}, str cell, bool reverse, str backend"
_GRADIENTS = "Tensor? d_output, Tensor? d_h_n, Tensor? d_s_n, Tensor? d_pre, Tensor? d_states"
_SCHEMAS = {
    "inference": f"(Tensor wx, {_PROBLEM}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    "forward": f"(Tensor wx, {_PROBLEM}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "backward": f"({_PROBLEM}, Tensor pre, Tensor states, Tensor output, {_GRADIENTS}, {_OPTIONS})"
                " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}
_ROW_FIELDS = 9


def _implementation(name):
    """The op's body: the trailing options become a Rows, and the backend's function of that name runs."""

    def run(*arguments):
        *tensors, cell, reverse, backend = arguments
        rows = Rows.from_arguments(*tensors[-_ROW_FIELDS:])
        return getattr(load(backend), name)(*tensors[:-_ROW_FIELDS], rows, cell, reverse)

    return run


def _fake_forward(wx, weight_hh, *rest, save=True):
    *_, B, P, _, _, _, cell, _, _ = rest
    K, G, N, D, _ = weight_hh.shape
    others, wide = len(CELLS[cell].states) - 1, state_dtype(wx.dtype)
    inference = (wx.new_empty(P, K, N, D), wx.new_empty(K, B, N, D), wx.new_empty(others, K, B, N, D, dtype=wide))
    if not save:
        return inference
    return *inference, torch.empty_like(wx), wx.new_empty(others, P, K, N, D, dtype=wide)


def _fake_inference(*arguments):
    return _fake_forward(*arguments, save=False)


def _fake_backward(weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, pre, states, *rest):
    *_, B, _, _, _, _, cell, _, _ = rest
    K, _, N, D, _ = weight_hh.shape
    d_resets = [torch.empty_like(value) if value is not None else pre.new_empty(0, dtype=dtype)
                for value, dtype in ((reset_h, pre.dtype), (reset_s, states.dtype))]
    return (torch.empty_like(pre), pre.new_empty(K, B, N, D), states.new_empty(states.shape[0], K, B, N, D), *d_resets)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
for _name, _fake in (("inference", _fake_inference), ("forward", _fake_forward), ("backward", _fake_backward)):
    _library.define(_name + _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _implementation(_name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_library)

registered = getattr(torch.ops, NAMESPACE)


class Recurrence(torch.autograd.Function):
    """``forward`` with its derivative. ``options`` are the non-differentiable arguments of :data:`_OPTIONS`."""

    @staticmethod
    def forward(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return registered.forward.default(*arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, weight_hh, h0, s0, reset, reset_h, reset_s, ctx.reset_per_row, h_mask, *options = inputs
        output, _, _, pre, states = output
        ctx.row_arguments, ctx.options = options[3:_ROW_FIELDS], options[_ROW_FIELDS:]
        ctx.has_state = h0 is not None, s0 is not None
        ctx.save_for_backward(weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, pre, states, output, *options[:3])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_s_n, d_pre, d_states):
        (weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, pre, states, output, *row_tensors) = ctx.saved_tensors
        dwx, d_weight, dh0, ds0, d_reset_h, d_reset_s = RecurrenceBackward.apply(
            weight_hh, h0, s0, reset, reset_h, reset_s, ctx.reset_per_row, h_mask, pre, states, output,
            d_output, d_h_n, d_s_n, d_pre, d_states, *row_tensors, *ctx.row_arguments, *ctx.options)
        return (dwx, d_weight, dh0 if h0 is not None else None, ds0 if s0 is not None else None, None,
                d_reset_h if reset_h is not None else None, d_reset_s if reset_s is not None else None,
                None, None, *[None] * len(ctx.needs_input_grad[9:]))


torch.library.register_autograd(f"{NAMESPACE}::forward", Recurrence.backward,
                                setup_context=Recurrence.setup_context, lib=_library)


class RecurrenceBackward(torch.autograd.Function):
    """The derivative of :class:`Recurrence` as a function of what it saved and of the incoming gradients.

    Its own derivative is the VJP of the reference. Saved outputs (``pre``, ``states``, ``output``) count as inputs
    here: their gradients flow back through :class:`Recurrence`, so ``wx`` need not be kept for second derivatives.
    """

    @staticmethod
    def forward(*arguments):
        return _backward(registered.backward.default, *arguments)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *gradients):
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others)]
        wanted = [index for index, value in enumerate(inputs)
                  if isinstance(value, Tensor) and value.is_floating_point()]
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        if not used:
            return (None,) * len(inputs)

        def function(*values):
            arguments = list(inputs)
            for index, value in zip(wanted, values):
                arguments[index] = value
            results = _backward(_reference_backward, *arguments)
            return tuple(results[index] for index in used)

        _, pull_back = torch.func.vjp(function, *[inputs[index] for index in wanted])
        results = [None] * len(inputs)
        for index, value in zip(wanted, pull_back(tuple(gradients[index] for index in used))):
            results[index] = value
        return tuple(results)


def _reference_backward(*arguments):
    """``reference.backward`` with the argument list of the registered op."""
    *tensors, cell, reverse, _ = arguments
    rows = Rows.from_arguments(*tensors[-_ROW_FIELDS:])
    return reference.backward(*tensors[:-_ROW_FIELDS], rows, cell, reverse)


def _backward(kernel, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, pre, states, output, *rest):
    """``kernel``'s gradients with that of ``weight_hh`` put second."""
    dwx, dh0, ds0, d_reset_h, d_reset_s = kernel(
        weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, pre, states, output, *rest)
    *_, cell, reverse, _ = rest
    rows = Rows.from_arguments(*rest[5:5 + _ROW_FIELDS])
    d_weight = weight_gradient(dwx, output, h0, reset, reset_h, reset_per_row, h_mask, rows, reverse)
    return dwx, d_weight, dh0, ds0, d_reset_h, d_reset_s


def weight_gradient(dpre, output, h0, reset, reset_h, reset_per_row, h_mask, rows, reverse):
    """``dR = sum over rows of dpre h_prev^T``, (K, G, N, D, D), ``h_prev`` being the h that met R in that row."""
    P, K, G, N, D = dpre.shape
    directions = []
    for k in range(K):
        h = h_previous(output, h0, reset, reset_h, reset_per_row, h_mask, rows, k, (k == 1) != reverse)
        if N == 1:
            directions.append((dpre[:, k].reshape(P, G * D).t() @ h.reshape(P, D)).view(G, 1, D, D))
        else:
            h = h.transpose(0, 1)
            directions.append(torch.stack([torch.bmm(dpre[:, k, g].permute(1, 2, 0), h) for g in range(G)]))
    return torch.stack(directions)


def h_previous(output, h0, reset, reset_h, reset_per_row, h_mask, rows, k, backwards):
    """(P, N, D): the ``h`` that entered the recurrent product in each row, reset and masked as it was there."""
    reset_h = None if reset_h is None else reset_h[:, k] if reset_per_row else reset_h[k]
    h = before(output[:, k], None if h0 is None else h0[k], reset, reset_h, reset_per_row, rows, backwards)
    if h_mask is None:
        return h
    return h * h_mask[k][rows.coordinates(h.device)[1]]


def before(values, initial, reset, reset_values, reset_per_row, rows, backwards):
    """(P, N, D): of a state after each row (``values``), what each row started from in one direction's walk.

    ``initial`` (B, N, D) and ``reset_values`` (B, N, D), or (P, N, D) if ``reset_per_row``, are None for zero.
    """
    if initial is None:
        initial = values.new_zeros(rows.B, *values.shape[1:])
    if rows.is_full and reset is None:
        return _shift(values, initial, rows, backwards)
    previous, first, b = rows.previous(backwards, values.device)
    result = torch.where(first[:, None, None], initial[b], values[previous])
    if reset is None:
        return result
    cut, source = rows.cuts(reset, backwards)
    replacement = 0 if reset_values is None else reset_values[source if reset_per_row else b]
    return torch.where(cut[:, None, None], replacement, result)


def _shift(values, initial, rows, backwards):
    """:func:`before` where every sequence fills its rows: one step along the time axis."""
    time = 1 if rows.is_batch_first else 0
    values = values.unflatten(0, (rows.B, rows.T) if rows.is_batch_first else (rows.T, rows.B))
    initial = initial.unsqueeze(time)
    kept = values.narrow(time, 1 if backwards else 0, rows.T - 1)
    return torch.cat((kept, initial) if backwards else (initial, kept), time).flatten(0, 1)


def recurrence(wx, weight_hh, h0, s0, rows, cell, *, reset=None, reset_h=None, reset_s=None, reset_per_row=False,
               h_mask=None, reverse=False, backend="auto", save=False):
    """Run one layer's recurrence: ``(output, h_n, s_n, pre, states)``, the last two None unless ``save``.

    Differentiable in ``wx``, ``weight_hh``, ``h0``, ``s0``, ``reset_h`` and ``reset_s``, to any order. Arguments are
    contiguous and consistent; the callers in this package see to that.
    """
    backend = choose(backend, wx.device.type, wx.dtype, cell)
    arguments = (wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, *rows.arguments(),
                 cell, reverse, backend)
    if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
        function = registered.forward.default if torch.compiler.is_compiling() else Recurrence.apply
        output, h_n, s_n, pre, states = function(*arguments)
    elif save:
        return registered.forward.default(*arguments)
    else:
        return *registered.inference.default(*arguments), None, None
    return (output, h_n, s_n, pre, states) if save else (output, h_n, s_n, None, None)
