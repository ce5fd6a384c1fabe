"""The dtypes that the kernels compute in."""

import torch

from .tracing import constant

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every state but ``h``, and of the pointwise arithmetic, for a layer of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``value.to(dtype)``, at less cost where there is nothing to do."""
    return value if value.dtype == dtype else value.to(dtype)


def rounded(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``value`` with its numbers rounded to those of ``dtype``; the gradient passes as if they were not.

    Source: the straight-through estimator, Bengio et al., arXiv 1308.3432, section 2.
    """
    numbers = value.to(dtype).to(value.dtype)
    # The difference is exact; of infinities it would be NaN.
    return value + torch.where(numbers == value, 0, numbers - value).detach()


# Dynamo of torch 2.11 cannot trace this, nor has it to: the answer does not change.
@constant
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


def autocast_dtype(value: torch.Tensor) -> torch.dtype:
    """The dtype of ``value``, or the one into which an autocast that is on for its device casts it; float64 stays."""
    kind, dtype = value.device.type, value.dtype
    if not torch._C._is_any_autocast_enabled():
        return dtype
    if dtype == torch.float64 or dtype not in FLOATING or not _has_autocast(kind):
        return dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
