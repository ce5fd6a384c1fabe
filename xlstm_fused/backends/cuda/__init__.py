"""The CUDA backend: one kernel per pass walks all steps, R on chip, h passed on within a cluster of programs.

Shapes are those of :mod:`xlstm_fused.backends.reference`. NVIDIA GPUs of compute capability 8, 9 and 10.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_cuda: Any = None
_import_error = ""
try:
    _cuda = importlib.import_module("xlstm_fused._cuda")
except ImportError as error:
    _import_error = str(error)

device_type_for_tests = "cuda"
"""For tests: "cpu" where an interpreter runs the kernels."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def refuses(device_type: str, dtype: torch.dtype, cell: str) -> str | None:
    """Why this backend does not run ``cell`` in ``dtype`` on ``device_type``; None if it does."""
    if device_type != device_type_for_tests:
        return f"it runs on NVIDIA GPUs, not on {device_type} devices"
    if dtype not in _DTYPES:
        return f"it runs float32, bfloat16, float16, not {str(dtype).removeprefix('torch.')}"
    reason = _missing(device_type)
    if reason is None and device_type == "cuda" and cell not in _cuda.cells():
        reason = f"it has no kernel for cell {cell!r}"
    return reason


def takes_input(D: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :func:`forward_from_input` and :func:`inference_from_input` are the way to go, for an input of ``inputs``
    features to heads of D units; see plan.takes_input."""
    result: bool = _launch().takes_input(D, inputs, dtype, device)
    return result


@functools.cache
def _missing(device_type: str) -> str | None:
    """What this machine lacks to run it on a device of that type; None for nothing."""
    if device_type == "cpu":
        return None
    if _cuda is None:
        return _why_missing()
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU on this machine"
    major, minor = torch.cuda.get_device_capability()
    if str(major) not in {arch[:-1] for arch in _cuda.archs.split()}:
        built = ", ".join(f"{arch[:-1]}.x" for arch in _cuda.archs.split())
        return f"it is built for GPUs of compute capability {built}, not {major}.{minor}"
    return None


def _why_missing() -> str:
    """Why there is no extension: what the build noted, else the error of the import."""
    note = Path(__file__).parents[2] / "_build.json"
    try:
        reason: str | None = json.loads(note.read_text()).get("cuda")
    except (OSError, ValueError):
        reason = None
    return reason or f"its extension does not load: {_import_error}"


def inference(*arguments: Any) -> tuple[Tensor, ...]:
    """``(output, h_n, s_n)``."""
    results: tuple[Tensor, ...] = _launch().forward(False, *arguments)
    return results


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """``(output, h_n, s_n, pre, states)``."""
    results: tuple[Tensor, ...] = _launch().forward(True, *arguments)
    return results


def inference_from_input(*arguments: Any) -> tuple[Tensor, ...]:
    """:func:`inference` for ``x, weight_ih, bias`` in place of ``wx``."""
    results: tuple[Tensor, ...] = _launch().forward_from_input(False, *arguments)
    return results


def forward_from_input(*arguments: Any) -> tuple[Tensor, ...]:
    """:func:`forward` for ``x, weight_ih, bias`` in place of ``wx``."""
    results: tuple[Tensor, ...] = _launch().forward_from_input(True, *arguments)
    return results


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """``(dpre, dh0, ds0, dreset_h, dreset_s)``; the last two have no elements where there is no reset state."""
    results: tuple[Tensor, ...] = _launch().backward(*arguments)
    return results


def _launch() -> ModuleType:
    from . import launch

    return launch
