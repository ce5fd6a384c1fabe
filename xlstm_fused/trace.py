"""What happened inside a layer: activated gates and states at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from .cells import CELLS
from .layout import Layout
from .ops import before


@dataclass(frozen=True)
class LayerTrace:
    """One layer's activated gates and its states after each step, by name.

    Each tensor has the time shape of the input and K * H features, directions side by side as in the output:
    (T, B, K*H), (B, T, K*H) if batch_first, (T, K*H) unbatched, (rows, K*H) for packed input and cu_seqlens. Gates
    and states other than ``h`` are float32 (float64 in a float64 layer). All are differentiable; padding is zero.
    """

    gates: dict[str, Tensor]
    states: dict[str, Tensor]


class Trace(tuple[LayerTrace, ...]):
    """One :class:`LayerTrace` per layer, first layer first."""


def layer_trace(layout: Layout, cell: str, h: Tensor, pre: Tensor, states: Tensor, s0: Tensor | None,
                reset: Tensor | None, reset_s: Tensor | None, reset_per_row: bool, reverse: bool) -> LayerTrace:
    """The trace of one layer from what ``ops.recurrence(save=True)`` returned; ``h`` is (P, K*H)."""
    kind, rows = CELLS[cell], layout.rows
    directions = []
    for k in range(pre.shape[1]):
        backwards = (k == 1) != reverse
        previous = [
            before(value[:, k], None if s0 is None else s0[index, k], reset,
                   None if reset_s is None else reset_s[index, :, k] if reset_per_row else reset_s[index, k],
                   reset_per_row, rows, backwards)
            for index, value in enumerate(states)]
        # activate reads the states that follow h only.
        state = cast(tuple[Tensor, ...], (None, *previous))
        directions.append(kind.activate(pre[:, k].to(states.dtype).unbind(1), state))
    gates = [layout.zero_padding(torch.stack(values, 1)).flatten(1) for values in zip(*directions)]
    values = [h, *(value.flatten(1) for value in states)]
    return LayerTrace({name: layout.tensor_from_rows(value) for name, value in zip(kind.gates, gates)},
                      {name: layout.tensor_from_rows(value) for name, value in zip(kind.states, values)})
