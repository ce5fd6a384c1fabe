"""The cells: what one time step of a recurrent layer computes.

Each module here is the definition of its cell; the C++, Triton and CUDA kernels must match it, gradients included.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import gru, lstm, slstm

Tensors = tuple[Tensor, ...]


class Cell(NamedTuple):
    """One recurrent cell, as pure functions of same-shaped tensors (no memory layout, no matrix product).

    ``state`` is a tuple ordered as ``states``, ``h`` first. ``pre`` is a tuple ordered as ``gates``: the
    pre-activations ``W x + b + R h``, of which the input has a part in ``input_gates`` and ``h`` in
    ``recurrent_gates``, as many of one as of the other. A layer's parameters have rows for those only, in that order;
    :meth:`all_gates` gives them rows for the rest.
    """

    name: str
    gates: tuple[str, ...]
    input_gates: tuple[str, ...]
    recurrent_gates: tuple[str, ...]
    states: tuple[str, ...]
    activate: Callable[[Tensors, Tensors], Tensors]
    """``activate(pre, state) -> gates``: the activated gates of one step, ``state`` being the one before it."""
    step: Callable[[Tensors, Tensors], Tensors]
    """``step(pre, state) -> next_state``."""
    step_backward: Callable[[Tensors, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
    """``step_backward(pre, state, next_state, d_next_state) -> (d_pre, d_state)``, the exact VJP of ``step``."""

    def all_gates(self, rows: Tensor, gates: tuple[str, ...], K: int = 1) -> Tensor:
        """Rows (K * len(gates) * H, ..) as (K * G * H, ..) for all G gates: zeros for those that are not in ``gates``.

        K is the number of directions.
        """
        if gates == self.gates:
            return rows
        given = dict(zip(gates, rows.unflatten(0, (K, len(gates), -1)).unbind(1)))
        zeros = torch.zeros_like(given[gates[0]])
        return torch.stack([given.get(gate, zeros) for gate in self.gates], 1).flatten(0, 2)


CELLS = {
    module.NAME: Cell(module.NAME, module.GATES, getattr(module, "INPUT_GATES", module.GATES),
                      getattr(module, "RECURRENT_GATES", module.GATES), module.STATES, module.activate, module.step,
                      module.step_backward)
    for module in (lstm, slstm, gru)
}
