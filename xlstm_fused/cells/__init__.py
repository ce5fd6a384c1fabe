"""The cells: what one time step of a recurrent layer computes.

Each module here is the definition of its cell; the C++, Triton and CUDA kernels must match it, gradients included.
"""

from typing import Callable, NamedTuple

from torch import Tensor

from . import lstm, slstm

Tensors = tuple[Tensor, ...]


class Cell(NamedTuple):
    """One recurrent cell, as pure functions of same-shaped tensors (no memory layout, no matrix product).

    ``state`` is a tuple ordered as ``states``, ``h`` first. ``pre`` is a tuple ordered as ``gates``: the
    pre-activations ``W x + b + R h``.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    activate: Callable[[Tensors, Tensors], Tensors]
    """``activate(pre, state) -> gates``: the activated gates of one step, ``state`` being the one before it."""
    step: Callable[[Tensors, Tensors], Tensors]
    """``step(pre, state) -> next_state``."""
    step_backward: Callable[[Tensors, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
    """``step_backward(pre, state, next_state, d_next_state) -> (d_pre, d_state)``, the exact VJP of ``step``."""


CELLS = {
    module.NAME: Cell(module.NAME, module.GATES, module.STATES, module.activate, module.step, module.step_backward)
    for module in (lstm, slstm)
}
