"""From the flags that environments give to the flags that layers take."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


def resets_from_done(done: Tensor, last_done: Tensor | None = None, *, batch_first: bool = False) -> Tensor:
    """Flags for the layers' ``reset``: a step begins an episode if the step before it ended one.

    Args:
        done: whether each step was its episode's last, (T, B), (B, T) if ``batch_first``, or (T,); bool, or numbers 0
            and 1.
        last_done: the same for the step before the first, (B,), or () beside (T,): the last of ``done`` of the
            previous rollout. None if there was none: then the first step resets nothing, and the initial state holds.

    Returns:
        bool, in the shape of ``done``.

    Raises:
        TypeError, ValueError: an argument is no tensor, or has a wrong number of dimensions or shape.
    """
    checks.tensor("done", done)
    checks.flag("batch_first", batch_first)
    if done.dim() not in (1, 2):
        raise ValueError(f"done: expected 1 or 2 dimensions, got {done.dim()}")
    time = 1 if batch_first and done.dim() == 2 else 0
    first = done.new_zeros(done.select(time, 0).shape) if last_done is None else last_done
    checks.tensor("last_done", first, done.device)
    checks.shape("last_done", first, {"B": done.shape[1 - time]} if done.dim() == 2 else {})
    return torch.cat(((first != 0).unsqueeze(time), done.narrow(time, 0, done.shape[time] - 1) != 0), time)
