"""States as users give them, in the form that the kernels read, and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks
from .cells import Cell
from .dtypes import state_dtype
from .layout import Layout


@dataclass(frozen=True)
class States:
    """The states of all L layers and K directions: ``h`` (L*K, B, F) and ``others`` (S - 1, L*K, B, H), or, one per
    row, ``h`` (P, L*K, F) and ``others`` (S - 1, P, L*K, H). F is H, or the projection size."""

    h: Tensor
    others: Tensor
    per_row: bool

    @classmethod
    def read(cls, name: str, value, like: Tensor, layout: Layout, cell: Cell, leading: int, sizes: tuple[int, ...],
             per_row_allowed: bool = False) -> States | None:
        """Check and convert a user's tuple of states, (L*K, B, H) each, (L*K, H) for one sequence; where allowed also
        one per step, the time shape of the input followed by (L*K, H). ``leading`` is L*K, ``sizes`` has the features
        of each state. None stays None."""
        if value is None:
            return None
        value = checks.state(name, value, cell.name)
        per_row = per_row_allowed and _is_per_row(value[0], layout, leading, sizes[0])
        parts = []
        for index, (part, tensor, size) in enumerate(zip(cell.states, value, sizes)):
            label = f"{name}[{part!r}]"
            checks.state_part(label, index, tensor, like)
            if per_row:
                checks.shape(label, tensor, (*layout.time_shape, leading, size), f"{layout.letters[:-1]}, L*K, H)")
                parts.append(tensor.reshape(layout.rows.P, leading, size))
            else:
                checks.shape(label, tensor, layout.state_shape(leading, size), layout.state_letters)
                parts.append(layout.state_to_rows(tensor))
        wide = state_dtype(like.dtype)
        return cls(parts[0], torch.stack([part.to(wide) for part in parts[1:]]), per_row)

    def layer(self, layer: int, K: int, N: int) -> tuple[Tensor, Tensor]:
        """``(h, s)`` of one layer as :func:`xlstm_fused.ops.recurrence` takes them, units split into N heads."""
        dim = 1 if self.per_row else 0
        h = self.h.narrow(dim, layer * K, K)
        others = self.others.narrow(dim + 1, layer * K, K)
        return h.unflatten(-1, (N, -1)).contiguous(), others.unflatten(-1, (N, -1)).contiguous()


def _is_per_row(first: Tensor, layout: Layout, leading: int, size: int) -> bool:
    return first.dim() == len(layout.time_shape) + 2 and tuple(first.shape) != layout.state_shape(leading, size)
