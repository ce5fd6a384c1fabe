"""Matrix products over all rows of a layer, which are torch's own.

A CPU without instructions for products of 16-bit numbers gets them in float32, rounded once at the end: torch sums in
float32 there as well, but one number at a time, which takes several times as long.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _has_instructions(dtype: torch.dtype) -> bool:
    """Whether torch gives products of ``dtype`` on the CPU to oneDNN; by the question that torch asks itself."""
    name = "bf16" if dtype == torch.bfloat16 else "fp16"
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")())


_IN_FLOAT32 = frozenset(dtype for dtype in (torch.bfloat16, torch.float16) if not _has_instructions(dtype))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x W^T + b``: x (.., I), weight (O, I), bias (O) or None, all of one dtype, that of the result (.., O)."""
    if not _is_in_float32(x):
        return F.linear(x, weight, bias)
    with _without_autocast():
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b``, both of one dtype, that of the result; shapes as torch.matmul's."""
    if not _is_in_float32(a):
        return a @ b
    with _without_autocast():
        return (a.float() @ b.float()).to(a.dtype)


def _is_in_float32(value: Tensor) -> bool:
    return value.device.type == "cpu" and value.dtype in _IN_FLOAT32


def _without_autocast() -> contextlib.AbstractContextManager[Any]:
    # It would cast both factors back.
    if not torch._C._is_any_autocast_enabled():
        return contextlib.nullcontext()
    return torch.autocast("cpu", enabled=False)
