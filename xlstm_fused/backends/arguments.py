"""What the GPU backends ask of a tensor before a kernel gets its address."""

from __future__ import annotations

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
