"""What the GPU backends ask of a tensor before a kernel gets its address, and where they launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def checked(name: str, value: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """``value``, if it is contiguous and of this shape, dtype and device.

    Raises:
        RuntimeError, TypeError, ValueError: it is not; the message names it.
    """
    if value.device != device:
        raise RuntimeError(f"{name}: expected a tensor on {device}, got one on {value.device}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    if not value.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {value.stride()} for shape {shape}")
    return value


def address(value: Tensor | None) -> int:
    """Where the numbers of ``value`` lie; 0 for None and where there are none."""
    return 0 if value is None or value.numel() == 0 else value.data_ptr()


def addresses(fields: Iterable[Any]) -> tuple[Any, ...]:
    """The fields of a kernel's parameters, tensors by their address, and None as 0."""
    return tuple(address(each) if each is None or isinstance(each, Tensor) else each for each in fields)


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Inside, ``device`` is the current one, if it is a GPU and not what tests emulate one on."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
