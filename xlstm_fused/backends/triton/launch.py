"""From tensors to kernel launches, for both passes. Shapes are those of :mod:`xlstm_fused.backends.reference`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ...dtypes import state_dtype
from ...rows import Rows
from ..arguments import checked, on
from ..graphs import Graphs
from . import config
from .cells import MODULES
from .recurrence_bwd import recurrence_bwd_kernel
from .recurrence_fwd import recurrence_fwd_kernel

OPTIONS = ("num_warps", "num_stages", "launch_cooperative_grid", "enable_fp_fusion", "maxnreg")
"""What a launch may tell Triton's compiler, beside the kernel's arguments."""

graphs = Graphs()

forced_plan: config.Plan | None = None
"""For tests: the :class:`config.Plan` to run instead of the chosen one."""


@functools.cache
def _null(device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor without elements: its address is null, which kernels take for zeros."""
    return torch.empty(0, dtype=dtype, device=device)


@functools.cache
def device_of(device: torch.device) -> config.Device:
    """What the tile choice needs to know of a device; of the interpreter's, whatever makes it choose one program."""
    if device.type != "cuda":
        return config.Device(1, 1 << 20)
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return config.Device(properties["multiprocessor_count"], properties["max_shared_mem"],
                         64 if torch.version.hip is not None else 32)


class Launch:
    """The shapes of one problem, its checked arguments, and the launches that both passes share."""

    def __init__(self, weight_hh: Tensor, reset: Tensor | None, reset_h: Tensor | None, reset_s: Tensor | None,
                 reset_per_row: bool, rows: Rows, cell: str, reverse: bool, backward: bool) -> None:
        if rows.P >= 1 << 31:
            raise ValueError(f"expected fewer than 2^31 rows, got {rows.P}")
        if weight_hh.dim() != 5:
            raise ValueError(f"weight_hh: expected 5 dimensions (K, G, N, D, D), got shape {tuple(weight_hh.shape)}")
        self.cell, self.rows, self.device = MODULES[cell], rows, weight_hh.device
        self.storage, self.state = weight_hh.dtype, state_dtype(weight_hh.dtype)
        self.K, _, self.N, self.D, _ = weight_hh.shape
        if weight_hh.numel() >= 1 << 31:
            raise ValueError(f"weight_hh: expected fewer than 2^31 elements, got shape {tuple(weight_hh.shape)}")
        K, G, N, D, others = self.K, self.cell.GATES, self.N, self.D, self.cell.STATES - 1
        self.weight_hh, self.gates = (K, G, N, D, D), (rows.P, K, G, N, D)
        self.output, self.states = (rows.P, K, N, D), (others, rows.P, K, N, D)
        self.h0, self.s0 = (K, rows.B, N, D), (others, K, rows.B, N, D)
        self.reset_h, self.reset_s = (self.output, self.states) if reset_per_row else (self.h0, self.s0)
        has_state = reset_h is not None or reset_s is not None
        self.resets = 0 if reset is None else 1 if not has_state else 3 if reset_per_row else 2
        device = device_of(self.device)
        self.plan = forced_plan or config.plan(D, K * N, rows.B, self.storage.itemsize, device, backward)
        self.registers = config.registers(self.plan, self.storage.itemsize, device)
        self.reverse = reverse

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor over rows: of zeros where some rows may be padding, which no kernel touches."""
        make = torch.zeros if self.rows.has_padding else torch.empty
        return make(shape, dtype=dtype, device=self.device)

    def check(self, name: str, value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """``value``, or a null tensor for None, if it is what a kernel can take; else an error."""
        if value is None:
            return _null(self.device, dtype)
        return checked(name, value, shape, dtype, self.device)

    def rows_arguments(self) -> tuple[Any, ...]:
        rows = self.rows
        return (self.check("time_offset", rows.time_offset, (rows.T,), torch.int64),
                self.check("batch_offset", rows.batch_offset, (rows.B,), torch.int64),
                self.check("length", rows.length, (rows.B,), torch.int64),
                rows.time_stride, rows.batch_stride, rows.T, rows.B, rows.P, self.K, self.N, int(self.reverse))

    @property
    def stepwise(self) -> bool:
        return self.plan.slices > 1 and not self.plan.barrier

    def steps(self) -> list[tuple[int, ...]]:
        """``[(first_step, end_step)]`` of each launch.

        Up to T, though the longest length may be less: to read that would wait for the device. Launches past it end
        at once.
        """
        T = self.rows.T
        # The first launch also sets the final state, of sequences without a step too.
        return [(step, step + 1) for step in range(max(T, 1))] if self.stepwise else [(0, T)]

    def run(self, kernel: Any, pointers: tuple[Tensor | None, ...], steps: Sequence[tuple[int, ...]],
            **options: Any) -> None:
        """Launch ``kernel`` for each of ``steps``, tuples of its arguments between ``reverse`` and ``slices``."""
        plan, rows = self.plan, self.rows
        if rows.B == 0:
            return
        tiles = triton.cdiv(rows.B, plan.BLOCK_B)
        arrivals = _null(self.device, torch.int32)
        if plan.barrier:
            arrivals = torch.zeros((self.K, self.N, tiles), dtype=torch.int32, device=self.device)
        shared = (*pointers, arrivals, *self.rows_arguments())
        options |= dict(G=self.cell.GATES, S=self.cell.STATES, D=self.D, RESETS=self.resets, BLOCK_B=plan.BLOCK_B,
                        BLOCK_U=plan.BLOCK_U, BLOCK_K=plan.BLOCK_K, SLICED=plan.slices > 1, RESIDENT=plan.resident,
                        BARRIER=plan.barrier, PRECISION=precision(), num_warps=plan.num_warps,
                        num_stages=plan.num_stages, launch_cooperative_grid=plan.barrier, enable_fp_fusion=True)
        if self.registers is not None:
            # Not even as None for AMD, whose compiler has no such option.
            options["maxnreg"] = self.registers

        def launches() -> None:
            for step in steps:
                kernel[(tiles * plan.slices, self.N, self.K)](*shared, *step, plan.slices, **options)

        # Triton launches on the current device and stream.
        with on(self.device):
            if len(steps) == 1:
                launches()
                return
            # The dtypes of all tensors follow from the storage's.
            addresses = (value.data_ptr() if isinstance(value, torch.Tensor) else value for value in shared)
            key = kernel, self.device, self.storage, len(steps), plan.slices, *addresses, *options.values()
            graphs.run(key, launches, self.device)


def precision() -> str:
    """How float32 products are made, by torch's own setting for matrix products: "tf32" or "ieee"."""
    matmul = torch.backends.cuda.matmul
    # torch 2.9 and later have three settings and are strict about mixing them with the switch of old.
    allowed = matmul.fp32_precision == "tf32" if hasattr(torch.backends, "fp32_precision") else matmul.allow_tf32
    return "tf32" if allowed and torch.version.hip is None else "ieee"


@functools.cache
def takes_input(D: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """:func:`config.takes_input` for tensors there."""
    return config.takes_input(D, inputs, dtype.itemsize, device_of(device))


def forward(save: bool, wx: Tensor, *problem: Any) -> tuple[Tensor, ...]:
    """``(output, h_n, s_n)``, and ``pre, states`` if ``save``."""
    return _forward(save, lambda launch: (launch.check("wx", wx, launch.gates, launch.storage), None, None, None), 0,
                    *problem)


def forward_from_input(save: bool, x: Tensor, weight_ih: Tensor, bias: Tensor | None,
                       *problem: Any) -> tuple[Tensor, ...]:
    """The same for ``wx = x W_ih^T + bias`` of shapes (P, I), (K * G * N * D, I) and (K * G * N * D), which is never in
    memory. Only where :func:`takes_input` is true."""
    inputs = x.shape[-1]

    def checked_inputs(launch: Launch) -> tuple[Tensor | None, ...]:
        P, *gates = launch.gates
        features, storage = math.prod(gates), launch.storage
        return (None, launch.check("x", x, (P, inputs), storage),
                launch.check("weight_ih", weight_ih, (features, inputs), storage),
                launch.check("bias", bias, (features,), storage))

    return _forward(save, checked_inputs, inputs, *problem)


def _forward(save: bool, given: Callable[[Launch], tuple[Tensor | None, ...]], inputs: int, weight_hh: Tensor,
             h0: Tensor | None, s0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None,
             reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, rows: Rows, cell: str,
             reverse: bool) -> tuple[Tensor, ...]:
    """``given`` makes the kernel's first four arguments, of ``inputs`` features where it is not ``wx``."""
    launch = Launch(weight_hh, reset, reset_h, reset_s, reset_per_row, rows, cell, reverse, backward=False)
    storage, state, new = launch.storage, launch.state, launch.new
    output = new(launch.output, storage)
    h_n, s_n = (torch.empty(shape, dtype=dtype, device=launch.device)
                for shape, dtype in ((launch.h0, storage), (launch.s0, state)))
    saved = (new(launch.gates, storage), new(launch.states, state)) if save else ()
    pointers = (*given(launch), *(launch.check(*each) for each in (
        ("weight_hh", weight_hh, launch.weight_hh, storage),
        ("h0", h0, launch.h0, storage), ("s0", s0, launch.s0, state), ("reset", reset, (rows.P,), torch.uint8),
        ("reset_h", reset_h, launch.reset_h, storage), ("reset_s", reset_s, launch.reset_s, state))),
        None if h_mask is None else launch.check("h_mask", h_mask, launch.h0, storage),
        output, h_n, s_n, *(saved or (None, None)))
    launch.run(recurrence_fwd_kernel, pointers, launch.steps(), CELL_FORWARD=launch.cell.forward, I=inputs,
               BLOCK_I=config.padded(inputs))
    return output, h_n, s_n, *saved


def backward(weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None,
             reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, pre: Tensor, states: Tensor,
             output: Tensor, d_output: Tensor | None, d_h_n: Tensor | None, d_s_n: Tensor | None,
             d_pre: Tensor | None, d_states: Tensor | None, rows: Rows, cell: str,
             reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dpre, dh0, ds0, dreset_h, dreset_s)``; the last two have no elements where there is no reset state."""
    launch = Launch(weight_hh, reset, reset_h, reset_s, reset_per_row, rows, cell, reverse, backward=True)
    storage, state = launch.storage, launch.state
    # Where several launches pass a gradient on, it must not be rounded on the way.
    passed = state if launch.stepwise else storage

    def given(name: str, value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # Gradients come from autograd with any strides.
        return launch.check(name, value if value is None else value.contiguous(), shape, dtype)

    def optional(name: str, value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        return None if value is None else given(name, value, shape, dtype)

    def if_read(name: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
        return given(name, value, shape, storage) if launch.cell.READS_H else None

    dpre = launch.new(launch.gates, storage)
    dh0, ds0 = (torch.empty(shape, dtype=dtype, device=launch.device)
                for shape, dtype in ((launch.h0, passed), (launch.s0, state)))
    dreset_h, dreset_s = (
        torch.zeros(0 if value is None else shape, dtype=dtype, device=launch.device)
        for value, shape, dtype in ((reset_h, launch.reset_h, storage if reset_per_row else state),
                                    (reset_s, launch.reset_s, state)))
    pointers = (
        given("weight_hh", weight_hh, launch.weight_hh, storage), if_read("h0", h0, launch.h0),
        given("s0", s0, launch.s0, state), given("reset", reset, (rows.P,), torch.uint8),
        if_read("reset_h", reset_h, launch.reset_h), given("reset_s", reset_s, launch.reset_s, state),
        optional("h_mask", h_mask, launch.h0, storage), given("pre", pre, launch.gates, storage),
        given("states", states, launch.states, state), if_read("output", output, launch.output),
        given("d_output", d_output, launch.output, storage),
        given("d_h_n", d_h_n if d_h_n is None else d_h_n.to(passed), launch.h0, passed),
        given("d_s_n", d_s_n, launch.s0, state), optional("d_pre", d_pre, launch.gates, storage),
        optional("d_states", d_states, launch.states, state), dpre, dh0, ds0, dreset_h, dreset_s)
    steps = launch.steps()
    if launch.stepwise:
        # Each launch ends with a step's pointwise half and leaves the product to the next; the last one has only that.
        steps = [(*each, int(index > 0)) for index, each in enumerate(reversed(steps))] + [(0, 0, 1)]
    else:
        steps = [(*each, 0) for each in steps]
    launch.run(recurrence_bwd_kernel, pointers, steps, CELL_BACKWARD=launch.cell.backward, READS_H=launch.cell.READS_H)
    return dpre, dh0.to(storage), ds0, dreset_h.to(storage), dreset_s
