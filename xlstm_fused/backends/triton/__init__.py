"""The Triton backend: one kernel per pass walks all steps, on NVIDIA and AMD GPUs.

Shapes are those of :mod:`xlstm_fused.backends.reference`. Triton itself is imported when the first kernel runs.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

device_type_for_tests = "cuda"
"""For tests: "cpu" where Triton's interpreter runs the kernels."""

_CELLS = {file.stem for file in Path(__file__).with_name("cells").glob("[a-z]*.py")}
"""By their files, since importing them takes triton."""

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@functools.cache
def _missing(device_type: str) -> str | None:
    """What this machine lacks to run it on a device of that type; None for nothing."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'xlstm-fused[triton]')"
    if device_type == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch finds no GPU on this machine"
    if torch.version.hip is None and torch.cuda.get_device_capability() < (8, 0):
        return "it needs a GPU of compute capability 8.0 or later"
    return None


def refuses(device_type: str, dtype: torch.dtype, cell: str) -> str | None:
    """Why this backend does not run ``cell`` in ``dtype`` on ``device_type``; None if it does.

    There is no limit on sizes: heads that no co-resident programs can share are run one step per launch.
    """
    if device_type != device_type_for_tests:
        return f"it runs on GPUs, not on {device_type} devices"
    if dtype not in _DTYPES:
        return f"it runs float32, bfloat16, float16, not {str(dtype).removeprefix('torch.')}"
    if cell not in _CELLS:
        return f"it has no cell {cell!r}"
    return _missing(device_type)


def takes_input(D: int, inputs: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :func:`forward_from_input` and :func:`inference_from_input` are the way to go, for an input of ``inputs``
    features to heads of D units; see config.takes_input."""
    result: bool = _launch().takes_input(D, inputs, dtype, device)
    return result


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
