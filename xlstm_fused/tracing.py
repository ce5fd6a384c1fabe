"""What torch.compile is told about functions that it meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def constant(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """``torch.compiler.assume_constant_result``, which has no types: called when traced, and its result kept."""
    return cast(Callable[_P, _R], torch.compiler.assume_constant_result(function))
