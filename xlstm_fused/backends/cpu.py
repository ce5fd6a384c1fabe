"""The CPU backend: fused C++ kernels for AMX, AVX-512, AVX2 or any processor, chosen at run time.

Shapes are those of :mod:`xlstm_fused.backends.reference`. The extension takes addresses; :func:`_address` is where
tensors are checked before they become one.
"""

from __future__ import annotations

import importlib
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import products
from ..cells import CELLS
from ..dtypes import FLOATING, state_dtype
from ..rows import Rows

_cpu: Any = None
_import_error = ""
# After torch: both then use the OpenMP runtime that torch brings.
try:
    _cpu = importlib.import_module("xlstm_fused._cpu")
except ImportError as error:
    _import_error = str(error)

_Input: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""``(x, weight_ih, bias)``."""

forced_isa = ""
"""For tests: the instruction set to run, one of ``_cpu.isas()``; "" for the best one of this processor."""

forced_plan: tuple[int, int, int] | None = None
"""For tests: ``(threads, threads in a team, tiles of the batch)`` instead of what the extension would choose."""

seconds: Tensor | None = None
"""For benchmarks: float64, one number for each of ``_cpu.phases()``, to which kernels add the seconds that these take,
summed over threads."""

_FEW_ROWS = 16
"""Fewer rows than this of an input, if they are of several steps, are not worth a copy of its weights."""

_SOME_STEPS = 2
"""A number of steps that stands for all but one."""

_FEW = 48
"""Fewer rows, columns or numbers along the sum than this are not worth a product of ours."""

_DTYPES = {dtype: str(dtype).removeprefix("torch.") for dtype in FLOATING}


def refuses(device_type: str, dtype: torch.dtype, cell: str) -> str | None:
    """Why this backend does not run ``cell`` in ``dtype`` on ``device_type``; None if it does."""
    if device_type != "cpu":
        return f"it runs on the CPU, not on {device_type} devices"
    if dtype not in _DTYPES:
        return f"it runs {', '.join(_DTYPES.values())}, not {str(dtype).removeprefix('torch.')}"
    if _cpu is None:
        return _why_missing()
    return None if cell in _cells() else f"it has no kernel for cell {cell!r}"


@lru_cache(maxsize=1)
def _cells() -> frozenset[str]:
    return frozenset(_cpu.cells())


def _why_missing() -> str:
    """Why there is no extension: what the build noted, else the error of the import."""
    note = Path(__file__).parents[1] / "_build.json"
    try:
        reason: str | None = json.loads(note.read_text()).get("cpu")
    except (OSError, ValueError):
        reason = None
    return reason or f"its extension does not load: {_import_error}"


def _address(name: str, value: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """The address of a contiguous CPU tensor of this shape and dtype; 0 for None. Anything else is an error."""
    if value is None:
        return 0
    if value.shape == shape and value.dtype == dtype and value.is_cpu and value.is_contiguous():
        return value.data_ptr()
    got = tuple(value.shape)
    if value.device.type != "cpu":
        raise RuntimeError(f"{name}: expected a CPU tensor, got one on {value.device}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if got != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {got}")
    raise ValueError(f"{name}: expected a contiguous tensor, got strides {value.stride()} for shape {got}")


class _Sizes(NamedTuple):
    """The shapes and dtypes of one problem, and the arguments that both passes of the extension share."""

    storage: torch.dtype
    state: torch.dtype
    weight_hh: tuple[int, ...]
    gates: tuple[int, ...]
    output: tuple[int, ...]
    states: tuple[int, ...]
    h0: tuple[int, ...]
    s0: tuple[int, ...]

    def problem(self, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
                reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None,
                rows: Rows, cell: str, reverse: bool) -> tuple[Any, ...]:
        """The extension's arguments but the last, the arrays of one pass. The tuple is Problem in csrc/params.h."""
        K, _, N, D, _ = self.weight_hh
        reset_shapes = (self.output, self.states) if reset_per_row else (self.h0, self.s0)
        return cell, _DTYPES[self.storage], forced_isa, torch.get_num_threads(), forced_plan, (
            rows.T, rows.B, rows.P, rows.time_stride, rows.batch_stride,
            _address("time_offset", rows.time_offset, (rows.T,), torch.int64),
            _address("batch_offset", rows.batch_offset, (rows.B,), torch.int64),
            _address("length", rows.length, (rows.B,), torch.int64),
            K, N, D, reverse, reset_per_row,
            _address("weight_hh", weight_hh, self.weight_hh, self.storage),
            _address("h0", h0, self.h0, self.storage),
            _address("s0", s0, self.s0, self.state),
            _address("reset", reset, (rows.P,), torch.uint8),
            _address("reset_h", reset_h, reset_shapes[0], self.storage),
            _address("reset_s", reset_s, reset_shapes[1], self.state),
            _address("h_mask", h_mask, self.h0, self.storage))

    def input(self, P: int, x: Tensor, weight_ih: Tensor, bias: Tensor | None) -> tuple[int, int, int, int]:
        """What the extension's forward pass has last. The tuple is Input in csrc/params.h."""
        I, features = x.shape[-1], math.prod(self.weight_hh[:4])
        return (I, _address("x", x, (P, I), self.storage),
                _address("weight_ih", weight_ih, (features, I), self.storage),
                _address("bias", bias, (features,), self.storage))


# Stepping through an environment asks for the same sizes every time.
@lru_cache(maxsize=64)
def _sizes(weight_shape: torch.Size, dtype: torch.dtype, P: int, B: int, cell: str) -> _Sizes:
    if len(weight_shape) != 5:
        raise ValueError(f"weight_hh: expected 5 dimensions (K, G, N, D, D), got shape {tuple(weight_shape)}")
    K, _, N, D, _ = weight_shape
    G, others = len(CELLS[cell].gates), len(CELLS[cell].states) - 1
    return _Sizes(dtype, state_dtype(dtype), (K, G, N, D, D), (P, K, G, N, D), (P, K, N, D), (others, P, K, N, D),
                  (K, B, N, D), (others, K, B, N, D))


def _seconds() -> int:
    return 0 if seconds is None else _address("seconds", seconds, (len(_cpu.phases()),), torch.float64)


def _new(shape: tuple[int, ...], dtype: torch.dtype, rows: Rows) -> Tensor:
    """A tensor over rows: of zeros where some rows may be padding, which no kernel touches."""
    return torch.zeros(shape, dtype=dtype) if rows.has_padding else torch.empty(shape, dtype=dtype)


def takes_input(D: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :func:`forward_from_input` and :func:`inference_from_input` are the way to go, for an input of ``inputs``
    features and more than one step. Where there are no such kernels torch's products are as fast."""
    result: bool = _cpu.takes_input(_DTYPES[dtype], forced_isa, _SOME_STEPS, D, inputs)
    return result


def _run(save: bool, wx: Tensor | None, input: _Input | None, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None,
         reset: Tensor | None, reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool,
         h_mask: Tensor | None, rows: Rows, cell: str, reverse: bool) -> tuple[Tensor, ...]:
    sizes = _sizes(weight_hh.shape, weight_hh.dtype, rows.P, rows.B, cell)
    problem = sizes.problem(weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)
    wx_address = _address("wx", wx, sizes.gates, sizes.storage)
    fields = (0, 0, 0, 0) if input is None else sizes.input(rows.P, *input)
    output = _new(sizes.output, sizes.storage, rows)
    h_n, s_n = torch.empty(sizes.h0, dtype=sizes.storage), torch.empty(sizes.s0, dtype=sizes.state)
    saved = (_new(sizes.gates, sizes.storage, rows), _new(sizes.states, sizes.state, rows)) if save else ()
    pre, states = (value.data_ptr() for value in saved) if save else (0, 0)
    arrays = wx_address, output.data_ptr(), h_n.data_ptr(), s_n.data_ptr(), pre, states
    _cpu.forward(*problem, arrays, fields, _seconds())
    return output, h_n, s_n, *saved


def inference(wx: Tensor, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
              reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, rows: Rows,
              cell: str, reverse: bool) -> tuple[Tensor, ...]:
    """``(output, h_n, s_n)``."""
    return _run(False, wx, None, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)


def forward(wx: Tensor, weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None,
            reset_h: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, rows: Rows,
            cell: str, reverse: bool) -> tuple[Tensor, ...]:
    """``(output, h_n, s_n, pre, states)``."""
    return _run(True, wx, None, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)


def inference_from_input(x: Tensor, weight_ih: Tensor, bias: Tensor | None, *problem: Any) -> tuple[Tensor, ...]:
    """:func:`inference` of ``wx = x W_ih^T + bias``: x (P, I), weight_ih (K*G*N*D, I), bias (K*G*N*D,)."""
    return _from_input(False, x, weight_ih, bias, *problem)


def forward_from_input(x: Tensor, weight_ih: Tensor, bias: Tensor | None, *problem: Any) -> tuple[Tensor, ...]:
    """:func:`forward` of ``wx = x W_ih^T + bias``."""
    return _from_input(True, x, weight_ih, bias, *problem)


def _from_input(save: bool, x: Tensor, weight_ih: Tensor, bias: Tensor | None, weight_hh: Tensor,
                *rest: Any) -> tuple[Tensor, ...]:
    rows: Rows = rest[-3]
    few = x.shape[0] < _FEW_ROWS and rows.T > 1
    if few or not _cpu.takes_input(_DTYPES[weight_hh.dtype], forced_isa, rows.T, weight_hh.shape[-1], x.shape[1]):
        wx = products.linear(x, weight_ih, bias).view(x.shape[0], *weight_hh.shape[:4])
        return _run(save, wx, None, weight_hh, *rest)
    return _run(save, None, (x, weight_ih, bias), weight_hh, *rest)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of matrices (M, K) and (K, N), of one dtype, that of the result: by a kernel where that is faster than
    torch, as float32 is where the processor multiplies tiles (Intel's AMX)."""
    factors = _factor(a, True), _factor(b, False)
    if a.dtype == torch.float32 and min(*a.shape, b.shape[1]) >= _FEW and None not in factors:
        result = torch.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
        if _cpu.product(forced_isa, torch.get_num_threads(), (*result.shape, a.shape[1]), *factors, result.data_ptr()):
            return result
    return products.matmul(a, b)


def _factor(matrix: Tensor, is_first: bool) -> tuple[int, int, bool] | None:
    """A factor of a product as the extension takes it; None where numbers lie side by side on neither side."""
    rows, columns = matrix.stride()
    if columns == 1 and rows >= matrix.shape[1]:
        return matrix.data_ptr(), rows, is_first
    if rows == 1 and columns >= matrix.shape[0]:
        return matrix.data_ptr(), columns, not is_first
    return None


def backward(weight_hh: Tensor, h0: Tensor | None, s0: Tensor | None, reset: Tensor | None, reset_h: Tensor | None,
             reset_s: Tensor | None, reset_per_row: bool, h_mask: Tensor | None, pre: Tensor, states: Tensor,
             output: Tensor, d_output: Tensor | None, d_h_n: Tensor | None, d_s_n: Tensor | None,
             d_pre: Tensor | None, d_states: Tensor | None, rows: Rows, cell: str,
             reverse: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(dpre, dh0, ds0, dreset_h, dreset_s)``; the last two have no elements where there is no reset state."""
    sizes = _sizes(weight_hh.shape, weight_hh.dtype, rows.P, rows.B, cell)
    problem = sizes.problem(weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)
    inputs = (("pre", pre, sizes.gates, sizes.storage), ("states", states, sizes.states, sizes.state),
              ("output", output, sizes.output, sizes.storage), ("d_output", d_output, sizes.output, sizes.storage),
              ("d_h_n", d_h_n, sizes.h0, sizes.storage), ("d_s_n", d_s_n, sizes.s0, sizes.state),
              ("d_pre", d_pre, sizes.gates, sizes.storage), ("d_states", d_states, sizes.states, sizes.state))
    # Gradients come from autograd with any strides. The copies must live until the kernel returns.
    given = [(name, value if value is None else value.contiguous(), shape, dtype)
             for name, value, shape, dtype in inputs]
    dpre = _new(sizes.gates, sizes.storage, rows)
    dh0, ds0 = torch.empty(sizes.h0, dtype=sizes.storage), torch.empty(sizes.s0, dtype=sizes.state)
    dreset_h = _reset_gradient(reset_h, sizes.storage)
    dreset_s = _reset_gradient(reset_s, sizes.state)
    results = dpre, dh0, ds0, dreset_h, dreset_s
    _cpu.backward(*problem, (*(_address(*each) for each in given), *(each.data_ptr() for each in results)),
                  _seconds())
    return results


def _reset_gradient(reset_state: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Zeros: the kernel writes only where a reset is, if the states are given for each row."""
    if reset_state is None:
        return torch.empty(0, dtype=dtype)
    return torch.zeros_like(reset_state)
