"""The dtypes that the kernels compute in."""

import torch

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every state but ``h``, and of the pointwise arithmetic, for a layer of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
