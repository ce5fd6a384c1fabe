"""The registered ops and their derivatives: one recurrence over rows, on a chosen backend.

Three ops are registered under :data:`NAMESPACE`: ``inference``, ``forward`` (which also returns what the backward
needs) and ``backward``; and the first two once more with the input product in them, ``inference_from_input`` and
``forward_from_input``, for backends that have one kernel for both. Each has an Autograd kernel, a fake kernel and a
rule for vmap, so that it can be traced, exported, transformed and differentiated to any order wherever it is called
from; :func:`recurrence` and :func:`recurrence_from_input` call the Autograd kernel directly where nothing but autograd
has a say. Shapes are those of :mod:`xlstm_fused.backends.reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import onnx, products, vmap
from .backends import choose, load, reference
from .cells import CELLS
from .dtypes import state_dtype
from .rows import Rows

# A tensor where the caller asked for it, else None.
_Asked: TypeAlias = Any
Results: TypeAlias = tuple[Tensor, Tensor, Tensor, _Asked, _Asked]
"""``(output, h_n, s_n, pre, states)``."""

NAMESPACE = "xlstm_fused"

_ROWS = ("Tensor? time_offset, Tensor? batch_offset, Tensor? length, SymInt T, SymInt B, SymInt P, "
         "SymInt time_stride, SymInt batch_stride, bool has_padding")
_PROBLEM = ("Tensor weight_hh, Tensor? h0, Tensor? s0, Tensor? reset, Tensor? reset_h, Tensor? reset_s, "
            "bool reset_per_row, Tensor? h_mask")
_OPTIONS = f"{_ROWS}, str cell, bool reverse, str backend"
_GRADIENTS = "Tensor? d_output, Tensor? d_h_n, Tensor? d_s_n, Tensor? d_pre, Tensor? d_states"
_INPUT = "Tensor x, Tensor weight_ih, Tensor? bias"
_SCHEMAS = {
    "inference": f"(Tensor wx, {_PROBLEM}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    "forward": f"(Tensor wx, {_PROBLEM}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "inference_from_input": f"({_INPUT}, {_PROBLEM}, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    "forward_from_input": f"({_INPUT}, {_PROBLEM}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "backward": f"({_PROBLEM}, Tensor pre, Tensor states, Tensor output, {_GRADIENTS}, {_OPTIONS})"
                " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
}
_ROW_FIELDS = 9


def _without_input(name: str) -> str:
    """The name of the op that takes ``wx`` where op ``name`` takes an input."""
    return name.removesuffix("_from_input")


def _input_product(x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor) -> Tensor:
    """``wx`` (P, K, G, N, D)."""
    return products.linear(x, weight_ih, bias).view(x.shape[0], *weight_hh.shape[:4])


def _run(name: str, backend: object, *arguments: Any) -> tuple[Tensor, ...]:
    """The function ``name`` of a backend's module, with the arguments of the op: trailing options become a Rows.

    A backend without a function that takes an input gets the input product made.
    """
    if not hasattr(backend, name):
        name, arguments = _without_input(name), (_input_product(*arguments[:4]), *arguments[3:])
    *tensors, cell, reverse, _ = arguments
    rows = Rows.from_arguments(*tensors[-_ROW_FIELDS:])
    run: Callable[..., tuple[Tensor, ...]] = getattr(backend, name)
    return run(*tensors[:-_ROW_FIELDS], rows, cell, reverse)


def _run_on_chosen(name: str, *arguments: Any) -> tuple[Tensor, ...]:
    return _run(name, load(arguments[-1]), *arguments)


def _fake_forward(wx: Tensor, weight_hh: Tensor, *rest: Any, save: bool = True) -> tuple[Tensor, ...]:
    *_, B, P, _, _, _, cell, _, _ = rest
    K, G, N, D, _ = weight_hh.shape
    others, wide = len(CELLS[cell].states) - 1, state_dtype(wx.dtype)
    inference = (wx.new_empty(P, K, N, D), wx.new_empty(K, B, N, D), wx.new_empty(others, K, B, N, D, dtype=wide))
    if not save:
        return inference
    return *inference, torch.empty_like(wx), wx.new_empty(others, P, K, N, D, dtype=wide)


def _fake_inference(*arguments: Any) -> tuple[Tensor, ...]:
    return _fake_forward(*arguments, save=False)


def _fake_from_input(x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor, *rest: Any,
                     save: bool = True) -> tuple[Tensor, ...]:
    return _fake_forward(x.new_empty(x.shape[0], *weight_hh.shape[:4]), weight_hh, *rest, save=save)


def _fake_backward(weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
                   reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None,
                   pre: Tensor, states: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *_, B, _, _, _, _, cell, _, _ = rest
    K, _, N, D, _ = weight_hh.shape
    d_resets = [torch.empty_like(value) if value is not None else pre.new_empty(0, dtype=dtype)
                for value, dtype in ((reset_h, pre.dtype), (reset_s, states.dtype))]
    return (torch.empty_like(pre), pre.new_empty(K, B, N, D), states.new_empty(states.shape[0], K, B, N, D), *d_resets)


_library = torch.library.Library(NAMESPACE, "FRAGMENT")
for _name, _fake in (("inference", _fake_inference), ("forward", _fake_forward), ("backward", _fake_backward),
                     ("inference_from_input", partial(_fake_from_input, save=False)),
                     ("forward_from_input", _fake_from_input)):
    _library.define(_name + _SCHEMAS[_name], tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, partial(_run_on_chosen, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=_library)

registered = getattr(torch.ops, NAMESPACE)


class _Derivative(torch.autograd.function._SingleLevelFunction):
    """What the Autograd kernel of an op records.

    Not an autograd.Function: the dispatcher comes here once for each torch.func transform, with that one's tensors.
    """

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        base: Any = super()
        if not torch._C._are_functorch_transforms_active():
            return base.apply(*arguments)
        with torch._functorch.utils.enable_single_level_autograd_function():
            return base.apply(*arguments)


def _run_op(name: str, *arguments: Any) -> Any:
    """Op ``name``, with gradients if they are enabled."""
    if _is_unseen(arguments):
        return _run_on_chosen(name, *arguments)
    return getattr(registered, name).default(*arguments)


def _below_autograd(name: str, *arguments: Any) -> Any:
    if _is_unseen(arguments):
        return _run_on_chosen(name, *arguments)
    # Gradients stay enabled, which is the next torch.func transform's affair; without one, nothing records here.
    with torch._C._AutoDispatchBelowAutograd(), torch.enable_grad():
        return getattr(registered, name).default(*arguments)


class _Forward(_Derivative):
    """``forward``; its derivative is ``backward``, and a product for the recurrent matrix."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _below_autograd("forward", *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, *problem = inputs
        _keep(ctx, problem, output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return _pull_back(ctx, ctx.saved_tensors, gradients, ctx.needs_input_grad[1:])


class _ForwardFromInput(_Derivative):
    """``forward_from_input``: the derivative of ``forward``, and the products of an input's."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _below_autograd("forward_from_input", *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight_ih, _, *problem = inputs
        _keep(ctx, problem, output, x, weight_ih)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        needs_x, needs_weight, needs_bias, *needs = ctx.needs_input_grad
        # Once: under activation checkpointing it computes the forward pass again.
        saved = ctx.saved_tensors
        dwx, *others = _pull_back(ctx, saved, gradients, needs)
        *_, x, weight_ih = saved
        assert dwx is not None
        dwx = dwx.flatten(1)
        dx = matmul(dwx, weight_ih, ctx.options[-1]) if needs_x else None
        d_weight = matmul(dwx.t(), x, ctx.options[-1]) if needs_weight else None
        return dx, d_weight, dwx.sum(0) if needs_bias else None, *others


def _keep(ctx: Any, problem: list[Any], results: Any, *input: Tensor) -> None:
    """What :func:`_pull_back` needs: the arguments of the op from ``weight_hh`` on, and its results."""
    weight_hh, h0, s0, reset, reset_h, reset_s, ctx.reset_per_row, h_mask, *options = problem
    output, _, _, pre, states = results
    ctx.options = options[3:]
    ctx.save_for_backward(weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, pre, states, output, *options[:3], *input)
    ctx.set_materialize_grads(False)


def _pull_back(ctx: Any, saved: tuple[Any, ...], gradients: tuple[Tensor | None, ...],
               needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """The gradients of ``wx`` and, where ``needs`` says so, of the arguments from ``weight_hh`` on; ``saved`` is
    ``ctx.saved_tensors``."""
    weight_hh, h0, s0, reset, reset_h, reset_s, h_mask, pre, states, output, *row_tensors = saved
    options = *row_tensors[:3], *ctx.options
    dwx, *others = _run_op("backward", weight_hh, h0, s0, reset, reset_h, reset_s, ctx.reset_per_row, h_mask, pre,
                           states, output, *gradients, *options)
    d_weight = None
    if needs[0]:
        d_weight = weight_gradient(dwx, output, h0, reset, reset_h, ctx.reset_per_row, h_mask,
                                   Rows.from_arguments(*options[:_ROW_FIELDS]), *options[-2:])
    dh0, ds0, d_reset_h, d_reset_s = (value if needs[index] else None for value, index in zip(others, (1, 2, 4, 5)))
    return dwx, d_weight, dh0, ds0, None, d_reset_h, d_reset_s, *[None] * len(needs[6:])


class _Backward(_Derivative):
    """``backward``; its derivative is the VJP of the reference.

    ``pre``, ``states`` and ``output`` count as inputs here, and their gradients flow back through :class:`_Forward`:
    so ``wx`` need not be kept for derivatives of second order.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _below_autograd("backward", *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = iter(ctx.saved_tensors)
        inputs = [next(tensors) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others)]
        wanted = [index for index, value in enumerate(inputs)
                  if isinstance(value, Tensor) and value.is_floating_point()]
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        if not used:
            return (None,) * len(inputs)

        def function(*values: Tensor) -> tuple[Tensor, ...]:
            arguments = list(inputs)
            for index, value in zip(wanted, values):
                arguments[index] = value
            results = _run("backward", reference, *arguments)
            return tuple(results[index] for index in used)

        pull_back = torch.func.vjp(function, *[inputs[index] for index in wanted])[1]
        results: list[Tensor | None] = [None] * len(inputs)
        for index, value in zip(wanted, pull_back(tuple(gradients[index] for index in used))):
            results[index] = value
        return tuple(results)


_DERIVATIVES: dict[str, type[_Derivative]] = {
    "inference": _Forward, "forward": _Forward, "backward": _Backward,
    "inference_from_input": _ForwardFromInput, "forward_from_input": _ForwardFromInput,
}


def _vmap_in_two_steps(name: str) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of an op that takes an input: the product of all, then the rule of the op that takes ``wx``."""
    rule = vmap.rule(getattr(registered, _without_input(name)).default)

    def run(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
        x, weight_ih, bias = (value if dim is None else value.movedim(dim, 0)
                              for value, dim in zip(values[:3], in_dims[:3]))
        wx = products.matmul(x, weight_ih.mT)
        if bias is not None:
            wx = wx + bias.unsqueeze(-2)
        dim = in_dims[3]
        sizes = values[3].shape[:4] if dim is None else values[3].movedim(dim, 0).shape[1:5]
        return rule(info, (None if wx.dim() == 2 else 0, *in_dims[3:]), wx.unflatten(-1, sizes), *values[3:])

    return run


def _forward_mode() -> bool:
    """Whether tangents may be about: in a dual level, or in a jvp that a compiled graph runs."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() and any(
        each.key() == torch._C._functorch.TransformType.Jvp for each in torch._C._functorch.get_interpreter_stack())


def _with_derivatives(name: str, *arguments: Any) -> Any:
    """The Autograd kernel of op ``name``."""
    op = getattr(registered, name).default
    if _forward_mode():
        # First derivatives by a loop in Python only where that was asked for; higher ones are so in any case.
        if name != "backward" and arguments[-1] != "reference":
            raise NotImplementedError(
                f"backend={arguments[-1]!r} has no forward-mode derivatives (torch.func.jvp, jacfwd, "
                "torch.autograd.forward_ad): use backend='reference' or 'auto'")
        return _run(name, reference, *arguments)
    if torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in arguments):
        return _DERIVATIVES[name].apply(*arguments)[:len(op._schema.returns)]
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


for _name in _SCHEMAS:
    _op = getattr(registered, _name).default
    _library.impl(_name, partial(_with_derivatives, _name), "Autograd")
    _rule = vmap.rule(_op) if _name == _without_input(_name) else _vmap_in_two_steps(_name)
    torch.library.register_vmap(f"{NAMESPACE}::{_name}", _rule, lib=_library)


def matmul(a: Tensor, b: Tensor, backend: str) -> Tensor:
    """``a @ b`` of two matrices: the backend's own product if it has one and nobody has to know what it is made of."""
    module = load(backend)
    if hasattr(module, "matmul") and _is_unseen((a, b)):
        result: Tensor = module.matmul(a, b)
        return result
    return products.matmul(a, b)


def weight_gradient(dpre: Tensor, output: Tensor, h0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None,
                    reset_per_row: bool, h_mask: Tensor | None, rows: Rows, reverse: bool, backend: str) -> Tensor:
    """``dR = sum over rows of dpre h_prev^T``, (K, G, N, D, D), ``h_prev`` being the h that met R in that row."""
    P, K, G, N, D = dpre.shape
    directions = []
    for k in range(K):
        h = h_previous(output, h0, reset, reset_h, reset_per_row, h_mask, rows, k, (k == 1) != reverse)
        if N == 1:
            directions.append(matmul(dpre[:, k].reshape(P, G * D).t(), h.reshape(P, D), backend).view(G, 1, D, D))
        else:
            h = h.transpose(0, 1)
            directions.append(torch.stack([products.matmul(dpre[:, k, g].permute(1, 2, 0), h) for g in range(G)]))
    return directions[0].unsqueeze(0) if K == 1 else torch.stack(directions)


def h_previous(output: Tensor, h0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None, reset_per_row: bool,
               h_mask: Tensor | None, rows: Rows, k: int, backwards: bool) -> Tensor:
    """(P, N, D): the ``h`` that entered the recurrent product in each row, reset and masked as it was there."""
    reset_h = None if reset_h is None else reset_h[:, k] if reset_per_row else reset_h[k]
    h = before(output[:, k], None if h0 is None else h0[k], reset, reset_h, reset_per_row, rows, backwards)
    if h_mask is None:
        return h
    return h * h_mask[k][rows.coordinates(h.device)[1]]


def before(values: Tensor, initial: Tensor | None, reset: Tensor | None, reset_values: Tensor | None,
           reset_per_row: bool, rows: Rows, backwards: bool) -> Tensor:
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


def _shift(values: Tensor, initial: Tensor, rows: Rows, backwards: bool) -> Tensor:
    """:func:`before` where every sequence fills its rows: one step along the time axis."""
    if rows.T == 1:
        return initial
    time = 1 if rows.is_batch_first else 0
    values = values.unflatten(0, (rows.B, rows.T) if rows.is_batch_first else (rows.T, rows.B))
    initial = initial.unsqueeze(time)
    kept = values.narrow(time, 1 if backwards else 0, rows.T - 1)
    return torch.cat((kept, initial) if backwards else (initial, kept), time).flatten(0, 1)


def backend_for(backend: str, device_type: str, dtype: torch.dtype, cell: str) -> str:
    """:func:`xlstm_fused.backends.choose`; under forward-mode differentiation "auto" is the reference."""
    if backend == "auto" and forward_ad._current_level >= 0:
        return "reference"
    return choose(backend, device_type, dtype, cell)


def is_plain() -> bool:
    """Whether this is a call by itself: not traced, not transformed by torch.func, not in forward mode."""
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active() and (
        forward_ad._current_level < 0)


def _is_unseen(arguments: Iterable[Any]) -> bool:
    """Whether a call is plain, on tensors with values, and neither autograd nor a mode or a subclass has to know of it.

    What the dispatcher would come to may then be called at once: the detour takes as long as a step of a small layer.
    """
    if not is_plain() or torch._C._len_torch_dispatch_stack():
        return False
    records = torch.is_grad_enabled()
    for value in arguments:
        if isinstance(value, Tensor) and (type(value) not in (Tensor, Parameter) or value.is_meta
                                          or records and value.requires_grad):
            return False
    return True


def recurrence(wx: Tensor, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, rows: Rows, cell: str, *,
               reset: Tensor | None = None, reset_h: Tensor | None = None, reset_s: Tensor | None = None,
               reset_per_row: bool = False, h_mask: Tensor | None = None, reverse: bool = False, backend: str,
               save: bool = False) -> Results:
    """Run one layer's recurrence: ``(output, h_n, s_n, pre, states)``, the last two None unless ``save``.

    Differentiable in ``wx``, ``weight_hh``, ``h0``, ``s0``, ``reset_h`` and ``reset_s``, to any order. Arguments are
    contiguous and consistent, and ``backend`` comes from :func:`backend_for`; the callers in this package see to that.
    """
    return _call("forward" if save else "inference", rows, cell, reverse, backend, wx, weight_hh, h0, s0, reset,
                 reset_h, reset_s, reset_per_row, h_mask)


def recurrence_from_input(x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor, h0: Tensor | None,
                          s0: Tensor | None, rows: Rows, cell: str, *, reset: Tensor | None = None,
                          reset_h: Tensor | None = None, reset_s: Tensor | None = None, reset_per_row: bool = False,
                          h_mask: Tensor | None = None, backend: str, save: bool = False) -> Results:
    """:func:`recurrence` of ``wx = W_ih x + bias``, for a backend that takes these.

    ``x`` (P, I), ``weight_ih`` (K*G*H, I), ``bias`` (K*G*H,) or None; differentiable in them too.
    """
    return _call("forward_from_input" if save else "inference_from_input", rows, cell, False, backend, x.contiguous(),
                 weight_ih.contiguous(), bias, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask)


def _call(name: str, rows: Rows, cell: str, reverse: bool, backend: str, *problem: Any) -> Results:
    """Op ``name``, by the shortest way that does what the dispatcher would."""
    if _is_unseen(problem):
        results = getattr(load(backend), name)(*problem, rows, cell, reverse)
    elif is_plain():
        results = _with_derivatives(name, *problem, *rows.arguments(), cell, reverse, backend)
    elif onnx.is_exporting():
        onnx.refuse("a recurrence by itself, as in FusedxLSTMCell")
    else:
        results = getattr(registered, name).default(*problem, *rows.arguments(), cell, reverse, backend)
    return results if name.startswith("forward") else (*results, None, None)
