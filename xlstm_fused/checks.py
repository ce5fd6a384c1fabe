"""Checks of what users pass in: each bad argument gets one error that names it, what was expected, and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .backends import ORDER
from .cells import CELLS
from .dtypes import FLOATING, autocast_dtype, state_dtype


def readable(tensor: Tensor) -> bool:
    """Whether looking at the values costs no device synchronisation and breaks no trace or torch.func transform."""
    return not torch.compiler.is_compiling() and type(tensor) in (Tensor, torch.nn.Parameter) and (
        tensor.device.type == "cpu") and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def tensor(name: str, value: object, device: torch.device | None = None) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}")
    if device is not None and value.device != device:
        raise RuntimeError(f"{name}: expected a tensor on {device}, got one on {value.device}")


def shape(name: str, value: Tensor, *forms: dict[str, int]) -> int:
    """Which of the ``forms`` the shape of ``value`` has; each gives the sizes by their letters, in order."""
    got = tuple(value.shape)
    for index, form in enumerate(forms):
        if got == tuple(form.values()):
            return index
    wanted = " or ".join(f"({', '.join(form)}{',' * (len(form) == 1)}) = {tuple(form.values())}" for form in forms)
    raise ValueError(f"{name}: expected shape {wanted}, got {got}")


def dtype(name: str, value: Tensor, expected: tuple[torch.dtype, ...]) -> None:
    if value.dtype not in expected:
        wanted = " or ".join(str(each) for each in dict.fromkeys(expected))
        raise TypeError(f"{name}: expected {wanted}, got {value.dtype}")


def castable(name: str, value: Tensor, expected: tuple[torch.dtype, ...]) -> None:
    """:func:`dtype`, for a tensor that will be cast as autocast, if on, casts it."""
    if value.dtype not in expected and autocast_dtype(value) not in expected:
        dtype(name, value, expected)


def floating(name: str, value: Tensor) -> None:
    dtype(name, value, FLOATING)


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return value


def number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    return float(value)


def probability(name: str, value: float) -> float:
    if not 0 <= number(name, value) <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
    return float(value)


def forget_bias(value: float | None, bias: bool, cell: str) -> float | None:
    if value is not None and "f" not in CELLS[cell].gates:
        raise ValueError(f"forget_bias: expected None for cell={cell!r}, which has no forget gate, got {value}")
    if value is not None and not bias:
        raise ValueError(f"forget_bias: expected None with bias=False, got {value}")
    return None if value is None else number("forget_bias", value)


def checkpoint_every(value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise TypeError(f"checkpoint_every: expected an int or None, got {type(value).__name__}")
    if value is not None and value < 1:
        raise ValueError(f"checkpoint_every: expected at least 1, got {value}")
    return value


def recurrent_dtype(value: torch.dtype | None) -> torch.dtype | None:
    if value not in (None, torch.bfloat16):
        raise ValueError(f"recurrent_dtype: expected None or torch.bfloat16, got {value}")
    return value


def cell_name(cell: object, allowed: tuple[str, ...] | None = None) -> None:
    allowed = allowed or tuple(CELLS)
    if not isinstance(cell, str) or cell not in allowed:
        raise ValueError(f"cell: expected one of {allowed}, got {cell!r}")


def backend_name(backend: object) -> None:
    if backend != "auto" and backend not in ORDER:
        raise ValueError(f"backend: expected 'auto' or one of {ORDER}, got {backend!r}")


def heads(num_heads: object, hidden_size: int) -> None:
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"num_heads: expected an int, got {type(num_heads).__name__}")
    if num_heads < 1 or hidden_size % num_heads:
        raise ValueError(
            f"num_heads: expected a positive divisor of hidden_size = {hidden_size}, got {num_heads}")


def state(name: str, value: object, cell: str) -> None:
    """A tuple with one element per state of ``cell``."""
    names = CELLS[cell].states
    expected = f"a tuple of {len(names)} tensors ({', '.join(names)})" if len(names) > 1 else f"a tensor ({names[0]})"
    expected += f" for cell={cell!r}"
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if len(value) != len(names):
        raise ValueError(f"{name}: expected {expected}, got {len(value)} elements")


def state_part(name: str, index: int, value: Tensor, like: Tensor) -> None:
    """Type, device and dtype of state ``index``: ``h`` has the input's dtype, the others that or the kernels' own."""
    tensor(name, value, like.device)
    castable(name, value, (like.dtype,) if index == 0 else (like.dtype, state_dtype(like.dtype)))


def reset_state(value: object, reset: object) -> None:
    if value is not None and reset is None:
        raise ValueError(f"reset_state: expected None without reset, got {type(value).__name__}")


def integers(name: str, value: Tensor | Sequence[int], device: torch.device) -> Tensor:
    """A 1-D sequence or tensor of integers, on the CPU or on ``device``, as a contiguous int64 tensor where it is."""
    if not isinstance(value, Tensor):
        try:
            value = torch.tensor(value, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}: expected a 1-D integer tensor or a list of ints, got {value!r}") from None
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name}: expected integers, got {value.dtype}")
    if value.dim() != 1:
        raise ValueError(f"{name}: expected 1 dimension, got {value.dim()}")
    if value.device.type != "cpu":
        tensor(name, value, device)
    return value.to(torch.int64).contiguous()


def lengths(value: Tensor | Sequence[int], T: int, B: int, device: torch.device) -> Tensor:
    """``lengths`` as an int64 (B,) tensor, each in [0, T] where that can be read without a sync."""
    value = integers("lengths", value, device)
    if value.shape[0] != B:
        raise ValueError(f"lengths: expected one length for each of {B} sequences, got {value.shape[0]}")
    if readable(value) and B and not (0 <= int(value.min()) and int(value.max()) <= T):
        raise ValueError(f"lengths: expected values between 0 and T = {T}, got {value.tolist()}")
    return value


def cu_seqlens(value: Tensor | Sequence[int], total: int, device: torch.device) -> Tensor:
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


def batch_sizes(value: Tensor, rows: int) -> Tensor:
    """A PackedSequence's ``batch_sizes``, a CPU tensor, as int64: positive, never increasing, with the sum ``rows``."""
    value = integers("input.batch_sizes", value, value.device)
    if readable(value):
        # As a list: T is small, and each tensor operation would cost more than all of this.
        sizes = value.tolist()
        if not sizes or sizes[-1] < 1 or sizes != sorted(sizes, reverse=True) or sum(sizes) != rows:
            raise ValueError("input.batch_sizes: expected positive values that never increase and add up to the "
                             f"number of rows, {rows}, got {sizes}")
    return value


def reset(value: Tensor, form: dict[str, int], device: torch.device) -> None:
    """``reset``: bool, or numbers that are 0 or 1."""
    tensor("reset", value, device)
    shape("reset", value, form)
    if value.is_complex():
        raise TypeError(f"reset: expected bool, integer or floating values, got {value.dtype}")
    if value.dtype != torch.bool and readable(value):
        others = value[(value != 0) & (value != 1)]
        if others.numel():
            raise ValueError(f"reset: expected only the values 0 and 1, got {others[0].item()}")
