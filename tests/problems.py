"""Recurrences to test backends with: random tensors over every row layout, as the ops layer takes them."""

from dataclasses import dataclass, field, replace

import torch

from xlstm_fused.cells import CELLS
from xlstm_fused.dtypes import state_dtype
from xlstm_fused.rows import Rows

LAYOUTS = {
    "time-major": lambda: Rows.dense(7, 5, False),
    "batch-first": lambda: Rows.dense(7, 5, True),
    "lengths": lambda: Rows.dense(7, 5, False, torch.tensor([3, 7, 1, 0, 7])),
    "batch-first lengths": lambda: Rows.dense(7, 5, True, torch.tensor([6, 1, 7, 2, 2])),
    "packed": lambda: Rows.packed(torch.tensor([5, 5, 3, 3, 3, 1, 1]), 21, torch.device("cpu")),
    "cu_seqlens": lambda: Rows.cumulative(torch.tensor([0, 4, 4, 11, 12, 18]), 18),
    "one step": lambda: Rows.dense(1, 5, False),
    "one sequence": lambda: Rows.dense(7, 1, True),
    "no sequence": lambda: Rows.dense(7, 0, False),
}

RESETS = ("none", "zero", "per sequence", "per row")


def reset_flags(rows):
    """Resets in first, last and adjacent rows and at random."""
    flags = (torch.rand(rows.P) < 0.3).to(torch.uint8)
    flags[:1] = flags[-1:] = 1
    flags[rows.P // 2:rows.P // 2 + 2] = 1
    return flags


@dataclass
class Problem:
    """The arguments of ``ops.recurrence``; ``tensors`` are those that gradients are taken of."""

    rows: Rows
    cell: str
    reverse: bool
    tensors: dict
    reset: torch.Tensor | None = None
    reset_per_row: bool = False
    h_mask: torch.Tensor | None = None
    cotangents: list = field(default_factory=list)

    @classmethod
    def random(cls, cell="lstm", layout="time-major", K=1, N=1, D=5, reverse=False, reset="none", masked=False,
               initial=True, dtype=torch.float64):
        rows = LAYOUTS[layout]() if isinstance(layout, str) else layout
        G, S = len(CELLS[cell].gates), len(CELLS[cell].states)
        P, B, wide = rows.P, rows.B, state_dtype(dtype)

        def other_states(*shape):
            values = torch.randn(S - 1, *shape, dtype=wide)
            if cell == "slstm":
                # The normaliser n is positive.
                values[1].exp_()
            return values

        tensors = {
            "wx": torch.randn(P, K, G, N, D).to(dtype),
            "weight_hh": (torch.randn(K, G, N, D, D) / D**0.5).to(dtype),
        }
        if initial:
            tensors |= {"h0": torch.randn(K, B, N, D).to(dtype), "s0": other_states(K, B, N, D)}
        per_row = reset == "per row"
        if reset in ("per sequence", "per row"):
            lead = (P, K) if per_row else (K, B)
            tensors |= {"reset_h": torch.randn(*lead, N, D).to(dtype), "reset_s": other_states(*lead, N, D)}
        mask = (torch.rand(K, B, N, D) < 0.7).to(dtype) / 0.7 if masked else None
        problem = cls(rows, cell, reverse, tensors, None if reset == "none" else reset_flags(rows), per_row, mask)
        problem.cotangents = [torch.randn(shape).to(kind) for shape, kind in (
            ((P, K, N, D), dtype), ((K, B, N, D), dtype), ((S - 1, K, B, N, D), wide), ((P, K, G, N, D), dtype),
            ((S - 1, P, K, N, D), wide))]
        return problem

    def to(self, dtype):
        """The same problem in another dtype, with values rounded to the current one."""
        def cast(name, value):
            return value.to(state_dtype(dtype) if name in ("s0", "reset_s") else dtype)

        wide = state_dtype(dtype)
        return replace(
            self, tensors={name: cast(name, value) for name, value in self.tensors.items()},
            h_mask=None if self.h_mask is None else self.h_mask.to(dtype),
            cotangents=[value.to(wide if index in (2, 4) else dtype) for index, value in enumerate(self.cotangents)])

    def on(self, device):
        """The same problem for tensors on ``device``, to which a function given to :meth:`run` moves them."""
        def moved(value):
            return None if value is None else value.to(device)

        rows = replace(self.rows, **{name: moved(getattr(self.rows, name))
                                     for name in ("time_offset", "batch_offset", "length")})
        return replace(self, rows=rows, reset=moved(self.reset), h_mask=moved(self.h_mask))

    def run(self, function):
        """``(values, gradients)`` of ``function(tensors, problem) -> (output, h_n, s_n, pre, states)``, as dicts."""
        tensors = {name: value.clone().requires_grad_() for name, value in self.tensors.items()}
        values = function(tensors, self)
        # Of a cell with one state, the others have no elements, and autograd knows nothing of them.
        wanted = [(value, d) for value, d in zip(values, self.cotangents) if value.numel() or value.requires_grad]
        gradients = torch.autograd.grad([value for value, _ in wanted], list(tensors.values()), [d for _, d in wanted],
                                        allow_unused=True)
        assert all(gradient is not None or value.numel() == 0 for gradient, value in zip(gradients, tensors.values()))
        gradients = [torch.zeros_like(value) if gradient is None else gradient
                     for gradient, value in zip(gradients, tensors.values())]
        names = ("output", "h_n", "s_n", "pre", "states")
        return dict(zip(names, values)), dict(zip(tensors, gradients))
