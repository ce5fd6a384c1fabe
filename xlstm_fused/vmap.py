"""``torch.vmap`` of the registered ops: V recurrences as one.

With one recurrent matrix for all, V batches become one batch of V times as many sequences. With a matrix for each, V
recurrences become one with V times as many heads, if they agree on where rows lie and are reset. What remains (a
matrix and, say, lengths for each) is a loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .rows import Rows

_ROWS_OF_EACH = ("reset", "time_offset", "batch_offset", "length")

# Where the size P or B is in each argument and result; :func:`_reset_dims` has those of the reset states.
_BATCH_DIM = {
    "wx": 0, "pre": 0, "d_pre": 0, "output": 0, "d_output": 0, "reset": 0, "states": 1, "d_states": 1,
    "h0": 1, "h_n": 1, "d_h_n": 1, "h_mask": 1, "s0": 2, "s_n": 2, "d_s_n": 2, "length": 0,
}
_RESULTS = {
    "inference": ("output", "h_n", "s_n"),
    "forward": ("output", "h_n", "s_n", "pre", "states"),
    "backward": ("pre", "h0", "s0", "reset_h", "reset_s"),
}


def rule(name: str, names: tuple[str, ...], call: Callable) -> Callable:
    """The rule of op ``name`` with arguments ``names``; ``call`` takes what the op takes."""

    def run(info, in_dims, *arguments):
        V, dims = info.batch_size, dict(zip(names, in_dims))
        given = dict(zip(names, arguments))
        if dims["weight_hh"] is None and dims["time_offset"] is None:
            fold = _Sequences(V, given, dims)
        elif all(dims[each] is None for each in _ROWS_OF_EACH):
            fold = _Heads(V, given, dims)
        else:
            parts = [call(*(value if dim is None else value.select(dim, v) for value, dim in zip(arguments, in_dims)))
                     for v in range(V)]
            return tuple(torch.stack(values) for values in zip(*parts)), (0,) * len(parts[0])
        results = call(*fold.arguments().values())
        return zip(*(fold.split(each, value) for each, value in zip(_RESULTS[name], results)))

    return run


class _Fold:
    """V problems as one whose arguments have V times the size in one dimension each, :meth:`_dim`.

    V is the outer part of that dimension if ``outer``, else the inner one.
    """

    outer = True

    def __init__(self, V: int, given: dict, dims: dict):
        self.V, self.given, self.dims = V, given, dims

    def _dim(self, name: str, value: Tensor) -> int:
        raise NotImplementedError

    def _join(self, name: str, value: Tensor, vmapped: int | None) -> Tensor:
        if vmapped is None:
            dim = self._dim(name, value)
            value = value.unsqueeze(dim if self.outer else dim + 1)
            value = value.expand(*[self.V if size == 1)
