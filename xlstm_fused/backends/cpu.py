"""The CPU backend: the whole time loop of a layer in one call of a C++ kernel.

Threads follow ``torch.get_num_threads()``. Signatures and shapes are those of :mod:`xlstm_fused.backends.reference`.
"""

import json
from pathlib import Path

# Before _cpu, so that both use one OpenMP runtime.
import torch

from ..cells import CELLS
from ..dtypes import FLOATING, state_dtype

try:
    from .. import _cpu
except ImportError as error:
    _cpu, _missing = None, str(error)

forced_isa = ""
"""For tests: the instruction set to use, "" for the best one of this processor."""


def refuses(device_type, dtype, cell):
    if device_type != "cpu":
        return f"it runs on tensors of a cpu device, not on those of a {device_type} device"
    if _cpu is None:
        record = Path(__file__).parent.parent / "_build.json"
        reason = json.loads(record.read_text()).get("cpu") if record.exists() else None
        return reason or _missing
    if dtype not in FLOATING:
        return f"it computes in {', '.join(map(str, FLOATING))}, not in {dtype}"
    return None


def inference(wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse):
    return _forward(False, wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)


def forward(wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse):
    return _forward(True, wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse)


def _forward(save, wx, weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, rows, cell, reverse):
    shapes = _shapes(weight_hh, rows, cell, reset_per_row)
    new = torch.zeros if rows.has_padding else torch.empty
    results = {"output": _new(new, shapes["output"], wx), "h_n": _new(torch.empty, shapes["h0"], wx),
               "s_n": _new(torch.empty, shapes["s0"], wx)}
    if save:
        results |= {"pre": _new(new, shapes["wx"], wx), "states": _new(new, shapes["states"], wx)}
    _run(False, shapes, rows, cell, reverse, reset_per_row, wx=wx, weight_hh=weight_hh, h0=h0, s0=s0, reset=reset,
         reset_h=reset_h, reset_s=reset_s, h_mask=h_mask, **{"pre": None, "states": None, **results})
    return tuple(results.values())


def backward(weight_hh, h0, s0, reset, reset_h, reset_s, reset_per_row, h_mask, pre, states, output,
             d_output, d_h_n, d_s_n, d_pre, d_states, rows, cell, reverse):
    shapes = _shapes(weight_hh, rows, cell, reset_per_row)
    new = torch.zeros if rows.has_padding else torch.empty
    results = {"dpre": _new(new, shapes["wx"], pre), "dh0": _new(torch.empty, shapes["h0"], pre),
               "ds0": _new(torch.empty, shapes["s0"], pre), "dreset_h": None, "dreset_s": None}
    if reset_h is not None:
        results |= {name: _new(torch.zeros, shapes[name], pre) for name in ("dreset_h", "dreset_s")}
    _run(True, shapes, rows, cell, reverse, reset_per_row, weight_hh=weight_hh, h0=h0, s0=s0, reset=reset,
         reset_h=reset_h, reset_s=reset_s, h_mask=h_mask, pre=pre, states=states, output=output,
         d_output=d_output, d_h_n=d_h_n, d_s_n=d_s_n,
         d_pre=d_pre, d_states=d_states, **results)
    if reset_h is None:
        results |= {"dreset_h": pre.new_empty(0), "dreset_s": states.new_empty(0)}
    return tuple(results.values())


def _shapes(weight_hh, rows, cell, reset_per_row):
    """name -> (shape, whether in the state dtype), for every floating tensor of either pass."""
    K, G, N, D = weight_hh.shape[:4]
    others = len(CELLS[cell].states) - 1
    by_row, by_sequence = (rows.P, K, N, D), (K, rows.B, N, D)
    h, s, values, states = (by_sequence, False), ((others, *by_sequence), True), (by_row, False), (
        (others, *by_row), True)
    gates = ((rows.P, K, G, N, D), False)
    reset_h, reset_s = (values, states) if reset_per_row else (h, s)
    return {"weight_hh": ((K, len(CELLS[cell].gates), N, D, D), False), "wx": gates, "pre": gates, "dpre": gates,
            "d_pre": gates, "output": values, "d_output": values, "states": states, "d_states": states, "h0": h,
            "h_n": h, "d_h_n": h, "dh0": h, "h_mask": h, "s0": s, "s_n": s, "d_s_n": s, "ds0": s, "reset_h": reset_h,
            "dreset_h": reset_h, "reset_s": reset_s, "dreset_s": reset_s}


def _new(make, shape, like):
    shape, wide = shape
    return make(shape, dtype=state_dtype(like.dtype) if wide else like.dtype)


def _run(is_backward, shapes, rows, cell, reverse, reset_per_row, *, reset, **tensors):
    """Check every tensor, then call the kernel with their addresses."""
    dtype = tensors["weight_hh"].dtype
    # Inputs may be expanded or transposed; what is allocated here is contiguous already, and stays itself.
    tensors = {name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor is not None:
            shape, wide = shapes[name]
            _check(name, tensor, shape, state_dtype(dtype) if wide else dtype)
    _check("reset", reset, (rows.P,), torch.uint8)
    _check("time_offset", rows.time_offset, (rows.T,), torch.int64)
    _check("batch_offset", rows.batch_offset, (rows.B,), torch.int64)
    _check("length", rows.length, (rows.B,), torch.int64)
    tensors |= {"reset": reset, "time_offset": rows.time_offset, "batch_offset": rows.batch_offset,
                "length": rows.length}
    K, _, N, D = tensors["weight_hh"].shape[:4]
    numbers = {"T": rows.T, "B": rows.B, "P": rows.P, "time_stride": rows.time_stride,
               "batch_stride": rows.batch_stride, "K": K, "N": N, "D": D, "reverse": reverse,
               "reset_per_row": reset_per_row}
    addresses = {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    _cpu.call(forced_isa, cell, str(dtype).removeprefix("torch."), is_backward, torch.get_num_threads(),
              numbers | addresses)


def _check(name, tensor, shape, dtype):
    if tensor is None:
        return
    if tensor.device.type != "cpu" or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected a {dtype} tensor {shape} on the cpu, got {tensor.dtype} {tuple(tensor.shape)} "
                         f"on {tensor.device}")
