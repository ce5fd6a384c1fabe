"""From tensors to kernel launches, for both passes. Shapes are those of :mod:`xlstm_fused.backends.reference`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ... import products
from ...cells import CELLS
from ...dtypes import state_dtype
from ...rows import Rows
from ..arguments import address, addresses, checked
from . import _cuda as _cuda
from . import plan as planning
from . import steps

Shape = tuple[int, ...]
Input = tuple[int, Tensor | None, Tensor | None, Tensor | None]
NO_INPUT: Input = (0, None, None, None)

forced_plan: Callable[[int, int, bool, int], planning.Plan | None] | None = None
"""For tests: ``function(D, itemsize, backward, inputs)`` that returns the :class:`plan.Plan` to run."""


@functools.cache
def device_of(device: torch.device) -> planning.Device:
    """What the choice of a plan needs to know of a device."""
    properties: Any = torch.cuda.get_device_properties(device)
    return planning.Device((properties.major, properties.minor), properties.multi_processor_count,
                           properties.shared_memory_per_block_optin)


@functools.cache
def _is_resident(cell: str, kind: str, backward: bool, plan: planning.Plan, index: int) -> bool:
    """Whether the driver can have the plan's programs resident at once: one, a cluster, or all groups of a grid."""
    if plan == planning.STEPS:
        return True
    return bool(_cuda.resident(cell, kind, backward, plan.launch, plan.fields, index) >= plan.groups)


def choose_plan(D: int, heads: int, B: int, cell: str, kind: str, itemsize: int, device: torch.device, backward: bool,
                inputs: int = 0) -> planning.Plan | None:
    """The best plan that the device has room for, of those that multiply ``inputs`` features; None if there is none, as
    there may be with an input."""
    if forced_plan is not None:
        return forced_plan(D, itemsize, backward, inputs)
    return next((plan for plan in planning.plans(D, heads, B, itemsize, device_of(device), backward, inputs)
                 if _is_resident(cell, kind, backward, plan, device.index)), None)


def takes_input(D: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """:func:`plan.takes_input` for tensors there."""
    return planning.takes_input(D, inputs, dtype.itemsize, device_of(device))


def kind_of(dtype: torch.dtype) -> str:
    """The kernels' name for numbers of this dtype: float32 has two, by torch's own setting for matrix products."""
    if dtype != torch.float32:
        return str(dtype).removeprefix("torch.")
    matmul = torch.backends.cuda.matmul
    # torch 2.9 and later have three settings and are strict about mixing them with the switch of old.
    allowed = matmul.fp32_precision == "tf32" if hasattr(torch.backends, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed else "float32"


def new_words(plan: planning.Plan, device: torch.device) -> Tensor | None:
    """The memory through which the groups of a grid exchange what they compute; None for other plans.

    Zeros, for every launch and every replay of a captured one: no word may have a tag of an earlier launch.
    """
    return torch.zeros(plan.groups, plan.words, dtype=torch.int64, device=device) if plan.words else None


def call(backward: bool, cell: str, kind: str, plan: planning.Plan, device: torch.device, problem: Sequence[Any],
         arrays: Sequence[Tensor | None], words: Tensor | None, input: Input = NO_INPUT,
         weight_t: Tensor | None = None) -> None:
    """Launch one kernel on the current stream of ``device``. In ``problem``, ``arrays`` and ``input``, which are the
    structs of csrc/params.h, tensors stand for addresses, and None for 0. ``words`` is what :func:`new_words` returns;
    ``input`` is a forward pass's only, ``weight_t`` a backward one's."""
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        arguments = (cell, kind, plan.launch, plan.fields, device.index, stream, addresses(problem), addresses(arrays),
                     address(words))
        if backward:
            _cuda.backward(*arguments, address(weight_t))
        else:
            _cuda.forward(*arguments, addresses(input))


class _Problem:
    """The shapes of one problem, its checked arguments, and what both passes share."""

    def __init__(self, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
                 reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, rows: Rows,
                 cell: str, reverse: bool) -> None:
        if weight_hh.dim() != 5:
            raise ValueError(f"weight_hh: expected 5 dimensions (K, G, N, D, D), got shape {tuple(weight_hh.shape)}")
        self.device, self.storage, self.state = weight_hh.device, weight_hh.dtype, state_dtype(weight_hh.dtype)
        K, _, N, D, _ = weight_hh.shape
        G, others, P, B = len(CELLS[cell].gates), len(CELLS[cell].states) - 1, rows.P, rows.B
        if P >= 1 << 31:
            raise ValueError(f"expected fewer than 2^31 rows, got {P}")
        self.rows, self.cell, self.kind, self.weight_hh = rows, cell, kind_of(self.storage), weight_hh
        self.gates: Shape = (P, K, G, N, D)
        self.output: Shape = (P, K, N, D)
        self.states: Shape = (others, P, K, N, D)
        self.h0: Shape = (K, B, N, D)
        self.s0: Shape = (others, K, B, N, D)
        self.reset_h, self.reset_s = (self.output, self.states) if reset_per_row else (self.h0, self.s0)
        check, index = self.check, torch.int64
        self.fields = (
            rows.T, B, P, rows.time_stride, rows.batch_stride,
            check("time_offset", rows.time_offset, (rows.T,), index),
            check("batch_offset", rows.batch_offset, (B,), index), check("length", rows.length, (B,), index),
            K, N, D, reverse, reset_per_row, check("weight_hh", weight_hh, (K, G, N, D, D), self.storage),
            check("h0", h0, self.h0, self.storage), check("s0", s0, self.s0, self.state),
            check("reset", reset, (P,), torch.uint8), check("reset_h", reset_h, self.reset_h, self.storage),
            check("reset_s", reset_s, self.reset_s, self.state), check("h_mask", h_mask, self.h0, self.storage))
        self.sizes = D, K * N, B

    def check(self, name: str, value: Tensor | None, shape: Shape, dtype: torch.dtype) -> Tensor | None:
        """``value`` if it is what a kernel can take, or None; else an error."""
        return None if value is None else checked(name, value, shape, dtype, self.device)

    def new(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def new_over_rows(self, shape: Shape, dtype: torch.dtype) -> Tensor:
        """A tensor over rows: of zeros where some rows may be padding, which no kernel touches."""
        make = torch.zeros if self.rows.has_padding else torch.empty
        return make(shape, dtype=dtype, device=self.device)

    @property
    def is_empty(self) -> bool:
        return 0 in self.sizes

    def plan(self, backward: bool, inputs: int = 0) -> planning.Plan | None:
        return choose_plan(*self.sizes, self.cell, self.kind, self.storage.itemsize, self.device, backward, inputs)

    def run(self, backward: bool, arrays: Sequence[Tensor | None], input: Input = NO_INPUT) -> None:
        if self.is_empty:
            return
        plan = self.plan(backward, input[0])
        assert plan is not None, "without an input, there is always room for steps"
        if plan == planning.STEPS:
            steps.run(backward, self.cell, self.kind, self.weight_hh, self.fields, arrays)
            return
        words = new_words(plan, self.device)
        # Its rows are then as contiguous along the inner dimension of this product as R's along the forward one's.
        weight_t = self.weight_hh.permute(0, 2, 4, 3, 1).contiguous() if backward else None
        call(backward, self.cell, self.kind, plan, self.device, self.fields, arrays, words, input, weight_t)


def forward(save: bool, wx: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """``(output, h_n, s_n)``, and ``pre, states`` if ``save``."""
    return _forward(save, wx, NO_INPUT, _Problem(*arguments))


def forward_from_input(save: bool, x: Tensor, weight_ih: Tensor, bias: Tensor | None,
                       *arguments: Any) -> tuple[Tensor, ...]:
    """The same for ``wx = x W_ih^T + bias`` of shapes (P, I), (K * G * N * D, I) and (K * G * N * D), which is never in
    memory, unless the device has no room for the programs that form it."""
    problem, inputs = _Problem(*arguments), x.shape[-1]
    P, *gates = problem.gates
    features, storage = math.prod(gates), problem.storage
    problem.check("x", x, (P, inputs), storage)
    problem.check("weight_ih", weight_ih, (features, inputs), storage)
    problem.check("bias", bias, (features,), storage)
    if problem.is_empty or not 0 < inputs <= planning.INPUTS or problem.plan(False, inputs) is None:
        return _forward(save, products.linear(x, weight_ih, bias).view(problem.gates), NO_INPUT, problem)
    return _forward(save, None, (inputs, x, weight_ih, bias), problem)


def _forward(save: bool, wx: Tensor | None, input: Input, problem: _Problem) -> tuple[Tensor, ...]:
    storage, state = problem.storage, problem.state
    problem.check("wx", wx, problem.gates, storage)
    output = problem.new_over_rows(problem.output, storage)
    h_n, s_n = problem.new(problem.h0, storage), problem.new(problem.s0, state)
    saved: tuple[Tensor, ...] = ()
    if save:
        saved = problem.new_over_rows(problem.gates, storage), problem.new_over_rows(problem.states, state)
    problem.run(False, (wx, output, h_n, s_n, *(saved or (None, None))), input)
    return output, h_n, s_n, *saved


def backward(weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None,
             reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, pre: Tensor, states: Tensor,
             output: Tensor, d_output: Tensor | None, d_h_n: Tensor | None, d_s_n: Tensor | None, d_pre: Tensor | None,
             d_states: Tensor | None, rows: Rows, cell: str, reverse: bool) -> tuple[Tensor, ...]:
    """``(dpre, dh0, ds0, dreset_h, dreset_s)``; the last two have no elements where there is no reset state."""
    problem = _Problem(weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)
    storage, state = problem.storage, problem.state
    given: tuple[tuple[str, Tensor | None, Shape, torch.dtype], ...] = (
        ("pre", pre, problem.gates, storage), ("states", states, problem.states, state),
        ("output", output, problem.output, storage), ("d_output", d_output, problem.output, storage),
        ("d_h_n", d_h_n, problem.h0, storage), ("d_s_n", d_s_n, problem.s0, state),
        ("d_pre", d_pre, problem.gates, storage), ("d_states", d_states, problem.states, state))
    # Gradients come from autograd with any strides.
    inputs = [problem.check(name, value if value is None else value.contiguous(), shape, dtype)
              for name, value, shape, dtype in given]
    dpre = problem.new_over_rows(problem.gates, storage)
    dh0, ds0 = problem.new(problem.h0, storage), problem.new(problem.s0, state)
    # The kernel writes only where a reset is.
    dreset_h, dreset_s = (
        torch.zeros(0 if value is None else shape, dtype=dtype, device=problem.device)
        for value, shape, dtype in ((reset_h, problem.reset_h, storage), (reset_s, problem.reset_s, state)))
    results = dpre, dh0, ds0, dreset_h, dreset_s
    problem.run(True, (*inputs, *(each if each.numel() else None for each in results)))
    return results
