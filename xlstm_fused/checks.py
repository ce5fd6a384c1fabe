"""Checks of what users pass in: each bad argument gets one error that names it, what was expected, and what came."""

from __future__ import annotations

import torch
from torch import Tensor

from .backends import ORDER
from .cells import CELLS
from .dtypes import FLOATING, state_dtype


def readable(tensor: Tensor) -> bool:
    """Whether looking at the values costs no device synchronisation and breaks no trace."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu" and (
        not torch.compiler.is_compiling())


def tensor(name: str, value, device: torch.device | None = None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    if device is not None and value.device != device:
        raise RuntimeError(f"{name}: expected a tensor on {device}, like the input, got one on {value.device}")


def shape(name: str, value: Tensor, expected: tuple[int, ...], letters: str) -> None:
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: expected shape {letters} = {tuple(expected)}, got {tuple(value.shape)}")


def dtype(name: str, value: Tensor, expected: tuple[torch.dtype, ...]) -> None:
    if value.dtype not in expected:
        wanted = " or ".join(str(each) for each in dict.fromkeys(expected))
        raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")


def floating(name: str, value: Tensor) -> None:
    dtype(name, value, FLOATING)


def cell_name(cell) -> None:
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {tuple(CELLS)}, got {cell!r}")


def backend_name(backend) -> None:
    if backend != "auto" and backend not in ORDER:
        raise ValueError(f"backend: expected 'auto' or one of {ORDER}, got {backend!r}")


def heads(num_heads, hidden_size: int) -> None:
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"num_heads: expected an int, got {type(num_heads).__name__}")
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"num_heads: expected a positive divisor of hidden_size = {hidden_size}, got {num_heads}")


def state(name: str, value, cell: str) -> tuple[Tensor, ...]:
    """``value`` as a tuple with one tensor per state of ``cell``."""
    names = CELLS[cell].states
    expected = f"a tuple of {len(names)} tensors ({', '.join(names)}) for cell={cell!r}"
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if len(value) != len(names):
        raise ValueError(f"{name}: expected {expected}, got {len(value)} elements")
    for each, part in zip(names, value):
        tensor(f"{name}[{each!r}]", part)
    return tuple(value)


def state_part(name: str, index: int, value: Tensor, like: Tensor) -> None:
    """Device and dtype of state ``index``: ``h`` has the input's dtype, the others that or the kernels' own."""
    tensor(name, value, like.device)
    dtype(name, value, (like.dtype,) if index == 0 else (like.dtype, state_dtype(like.dtype)))


def integers(name: str, value, device: torch.device) -> Tensor:
    """A 1-D sequence or tensor of integers as an int64 tensor on ``device``."""
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}: expected a 1-D integer tensor or a list of ints, got {value!r}") from None
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{name}: expected 1 dimension, got {value.dim()}")
    return value.to(device=device, dtype=torch.int64)


def lengths(value, T: int, B: int, device: torch.device) -> Tensor:
    """``lengths`` as an int64 (B,) tensor on ``device``, each in [0, T] where that can be read without a sync."""
    value = integers("lengths", value, device)
    if value.shape[0] != B:
        raise ValueError(f"lengths: expected one length for each of {B} sequences, got {value.shape[0]}")
    if readable(value) and B and not (0 <= int(value.min()) and int(value.max()) <= T):
        raise ValueError(f"lengths: expected values between 0 and T = {T}, got {value.tolist()}")
    return value


def cu_seqlens(value, total: int, device: torch.device) -> Tensor:
    """``cu_seqlens`` as an int64 (B + 1,) tensor: 0 first, never decreasing, the number of rows last."""
    value = integers("cu_seqlens", value, device)
    if value.shape[0] < 2:
        raise ValueError(f"cu_seqlens: expected at least 2 elements, got {value.shape[0]}")
    if readable(value):
        if int(value[0]) != 0 or int(value[-1]) != total:
            raise ValueError(f"cu_seqlens: expected 0 first and the number of rows, {total}, last, "
                             f"got {int(value[0])} and {int(value[-1])}")
        if bool((value.diff() < 0).any()):
            raise ValueError(f"cu_seqlens: expected values that never decrease, got {value.tolist()}")
    return value


def reset(value, expected: tuple[int, ...], letters: str, device: torch.device) -> None:
    """``reset``: bool, or numbers that are 0 or 1."""
    tensor("reset", value, device)
    shape("reset", value, expected, letters)
    if value.is_complex():
        raise TypeError(f"reset: expected bool, integer or floating values, got {value.dtype}")
    if value.dtype != torch.bool and readable(value) and bool(((value != 0) & (value != 1)).any()):
        raise ValueError("reset: expected only the values 0 and 1, got others")
